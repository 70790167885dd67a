"""Tests of the table of pointwise and reduction kernels on small CPU tensors: rows, correctness check, goals, text."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench.tables import pointwise as pointwise_table

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    """Every call runs once on the same tensors and counts as 2 ms, the copy as 1 ms."""

    def timed(calls, sets, device):
        for call in calls.values():
            call(sets[0])
        return {name: 1.0 if name == "copy" else 2.0 for name in calls}

    monkeypatch.setattr(pointwise_table, "timed", timed)


def table(**changes):
    result, saved = {"device": "a CPU"}, []
    small = {"batch": 2, "maps": ((5, 7), (16, 4)), "dtypes": (torch.float32, torch.bfloat16)}
    pointwise_table.table(CPU, result, lambda: saved.append(json.dumps(result)), **{**small, **changes})
    assert json.loads(saved[-1]) == result
    return result


def test_every_pass_is_right_and_counted(quick):
    result = table()
    assert len(result["passes"]) == 2 * 2 * 2 * len(pointwise_table.PASSES) and not result["not_run"]
    for row in result["passes"]:
        size = 2 * row["channels"] * row["size"] ** 2 * (4 if row["dtype"] == "float32" else 2)
        assert row["gb_s"]["native"] == pytest.approx(row["maps"] * size / 2e6)
        assert row["of_copy"] == {"native": 0.5} and row["gb_s"]["copy"] == 2 * row["gb_s"]["native"]
    text = pointwise_table.show(result)
    assert "backward, residual" in text and "16x4x4" in text and "backend native" in text


@pytest.mark.parametrize("name", pointwise_table.PASSES)
def test_the_copy_moves_as_many_bytes_as_the_pass(name):
    """A pass reads and writes as many feature maps as it states."""
    one = pointwise_table.PASSES[name]
    tensors = pointwise_table.inputs(one, 16, 4, 2, torch.bfloat16, "NCHW", CPU)
    assert set(tensors) == {*one.reads, "half", "means", "vectors"}
    outputs = pointwise_table.run(torch.ops.atrous, one.call(tensors))
    read = [value.data_ptr() for value in one.call(tensors) if isinstance(value, torch.Tensor) and value.dim() == 4]
    assert len(set(read)) == len(one.reads)
    written = [y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if y.dim() == 4 and y.numel()]
    assert len(written) == one.writes and 2 * tensors["half"].nbytes == one.maps * tensors["z"].nbytes


@pytest.mark.parametrize("name", pointwise_table.PASSES)
def test_a_wrong_result_is_not_timed(quick, monkeypatch, name):
    def off(*call):
        outputs = getattr(torch.ops.atrous, name_of_op)(*call)
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(value * 1.1 for value in values)

    one = pointwise_table.PASSES[name]
    name_of_op = one.call(pointwise_table.inputs(one, 5, 7, 2, torch.float32, "NCHW", CPU))[0]
    monkeypatch.setattr(pointwise_table, "backends", lambda device: {"native": SimpleNamespace(**{name_of_op: off})})
    monkeypatch.setattr(pointwise_table, "PASSES", {name: one})
    result = table()
    assert not result["passes"] and all("AssertionError: native" in entry["reason"] for entry in result["not_run"])


@pytest.mark.parametrize("fraction, state", [(0.86, "reached"), (0.84, "not reached")])
def test_the_slowest_pass_decides(fraction, state):
    row = {"pass": "bn_act", "channels": 64, "layout": "NCHW", "dtype": "bfloat16"}
    rows = [{**row, "of_copy": {"native": value}} for value in (0.9, fraction)]
    rows[1]["pass"] = "statistics"
    native, triton = pointwise_table.goals({"passes": rows}, 2)
    assert native["state"] == state and "statistics, 64 channels, NCHW" in native["measured"]
    assert triton["state"] == "not measured"


@pytest.mark.gpu
def test_a_pass_on_the_gpu():
    gpu = torch.device("cuda")
    row = pointwise_table.measure("backward, residual", 64, 56, "channels_last", 8, torch.bfloat16, gpu)
    assert {"triton", "copy"} <= row["ms"].keys() and min(row["ms"].values()) > 0

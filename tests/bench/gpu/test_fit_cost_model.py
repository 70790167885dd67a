"""Tests of the cost model's fit: from times that the model computed with other constants it recovers those."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("triton")

from atrous.triton_kernels.conv import configs
from atrous.triton_kernels.conv.cost_model import Rates, clocks, rates
from bench.gpu import fit_cost_model as fitting

RESNET34 = [
    (64, 56, 64, 1),
    (64, 56, 128, 2),
    (128, 28, 128, 1),
    (128, 28, 256, 2),
    (256, 14, 256, 1),
    (512, 7, 512, 1),
]
OTHER = Rates(mma=1100, l2=42, memory=9, start=3500, pointers=1.6)  # each of these bounds some config


def tuned(model: Rates, mhz: float, noise: float = 0.0) -> dict:
    """The output of tune for a GPU that behaves exactly as the model."""
    draw, entries = random.Random(7), []
    for batch in (1, 256):
        for in_channels, size, out_channels, stride in RESNET34:
            key = {
                "in_channels": in_channels, "out_channels": out_channels, "size": [size, size], "kernel": [3, 3],
                "stride": [stride, stride], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "batch": batch,
                "dtype": "bfloat16", "layout": "channels_last", "tf32": False,
            }  # fmt: skip
            layer = fitting.conv_key(key, 90, 132)._replace(precision="tf32")
            times = {"library": 1.0}
            for config in configs.conv_prune(layer):
                microseconds = clocks(configs.conv_work(layer, config), model) / mhz * (1 + noise * draw.gauss(0, 1))
                times[f"triton {config.describe()}"] = microseconds / 1e3
            entries.append({"layer": "a", "key": key, "milliseconds": times})
    return {"device": "a GPU", "entries": entries}


def fitted(value: dict, mhz: float) -> Rates:
    measured = fitting.read(value, 90, 132)
    return fitting.fit(measured, rates(90, 2), mhz)


def test_the_fit_recovers_the_constants():
    result = fitted(tuned(OTHER, 1600), 1600)
    assert all(abs(a / b - 1) < 0.02 for a, b in zip(result, OTHER)), result


def test_the_fit_recovers_them_from_noise():
    result = fitted(tuned(OTHER, 1600, noise=0.05), 1600)
    assert all(abs(a / b - 1) < 0.1 for a, b in zip(result, OTHER)), result


def test_rates_that_bound_nothing_are_named():
    """With so slow an L2 no config is bound by the tensor cores."""
    slow = OTHER._replace(l2=12)
    measured = fitting.read(tuned(slow, 1600), 90, 132)
    assert fitting.undetermined(measured, slow, 1600) == ["mma"]
    assert fitting.undetermined(fitting.read(tuned(OTHER, 1600), 90, 132), OTHER, 1600) == []


def test_the_report(tmp_path, capsys):
    """The fitted model ranks the configs of every layer as the times do, that of gpus.def does not."""
    path = tmp_path / "tune.json"
    path.write_text(json.dumps({"tune": [tuned(OTHER, 1755)]}))
    fitting.main([str(path)])
    head, names, table, fit = capsys.readouterr().out.splitlines()
    assert "12 layers" in head and names.split()[-4:] == ["error", "rank", "first", "worst"]
    (table_error, table_rank), (error, rank, first, _) = (map(float, table.split()[6:8]), map(float, fit.split()[6:]))
    assert error < 0.01 < table_error and rank > 0.999 > table_rank and first < 1.001


def test_nothing_measured_is_one_sentence(tmp_path):
    path = tmp_path / "tune.json"
    path.write_text('{"entries": []}')
    with pytest.raises(SystemExit, match="expected measured configs of the Triton convolution"):
        fitting.main([str(path)])

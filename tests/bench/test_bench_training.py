"""Tests of the training table on small images on the CPU: rows, goals, text."""

import pytest
import torch

from bench.tables import training as training_table


@pytest.fixture
def two_variants(monkeypatch):
    variants = {name: training_table.VARIANTS[name] for name in ("eager_channels_last", "atrous")}
    monkeypatch.setattr(training_table, "VARIANTS", variants)
    monkeypatch.setattr(
        training_table, "medians", lambda calls, *_: {name: [call(), 2.0][1] for name, call in calls.items()}
    )


@pytest.mark.gate
def test_a_row_of_each_batch(two_variants):
    result = {"device": "cpu"}
    seconds = {"steps": 600.0}
    training_table.table(torch.device("cpu"), result, lambda: None, batches=(2,), size=32, seconds=seconds)
    (row,) = result["steps"]
    assert "partial" not in row and "max_autotune" not in result
    assert row["ms"].keys() == row["peak"].keys() == {"eager_channels_last", "atrous"} and not row["missing"]
    assert all(entry["state"] == "not measured" for entry in result["goals"])
    assert "atrous" in training_table.show(result)


@pytest.mark.parametrize("ours, states", [((80.0, 0.5), "reached"), ((90.0, 0.7), "not reached")])
def test_goals(ours, states):
    ms = {"eager_channels_last": 150.0, "compile": 100.0, "atrous": ours[0]}
    peak = {"eager_channels_last": 1.0, "compile": 0.9, "atrous": ours[1]}
    checked = training_table.goals({"steps": [{"batch": 256, "ms": ms, "peak": peak}]})
    assert [entry["state"] for entry in checked] == [states, states]
    assert checked[0]["measured"] == f"{100 / ours[0]:.2f} (atrous)"

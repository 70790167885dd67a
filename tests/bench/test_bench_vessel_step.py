"""bench.commands.vessel_step on a tiny network: a row of each activation, and which rows reach their goals."""

import json

import pytest

from bench.commands import vessel_step

pytestmark = pytest.mark.gate  # it trains


def test_a_row_of_each_activation(tmp_path, capsys):
    arguments = [
        "--batch",
        "2",
        "--width",
        "8",
        "--patch",
        "24",
        "--seconds",
        "0.1",
        "--json",
        str(tmp_path / "a.json"),
    ]
    vessel_step.main(arguments)
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["act"] for row in rows] == list(vessel_step.ACTS)
    assert all(0 < row["saved"] < 1 and set(row["median_ms"]) == set(vessel_step.PEERS) for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    "fused, saved, state", [(79.0, 0.5, ": reached"), (81.0, 0.5, ": not reached"), (79.0, 0.51, "not reached")]
)
def test_goals(fused, saved, state):
    times = {"plain": 100.0, "plain channels_last": 90.0, "fused": fused}
    line = vessel_step.text({"act": "prelu", "median_ms": times, "saved": saved, "saved_in_place": 0.7})
    assert f"{state})" in line and f"{100 / fused:.2f}x plain," in line


def test_other_losses_are_an_error(monkeypatch):
    monkeypatch.setattr(vessel_step, "BOUND", 0)
    with pytest.raises(RuntimeError, match="relu: expected losses within 0"):
        vessel_step.main(["--batch", "2", "--width", "8", "--patch", "24", "--seconds", "0.1"])

"""The host-time benchmark: its rows compute what plain torch does, and a row over its budget is named."""

import json

import pytest
import torch

from bench.commands import compile_time, host_time
from bench.commands.host_time import Row


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.gate
def test_every_row_agrees_with_its_peer(monkeypatch):
    host_time.compare("")
    rows = list(host_time.rows())
    assert len({row.name for row in rows}) == len(rows) == 18
    result = host_time.measured(rows[-1], rounds=1)
    assert result["ratio"] > 0 and result["budget"] == rows[-1].budget
    wrong = rows[-1]._replace(ours=rows[-2].ours)
    monkeypatch.setattr(host_time, "rows", lambda: iter([wrong]))
    with pytest.raises(AssertionError, match="not close|Mismatched|equal|shape"):
        host_time.compare("")
    assert torch.get_default_dtype() == torch.float32


def test_a_row_over_its_budget(monkeypatch, tmp_path, capsys):
    calls = torch.zeros(1).add, torch.zeros(1).add
    slow, fast = (
        Row(name, lambda: calls[0](1), lambda: calls[1](1), budget) for name, budget in (("slow", 0.0), ("fast", 1e9))
    )
    monkeypatch.setattr(host_time, "rows", lambda: iter((slow, fast)))
    file = tmp_path / "rows.json"
    assert host_time.main(["--json", str(file), "--rounds", "1"]) == 1
    output = capsys.readouterr()
    assert output.err == "over budget: slow\n" and "fast" in output.out
    assert [row["row"] for row in json.loads(file.read_text())["rows"]] == ["slow", "fast"]
    assert host_time.main(["--rounds", "1", "--row", "fast"]) == 0


def test_a_first_call_over_its_budget(monkeypatch, tmp_path, capsys):
    times = iter([5.0, 3.0, 5.0, 4.5, 7.0, 9.0])
    monkeypatch.setattr(compile_time, "measured", lambda mode: next(times))
    file = tmp_path / "rows.json"
    assert compile_time.main(["--json", str(file)]) == 1
    over = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("over budget")]
    assert over == ["frozen"] and [row["mode"] for row in json.loads(file.read_text())["rows"]] == [
        *compile_time.BUDGETS
    ]

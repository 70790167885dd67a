"""launches.py names each launch before it runs, and goes on after one that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import launches
import pytest
import torch


def fails():
    raise RuntimeError("an illegal memory access was encountered")


def test_it_goes_on_after_a_failure(capsys):
    nan = torch.full((3,), float("nan"))
    named = [("first", fails), ("second", lambda: torch.ones(3)), ("third", lambda: (torch.ones(2), nan))]
    assert launches.main(named) == 1
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "first: FAILED, RuntimeError: an illegal memory access was encountered",
        "second: done",
        "third: FAILED, not all of its output is finite",
        "3 launches, 2 failed",
    ]
    assert launches.main(named[1:2]) == 0


def test_the_last_line_names_what_ended_the_process():
    program = "import launches, os; launches.main([('one', lambda: (os.kill(os.getpid(), 9),))])"
    folder = Path(launches.__file__).parent
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert run.returncode == -9 and run.stdout == "one: "


def test_reductions_of_one_program_and_of_several():
    """In every layout, on any GPU: what the maps of launches.py are there for."""
    pytest.importorskip("triton")
    from atrous.triton_kernels import pointwise, pointwise_configs, reduction_plan

    found: dict[str, list[bool]] = {}
    for size, layout in launches.MAPS:
        view = pointwise.describe("z", torch.empty(size, dtype=launches.DTYPE, memory_format=layout))
        rows = view.channels if view.key.layout == "planes" else view.key.rows
        config = pointwise_configs.pointwise_config(view.key._replace(rows=rows))
        shares = reduction_plan.grid(view.key, view.channels, config, 84).shares
        found.setdefault(view.key.layout, []).append(shares > 1)
    assert found == dict.fromkeys(("last", "planes", "flat"), [False, True])

"""launches.py names each launch before it runs, and goes on after one that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import launches
import pytest
import torch


def fails():
    raise RuntimeError("too many resources requested for launch")


def test_it_goes_on_after_a_failure(capsys):
    nan = torch.full((3,), float("nan"))
    named = [("first", fails), ("second", lambda: torch.ones(3)), ("third", lambda: (torch.ones(2), nan))]
    assert launches.main(named) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "first: FAILED, RuntimeError: too many resources requested for launch",
        "second: done",
        "third: FAILED, not all of its output is finite",
        "3 launches, 2 failed",
    ]
    assert launches.main(named[1:2]) == 0


class Replaced(Exception):
    """Raised in place of os.execv, which does not return."""


def test_after_an_illegal_access_a_new_process_goes_on(monkeypatch, capsys):
    """The old process runs no other launch."""
    done, started = [], []

    def exec_(python, command):
        started.append(command)
        raise Replaced

    named = [(name, lambda name=name: done.append(name) or torch.ones(1)) for name in "abcd"]
    named[1] = ("b", fails)
    monkeypatch.setattr(launches.os, "execv", exec_)
    monkeypatch.setattr(launches.sys, "argv", ["launches.py", "--one"])
    monkeypatch.setattr(launches.testing, "gpu_lost", lambda: True)
    with pytest.raises(Replaced):
        launches.main(named)
    assert done == ["a"] and started[0][2:] == [launches.__file__, "--one", "--done", "2", "--failed", "1"]
    assert launches.main(named, 2, 1) == 1 and done == ["a", "c", "d"]
    assert capsys.readouterr().out.splitlines()[-1] == "4 launches, 1 failed"


def test_one_launch_of_each_kernel():
    """Few enough for memcheck: each pass in each layout, each addressing mode of a convolution, first a dilated one."""
    pytest.importorskip("triton")
    conv = "triton conv_epilogue (2, 64, 9, 11) * (72, 64, 3, 3) {}"
    labels = [conv.format(f"{tile}{mode}") for tile in ("64x64x128B w4 s4 ", "64x128x64B w8 s4 ")
              for mode in ("tma", "tma persistent2", "ptr", "ptr split2")]  # fmt: skip
    labels += ["triton conv_epilogue (2, 3, 9, 11) * (33, 3, 7, 7) predicted config"]
    labels += [f"native conv_epilogue (2, 3) * (3, 3) {tile}" for tile in ("mma-64x64", "wgmma-64x64", "mma-128x64")]
    labels += [f"native epilogue{more} {size} {layout} {kind}" for more in ("", " with dropout")
               for size, layout in launches.SIZES for kind in ("relu", "random")]  # fmt: skip
    first = [label for label, _ in launches.one((label, fails) for label in labels)]
    assert first[:4] == labels[:4] and first[4:7] == [labels[8], labels[9], labels[10]] and len(first) == 7 + 2 * 2


def test_the_last_line_names_what_ended_the_process():
    program = "import launches, os; launches.main([('one', lambda: (os.kill(os.getpid(), 9),))])"
    folder = Path(launches.__file__).parent
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert run.returncode == -9 and run.stdout == "one: "


def test_reductions_of_one_program_and_of_several():
    """The sizes of launches.py give both in every layout, on any GPU."""
    pytest.importorskip("triton")
    from atrous.triton_kernels.pointwise import configs as pointwise_configs
    from atrous.triton_kernels.pointwise import operands, reduction_plan

    several: dict[str, list[bool]] = {}
    for size, layout in launches.SIZES:
        view = operands.describe("z", torch.empty(size, dtype=launches.DTYPE, memory_format=layout))
        rows = view.channels if view.key.layout == "nchw" else view.key.rows
        config = pointwise_configs.pointwise_config(view.key._replace(rows=rows))
        splits = reduction_plan.grid(view.key, view.channels, config, 84).splits
        several.setdefault(view.key.layout, []).append(splits > 1)
    assert several == dict.fromkeys(("nhwc", "nchw", "nchw_flat"), [False, True])

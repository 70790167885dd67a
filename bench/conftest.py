"""pytest bench: check and time each case, its providers in turns, print ratios at the end, and write a results file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import ceilings, measure, record, summary
from bench.subjects import peers
from bench.subjects.subject import DEVICE

ROWS = pytest.StashKey[list[measure.Row]]()
CEILINGS = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--full", action="store_true", help="also torch.compile's max-autotune, and the sweeps")
    group.addoption("--providers", metavar="A,B", help="only providers whose names begin so, beside the baseline")
    group.addoption("--results", metavar="FOLDER", type=Path, help="write cpu-<instructions>-<date>.json there")


def pytest_configure(config):
    config.stash[ROWS], config.stash[CEILINGS] = [], {}


def pytest_collect_file(file_path, parent):
    chosen = file_path.stem != "bench_sweeps" or parent.config.getoption("full")
    if file_path.name.startswith("bench_") and file_path.suffix == ".py" and chosen:
        return pytest.Module.from_parent(parent, path=file_path)


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.no_grad(), measure.recompiles():
        yield
    torch.compiler.reset()


@pytest.fixture
def full(request):
    return request.config.getoption("full")


@pytest.fixture
def compare(benchmark, request):
    """compare(part, name, subjects): a row of the part's table, and an entry of pytest-benchmark, for each provider.

    seconds: of measurement. copies: one call's time is divided by it. more: fields of the rows.
    """
    names = tuple((request.config.getoption("providers") or "").split(","))

    def run(part, name, subjects, seconds=4.0, copies=1, **more):
        case = measure.Case(part, name)
        case.prepare(subjects, lambda provider: provider.startswith(names))
        benchmark._mode = "interleaved"  # else pytest-benchmark warns that nothing was measured
        if benchmark.disabled:
            return
        times = {key: [ms / copies for ms in values] for key, values in case.times(seconds).items()}
        rows = list(case.rows(times, **more))
        request.config.stash[ROWS] += rows
        for row, values in zip(rows, times.values()):
            _entry(benchmark, row, values)

    return run


def _entry(benchmark, row, values):
    """Adds an entry to pytest-benchmark's JSON. It has no public way to add values that were measured elsewhere."""
    entry = benchmark._make_stats(iterations=1)
    provider = f"[{row['provider']} {row['dtype']}]"
    entry.name, entry.fullname = entry.name + provider, entry.fullname + provider
    entry.group, entry.extra_info = f"{row['part']} {row['case']}", row
    for ms in values:
        entry.update(ms / 1e3)


@pytest.fixture
def add_row(request):
    """add_row(row): a row that has no time."""
    return request.config.stash[ROWS].append


@pytest.fixture(scope="session")
def machine_ceilings(request):
    """Measures the processor's ceilings once, for the results file."""
    if not request.config.getoption("benchmark_disable"):
        request.config.stash[CEILINGS] |= ceilings.measure()


def pytest_terminal_summary(terminalreporter, config):
    rows, folder = config.stash[ROWS], config.getoption("results")
    if not rows:
        return
    tops = config.stash[CEILINGS]
    terminalreporter.section("results")
    terminalreporter.write_line(summary.text(rows, tops))
    if folder and DEVICE.type == "cpu":
        path = record.cpu_file(folder)
        versions = {name: record.distribution(name) for name in peers.DISTRIBUTIONS}
        record.write_rows(path, rows, ceilings=tops, peers=versions)
        terminalreporter.write_line(f"results: {path}")

"""pytest bench: check correctness, time each provider alternately with eager, print the ratios at the end."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest
import torch

from atrous.tools import timing
from bench.providers import DEVICE, Subject

SECONDS = 0.8  # per provider, including the eager calls that alternate with it
RESULTS = pytest.StashKey[dict[str, dict[str, tuple[float, float]]]]()


def pytest_configure(config):
    config.stash[RESULTS] = defaultdict(dict)


def pytest_collect_file(file_path, parent):
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.fixture
def compare(benchmark, request):
    """compare(case, provider, subject): benchmark a provider; its rounds alternate with eager's, whose median it is
    divided by."""

    def run(case: str, provider: str, subject: Subject) -> None:
        try:
            call = subject.call(provider)
        except ValueError as reasons:
            pytest.skip(f"{provider}: {reasons}")
        subject.check(call())
        eager: list[float] = []
        once = timing.milliseconds(call, DEVICE) + timing.milliseconds(subject.eager, DEVICE)
        benchmark.group = case
        benchmark.pedantic(
            lambda: _finished(call),
            setup=lambda: eager.append(timing.milliseconds(lambda: _finished(subject.eager), DEVICE)),
            rounds=max(5, min(100, int(SECONDS * 1e3 / once))),
            warmup_rounds=2,
        )
        if benchmark.stats:  # None under --benchmark-disable
            median, peer = benchmark.stats.stats.median * 1e3, statistics.median(eager)
            benchmark.extra_info.update(provider=provider, device=DEVICE.type, speedup_vs_eager=peer / median)
            request.config.stash[RESULTS][case][provider] = (peer / median, median)

    return run


def _finished(call):
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("speed-up over eager, same tensors and layout (median ms)")
    for case, providers in results.items():
        terminalreporter.write_line(case)
        for provider, (ratio, median) in sorted(providers.items(), key=lambda item: -item[1][0]):
            terminalreporter.write_line(f"  {provider:<18}{ratio:>7.2f}x{median:>11.3f}")

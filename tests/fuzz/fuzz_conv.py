"""Fuzzes the convolution: draws random calls and models, and compares the results with plain torch in fp64.

    python tests/fuzz/fuzz_conv.py --seed 3 --count 1000 --models 50 --backend all --json out/fuzz.json

A case is plain data, which hypothesis draws and, if it fails, simplifies. An operator call runs twice in memory that is
NaN until it is written: both results must be bit-identical and within the error budget of atrous.testing, and the
memory around the operands unchanged. A model is fused or frozen, and compared with itself called the same way. On a
CPU, TRITON_INTERPRET=1 adds Triton, and `--backend emulation` is csrc/cuda compiled as C++ for the CPU (cuda_host.py).

Operator calls: fuzz_draws.py draws a case (fuzz_cases.py), fuzz_operands.py makes its tensors, fuzz_runs.py computes
it, by a backend and in plain torch, and fuzz_check.py compares the two. Models: fuzz_model_draws.py, fuzz_models.py and
fuzz_fused.py. fuzz_report.py counts and writes.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"
sys.path[:0] = [str(SUPPORT / name) for name in (".", "fusion", "kernels", "host_cuda")]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP: see conftest.py
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts operators, would print each start

import hypothesis  # noqa: E402
import oracle  # noqa: E402
import torch  # noqa: E402
import triton_cases as cases  # noqa: E402
from fuzz_backends import backends_of  # noqa: E402
from fuzz_cases import Case  # noqa: E402
from fuzz_check import check_call  # noqa: E402
from fuzz_draws import operator_cases  # noqa: E402
from fuzz_fused import check_model  # noqa: E402
from fuzz_model_draws import model_cases  # noqa: E402
from fuzz_models import Model  # noqa: E402
from fuzz_report import JSON, Report, from_text  # noqa: E402

from atrous.backends import selection  # noqa: E402
from atrous.testing import gpu_lost  # noqa: E402

# Cases that hypothesis draws at once, the simplest first. From the eleventh on it would mostly vary earlier ones, and
# leave out rare kinds.
BATCH = 10


class Stop(BaseException):
    """Ends a run. Hypothesis would take an Exception for a failure of the case."""


class Draws:
    """The cases of one kind and backend."""

    def __init__(self, strategy: Callable, backend: str, count: int):
        self.strategy, self.backend, self.left, self.number = strategy, backend, count, 0
        self.seen: set[int] = set()  # hashes of the cases that ran

    def run_batch(self, options: argparse.Namespace, report: Report, end: float) -> None:
        """Draws and checks some cases; adds the first failure, simplified, to the report."""
        self.number += 1
        phases = [hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * options.shrink
        failed: list[tuple[Case | Model, str]] = []

        @hypothesis.seed(zlib.crc32(f"{options.seed} {self.strategy.__name__} {self.backend} {self.number}".encode()))
        @hypothesis.settings(
            max_examples=BATCH, phases=phases, database=None, deadline=None, report_multiple_bugs=False,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
        )  # fmt: skip
        @hypothesis.given(self.strategy(self.backend, options.device))
        def test(case: Case | Model) -> None:
            if not failed and (self.left == 0 or hash(case) in self.seen):
                return
            if time.monotonic() > end and not failed:
                raise Stop
            self.seen.add(hash(case))
            try:
                called = check(case)
            except Exception as error:
                self.count(report, case, {}, failed)
                failed.append((case, first_line(error)))
                if options.device == "cuda" and gpu_lost():
                    raise Stop from error  # nothing runs in this process any more
                raise
            self.count(report, case, called, failed)

        try:
            test()
        except Exception:
            if not failed:
                raise
        finally:
            if failed:
                report.fail(*failed[-1])  # the last is the simplest

    def count(self, report: Report, case: Case | Model, called: dict, failed: list) -> None:
        """Counts the cases that are drawn, without those that simplify a failure."""
        if not failed:
            self.left -= 1
            report.count(case, called)


def check(case: Case | Model) -> dict:
    return oracle.retried(check_model if isinstance(case, Model) else check_call, case)


def fuzz(options: argparse.Namespace) -> int:
    """Runs cases until the count or the time is used up. Returns the number of failures."""
    backends, end = backends_of(options), time.monotonic() + (options.seconds or math.inf)
    report = Report(options.seed, options.device, options.json)
    tracing = [name for name in backends if name != "triton" or options.device == "cuda"]  # not when interpreted
    kinds = ((operator_cases, backends, options.count), (model_cases, tracing, options.models))
    for strategy, names, total in kinds:
        counts = (len(range(i, total, len(names))) for i in range(len(names)))
        draws = [Draws(strategy, *each) for each in zip(names, counts)]
        with contextlib.suppress(Stop):
            while (left := [each for each in draws if each.left]) and len(report.failures) < options.failures:
                for each in left:
                    if len(report.failures) < options.failures:
                        each.run_batch(options, report, end)
    report.write()
    report.print()
    return len(report.failures)


def repeat(options: argparse.Namespace) -> int:
    """Runs the case of the options. Returns 1 if it fails, as it is reported."""
    options.backend, options.device = options.case.backend, options.case.device
    report = Report(options.seed, options.device, options.json)
    backends_of(options)
    try:
        report.count(options.case, check(options.case))
    except Exception as error:
        report.fail(options.case, first_line(error))
    report.print()
    return len(report.failures)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare random convolutions and fused models with plain torch in fp64.",
        epilog=JSON, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--count", type=int, help="number of operator calls (default: 1000, or no end with --seconds)")
    add("--models", type=int, default=0, help="number of models, besides (default: %(default)s)")
    add("--seconds", type=float, help="stop after so many seconds")
    add("--case", type=from_text, help="run this case alone, as a failure prints it")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--backend", default="all", choices=(*selection.backends(), "auto", "all", "emulation"))
    add("--library", type=Path, help="library of the backend emulation (default: build it)")
    add("--failures", type=int, default=20, help="stop after so many failures (default: %(default)s)")
    add("--no-shrink", dest="shrink", action="store_false", help="print failures as drawn, without simplifying them")
    add("--json", type=Path, help="file of the results, written as they come")
    options = parser.parse_args(arguments)
    if options.count is None:
        options.count = sys.maxsize if options.seconds else 1000
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a CUDA device, found none")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return min(1, repeat(options) if options.case else fuzz(options))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Using padding='same'")  # torch's, once a process
    if cases.INTERPRETING:
        import quick_interpreter

        quick_interpreter.quicken()
    sys.exit(main())

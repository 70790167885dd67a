"""Fuzzes the convolution: draws random calls and compares a backend's results with the fp64 oracle.

    python tests/fuzz/fuzz_conv.py --seed 3 --count 1000 --backend all

A case is plain data that depends only on the seed, its number, the backend and the device. Each runs twice in memory
that is NaN until it is written: both results must be bit-identical and within the error budget of atrous.testing, and
the memory around the operands unchanged. On a CPU, TRITON_INTERPRET=1 adds Triton, and `--backend emulation` is
csrc/cuda compiled as C++ for the CPU (cuda_host.py). fuzz_cases.py draws a case, fuzz_operands.py makes its tensors,
fuzz_runs.py computes it, by a backend and in plain torch, and fuzz_check.py compares the two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parents[1] / "support"
sys.path[:0] = [str(SUPPORT), str(SUPPORT / "host_cuda")]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP: see conftest.py

import torch  # noqa: E402
import triton_cases as cases  # noqa: E402
from fuzz_cases import Case, draw_case  # noqa: E402
from fuzz_check import failure, shrink  # noqa: E402

from atrous.backends import aten, selection  # noqa: E402
from atrous.core.spec import Epilogue, flat  # noqa: E402


def emulation(library: Path | None) -> types.SimpleNamespace:
    """csrc/cuda on the CPU as a backend: like `native` on a GPU, without tensor cores."""
    if library is None:
        import cuda_host

        library = cuda_host.build(Path(tempfile.mkdtemp(prefix="atrous-emulation-")))
    torch.ops.load_library(library)
    host = torch.ops.atrous_host

    def primitive(name, x):
        return lambda *arguments: getattr(host, name)(*flat(*arguments))

    def conv_epilogue(input, weight, bias, spec, e):
        return host._conv_epilogue(*flat(input, weight, bias, spec, e))

    def convolution(input, weight, bias, spec):
        return conv_epilogue(input, weight, bias, spec, Epilogue())

    return types.SimpleNamespace(
        name="emulation",
        one_launch_statistics=False,
        available=lambda: [],
        reasons=lambda input, weight, spec: [],
        primitive=primitive,
        epilogue=lambda z, e: host._epilogue(z, *e),
        conv_epilogue=conv_epilogue,
        convolution=convolution,
        convolution_statistics=aten.with_statistics(convolution, primitive),
        convolution_backward=aten.convolution_backward,
    )


def backends_of(options: argparse.Namespace) -> list[str]:
    """The named backend, or every one that runs on this device. Exits with the reasons if there is none."""
    if options.backend == "emulation":
        selection._BACKENDS["emulation"] = emulation(options.library)
        return ["emulation"]
    like = torch.empty(0, device=options.device)
    refused = {name: selection.reasons(name, like) for name in selection.backends()} | {"auto": []}
    names = list(refused) if options.backend == "all" else [options.backend]
    for name in names:
        if refused[name]:
            print(f"{name}: {'; '.join(refused[name])}")
    running = [name for name in names if not refused[name]]
    return running or sys.exit(2)


def axes(case: Case) -> dict[str, str]:
    """The values that the summary counts, by axis."""
    spans = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel)]
    padding = case.padding if isinstance(case.padding, (str, int)) else "pair"
    multiplier = case.out_channels // case.groups
    grouped = "one" if case.groups == 1 else "groups" if case.channels > case.groups else "depthwise"
    pixels = math.prod(case.size)
    return {
        "form": case.form,
        "dtype": f"{case.dtype} {case.precision}" if case.dtype == "float32" else case.dtype,
        "batch": str(case.batch),
        "channels": str(case.channels),
        "pixels": next((f"at most {most}" for most in (1, 8, 64, 256) if pixels <= most), "more"),
        "kernel": "x".join(map(str, case.kernel)),
        "stride": "x".join(map(str, case.stride)),
        "padding": padding if isinstance(padding, str) else "number",
        "dilation": "1" if case.dilation == (1, 1) else "wider than input" if spans > list(case.size) else "dilated",
        "groups": f"{grouped} x{multiplier}" if grouped == "depthwise" else grouped,
        "layouts": " ".join(case.layouts),
        "memory": case.memory,
        "norm": f"{case.norm} {case.vectors}",
        "slope": case.slope,
        "residual": f"{case.residual} broadcast" if case.broadcast and case.residual != "none" else case.residual,
        "dropout": str(case.dropout),
    }


class Report:
    """Counts of drawn values and the failures; its file is valid JSON at all times."""

    def __init__(self, options: argparse.Namespace, backends: list[str]):
        self.options, self.backends, self.file, self.written = options, backends, options.json, 0.0
        self.done: Counter[str] = Counter()
        self.drawn: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []

    def count(self, case: Case, backend: str, chosen: list[str]) -> None:
        self.done[backend] += 1
        for axis, value in (*axes(case).items(), *(("config", config) for config in chosen[:1])):
            self.drawn.setdefault(axis, Counter())[value] += 1
        if time.monotonic() > self.written + 1:
            self.write()

    def fail(self, number: int, backend: str, case: Case, error: str) -> None:
        prefix = "TRITON_INTERPRET=1 " if cases.INTERPRETING else ""
        options = f"--seed {self.options.seed} --only {number} --device {self.options.device} --backend {backend}"
        again = f"{prefix}python tests/fuzz/fuzz_conv.py {options}"
        print(f"FAILED {again}\n    {error}", flush=True)
        least = shrink(case, backend, self.options.device, error) if self.options.shrink else case
        print(f"    {least}", flush=True)
        entry = {"number": number, "backend": backend, "error": error, "reproduce": again, "case": least._asdict()}
        self.failures.append(entry)
        self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        if self.file is None:
            return
        report = {"seed": self.options.seed, "device": self.options.device, "torch": torch.__version__}
        report |= {"done": self.done, "failures": self.failures, "drawn": self.drawn}
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(json.dumps(report, indent=1))
        os.replace(partial, self.file)

    def print(self) -> None:
        for axis, counts in self.drawn.items():
            most = ", ".join(f"{value} {count}" for value, count in counts.most_common(16))
            print(f"{axis}: {most}{f' and {len(counts) - 16} more' if len(counts) > 16 else ''}")
        done = ", ".join(f"{backend} {count}" for backend, count in self.done.items())
        print(f"seed {self.options.seed}: {done}; {len(self.failures)} failed")


def fuzz(options: argparse.Namespace) -> int:
    """Runs cases until the count or the time is used up. Returns the number of failures."""
    backends = backends_of(options)
    report, end = Report(options, backends), time.monotonic() + (options.seconds or math.inf)
    numbers = range(options.count) if options.only is None else [options.only]
    for number in numbers:
        if time.monotonic() > end or len(report.failures) == options.failures:
            break
        backend = backends[number % len(backends)]
        case, chosen = draw_case(options.seed, number, backend, options.device), []
        if (error := failure(case, backend, options.device, chosen)) is not None:
            report.fail(number, backend, case, error)
            if "CUDA error" in error:
                break  # nothing runs in this process any more
        report.count(case, backend, chosen)
    report.write()
    report.print()
    return len(report.failures)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare a backend's random convolutions with the fp64 oracle.")
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--count", type=int, help="total number of cases (default: 1000, or no end with --seconds)")
    add("--seconds", type=float, help="stop after so many seconds")
    add("--only", type=int, metavar="K", help="run only the case of this number")
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
    return 1 if fuzz(parse(arguments)) else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Using padding='same'")  # torch's, once a process
    if cases.INTERPRETING:
        import quick_interpreter

        quick_interpreter.quicken()
    sys.exit(main())

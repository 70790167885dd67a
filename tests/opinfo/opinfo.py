"""Runs PyTorch's own samples through every entry point and backend, and compares with plain torch.

    python tests/opinfo/opinfo.py --count 2 --seed 3 --backend native

A case is a sample, an entry point, a backend and a way: the values, or derivatives of one kind. opinfo_samples.py lists
torch's samples, opinfo_calls.py makes calls of them, and opinfo_check.py compares. Without --count every case runs and
the outcomes are counted against opinfo_counts.py; fuse() compiles each case, so of these --fused are drawn in any run.
On a CPU, TRITON_INTERPRET=1 adds Triton, for small tensors of the dtypes that the interpreter computes right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / "support" / name) for name in (".", "kernels")]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP: see conftest.py

import opinfo_counts  # noqa: E402
import torch  # noqa: E402
from opinfo_calls import ENTRIES, FOUR_D, FUNCTIONS, NotApplicable, call  # noqa: E402
from opinfo_check import SAME, WAYS, check  # noqa: E402
from opinfo_samples import ERRORS, OPERATORS, PLACES, databases, dtypes, lifted, samples  # noqa: E402
from parameters import CPU_BACKENDS, DTYPES  # noqa: E402

NAMES = (*OPERATORS, *PLACES)
NO_SAMPLES = 3  # exit status: this torch, or what is installed, lacks a piece of torch.testing
SUPPORTED = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
# Triton's interpreter computes these dtypes right, and small tensors in a short time.
INTERPRETED, ELEMENTS = ("float32", "float16", "float64"), 1000


class Case(NamedTuple):
    name: str
    dtype: str
    number: int
    lifted: bool  # to a 4-D input
    entry: str
    backend: str
    way: str

    def __str__(self) -> str:
        return " ".join(map(str, self._replace(lifted=int(self.lifted))))

    @property
    def group(self) -> tuple[str, ...]:
        return (self.name, self.entry) if self.entry == "fuse" else (self.name, self.entry, self.backend, self.way)


def cases(name: str, backends: list[str]) -> Iterator[Case]:
    """Every case of an operator or module. A call that raises needs no derivatives.

    An entry point that takes 4-D inputs gets a sample lifted, and as it is: torch's errors lifted alone, so that
    nothing else is wrong with them.
    """
    info, entries = databases()[name], ENTRIES if name in OPERATORS else ENTRIES[len(FUNCTIONS) :]
    derivatives = {"second": info.supports_gradgrad, "forward": getattr(info, "supports_forward_ad", True)}
    for dtype in dtypes(name):
        supported = dtype in SUPPORTED
        ways = [way for way in WAYS if derivatives.get(way, True)] if supported else WAYS[:1]
        for number, sample in enumerate(samples(name, dtype)):
            lifts = dtype in (*SUPPORTED, ERRORS) and lifted(sample) is not None
            for entry in entries if supported else entries[:-1]:
                four_d = lifts and entry in FOUR_D
                taken = [(True, way) for way in ways if four_d]
                if supported or not four_d:
                    taken += [(False, way) for way in (WAYS[:1] if four_d else ways)]
                for (shape, way), backend in itertools.product(taken, backends):
                    yield Case(name, dtype, number, shape, entry, backend, way)


def draw(listed: list[Case], options: argparse.Namespace) -> list[Case]:
    """--count cases of each group, or all; --fused cases of each operator or module through fuse()."""
    groups: dict[tuple, list[Case]] = defaultdict(list)
    for case in listed:
        groups[case.group].append(case)
    chosen = set()
    for group, members in groups.items():
        most = options.fused if members[0].entry == "fuse" else options.count or len(members)
        chosen |= set(random.Random(f"{options.seed} {group}").sample(members, min(most, len(members))))
    return [case for case in listed if case in chosen]


def outcome(case: Case) -> str:
    """The result of a case in words: that of check(), or why there is none; FAILED with the error."""
    sample = samples(case.name, case.dtype)[case.number]
    sample = lifted(sample) if case.lifted else sample
    if case.backend == "triton":
        tensors = [value for value in sample.arguments.values() if isinstance(value, torch.Tensor)]
        if case.dtype not in INTERPRETED or case.entry == "fuse" or any(t.numel() > ELEMENTS for t in tensors):
            return "left out: the interpreter"
    try:
        return check(sample, call(sample, case.entry), case.entry, case.backend, case.way)
    except NotApplicable as reason:
        return f"not applicable: {reason}"
    except Exception as error:
        return f"FAILED {type(error).__name__}: {error}".partition("\n")[0]


def listed(options: argparse.Namespace) -> list[Case]:
    if options.only:
        name, dtype, number, shape, entry, backend, way = options.only.split()
        return [Case(name, dtype, int(number), shape == "1", entry, backend, way)]
    names = [name for name in options.name or NAMES if name in databases()]
    return [case for name in names for case in draw(list(cases(name, options.backends)), options)]


def run(options: argparse.Namespace) -> list[str]:
    """Runs the cases and prints their outcomes. Returns the failures."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    compared: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    failures = []
    for case in listed(options):
        result = outcome(case)
        if result.startswith("FAILED"):
            failures.append(f"python tests/opinfo/opinfo.py --only '{case}'\n    {result}")
            print(failures[-1], flush=True)
        counts[case.name][result.partition(" ")[0] if result.startswith("FAILED") else result] += 1
        if case.entry != "fuse":
            compared[case.name, case.backend][opinfo_counts.kind(result)] += 1
    if not (options.only or options.count):
        failures += opinfo_counts.wrong(compared)
    for name, counted in counts.items():
        print(f"{name}: {', '.join(f'{result} {count}' for result, count in sorted(counted.items()))}")
    total, same = sum(map(Counter.total, counts.values())), sum(counted[SAME] for counted in counts.values())
    print(f"seed {options.seed}, {', '.join(options.backends)}: {total} cases, {same} the same, {len(failures)} failed")
    if options.json:
        report = {"torch": torch.__version__, "seed": options.seed, "counts": counts, "failures": failures}
        options.json.write_text(json.dumps(report, indent=1))
    return failures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare atrous with torch on torch's own samples.")
    add = parser.add_argument
    add("--seed", default="0")
    add("--count", type=int, help="cases to draw for each entry point, backend and way of a name (default: all)")
    add("--fused", type=int, default=1, help="cases of fuse() to draw for each name (default: %(default)s)")
    add("--backend", dest="backends", action="append", choices=CPU_BACKENDS, help="(default: all that run)")
    add("--name", action="append", choices=NAMES, help="an operator or module (default: all)")
    add("--only", metavar="CASE", help="run this case, as a failure prints it")
    add("--json", type=Path, help="file of the counts and failures")
    options = parser.parse_args(arguments)
    options.backends = options.backends or list(CPU_BACKENDS)
    torch.set_num_threads(1)
    try:
        databases()
    except ImportError as error:
        print(f"torch {torch.__version__}: {error}")
        return NO_SAMPLES
    return 1 if run(options) else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # torch's, about forward-mode AD and padding="same"
    if os.environ.get("TRITON_INTERPRET") == "1":
        import quick_interpreter

        quick_interpreter.quicken()
    sys.exit(main())

"""The fuzzer's report: counts of the cases and of the operators that ran, and the failures."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
import triton_cases
from fuzz_cases import Case
from fuzz_models import Block, Model

JSON = """\
The file of --json has these keys. They depend on the options, the versions and the sources alone.

  seed, device, torch   of this run
  cases                 the number of cases that ran, failures included
  counts                axis -> value -> number of cases, for form (those of an operator call, "fused model" and
                        "frozen model"), backend, dtype, and further axes
  operators             operator of atrous -> number of calls, in one run of each case
  known                 result -> number of cases whose error is over the budget, and at most twice as large, for
                        the reason in docs/differences.md
  failures              a list of: error, case (its fields), reproduce (a command)
"""


def to_text(case: Case | Model) -> str:
    return json.dumps(case._asdict())


def from_text(text: str) -> Case | Model:
    """The case of to_text."""
    fields = {name: tuples(value) for name, value in json.loads(text).items()}
    if "blocks" not in fields:
        return Case(**fields)
    return Model(**fields | {"blocks": tuple(Block(*block) for block in fields["blocks"])})


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def command(case: Case | Model) -> str:
    """The command that repeats a case."""
    interpreter = "TRITON_INTERPRET=1 " if triton_cases.INTERPRETING else ""
    return f"{interpreter}python tests/fuzz/fuzz_conv.py --case {shlex.quote(to_text(case))}"


class Report:
    """Its file is valid JSON at all times."""

    def __init__(self, seed: int, device: str, file: Path | None):
        self.seed, self.device, self.file, self.written, self.cases = seed, device, file, 0.0, 0
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.operators: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []

    def count(self, case: Case | Model, called: dict[str, Counter[str]]) -> None:
        """Adds a case; called: counts of the operators, of Triton's configs, and of known excesses."""
        self.cases += 1
        for axis, value in case.axes().items():
            self.counts[axis][value] += 1
        self.operators.update(called.get("operators", ()))
        self.known.update(called.get("known", ()))
        if configs := called.get("config"):
            self.counts["config"].update(configs)
        if time.monotonic() > self.written + 1:
            self.write()

    def fail(self, case: Case | Model, error: str) -> None:
        """Prints and adds a failure; the case is counted already, or by this."""
        again = command(case)
        print(f"FAILED {again}\n    {error}\n    {case}", flush=True)
        self.failures.append({"error": error, "case": case._asdict(), "reproduce": again})
        self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        if self.file is None:
            return
        report = {"seed": self.seed, "device": self.device, "torch": torch.__version__, "cases": self.cases}
        report |= {"counts": self.counts, "operators": self.operators, "known": self.known, "failures": self.failures}
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(json.dumps(report, indent=1))
        os.replace(partial, self.file)

    def print(self) -> None:
        for axis, counts in {**self.counts, "operators": self.operators, "known": self.known}.items():
            most = ", ".join(f"{value} {count}" for value, count in counts.most_common(16))
            print(f"{axis}: {most}{f' and {len(counts) - 16} more' if len(counts) > 16 else ''}")
        backends = ", ".join(f"{backend} {count}" for backend, count in self.counts["backend"].items())
        print(f"seed {self.seed}: {self.cases} cases, {backends}; {len(self.failures)} failed")

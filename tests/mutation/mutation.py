"""Faults that are planted in a copy of the sources, one at a time, each with the test that has to fail.

A fault is an error that a change could well make: a forgotten case, a wrong sign, an index of the other axis.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """right: text that `file` has once; wrong: what takes its place. test: the id of the test that fails then.

    compiled: the sources of libatrous.so that are compiled again; by default the file itself, if it is one of them.
    """

    file: str
    right: str
    wrong: str
    test: str
    compiled: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return self.compiled or ((self.file,) if self.file.endswith(".cpp") else ())

    @property
    def interpreted(self) -> bool:
        """True if the test runs in Triton's interpreter."""
        return self.file.startswith("triton_kernels/")

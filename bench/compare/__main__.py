"""Compare this working tree with BASE, a commit or a results file. Exits 1 if a case is slower than the noise.

    python -m bench.compare BASE [--rounds 25] [--case TEXT]

A commit: it is built in a git worktree under build/, and three processes take turns: twice BASE, once this tree. The
difference between the two BASE is the noise. A case that is slower is measured again, in new processes, and
counts only if it is slower again: where a process has its memory can make a difference too.

A results file of `make bench`: the same cases are measured here, and only speed-ups over eager are compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from atrous.tools.text_table import align
from bench import record
from bench.compare import files, noise, versions
from bench.compare.worker import CASES

Changes = dict[str, noise.Change]


def with_commit(cases: Sequence[str], rounds: int, library: Path | None, start: Callable = versions.Process) -> Changes:
    """Changes of one run. start: library -> worker."""
    workers = {"base": start(library), "again": start(library), "new": start(None)}
    try:
        noise.measured(workers, cases, 1)  # compiles
        times = noise.measured(workers, cases, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    return noise.changes(times["base"], times["again"], times["new"])


def confirmed(measure: Callable[[Sequence[str]], Changes], cases: Sequence[str]) -> list[str]:
    """The cases that are slower in two runs; measure: cases -> changes. Prints both."""
    for again in ("", "again: "):
        changes = measure(cases)
        print(show(changes, again), flush=True)
        cases = [case for case, change in changes.items() if change.slower]
        if not cases:
            break
    return list(cases)


def show(changes: Changes, title: str = "") -> str:
    heading = f"{title}time of the new version over BASE's, and the noise"
    cells = [["", "new / base", "noise", ""]]
    for case, change in changes.items():
        cells.append([case, f"{change.ratio:.3f}", f"±{change.noise:.3f}", "slower" if change.slower else ""])
    return "\n".join([heading, *align(cells)])


def with_file(path: Path) -> list[str]:
    """The rows that are slower than in the file."""
    old = record.read(path)["rows"]
    print(files.REMARK, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pytest", "bench", "-q", "-p", "no:logging", "--disable-warnings", "--benchmark-quiet"]
        command += ["-k", "not test_layer and not memory", "--providers", "atrous,eager", "--results", folder]
        subprocess.run([sys.executable, *command], cwd=record.ROOT, check=True)
        (new,) = Path(folder).glob("*.json")
        changes = files.changes(old, record.read(new)["rows"])
    print(show(changes))
    return [case for case, change in changes.items() if change.slower]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", metavar="BASE", help="a commit, or a results file of `make bench`")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each case (default 25)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only the cases whose names have this text")
    args = parser.parse_args(argv)
    try:
        if Path(args.base).is_file():
            slow = with_file(Path(args.base))
        else:
            library = versions.built(versions.resolve(args.base))
            chosen = [case for case in CASES if args.case in case]
            slow = confirmed(lambda cases: with_commit(cases, args.rounds, library), chosen)
    except ValueError as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    print(f"slower: {', '.join(slow)}" if slow else "nothing is slower than the noise")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())

"""A copy of the sources that a test process imports, with libatrous.so linked again from the copy where C++ differs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from torch.utils.cpp_extension import include_paths, library_paths

import setup as build

ROOT = Path(__file__).parents[2]
FOLDERS = ("csrc", "examples", "pyops", "tests", "triton_kernels")
ASSERTION = re.compile(r"AssertionError|assert |Failed: |[\w.]*OverBudget")


class Outcome(NamedTuple):
    """status: that of pytest. failures: the first lines of the errors in tests; output: for the reader of a failure."""

    status: int
    passed: int
    skipped: int
    failures: list[str]
    output: str

    @property
    def asserted(self) -> bool:
        """True if tests failed because of an assertion, and nothing else went wrong."""
        return self.status == 1 and bool(self.failures) and all(map(ASSERTION.match, self.failures))


def copy_tree(folder: Path) -> Path:
    """Copies the sources and the built libraries; `import atrous` in the folder imports the copy."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "atrous").symlink_to("pyops")
    (folder / "pyops" / "triton_kernels").symlink_to("../triton_kernels")
    return folder


def plant(tree: Path, file: str, right: str, wrong: str) -> None:
    text = (tree / file).read_text()
    assert text.count(right) == 1, (file, right)
    (tree / file).write_text(text.replace(right, wrong))


def link(tree: Path, sources: tuple[str, ...]) -> None:
    """Compiles these sources of a copy, and links its library from them and the objects of `make setup`."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    # -O1: a quarter of the time of -O3 for the kernels that are compiled for several instruction sets.
    flags = [*build.lines("csrc/flags.txt"), "-O1", "-g0", "-fPIC", *(f"-I{path}" for path in include_paths())]
    objects = []
    for source in build.cpu_sources():
        path = next(ROOT.glob(f"build/temp.*/{Path(source).with_suffix('.o')}"), None)
        if source in sources or path is None:
            path = (tree / source).with_suffix(".o")
            subprocess.run([*compiler, *flags, "-c", str(tree / source), "-o", str(path)], check=True)
        objects.append(str(path))
    library = tree / "pyops" / "libatrous.so"
    library.unlink()
    folders = [f"-L{path}" for path in library_paths()]
    subprocess.run([*compiler, "-shared", *objects, *folders, "-ltorch_cpu", "-o", str(library)], check=True)


def run_test(tree: Path, test: str, interpreted: bool) -> Outcome:
    """Runs a test of a copy in a process that imports the copy alone (imported_tree.py)."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "tests" / "mutation")])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a fault may have the size and the second of the right text
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "imported_tree", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={tree}", test]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    suite = ElementTree.parse(report).find("testsuite") if report.exists() else None
    counts = {name: int(suite.get(name, 0)) if suite is not None else 0 for name in ("tests", "skipped", "errors")}
    failures = [] if suite is None else [one.get("message", "") for one in suite.iter("failure")]
    passed = counts["tests"] - counts["skipped"] - counts["errors"] - len(failures)
    return Outcome(run.returncode, passed, counts["skipped"], failures, run.stdout + run.stderr)

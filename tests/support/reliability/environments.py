"""A Python environment with one version of torch: created by pip, given a wheel, and asked by the tests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "versions"
# The build and the tests need these. torch stands in the same command, so that pip finds versions that fit both.
PACKAGES = ("expecttest", "hypothesis", "ninja", "numpy", "pillow", "pytest", "pyyaml", "setuptools>=77", "wheel")
# The functions and the kinds of fuse(): every test of these folders, of its parameters one in DRAWN, always the same.
FOLDERS = ("tests/api", "tests/ops", "tests/fusion")
DRAWN = 12
FACTS = """
import json, atrous
from atrous.tools import info
facts = info.collect()
print(json.dumps({"file": atrous.__file__, "versions": facts["versions"], "library": facts["library"]}))
"""
Row = dict[str, Any]


class Missing(Exception):
    """A combination cannot be had here; the message says why."""


class Combination(NamedTuple):
    python: str
    torch: str

    @classmethod
    def parse(cls, text: str) -> Combination:
        """Reads "3.11/2.13.0"."""
        python, slash, torch = text.partition("/")
        if not (slash and all(part.isdigit() for part in [*python.split("."), *torch.split(".")])):
            raise ValueError(f"expected Python/torch as in 3.11/2.13.0, got {text!r}")
        return cls(python, torch)

    @property
    def order(self) -> list[list[int]]:
        return [[int(part) for part in version.split(".")] for version in self]

    @property
    def folder(self) -> Path:
        return BUILD / f"python-{self.python}-torch-{self.torch}"

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"


def run(*command: Any, cwd: Path = ROOT, output: Any = subprocess.PIPE, **more: str) -> subprocess.CompletedProcess:
    """Runs a command without this environment's PYTHONPATH, which has a package of its own."""
    words = [str(word) for word in command]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    return subprocess.run(words, cwd=cwd, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)


def create(combination: Combination) -> None:
    """Creates the environment unless it is complete. Raises Missing if there is no such Python or no such torch."""
    if (combination.folder / "complete").exists():
        return
    remove(combination)
    base = shutil.which(f"python{combination.python}")
    if base is None or run(base, "--version").returncode:
        raise Missing(f"no python{combination.python} on the PATH")
    if run(base, "-m", "venv", combination.folder).returncode:
        raise Missing(f"python{combination.python} has no venv")
    pip = (combination.interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    done = run(*pip, f"torch=={combination.torch}", *PACKAGES)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise Missing(errors[-1] if errors else f"pip install exits {done.returncode}")
    imported = run(combination.interpreter, "-c", "import torch")
    if imported.returncode:
        raise Missing(imported.stderr.strip().splitlines()[-1])
    (combination.folder / "complete").touch()


def remove(combination: Combination) -> None:
    shutil.rmtree(combination.folder, ignore_errors=True)


def build(combination: Combination) -> Path:
    """Builds a wheel of the checkout with the CPU part of csrc. Raises RuntimeError if that fails."""
    for stale in (ROOT / "build").glob("lib.*"):  # modules that were deleted since
        shutil.rmtree(stale)
    folder = BUILD / f"wheel-{combination.python}"
    shutil.rmtree(folder, ignore_errors=True)
    options = ("--no-build-isolation", "--no-deps", "--wheel-dir", folder)
    path = f"{combination.interpreter.parent}{os.pathsep}{os.environ['PATH']}"
    done = run(combination.interpreter, "-m", "pip", "wheel", *options, ROOT, PATH=path, FORCE_CUDA="0")
    if done.returncode:
        raise RuntimeError(f"pip wheel exits {done.returncode}\n{done.stdout}\n{done.stderr}")
    (built,) = folder.glob("atrous-*.whl")
    return built


def install(combination: Combination, wheel: Path) -> Row:
    """Installs the wheel, and returns its origin. Raises RuntimeError unless the package and its library load."""
    pip = (combination.interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    done = run(*pip, "--force-reinstall", wheel)
    done = done if done.returncode else run(combination.interpreter, "-c", FACTS, cwd=combination.folder)
    if done.returncode:
        raise RuntimeError(f"{wheel.name} does not load in {combination}\n{done.stdout}\n{done.stderr}")
    facts = json.loads(done.stdout)
    installed = Path(facts["file"]).is_relative_to(combination.folder)
    if not (installed and facts["library"]["loaded"]):
        raise RuntimeError(f"{combination}: expected the wheel's package with its library, got {facts}")
    return {
        "installed": {name: facts["versions"][name] for name in ("python", "torch", "triton")},
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "built_with": facts["library"]["build"]["torch"],
    }


def test(combination: Combination) -> Row:
    """Runs the tests against the installed package; counts, names of failed tests, seconds."""
    report = combination.folder / "report.xml"
    options = "-q", "-p", "no:cacheprovider", "-m", "not gpu and not gate", "--junitxml", report
    # the folder of a test in sys.path would make tests/triton the module triton, where Triton is not installed
    command = ("-m", "pytest", "--import-mode", "importlib", *options)
    log = combination.folder.with_name(f"{combination.folder.name}.log")
    with log.open("w") as output:  # to be read while it runs
        done = run(
            combination.interpreter, *command, *FOLDERS, output=output, TESTS_DRAWN=str(DRAWN), GATES_SEED="0"
        )  # fmt: skip
    if done.returncode not in (0, 1):  # 1: a test failed
        raise RuntimeError(f"pytest exits {done.returncode}\n{log.read_text()[-4000:]}\n{done.stderr[-4000:]}")
    return counts(report.read_text())


def counts(xml: str) -> Row:
    """The counts of pytest's JUnit report."""
    suite = ElementTree.fromstring(xml).find("testsuite")
    assert suite is not None
    total, skipped = (int(suite.attrib[name]) for name in ("tests", "skipped"))
    failed = [
        f"{case.attrib['classname']}::{case.attrib['name']}" for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]  # fmt: skip
    return {
        "passed": total - skipped - len(failed), "failed": len(failed), "skipped": skipped, "failures": failed,
        "seconds": round(float(suite.attrib["time"])),
    }  # fmt: skip

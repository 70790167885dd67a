"""Reads Markdown: its Python snippets, its commands, and the files of the repository that it names.

A command is right if its program accepts it: make and .ci/gpu in a dry run, another by parsing its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from unittest import mock

from atrous.tools import cli
from bench.gpu import run as gpu_run
from examples.vessels import cli as vessels

ROOT = Path(__file__).resolve().parents[3]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4,}(\S.*)$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # without those to other sites, which have a colon
ASSIGNMENT = re.compile(r"([A-Z_]+)=")
PROGRAM = re.compile(r"(\S*/)?(python[\d.]*|pip|make|cmake|torchrun|pytest|git|ruff|mypy)|(\.ci|build)/\S+|\S+\.py")
SUFFIXES = {".c", ".cpp", ".cu", ".cuh", ".def", ".h", ".md", ".py", ".toml", ".txt", ".yml"}
BUILT = {"build", "dist", "out"}


class Accepted(BaseException):
    """Ends a program once it has parsed its arguments."""


def snippets(text: str) -> list[str]:
    return [code for language, code in FENCED.findall(text) if language == "python"]


def spans(text: str) -> list[str]:
    """The `code` of sentences and tables, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text))]


def commands(text: str) -> list[str]:
    """The commands in code blocks and code spans: a program and at least one argument."""
    blocks = [line for language, code in FENCED.findall(text) if language != "python" for line in code.splitlines()]
    lines = [*blocks, *INDENTED.findall(FENCED.sub("", text)), *spans(text)]
    parts = [part.split() for line in lines for part in line.partition(" #")[0].split("&&")]
    return [" ".join(words) for words in parts if PROGRAM.fullmatch(program(words)) and program(words) != words[-1]]


def program(words: list[str]) -> str:
    """The first word that does not set a variable."""
    return next((word for word in words if not ASSIGNMENT.match(word)), "")


def problem(command: str) -> str:
    """The error of a command; "" if its program accepts it."""
    words = shlex.split(command)
    name = program(words)
    arguments = words[words.index(name) + 1 :]
    if name == "make":
        return _make(arguments)
    if name == ".ci/gpu":
        return _error(gpu_run.main, [*arguments, "--dry-run"])
    if arguments[:2] == ["-m", "examples.vessels"]:
        return _parsed(vessels.main, arguments[2:])
    if arguments[:2] == ["-m", "atrous"]:  # a sentence names a command without its arguments
        return _parsed(cli.main, arguments[2:] if len(arguments) > 3 else [*arguments[2:], "--help"])
    if name.startswith("python"):
        module = arguments[0] == "-m"
        name, *arguments = arguments[module:]
        name = f"{name.replace('.', '/')}.py" if module else name
    if not (ROOT / name).is_file() or "argparse" not in (ROOT / name).read_text():
        return f"{name}: expected a program that parses its arguments with argparse"
    return _parsed(lambda: runpy.run_path(str(ROOT / name), run_name="__main__"), arguments)


def _make(arguments: list[str]) -> str:
    variables = ASSIGNMENT.findall(" ".join(arguments))
    unknown = [name for name in variables if f"$({name})" not in (ROOT / "Makefile").read_text()]
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    return f"no variable {unknown}" if unknown else done.stderr if done.returncode else ""


def _parsed(call: Callable, arguments: list[str]) -> str:
    """The error of a program that ends once it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(*args, **options):
        parse(*args, **options)
        raise Accepted

    replaced = mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end)
    with replaced, mock.patch.object(sys, "argv", ["program", *arguments]):
        return _error(call)


def _error(call: Callable, *arguments) -> str:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = call(*arguments)
    except Accepted:
        return ""
    except SystemExit as exit:
        status = exit.code
    return errors.getvalue() or f"exit status {status}" if status else ""


def tree() -> set[str]:
    """Every file and folder of the repository that is not built."""
    tops = [top for top in ROOT.iterdir() if top.name not in BUILT and re.match(r"[^.]|\.ci$|\.github$", top.name)]
    return {path.relative_to(ROOT).as_posix() for top in tops for path in (top, *top.rglob("*"))}


def missing(text: str, folder: Path, known: set[str]) -> list[str]:
    """Links to files, and names of files in code, that do not exist; NEW and <anything> stand for any name."""
    links = [link for link in LINK.findall(text) if not (folder / link).exists()]
    words = [word for code in [*spans(text), *commands(text)] for word in code.split()]
    names = {word for word in words if re.fullmatch(r"[\w.<>-][\w.*<>/-]*", word) and _names_file(word, known)}
    patterns = {name: re.sub(r"<[^>]*>|NEW", "*", name.rstrip("/")) for name in names}
    return links + sorted(n for n, p in patterns.items() if not any(fnmatch(f"/{path}", f"*/{p}") for path in known))


def _names_file(word: str, known: set[str]) -> bool:
    first, slash, _ = word.partition("/")
    if first in BUILT or word.endswith(".so"):
        return False
    return Path(word).suffix in SUFFIXES or word.endswith("/") or bool(slash and first in known)

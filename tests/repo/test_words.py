"""Plain words: no coined vocabulary in file names, identifiers, comments, help texts, error messages and JSON keys."""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atrous.tools import cli, info
from atrous.tools.explain import command as explain_command

ROOT = Path(__file__).parents[2]
# A banned word, which includes its plural, and its replacement.
BANNED = {
    "card": "GPU", "ending": "post_op, epilogue", "few": "stem", "floor": "lower bound", "gathers": "fits_tma_im2col",
    "house": "architecture", "normalisation": "batch_norm", "packs": "PrepackedWeights", "planes": "nchw",
    "products": "main loop, MMA", "recipe": "recompute", "row": "backend", "share": "split, fraction",
    "site": "layer, conv", "told": "message", "twin": "copy", "walk": "layers, tiling", "who": "selection",
}  # fmt: skip
WHOLE = {"made", "found", "held"}  # banned as whole identifiers
VERBS = {"few", "share"}  # ordinary words in a sentence, and so in the name of a test
# "row" is banned where it would mean a backend (matrices and tables have rows). Some words are right in their own area:
# those of the fusion pass, of Python's sitecustomize, and of CONTRIBUTING.md.
NO_ROWS = ("core", "ops", "backends", "autograd", "tuning", "functional.py", "nn.py")
AREAS = {
    "site": ("pyops/fusion/", "tests/fusion/", "tests/support/standin/"),
    "recipe": ("tests/repo/test_recipes.py",),
    "share": ("pyops/audit/layers.py",),  # padding_share, a promised name
}
OPENINGS = ("Of", "What", "Who", "Whether")  # no comment or docstring begins with one
TRAILING = ("of", "what", "who")  # no comment behind code does
FOLDERS = ("pyops", "triton_kernels", "csrc", "tests", "bench", "docs")
CPP = re.compile(
    r'(?P<comment>//[^\n]*|/\*.*?\*/)|R"(?P<mark>\w*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    r"|(?P<name>[A-Za-z_]\w*)",
    re.DOTALL,
)
PYTHON = [path for folder in ("pyops", "triton_kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.py")]
CPLUSPLUS = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted([*PYTHON, *CPLUSPLUS])}


def banned(word: str, path: str) -> bool:
    stem = word if word in BANNED else word.removesuffix("s")
    if stem == "row":
        return path.startswith(tuple(f"pyops/{name}" for name in NO_ROWS))
    return stem in BANNED and not path.startswith(AREAS.get(stem, ()))


def file_words(path: str) -> list[str]:
    """Banned words in the path of a file."""
    return [word for word in re.findall(r"[a-z]+", path.lower()) if word in WHOLE or banned(word, path)]


def defined_names(text: str) -> Iterator[str]:
    """The identifiers that a Python source defines; a word that a test's name has as a verb is left out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            test = node.name.startswith("test_")
            yield "_".join(part for part in node.name.split("_") if part not in VERBS) if test else node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg | ast.alias):
            yield getattr(node, "arg", None) or getattr(node, "asname", None) or ""


def identifiers(path: str, text: str) -> list[str]:
    """Banned identifiers of a source."""
    names = defined_names(text) if path.endswith(".py") else (match["name"] or "" for match in CPP.finditer(text))
    parts = {name: re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) for name in names}
    return [n for n, words in parts.items() if n in WHOLE or any(banned(word.lower(), path) for word in words)]


def comments(path: str, text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment, and of each docstring of a Python source."""
    if not path.endswith(".py"):
        for match in CPP.finditer(text):
            if match["comment"]:
                yield text.count("\n", 0, match.start()) + 1, match["comment"].strip("/* \n")
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.strip("# ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""


def openings(path: str, text: str) -> list[str]:
    """Comments that begin with one of OPENINGS, or behind code with one of TRAILING; the second line of one may."""
    lines = {line: comment for line, comment in comments(path, text) if comment}
    own = {line for line in lines if text.splitlines()[line - 1].lstrip().startswith(("#", "//"))}
    starts = {line: comment for line, comment in lines.items() if not (line in own and line - 1 in own)}
    words = {line: "|".join(OPENINGS if line in own else (*OPENINGS, *TRAILING)) for line in starts}
    return [comment for line, comment in starts.items() if re.match(rf"(?:{words[line]})\b", comment)]


def words(text: str, path: str = "pyops/core/") -> list[str]:
    """Banned words in a sentence or a key, by default with the rules of pyops/core: neither rows nor sites."""
    return [word for word in re.findall(r"[A-Za-z]+", text) if word not in VERBS and banned(word.lower(), path)]


def errors(path: str, text: str) -> list[str]:
    """String literals with banned words in the raise statements of a Python source outside tests/."""
    if not path.endswith(".py") or path.startswith("tests/"):
        return []
    raised = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)]
    constants = [node.value for error in raised for node in ast.walk(error) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str) and words(value, path)]


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a parser and of its commands."""
    yield parser.format_help()
    groups = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for command in (command for group in groups for command in group.values()):
        yield from helps(command)


def keys(value: object) -> Iterator[str]:
    """The keys of a JSON value, at any depth."""
    if isinstance(value, dict):
        yield from map(str, value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from keys(part)


def test_file_names():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    assert not {name: wrong for name in names if (wrong := file_words(name))}


@pytest.mark.parametrize("check", [identifiers, openings, errors])
def test_sources(check):
    assert not {path: wrong for path, text in SOURCES.items() if (wrong := check(path, text))}


def test_helps():
    assert not {text for text in helps(cli._parser()) if words(text)}


@pytest.mark.parametrize("options", [[], ["--train"]])
def test_json_keys(options):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    args = cli._parser().parse_args(["explain", "tiny", "--size", "8", *options])
    report = {"info": info.collect(), "explain": explain_command.run(args, model)}
    assert not {key for key in keys(report) if words(key)}


def test_each_check_finds_a_planted_word():
    code = "class Twin:\n    def run(self, card_name):\n        # Of it.\n        # What is legal.\n        made = 1"
    assert set(identifiers("bench/a.py", code)) == {"Twin", "made", "card_name"}
    assert openings("a.py", code) == ["Of it."]
    assert openings("a.py", "# of it\nx = 1  # of it\ny = 2  # its size\n") == ["of it"]
    assert openings("csrc/a.h", "// what it is\nint x;  // what it is\n") == ["what it is"]
    paths = ("pyops/fusion/sites.py", "pyops/sites.py", "csrc/a_Twin.cpp", "docs/cards/a.md", "tests/test_found.py")
    assert [file_words(path) for path in paths] == [[], ["sites"], ["twin"], ["cards"], ["found"]]
    assert openings("a.py", '"""Whether it is."""\nx = 1  # Who is it?') == ["Who is it?", "Whether it is."]
    source = '// Of it\n// What follows\nint firstCard = \'c\'; /* Who? */ auto s = "card // Of"; R"(card)";'
    assert identifiers("csrc/a.cpp", source) == ["firstCard"] and openings("csrc/a.cpp", source) == ["Of it", "Who?"]
    assert identifiers("pyops/core/a.py", "rows = 1") == ["rows"] and not identifiers("csrc/a.h", "int rows;")
    assert identifiers("pyops/nn.py", "site = 1") == ["site"] and not identifiers("pyops/fusion/a.py", "site = 1")
    assert errors("bench/a.py", "raise ValueError(f'no card {x}')") == ["no card "]
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("run").add_argument("--fast", help="which row is fast")
    assert [words(text) for text in helps(parser)] == [[], ["row"]]
    assert [key for key in keys({"a": [{"cards": 1}], "b": ({"site": 2},)}) if words(key)] == ["cards", "site"]

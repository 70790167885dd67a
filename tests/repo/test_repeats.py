"""Repeated code: outside tests no run of 10 equal lines occurs twice, and three files list an epilogue's fields."""

import re
from collections import defaultdict
from pathlib import Path

from atrous.core.spec import Epilogue

ROOT = Path(__file__).parents[2]
LENGTH = 10  # lines, not counting blank lines, comments, docstrings and imports
MANY, NEARBY = len(Epilogue._fields) - 2, 25  # names of fields, lines
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".def"}
FOLDERS = ("pyops", "triton_kernels", "csrc", "bench", "examples")
PATHS = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted([*PATHS, ROOT / "setup.py"])}
IMPORT = re.compile(
    r"from [\w.]+ import \([^)]*\)|(?:from [\w.]+ )?import [^\n(]+|#include[^\n]*|#pragma once|using [^\n]*"
)
COMMENT = re.compile(r'/\*.*?\*/|^\s*(?:#(?!\w)|//)[^\n]*|^\s*""".*?"""', re.DOTALL | re.MULTILINE)


def code_lines(text: str) -> list[tuple[int, str]]:
    """(line number, stripped line) of the lines that count."""
    for pattern in (COMMENT, IMPORT):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def repeats(sources: dict[str, str]) -> list[tuple[int, str, str]]:
    """(lines, place, place) of each longest repeated run; a place is path:line."""
    places, texts = [], []
    for path, text in sources.items():
        for number, line in code_lines(text):
            places.append(f"{path}:{number}")
            texts.append(line)
        places.append(path)
        texts.append(f"end of {path}")  # so that no run crosses into the next file
    windows = defaultdict(list)
    for start in range(len(texts) - LENGTH + 1):
        windows[tuple(texts[start : start + LENGTH])].append(start)
    pairs = {(a, b) for starts in windows.values() for i, a in enumerate(starts) for b in starts[i + 1 :]}
    runs = []
    for a, b in sorted(pairs):
        if (a - 1, b - 1) not in pairs:
            length = LENGTH
            while (a + length - LENGTH + 1, b + length - LENGTH + 1) in pairs:
                length += 1
            runs.append((length, places[a], places[b]))
    return sorted(runs, reverse=True)


def epilogue_lists(sources: dict[str, str]) -> list[str]:
    """The files in which NEARBY lines of code name nearly all fields of an epilogue, other than as attributes."""
    paths = []
    for path, text in sources.items():
        words = [set(re.findall(r"(?<![.>\w])\w+", line)) & set(Epilogue._fields) for _, line in code_lines(text)]
        if any(len(set().union(*words[start : start + NEARBY])) >= MANY for start in range(len(words))):
            paths.append(path)
    return paths


def test_no_run_of_lines_is_repeated():
    runs = repeats(SOURCES)
    print(*(f"{length} lines: {first} and {second}" for length, first, second in runs), sep="\n")
    assert not runs


def test_the_fields_of_an_epilogue_are_listed_in_three_files():
    """Its Python type, the schemas and its C++ type; all else takes it whole."""
    paths = epilogue_lists(SOURCES)
    assert {"pyops/core/spec.py", "pyops/schemas.def"} < set(paths) and len(paths) <= 3, paths


def test_a_planted_list_is_found():
    parameters = "".join(f"    {name},\n" for name in Epilogue._fields[1:-1])
    assert epilogue_lists({"a.py": f"def f(\n{parameters}):", "b.py": f'"""\n{parameters}"""'}) == ["a.py"]


def test_a_planted_repeat_is_found():
    lines = [f"x{number} = {number}" for number in range(LENGTH)]
    first, second = (
        "import a\n" + "\n\n".join(lines),
        "def f():\n" + "\n    # b\n".join(f"    {line}" for line in lines),
    )
    assert repeats({"a.py": first, "b.py": second}) == [(LENGTH, "a.py:2", "b.py:2")]
    assert not repeats({"a.py": first, "b.py": "\n".join(lines[1:])})

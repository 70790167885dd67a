"""Repeated code: no run of 10 equal lines occurs twice in the Python and C++ sources outside tests/."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
LENGTH = 10  # lines, not counting blank lines, comments, docstrings and imports
# The launchers repeat the 14 parameters of an epilogue, until they take an Epilogue.
LAUNCHERS = {
    f"triton_kernels/{name}.py"
    for name in ("conv/forward", "pointwise/forward", "pointwise/backward", "pointwise/reduce")
}
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}
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


def test_no_run_of_lines_is_repeated():
    runs = repeats(SOURCES)
    print(*(f"{length} lines: {first} and {second}" for length, first, second in runs), sep="\n")
    assert not [run for run in runs if not all(place.partition(":")[0] in LAUNCHERS for place in run[1:])]


def test_a_planted_repeat_is_found():
    lines = [f"x{number} = {number}" for number in range(LENGTH)]
    first, second = (
        "import a\n" + "\n\n".join(lines),
        "def f():\n" + "\n    # b\n".join(f"    {line}" for line in lines),
    )
    assert repeats({"a.py": first, "b.py": second}) == [(LENGTH, "a.py:2", "b.py:2")]
    assert not repeats({"a.py": first, "b.py": "\n".join(lines[1:])})

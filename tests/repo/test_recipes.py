"""CONTRIBUTING.md beside the tree: the files of each recipe, the drawing of the layers, the length of the glossary."""

import re
from pathlib import Path

import documents
import pytest
from test_architecture import LAYERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# The most source files that a recipe may touch, by its heading without the count.
LIMITS = {
    "An activation that is one slope": 1,
    "An activation that is not a slope": 6,
    "A backend": 2,
    "A primitive": 8,
    "A tile config of the Triton convolution": 1,
    "A tile of the CUDA convolution": 5,
}
MAX_WORDS = 15
TREE = documents.tree()
SUFFIXES = (".cuh", ".def", ".h", ".py")


def section(text: str, title: str) -> str:
    """The text below "## title", up to the next heading of that level."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def recipes(text: str) -> dict[str, tuple[int, list[str]]]:
    """heading -> (files that it announces, the file of each numbered step)."""
    listed = {}
    for part in section(text, "Recipes").split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        title, _, count = heading.rpartition(": ")
        listed[title] = int(re.match(r"\d+", count)[0]), re.findall(r"^\d+\. (?:`([^`]*)`)?", body, re.MULTILINE)
    return listed


def wrong_counts(text: str, limits: dict[str, int]) -> list[str]:
    """Recipes that are missing, unknown, above their limit, or of another number of files than they announce."""
    listed = recipes(text)
    wrong = [
        f"{title}: expected in one of recipes and limits, got the other" for title in listed.keys() ^ limits.keys()
    ]
    for title, (announced, files) in listed.items():
        if len(set(files)) != announced or announced > limits.get(title, announced):
            wrong.append(f"{title}: expected {announced} files, at most {limits.get(title)}, got {len(set(files))}")
    return wrong


def missing_files(text: str) -> list[str]:
    """The files of steps that do not exist, and a step without a file; NEW stands for any name."""
    files = {file or "a step without a file" for _, steps in recipes(text).values() for file in steps}
    return sorted(file for file in files if " " in file or documents.missing(f"`{file}`", ROOT, TREE))


def missing_names(text: str) -> list[str]:
    """Identifiers in the words of a step that its file does not have."""
    steps = re.findall(r"^\d+\. `([^`]*)`: (.*(?:\n   .*)*)", section(text, "Recipes"), re.MULTILINE)
    names = [(file, name) for file, words in steps for name in re.findall(r"`([\w.:]*\w)`", words)]
    existing = [(file, name) for file, name in names if (ROOT / file).is_file() and Path(name).suffix not in SUFFIXES]
    return [f"{file}: {n}" for file, n in existing if re.split(r"\W+", n)[-1] not in (ROOT / file).read_text()]


def layers(text: str) -> list[set[str]]:
    """The modules of each layer in the drawing, from the lowest; a layer is a line between two rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [set(line.split("|")[1].split()) for line in reversed(lines)]


def glossary(text: str) -> list[str]:
    """The words that the glossary explains."""
    return re.findall(r"^\| (.+?) \|", section(text, "Words"), re.MULTILINE)[1:]


def drawing(text: str) -> str:
    return section(text, "Where things are").split("```")[1]


def test_each_recipe_has_few_files():
    print(*(f"{title}: {count}" for title, (count, _) in recipes(TEXT).items()), sep="\n")
    assert not wrong_counts(TEXT, LIMITS)


def test_each_step_names_a_file_that_exists():
    assert not missing_files(TEXT)


def test_each_step_names_identifiers_of_its_file():
    assert not missing_names(TEXT)


def test_the_drawing_has_the_layers_of_the_tree():
    assert layers(drawing(TEXT)) == list(LAYERS)


def test_the_glossary_is_short():
    assert 0 < len(glossary(TEXT)) <= MAX_WORDS


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("### A: 1 file\n1. `pyops/nn.py`: x\n", []),
        ("### A: 1 file\n1. `pyops/nn.py`: x\n2. `csrc/ops.cpp`: y\n", ["A: expected 1 files, at most 2, got 2"]),
        ("### A: 3 files\n1. `a`: x\n2. `b`: y\n3. `c`: z\n", ["A: expected 3 files, at most 2, got 3"]),
        ("### B: 0 files\n", ["A: expected in", "B: expected in"]),
    ],
)
def test_a_planted_count_is_found(text, wrong):
    complaints = sorted(wrong_counts(f"\n## Recipes\n\n{text}", {"A": 2}))
    assert len(complaints) == len(wrong) and all(map(str.startswith, complaints, wrong))


def test_planted_files_layers_and_words_are_found():
    steps = (
        "`pyops/nn.py`: x",
        "`pyops/gone.py`: `csrc/gone.h`",
        "`pyops/NEW.py`: x",
        "`pyops/gone/NEW.py`",
        "x `csrc/ops.cpp`",
    )
    text = "\n## Recipes\n\n### A: 5 files\n" + "".join(f"1. {step}\n" for step in steps)
    assert missing_files(text) == ["a step without a file", "pyops/gone.py", "pyops/gone/NEW.py"]
    text = "\n## Recipes\n\n### A: 1 file\n1. `pyops/nn.py`: `AddAct.forward`, `spec.py`,\n   `Nothing` and `NEW`\n"
    assert missing_names(text) == ["pyops/nn.py: Nothing", "pyops/nn.py: NEW"]
    rule = "+---+---+\n"
    assert layers(f"{rule}| b c | x |\n{rule}| a | y |\n{rule}") == [{"a"}, {"b", "c"}]
    assert layers(drawing(TEXT.replace("| nn ", "| nn fusion "))) != list(LAYERS)
    assert glossary("\n## Words\n\n| word | meaning |\n|---|---|\n| z | x |\n| `Spec` | y |\n") == ["z", "`Spec`"]

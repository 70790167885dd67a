"""docs/api.md: it is the page of the docstrings, has every public name, and its Markdown is that of a docstring."""

import inspect
import re

import api_page
import pytest

import atrous
from atrous.core.activation import ACTIVATIONS

DOCSTRING = """y = act(x), with a slope. More *text* of _x.

    w = 1

Args:
    x: (N, C),
        any dtype. out, y: as x.
    mode: one of
        "a": the first.

Returns the model.
Raises:
    ValueError: never."""


def test_the_page_is_that_of_the_docstrings():
    assert (api_page.ROOT / "docs" / "api.md").read_text() == api_page.page(), "make docs writes the page"


@pytest.mark.parametrize(
    "module", [atrous, atrous.nn, atrous.models, atrous.models.heads], ids=lambda module: module.__name__
)
def test_every_public_name_is_on_the_page(module):
    """A name is documented under its own module, or is one of the modules."""
    headings = {line.lstrip("# ") for line in api_page.page().splitlines() if line.startswith("##")}
    assert {f"{module.__name__}.{name}" for name in module.__all__} <= headings


def test_dir_shows_the_public_names():
    assert [name for name in dir(atrous) if not name.startswith("_")] == sorted(atrous.__all__)
    assert {"__version__", "__doc__"} <= set(dir(atrous))


def test_every_name_is_described_and_no_label_is_a_value():
    groups = api_page.documented().values()
    assert not [name for group in groups for name, value in group.items() if not inspect.getdoc(value)]
    page = api_page.page()
    assert "**False**" not in page and "**None**" not in page and "activation.py;" not in page
    assert not re.findall(r"activation\.[A-Z]+|; \w+\.py\b", page)


@pytest.mark.parametrize("documented", [atrous.models.ResNet, atrous.models.DRN, atrous.models.heads])
def test_the_models_list_the_activations(documented):
    (line,) = re.findall(r"^ *act: (.*)$", inspect.getdoc(documented), re.MULTILINE)
    assert re.findall(r'"(\w+)"', line) == list(ACTIVATIONS)


def test_a_docstring_as_markdown():
    lines = [line for line in api_page.markdown(DOCSTRING).splitlines() if line]
    assert lines == [
        "```text", "y = act(x), with a slope", "```", r"More \*text\* of \_x.", "```text", "w = 1", "```", "**Args**:",
        "- **x**: (N, C), any dtype. out, y: as x.", "- **mode**: one of", '  - **"a"**: the first.',
        "**Returns** the model.", "**Raises**:", "- **ValueError**: never.",
    ]  # fmt: skip


def test_a_signature_is_spelled_as_in_the_source():
    path, node = api_page.definition(atrous.nn.AddAct)
    assert api_page.signature("AddAct", path, node).startswith(
        'AddAct(act=None, dropout: float = 0.0, backend: str = "auto"'
    )
    path, node = api_page.definition(atrous.fusion.Site)
    assert api_page.signature("Site", path, node).startswith("class Site:\n    path: str\n")

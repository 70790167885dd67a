"""docs/dilation.md: each command prints the lines below it, and draws the picture of the page."""

import re

import dilation_page
import pytest
from documents import ROOT

TEXT = dilation_page.PAGE.read_text()
BLOCKS = dilation_page.blocks(TEXT)
LARGEST_PICTURE = 150_000  # bytes


@pytest.mark.gate
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.command.removeprefix(dilation_page.START))
def test_a_command_prints_what_the_page_shows(block, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where examples/ is
    picture = block.picture and tmp_path / block.picture.name
    status, printed = dilation_page.run(block.command, picture)
    assert block.shown and not dilation_page.wrong(block.shown, printed), "\n".join(printed)
    assert status == int("--require-coverage" in block.command)
    if picture:
        assert _close(picture, block.picture), "make docs draws it"


def _close(drawn, shown):
    """True if two pictures differ in a few pixels at most, as with another version of a font."""
    images, numpy = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    one, two = (numpy.asarray(images.open(path).convert("RGB"), dtype=float) for path in (drawn, shown))
    return one.shape == two.shape and abs(one - two).mean() < 2


def test_each_picture_has_a_command():
    linked = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT))
    drawn = {block.picture.name: block.picture for block in BLOCKS if block.picture}
    assert linked == drawn.keys() and len(drawn) >= 2
    assert all(path.stat().st_size < LARGEST_PICTURE for path in drawn.values())


def test_a_wrong_line_is_found():
    printed = ["field  13x13", "", "read  49", "field"]
    assert not dilation_page.wrong(["field  13x13", "field"], printed) and not dilation_page.wrong([], printed)
    assert dilation_page.wrong(["field  13x14", "read  49"], printed) == ["field  13x14"]
    assert dilation_page.wrong(["read  49", "field  13x13"], printed) == ["field  13x13"]
    text = "```\npython -m atrous audit 2,2\nread  9\n```\n\n```\npython -m atrous info\n```\n\n```python\nx = 1\n```\n"
    assert dilation_page.blocks(text) == [("python -m atrous audit 2,2", ["read  9"])]

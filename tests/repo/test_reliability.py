"""docs/reliability.md is what its command writes from the results files, and they have every case."""

from __future__ import annotations

import ast
import json

import pytest
from documents import ROOT
from reliability import cases, drawn, page


def test_the_page_is_written_from_the_files():
    assert page.PAGE.read_text() == page.text(), "make reliability writes it"


def test_every_case_has_a_line():
    """A test that was added or renamed since is missing."""
    outcomes = cases.merged(page.RESULTS.glob("cases*.json"))
    paths = {path.name: path for path in (ROOT / "tests").rglob("test_cases_*.py")}
    assert cases.TITLES.keys() == paths.keys()
    for file, path in paths.items():
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert outcomes[file].keys() == {name for name in functions if name.startswith("test_")}, file


def test_no_run_had_a_failure():
    for file in page.RESULTS.glob("*.json"):
        if not file.name.startswith("cases"):
            assert not json.loads(file.read_text())["failures"], file.name


def test_cells():
    reasons: list[str] = []
    assert cases.cell({"same": 3, "refused": 1, "skipped": {"no GPU": 2}}, reasons) == "same (3), refused (1), n/a [1]"
    assert cases.cell({"skipped": {"no GPU": 1}}, reasons) == "n/a [1]" and reasons == ["no GPU"]
    assert cases.cell(None, reasons) == "n/a [2]" and len(reasons) == 2


@pytest.mark.parametrize("result, kind", [
    ("the same, but for strides: NCHW", "the same"), ("the same error", "the same"), ("refused: integers", "refused"),
    ("not applicable: no dropout", "not applicable"), ("left out: the interpreter", "other"), ("FAILED", "other"),
])  # fmt: skip
def test_outcomes_of_samples(result, kind):
    assert drawn.opinfo_kind(result) == kind

"""Plugin of pytest for a run under the stand-in: what a test asserts is evaluated and not judged, for it has no values.

So a test goes on to its last launch. `pytest.raises` is as ever, and so is whatever Triton or the driver refuses.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

from atrous import testing


class Evaluated(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        return ast.copy_location(ast.Expr(node.test), node)


def rewrite_asserts(module: ast.Module, *_) -> None:
    ast.fix_missing_locations(Evaluated().visit(module))


rewrite.rewrite_asserts = rewrite_asserts
sys.pycache_prefix = tempfile.mkdtemp(prefix="standin-pycache-")  # none of the judging ones, nor these for others
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parents[1].glob("*.py")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """csrc's tests take minutes and ask for no kernel of Triton's."""
    items[:] = [item for item in items if not item.path.name.startswith("test_native")]


testing.assert_close = lambda *_, **__: None  # type: ignore[assignment]

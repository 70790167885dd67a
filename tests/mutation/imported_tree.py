"""A plugin of pytest that ends a run unless it imports everything of this repository from the root of that run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

PACKAGES = ("atrous", "examples", "pyops")


def pytest_collection_finish(session):
    """An assertion here is an internal error of pytest, status 3, and not a test that fails."""
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    files = {getattr(module, "__file__", None) for module in modules.values()} - {None}
    elsewhere = [file for file in (*files, *torch.ops.loaded_libraries) if outside(session.config.rootpath, file)]
    assert "atrous" in modules and not elsewhere, elsewhere


def outside(root: Path, file: str) -> bool:
    return not Path(file).resolve().is_relative_to(root.resolve())

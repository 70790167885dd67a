"""Fixtures of the tests of the tools."""

from __future__ import annotations

import pytest

from atrous.tools.tune import measure


@pytest.fixture
def short(monkeypatch):
    """The fewest rounds of the tuner: these tests are not about speed."""
    monkeypatch.setattr(measure, "MAX_SECONDS", 0.0)

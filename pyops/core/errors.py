"""Errors as text."""

from __future__ import annotations

import textwrap


def summary(error: Exception) -> str:
    """The type of an error and the beginning of its first line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {textwrap.shorten(first, 200, placeholder=' ...')}"

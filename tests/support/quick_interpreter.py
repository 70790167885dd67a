"""Triton's interpreter without what it does for nothing, which is two thirds of its time; the values stay the same.

These are internals of Triton 3.6 and 3.7: one that another version does not have is left as it is.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """For the whole process, before its first launch."""
    for step in (unchecked, patched_once, types_from_a_table):
        try:
            step()
        except (AttributeError, TypeError):  # of another version
            continue


def unchecked() -> None:
    """It computes whether each int32 operation overflows, with thirty others, and then drops the answer: what would
    raise asks for `debug`, and the interpreter has none."""
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def patched_once() -> None:
    """It looks through triton.language for what it has to patch at every call of a device function."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)


def types_from_a_table() -> None:
    """It makes a table of twenty types for each look at it."""
    original = interpreter._get_np_dtype
    scalars = (tl.int1, tl.int32, tl.uint32, tl.int64, tl.float16, tl.float32, tl.float64)
    known = {kind.name: original(kind) for kind in scalars}

    def get_np_dtype(kind):
        return known.get(kind.scalar.name) or original(kind)

    interpreter._get_np_dtype = get_np_dtype

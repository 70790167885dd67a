"""Read layers to tune from a file: a JSON list of convolutions.

    [{"input": [N, C, H, W], "out_channels": 64, "kernel": 3, "stride": 1, "padding": 1, "dilation": [1, 1],
      "groups": 1, "residual": "none" | "before" | "after"}, ...]

stride, padding, dilation, groups and residual may be left out; one number stands for a pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ... import tuning
from ...core import checks
from ...tuning.format import LIST, FieldType, check, integer, integer_list, load, one_of, refuse
from ..explain.conv_layers import ConvLayer

DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "residual": "none"}


def _one_or_two(least: int) -> FieldType:
    one, two = integer(least), integer_list(2, least)
    return FieldType(f"{one.expected}, or two of them", lambda value: one.accepts(value) or two.accepts(value))


FIELDS = {
    "input": integer_list(4, 1),
    "out_channels": integer(1),
    "kernel": _one_or_two(1),
    "stride": _one_or_two(1),
    "padding": _one_or_two(0),
    "dilation": _one_or_two(1),
    "groups": integer(1),
    "residual": one_of("none", "before", "after"),
}


def read(path: Path) -> list[ConvLayer]:
    """The layers of a file. Raises OSError if it cannot be read, ValueError if it holds anything else."""
    shapes = load(tuning.contents(path))
    if not LIST.accepts(shapes) or not shapes:
        refuse("shapes", "a list of convolutions", shapes)
    return [_layer(f"shapes[{index}]", shape) for index, shape in enumerate(shapes)]


def _layer(where: str, shape: Any) -> ConvLayer:
    shape = {**DEFAULTS, **shape} if isinstance(shape, dict) else shape
    check(where, shape, FIELDS)
    channels, groups, kernel = shape["input"][1], shape["groups"], checks.pair("kernel", shape["kernel"], 1)
    if channels % groups:
        refuse(f"{where}.groups", f"a divisor of the {channels} input channels", groups)
    with torch.device("meta"):
        input, weight = torch.empty(shape["input"]), torch.empty(shape["out_channels"], channels // groups, *kernel)
    geometry = (shape["stride"], shape["padding"], shape["dilation"], groups)
    try:
        spec, _ = checks.convolution(input, weight, None, *geometry)
    except RuntimeError as error:
        raise ValueError(f"{where}: {error}") from error
    return ConvLayer(where, tuple(input.shape), tuple(weight.shape), spec, shape["residual"])

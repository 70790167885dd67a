"""Shapes to tune from a file: a JSON list of convolutions.

    [{"input": [N, C, H, W], "out_channels": 64, "kernel": 3, "stride": 1, "padding": 1, "dilation": [1, 1],
      "groups": 1, "residual": "none" | "before" | "after"}, ...]

stride, padding, dilation, groups and residual may be left out; a number stands for two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ... import tuning
from ...core import checks
from ...tuning.format import LIST, Kind, check, load, one_of, refuse, whole, whole_list
from ..explain.conv_sites import Site

DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "residual": "none"}


def _one_or_two(least: int) -> Kind:
    one, two = whole(least), whole_list(2, least)
    return Kind(f"{one.expected}, or two of them", lambda value: one.holds(value) or two.holds(value))


FIELDS = {
    "input": whole_list(4, 1),
    "out_channels": whole(1),
    "kernel": _one_or_two(1),
    "stride": _one_or_two(1),
    "padding": _one_or_two(0),
    "dilation": _one_or_two(1),
    "groups": whole(1),
    "residual": one_of("none", "before", "after"),
}


def read(path: Path) -> list[Site]:
    """The sites of a file. Raises OSError where it cannot be read, ValueError where it holds anything else."""
    listed = load(tuning.contents(path))
    if not LIST.holds(listed) or not listed:
        refuse("shapes", "a list of convolutions", listed)
    return [_site(f"shapes[{index}]", found) for index, found in enumerate(listed)]


def _site(where: str, found: Any) -> Site:
    found = {**DEFAULTS, **found} if isinstance(found, dict) else found
    check(where, found, FIELDS)
    channels, groups, kernel = found["input"][1], found["groups"], checks.pair("kernel", found["kernel"], 1)
    if channels % groups:
        refuse(f"{where}.groups", f"a divisor of the {channels} input channels", groups)
    with torch.device("meta"):
        input, weight = torch.empty(found["input"]), torch.empty(found["out_channels"], channels // groups, *kernel)
    geometry = (found["stride"], found["padding"], found["dilation"], groups)
    try:
        spec, _ = checks.convolution(input, weight, None, *geometry)
    except RuntimeError as error:
        raise ValueError(f"{where}: {error}") from error
    return Site(where, tuple(input.shape), tuple(weight.shape), spec, found["residual"])

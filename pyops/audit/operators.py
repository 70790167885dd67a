"""Operators on maps: the positions that they read, and the dimensions that they keep.

A map is a tensor whose height and width correspond to those of the image. Pairs are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx

from ..ops.catalogue import CONVOLUTIONS, ConvCall
from . import taps
from .taps import Taps

Pair = tuple[int, int]
Axes = tuple[Taps, Taps]  # for the height, for the width
VIEWS = ("_unsafe_view", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view")
REDUCTIONS = {
    "all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp", "max", "mean", "min", "prod",
    "std", "std_mean", "sum", "var", "var_mean",
}  # fmt: skip
# They depend on the size of a map alone.
CREATING = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like", "zeros_like",
}  # fmt: skip
# They change the dimensions of a value that is no map any more, and neither move nor combine positions.
RESHAPING = {*VIEWS, *REDUCTIONS, "clone", "contiguous", "getitem", "permute", "select", "transpose"}
ALONG = {"cat": 0, "glu": -1, "linear": -1, "log_softmax": 0, "softmax": 0, "split": 0, "split_with_sizes": 0}
# Besides those that torch tags as pointwise and those of ALONG: they read, of each map, the output's own position.
# Normalizations are among them; their statistics over a map are not followed.
SAME_POSITION = {
    "_epilogue", "_native_batch_norm_legit_no_training", "_to_copy", "alias", "alpha_dropout", "batch_norm",
    "channel_shuffle", "clone", "contiguous", "detach", "dropout", "expand", "feature_dropout", "getitem", "group_norm",
    "hardswish", "instance_norm", "layer_norm", "prelu", "rms_norm", "select", "slice", "stack", "to", "unbind",
}  # fmt: skip


class Window(NamedTuple):
    """Geometry of a convolution or pooling."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def axes(self) -> Axes:
        height, width = (taps.window(*axis) for axis in zip(*self))
        return height, width


def name(node: fx.Node) -> str:
    """The operator without namespace and overload: conv2d for aten.conv2d.padding."""
    target: Any = node.target
    return getattr(target, "overloadpacket", target).__name__


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by their names in its schema, with defaults."""
    root: Any = node.graph.owning_module
    normalized = node.normalized_arguments(root, normalize_to_only_use_kwargs=True)
    return normalized.kwargs if normalized else {}


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value, or of the first of several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return tuple(getattr(value, "shape", ()))


def window(node: fx.Node) -> Window | None:
    """The geometry of a convolution or of a pooling with a kernel size; None for other operators."""
    kind, a = name(node), arguments(node)
    if call := _fused_convolution(node):
        return Window(_pair(call.weight[2:]), *call.spec[:3])
    if kind in ("conv2d", "conv_transpose2d", "convolution") and len(shape(a["weight"])) == 4:
        kernel = _pair(shape(a["weight"])[2:])
    elif "pool2d" in kind and "kernel_size" in a and "padding" in a:
        kernel = _pair(a["kernel_size"])
    else:
        return None
    dilation, padding = _pair(a.get("dilation", 1)), a["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel)]
        padding = [one // 2 for one in total]  # an odd one has more at the end
    return Window(kernel, _pair(a["stride"] or kernel), _pair(padding), dilation)


def convolution_macs(node: fx.Node) -> int:
    """The multiply-adds of a convolution; 0 for other operators.

    A convolution multiplies its weight for each output position, a transposed one for each input position.
    """
    if node.op != "call_function" or window(node) is None or "pool2d" in name(node):
        return 0
    call, a = _fused_convolution(node), arguments(node)
    positions = shape(a["input"] if _is_transposed(node) else node)
    return positions[0] * math.prod(positions[2:]) * math.prod(call.weight if call else shape(a["weight"]))


def _fused_convolution(node: fx.Node) -> ConvCall | None:
    """The call of an operator of this package, or of oneDNN, that convolves."""
    read = CONVOLUTIONS.get(node.target)
    if read is None or name(node) == "convolution":
        return None
    values = fx.node.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
    return read(*values[0], **values[1])  # type: ignore[index]


def _is_transposed(node: fx.Node) -> bool:
    return name(node) == "conv_transpose2d" or bool(arguments(node).get("transposed"))


def moved(node: fx.Node, axes: Pair, source: tuple[int, ...]) -> Axes | None:
    """The taps of an operator that reads other positions than its own, of an input of this shape; None for others."""
    kind, a, count = name(node), arguments(node), len(source)
    if kind in ("pad", "constant_pad_nd"):  # from the last dimension back
        before = dict(enumerate(a["pad"][::2], 1))
        return _each(taps.window, ((1, 1, before.get(count - axis, 0)) for axis in axes))
    if kind == "slice" and a["dim"] % count in axes:
        start = a["start"] or 0
        start = max(0, start + source[a["dim"]]) if start < 0 else start
        return _each(taps.window, ((1, a["step"], -start) if axis == a["dim"] % count else (1,) for axis in axes))
    if sorted(axes) != [count - 2, count - 1]:  # all others work on the last two dimensions
        return None
    last = _moved_in_last(node, source)
    return last[::-1] if last and axes[0] > axes[1] else last


def _moved_in_last(node: fx.Node, source: tuple[int, ...]) -> Axes | None:
    """moved() for operators on the last two dimensions, in their order."""
    kind, a, geometry = name(node), arguments(node), window(node)
    if geometry:
        return _each(taps.transposed, zip(*geometry)) if _is_transposed(node) else geometry.axes()
    sizes = list(zip(source[-2:], shape(node)[-2:]))
    if kind in ("pixel_shuffle", "pixel_unshuffle"):
        factor = a.get("upscale_factor") or a.get("downscale_factor")
        taken = taps.repeated if kind == "pixel_shuffle" else lambda one: taps.window(one, one)
        return _each(taken, [(factor,)] * 2)
    if "adaptive" in kind and "pool2d" in kind:
        return _each(taps.adaptive, sizes)
    if a.get("scale_factors"):  # torch takes them, and not the ratio of the sizes
        ratios = [Fraction(factor).limit_denominator(10**4) for factor in a["scale_factors"]]
        sizes = [(ratio.denominator, ratio.numerator) for ratio in ratios]
    if kind.startswith(("upsample_nearest2d", "_upsample_nearest_exact2d")):
        return _each(taps.nearest, ((*one, "exact" in kind) for one in sizes))
    if kind in ("upsample_bilinear2d", "upsample_bicubic2d"):
        return _each(taps.interpolated, ((*one, 1 if "linear" in kind else 2, a["align_corners"]) for one in sizes))
    return None


def is_followed(node: fx.Node, axes: Pair, dimensions: int) -> bool:
    """True for an operator that reads the output's own position of maps with these axes."""
    kind, a = name(node), arguments(node)
    if kind in ALONG:
        return a.get("dim", ALONG[kind]) % dimensions not in axes
    if kind in ("max", "min") and "other" in a:
        return True
    if kind in REDUCTIONS and "dim" in a:
        return not set(_dims(a["dim"], dimensions)) & set(axes)
    if kind in ("select", "slice", "unbind") and a["dim"] % dimensions in axes:
        return False
    return kind in SAME_POSITION or torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_global_pooling(node: fx.Node, axes: Pair, source: tuple[int, ...]) -> bool:
    """True for an operator that reads a whole map, of more than one position, for one output position."""
    kind, a, output = name(node), arguments(node), shape(node)
    size = tuple(source[axis] for axis in axes)
    if size == (1, 1):
        return False
    if kind in REDUCTIONS and "other" not in a:
        return set(axes) <= set(_dims(a.get("dim"), len(source)))
    if "pool2d" not in kind or output[-2:] != (1, 1) or sorted(axes) != [len(source) - 2, len(source) - 1]:
        return False
    kernel = _pair(a.get("kernel_size") or 1)
    return "adaptive" in kind or all(side >= whole for side, whole in zip(kernel, source[-2:]))


def axes_after(node: fx.Node, axes: Pair, source: tuple[int, ...]) -> Pair | None:
    """The height's and width's dimensions in the output, of those in an input; None if it does not keep both apart."""
    kind, a, output = name(node), arguments(node), shape(node)
    if kind in VIEWS:
        places = [_same_place(source, output, axis) for axis in axes]
    elif kind == "permute":
        places = [[dim % len(source) for dim in a["dims"]].index(axis) for axis in axes]
    elif kind == "transpose":
        swapped = a["dim0"] % len(source), a["dim1"] % len(source)
        places = [swapped[1 - swapped.index(axis)] if axis in swapped else axis for axis in axes]
    elif kind == "stack":
        places = [axis + (a["dim"] % len(output) <= axis) for axis in axes]
    elif len(output) < len(source):  # dimensions are removed
        removed = _dims(a.get("dim"), len(source))
        places = [axis - sum(dim < axis for dim in removed) for axis in axes]
    else:
        places = [axis + len(output) - len(source) for axis in axes]  # broadcasting aligns the last ones
    height, width = places
    return None if height is None or width is None else (height, width)


def _same_place(source: Sequence[int], output: Sequence[int], axis: int) -> int | None:
    """The dimension of a view that is a dimension of its source: of the same size, behind as many elements."""
    before = math.prod(source[:axis])
    places = [i for i, size in enumerate(output) if size == source[axis] and math.prod(output[:i]) == before]
    return places[-1] if places else None


def _dims(dims: int | Sequence[int] | None, count: int) -> list[int]:
    listed = range(count) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [dim % count for dim in listed]


def _pair(value: Any) -> Pair:
    values = value if isinstance(value, Sequence) else [value]
    return int(values[0]), int(values[-1])


def _each(kind: Callable[..., Taps], numbers: Any) -> Axes:
    height, width = (kind(*one) for one in numbers)
    return height, width

"""Argument checks. An error names the argument, the expected value and the given one.

The exception types are those that torch.nn.functional and torch.nn raise for the same mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import Pair, Spec, accumulate_type


class UsageError(Exception):
    """A mistake on the command line, reported as one line without a traceback."""


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensor(name: str, value: object, like: Tensor | None = None) -> Tensor:
    """Returns `value` if it is a dense tensor of one of DTYPES on the device of `like`, else raises."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized:
        kind = "quantized" if value.is_quantized else str(value.layout)
        raise NotImplementedError(f"{name}: expected a dense (torch.strided) tensor, got a {kind} one")
    if value.dtype not in DTYPES:
        raise NotImplementedError(f"{name}: expected dtype float32, float16, bfloat16 or float64, got {value.dtype}")
    if like is not None and value.device != like.device:
        raise RuntimeError(f"{name}: expected a tensor on the input's device {like.device}, got one on {value.device}")
    return value


def feature_map(name: str, value: Tensor, error: type[Exception]) -> None:
    if value.dim() != 4:
        shape = tuple(value.shape)
        raise (ValueError if value.dim() == 3 else error)(
            f"{name}: expected 4-D (N, C, H, W), got {value.dim()}-D {shape}"
        )


def pair(name: str, value: object, minimum: int) -> Pair:
    """Converts an int, or one or two ints, to a pair. Each must be at least `minimum`."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) not in (1, 2) or any(isinstance(v, (bool, float)) or not hasattr(v, "__index__") for v in values):
        error = RuntimeError if len(values) > 2 else TypeError
        raise error(f"{name}: expected an int or a pair of ints, got {value!r}")
    if min(values) < minimum:
        raise RuntimeError(f"{name}: expected at least {minimum}, got {value!r}")
    first, last = values[0], values[-1]
    return int(first), int(last)


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int
) -> tuple[Spec, tuple[int, ...] | None]:
    """Checks shapes and dtypes; returns the geometry, and the F.pad widths for padding="same" of an even kernel."""
    feature_map("input", input, RuntimeError)
    if weight.dim() != 4:
        raise RuntimeError(f"weight: expected 4-D (C_out, C_in / groups, kH, kW), got {tuple(weight.shape)}")
    if isinstance(groups, (bool, float)) or not hasattr(groups, "__index__"):
        raise TypeError(f"groups: expected an int, got {groups!r}")
    if groups < 1:
        raise RuntimeError(f"groups: expected at least 1, got {groups}")
    out_channels, in_channels = weight.shape[0], weight.shape[1] * groups
    if out_channels < 1 or in_channels < 1 or out_channels % groups:
        raise RuntimeError(
            f"weight: expected at least one channel in and out, and C_out divisible by groups={groups}, "
            f"got {tuple(weight.shape)}"
        )
    if input.shape[1] != in_channels:
        raise RuntimeError(
            f"input: expected {in_channels} channels for a weight of shape {tuple(weight.shape)} and groups={groups}, "
            f"got {input.shape[1]} (shape {tuple(input.shape)})"
        )
    if 0 in input.shape[2:]:
        raise RuntimeError(f"input: expected H and W of at least 1, got shape {tuple(input.shape)}")
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise RuntimeError(f"bias: expected shape ({out_channels},), got {tuple(bias.shape)}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != input.dtype:
            raise RuntimeError(f"{name}: expected the input's dtype {input.dtype}, got {value.dtype}")
    return geometry(input, weight, pair("stride", stride, 1), padding, pair("dilation", dilation, 1), int(groups))


def geometry(input: Tensor, weight: Tensor, stride: Pair, padding, dilation: Pair, groups: int):
    kernel = (weight.shape[2], weight.shape[3])
    before = None
    same = isinstance(padding, str) and padding == "same"
    if isinstance(padding, str) and padding == "valid":
        padding = (0, 0)
    elif same:
        if stride != (1, 1):
            raise RuntimeError(f'padding: "same" expects stride 1, got stride {stride}')
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        padding = (total[0] // 2, total[1] // 2)
        if total[0] % 2 or total[1] % 2:  # an even kernel: one more row or column, at the end
            before = (0, total[1] % 2, 0, total[0] % 2)
    elif isinstance(padding, str):
        raise RuntimeError(f'padding: expected a number, a pair, "same" or "valid", got {padding!r}')
    else:
        padding = pair("padding", padding, 0)
    spec = Spec(stride, padding, dilation, groups)
    if not same:  # "same" always has room
        for name, extent, k, d, p in zip("HW", (input.shape[2], input.shape[3]), kernel, dilation, padding):
            if extent + 2 * p < d * (k - 1) + 1:
                raise RuntimeError(
                    f"input: expected {name} + 2 * padding >= dilation * (kernel - 1) + 1 = {d * (k - 1) + 1}, "
                    f"got {extent + 2 * p} ({name} {extent}, padding {p}, dilation {d}, kernel {k})"
                )
    return spec, before


def batch_norm(vectors: dict[str, Tensor | None], channels: int, z: Tensor, eps: float, training: bool) -> None:
    """Checks running_mean, running_var, weight, bias: (C,), all of z's dtype, or all fp32 if z is fp16 or bf16."""
    allowed = list(dict.fromkeys((z.dtype, accumulate_type(z.dtype))))
    for name, other in (("running_mean", "running_var"), ("running_var", "running_mean")):
        if vectors[name] is None and not training:
            raise RuntimeError(f"{name}: expected a tensor unless training=True, got None")
        if vectors[name] is None and vectors[other] is not None:
            raise ValueError(f"{name}: expected a tensor beside {other}, got None")
    for name, value in vectors.items():
        if value is None:
            continue
        tensor(name, value, like=z)
        if tuple(value.shape) != (channels,):
            raise RuntimeError(f"{name}: expected shape ({channels},), one value per channel, got {tuple(value.shape)}")
        if value.dtype not in allowed:
            raise RuntimeError(f"{name}: expected {' or '.join(map(str, allowed))}, got {value.dtype}")
        allowed = [value.dtype]
    if eps < 0 or (training and eps == 0):
        expected = "a positive number in training" if training else "a number that is not negative"
        raise ValueError(f"eps: expected {expected}, got {eps}")


def more_than_one_value(size: Sequence[int]) -> None:
    """Batch statistics need more than one value per channel."""
    values = size[0] * size[2] * size[3]
    if values == 1:
        raise ValueError(f"input: expected more than 1 value per channel when training, got size {tuple(size)}")


def slope(value: Tensor, size: Sequence[int]) -> None:
    """Checks a slope tensor of one dimension: one value, or one per channel (dimension 1)."""
    channels = size[1] if len(size) > 1 else 1
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        raise RuntimeError(f"slope: expected shape (1,) or ({channels},), got {tuple(value.shape)}")


def dtype(name: str, value: Tensor, expected: torch.dtype) -> None:
    if value.dtype != expected:
        raise RuntimeError(f"{name}: expected dtype {expected}, that of the values it is applied to, got {value.dtype}")


def number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a probability between 0 and 1, got {value}")


def residual(name: str, value: Tensor | None, size: Sequence[int], like: Tensor) -> None:
    """Checks that a residual has the output's shape or broadcasts to it."""
    value = tensor(name, value, like)
    shape = tuple(value.shape)
    aligned = (1,) * (len(size) - len(shape)) + shape
    if len(aligned) != len(size) or any(a != 1 and a != b for a, b in zip(aligned, size)):
        raise RuntimeError(f"{name}: expected a shape that broadcasts to the output's {tuple(size)}, got {shape}")

"""The cases, random inputs and error budgets that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import reference, tuning
from .core import activation

SLOPES = ("relu", 0.01, "shared", "channel", (0.125, 1 / 3))


@dataclass(frozen=True)
class Case:
    """One call of conv_bn_act."""

    name: str
    size: tuple[int, int, int, int]  # N, C, H, W
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: Any = 1
    padding: Any = 1
    dilation: Any = 1
    groups: int = 1
    slope: Any = "channel"  # one of SLOPES, or any slope argument
    residual: str | None = None  # None | "before" | "after"
    bn: bool = True
    bias: bool = False

    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


# Small shapes that no tile size divides. Further edge cases are in the tests.
CASES = (
    Case("plain", (2, 16, 13, 29), 32),
    Case("residual", (2, 16, 7, 7), 16, residual="before"),
    Case("residual_after", (2, 16, 7, 7), 16, residual="after", slope="relu"),
    Case("dilated", (1, 31, 15, 17), 33, padding=4, dilation=4, slope=0.01),
    Case("strided", (2, 3, 28, 28), 64, kernel=(7, 7), stride=2, padding=3),
    Case(
        "asymmetric", (2, 6, 19, 23), 10, kernel=(1, 3), stride=(2, 1), padding=(0, 5), dilation=(1, 5), slope="shared"
    ),
    Case("gray", (2, 1, 9, 9), 5, residual="before"),  # one channel: NCHW and channels_last alike
    Case("grouped", (2, 12, 9, 9), 24, groups=3, bias=True),
    Case("depthwise", (2, 12, 9, 9), 12, groups=12, slope="relu"),
    Case("pointwise", (2, 65, 5, 5), 7, kernel=(1, 1), padding=0, slope=1.0),
    Case("same", (2, 8, 11, 10), 8, kernel=(2, 4), padding="same", dilation=3, residual="before"),
    Case("no_bn", (2, 16, 8, 8), 16, bn=False, bias=True, slope=-0.5),
)

# Layers of ResNet34 at 224 x 224, and of its dilated form (output stride 8): the benchmarks measure these.
RESNET34 = (
    Case("stem", (1, 3, 224, 224), 64, kernel=(7, 7), stride=2, padding=3),
    Case("layer1", (1, 64, 56, 56), 64, residual="before"),
    Case("layer2", (1, 128, 28, 28), 128, residual="before"),
    Case("layer3", (1, 256, 14, 14), 256, residual="before"),
    Case("layer4", (1, 512, 7, 7), 512, residual="before"),
    Case("layer3_dilated", (1, 256, 28, 28), 256, padding=2, dilation=2, residual="before"),
    Case("layer4_dilated", (1, 512, 28, 28), 512, padding=4, dilation=4, residual="before"),
)


def batched(case: Case, batch: int) -> Case:
    return replace(case, size=(batch, *case.size[1:]))


def arguments(case: Case, dtype=torch.float32, device="cpu", memory_format=torch.contiguous_format) -> dict[str, Any]:
    """Returns random keyword arguments for conv_bn_act, drawn from torch's global generator."""
    out, channels = case.out_channels, case.size[1] // case.groups

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=torch.float32)

    fan_in = channels * case.kernel[0] * case.kernel[1]
    kwargs: dict[str, Any] = {
        "input": draw(*case.size),
        "weight": draw(out, channels, *case.kernel) * (2 / fan_in) ** 0.5,
    }
    if case.bias:
        kwargs["bias"] = draw(out)
    if case.bn:
        kwargs |= {"running_mean": draw(out), "running_var": draw(out).abs() + 0.5}
        kwargs |= {"bn_weight": draw(out), "bn_bias": draw(out)}
    slopes = {"shared": lambda: draw(1), "channel": lambda: draw(out)}
    slope = slopes[case.slope]() if case.slope in slopes else case.slope
    kwargs |= {"slope": slope, "residual_after_act": case.residual == "after", **case.geometry()}
    if case.residual:
        input, weight = kwargs["input"].to("meta"), kwargs["weight"].to("meta")
        kwargs["residual"] = draw(*torch.conv2d(input, weight, None, **case.geometry()).shape)
    return convert(kwargs, dtype, memory_format)


def convert(kwargs: dict[str, Any], dtype: torch.dtype, memory_format=torch.preserve_format) -> dict[str, Any]:
    """Converts every tensor to `dtype`, and the 4-D ones to `memory_format`."""

    def one(value):
        if not isinstance(value, Tensor):
            return value
        return value.to(dtype, memory_format=memory_format) if value.dim() == 4 else value.to(dtype)

    return {name: one(value) for name, value in kwargs.items()}


def eager(kwargs: dict[str, Any], seed: Tensor | None = None) -> Tensor:
    """conv_bn_act(**kwargs) in plain torch: conv2d, batch_norm, add, activation."""
    names = ("stride", "padding", "dilation", "groups")
    z = torch.conv2d(kwargs["input"], kwargs["weight"], kwargs.get("bias"), *(kwargs[n] for n in names))
    mean, var, gamma, beta = (kwargs.get(n) for n in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    kind, value, upper, slope = activation.parse_slope(kwargs["slope"])
    post_op = (kind, value, upper, slope, seed, kwargs.get("residual"), kwargs["residual_after_act"])
    return reference.epilogue(z, mean, var, gamma, beta, kwargs.get("eps", 1e-5), *post_op)


def truth(kwargs: dict[str, Any], seed: Tensor | None = None) -> Tensor:
    """eager(kwargs) in fp64, from the same input values."""
    return eager(convert(kwargs, torch.float64), seed)


def product_rounding(input: Tensor) -> float:
    """Returns the relative error that one product of the convolution may have: 2**-9 in tf32, else 0.

    tf32 keeps 10 bits of each factor, truncated or rounded, so the errors of two tf32 libraries differ by more than a
    ratio. In the other dtypes a product is exact in its accumulator.
    """
    return 2.0**-9 if input.is_cuda and input.dtype == torch.float32 and tuning.tf32() else 0.0


def assert_close(y: Tensor, kwargs: dict[str, Any], seed: Tensor | None = None) -> None:
    """Asserts that the largest error against fp64 is at most the larger of 1.25 times eager's error and four roundings
    (in tf32 also those of the products)."""
    exact, plain = truth(kwargs, seed), eager(kwargs, seed)
    assert y.shape == plain.shape and y.dtype == plain.dtype, (y.shape, y.dtype, plain.shape, plain.dtype)
    error, eager_error = largest_error(y, exact), largest_error(plain, exact)
    largest, rounding = float(exact.abs().max()) if exact.numel() else 0.0, torch.finfo(y.dtype).eps
    budget = max(1.25 * eager_error, (4 * rounding + product_rounding(kwargs["input"])) * largest)
    message = f"error {error:.3g}, budget {budget:.3g} (eager {eager_error:.3g}, one rounding {rounding * largest:.3g})"
    assert error <= budget, message


def largest_error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).abs().max()) if exact.numel() else 0.0


def gpu_lost() -> bool:
    """True after a sticky CUDA error, such as an illegal access: every later CUDA call of this process fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False

"""The cases, random inputs and error budgets that tests and benchmarks share.

The error budget has two rules. `exact` is the same computation in fp64 from the same values; `plain` is eager torch in
the dtype under test, whose error shows what rounding to that dtype costs.

    a tensor    max |y - exact| <= max(ratio * max |plain - exact|, relative * max |exact|)
    an element      |y - exact| <= stored * eps(dtype) * |exact| + computed * eps(accumulator) * magnitude

Sums of the same terms in another order have errors of about the same size, so ratio is 1.25. `relative` is for a plain
result whose roundings happen to cancel: by default half a unit in the last place of the result and 32 of the
accumulator. A single element of plain may be exact by chance, so the rule of an element takes the error that any
computation in this accumulator makes: one rounding of the result, and a few of the accumulator at `magnitude`, the sum
of the magnitudes of the terms that were added.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import reference, tuning
from .core import activation
from .core.spec import Epilogue, accumulate_type

RATIO = 1.25  # allowed multiple of eager's largest error
GPU_LOST = 75  # exit status of a program that lost the GPU, EX_TEMPFAIL of sysexits.h: another process may go on
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
    return reference.epilogue(z, epilogue(kwargs)._replace(seed=seed))


def epilogue(kwargs: dict[str, Any]) -> Epilogue:
    """The Epilogue of conv_bn_act(**kwargs), without a seed."""
    mean, var, gamma, beta = (kwargs.get(n) for n in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    kind, value, upper, slope = activation.parse_slope(kwargs["slope"])
    numbers = kind, kwargs.get("eps", 1e-5), value, upper, kwargs["residual_after_act"]
    return Epilogue(mean, var, gamma, beta, slope, kwargs.get("residual"), *numbers)


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
    """Asserts y = conv_bn_act(**kwargs) by the rule of a tensor; relative: four roundings of the result, and in tf32
    that of a product."""
    relative = roundings(y.dtype, stored=4, computed=0) + product_rounding(kwargs["input"])
    assert_tensor(y, eager(kwargs, seed), truth(kwargs, seed), relative=relative)


class OverBudget(AssertionError):
    """The error is finite and over the budget: a fault, or unlucky roundings that other values would not repeat."""


def assert_tensor(
    y: Tensor, plain: Tensor, exact: Tensor, what: str = "y", *, ratio: float = RATIO, relative: float | None = None
) -> None:
    """Asserts plain's shape, dtype and device, NaN and infinities where exact has them, and the rule of a tensor.

    Raises OverBudget if only the last fails, and AssertionError for the others.
    """
    for name in ("shape", "dtype", "device"):
        wanted, got = getattr(plain, name), getattr(y, name)
        assert got == wanted, f"{what}: expected {name} {wanted}, got {got}"
    error, budget = largest_error(y, exact), tensor_budget(plain, exact, ratio, relative)
    assert error < torch.inf, f"{what}: expected NaN and infinities where the fp64 result has them"
    if error > budget:
        eagers = largest_error(plain, exact)
        raise OverBudget(f"{what}: error {error:.3g} against fp64, budget {budget:.3g}, plain torch {eagers:.3g}")


def tensor_budget(plain: Tensor, exact: Tensor, ratio: float = RATIO, relative: float | None = None) -> float:
    """max(ratio * max |plain - exact|, relative * max |exact|) over the finite values.

    relative: roundings(plain.dtype) by default. A plain result that overflows or is NaN allows no error.
    """
    error = largest_error(plain, exact)
    largest = exact.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if exact.numel() else 0.0
    relative = roundings(plain.dtype) if relative is None else relative
    return max(ratio * error if error < torch.inf else 0.0, relative * largest)


def roundings(
    dtype: torch.dtype, stored: float = 0.5, computed: float = 32, arithmetic: torch.dtype | None = None
) -> float:
    """stored * eps(dtype) + computed * eps(accumulator of arithmetic, which is by default dtype)."""
    return stored * torch.finfo(dtype).eps + computed * torch.finfo(accumulate_type(arithmetic or dtype)).eps


def largest_error(y: Tensor, exact: Tensor) -> float:
    """max |y - exact|; infinite if NaN or infinities are at other places or have other signs."""
    y, exact = y.detach().double(), exact.detach().double()
    error = (y - exact).abs().masked_fill_((y == exact) | (y.isnan() & exact.isnan()), 0.0)
    return error.nan_to_num_(torch.inf, torch.inf).max().item() if error.numel() else 0.0


def assert_elements(
    y: Tensor, exact: Tensor, magnitude: Tensor, what: str = "y", *, computed: float, stored: float = 0.5,
    more: Tensor | float = 0.0,
) -> None:  # fmt: skip
    """Asserts exact's shape and, for each element, the rule of an element. more: errors that are known otherwise."""
    assert y.shape == exact.shape, f"{what}: expected shape {exact.shape}, got {y.shape}"
    storage, accumulator = torch.finfo(y.dtype), torch.finfo(accumulate_type(y.dtype)).eps
    smallest = storage.smallest_normal * storage.eps  # the smallest subnormal number
    budget = stored * storage.eps * exact.abs() + computed * accumulator * magnitude + more + smallest
    over = (y.double() - exact).abs() - budget
    assert not over.isnan().any(), f"{what}: {int(over.isnan().sum())} of {over.numel()} are NaN"
    most = over.max().item() if over.numel() else 0.0
    assert most <= 0, f"{what}: {int((over > 0).sum())} of {over.numel()} over their budget, by up to {most:.3g}"


def gpu_lost() -> bool:
    """True after a sticky CUDA error, such as an illegal access: every later CUDA call of this process fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class GpuLost(RuntimeError):
    """The work that ended with a sticky CUDA error, by its name: nothing runs on the GPU in this process any more."""


def raise_if_lost(what: str, error: Exception) -> None:
    """Raises GpuLost(what) from the error if the GPU is lost."""
    if gpu_lost():
        raise GpuLost(what) from error


def exit_with(status: int) -> NoReturn:
    """sys.exit(status); after GPU_LOST without the destructors of CUDA objects, which may abort the process."""
    if status != GPU_LOST:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

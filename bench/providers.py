"""Who is measured: plain torch, torch.compile, and every row, on the very same tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import atrous
from atrous import fusion, reference, testing
from atrous.backends import selection
from atrous.core import activation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NHWC = torch.channels_last
ROWS = tuple(selection.rows())
OPS = ("eager", "compile", *ROWS)
MODELS = ("eager", "compile", "compile_freezing", *ROWS, "frozen")
BUDGET = {"op": 1.25, "model": 2.0}  # of eager's own error against fp64

Call = Callable[[], Tensor]


class Subject(NamedTuple):
    """One thing to compute: in plain torch, by a row of ours, and its fp64 truth."""

    kind: str
    plain: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    ours: Callable[[str], Tensor]
    exact: Tensor

    @property
    def eager(self) -> Call:
        return lambda: self.plain(*self.arguments)

    def call(self, provider: str) -> Call:
        """Raises ValueError, with the reasons, for a row that cannot run on this machine."""
        if provider == "eager":
            return self.eager
        if provider.startswith("compile"):
            options = {"freezing": True} if provider == "compile_freezing" else None
            compiled = torch.compile(self.plain, fullgraph=True, dynamic=False, options=options)
            return lambda: compiled(*self.arguments)
        reasons = selection.available(provider) if provider in ROWS else []
        if reasons:
            raise ValueError("; ".join(reasons))
        return lambda: self.ours(provider)

    def check(self, y: Tensor) -> None:
        """At most a little more than eager's largest error, or one rounding of the result where eager was lucky."""
        error = testing.largest_error(y, self.exact)
        rounding = torch.finfo(y.dtype).eps * float(self.exact.abs().max())
        allowed = max(BUDGET[self.kind] * testing.largest_error(self.eager(), self.exact), rounding)
        assert error <= allowed, f"error {error:.3g} against fp64, allowed {allowed:.3g}"


def _subject(plain, arguments: tuple, ours) -> Subject:
    doubled = [value.double() if isinstance(value, Tensor) else value for value in arguments]
    return Subject("op", plain, arguments, ours, plain(*doubled))


def _made(case: testing.Case, dtype: torch.dtype) -> dict[str, Any]:
    return testing.arguments(case, dtype, str(DEVICE), NHWC)


def _ending(made: dict[str, Any]) -> tuple[Any, ...]:
    """What follows eps in the arguments of reference.epilogue."""
    return (*activation.of(made["slope"]), None, made.get("residual"), made["residual_after_act"])


def _vectors(made: dict[str, Any]) -> list[Tensor | None]:
    return [made.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]


def conv_bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    made = _made(case, dtype)
    geometry = [made[name] for name in ("stride", "padding", "dilation", "groups")]
    arguments = (made["input"], made["weight"], made.get("bias"), *geometry, *_vectors(made), 1e-5, *_ending(made))
    return _subject(reference.conv_epilogue, arguments, lambda row: atrous.conv_bn_act(**made, backend=row))


def _feature_map(case: testing.Case, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The case's vectors and residual, and a map of the size of its output."""
    made = _made(case, dtype)
    size = (case.size[0], case.out_channels, *made["residual"].shape[2:])
    return made, torch.randn(size, device=DEVICE).to(dtype, memory_format=NHWC)


def bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    made, z = _feature_map(case, dtype)
    ending = {name: made[name] for name in ("slope", "residual", "residual_after_act")}
    arguments = (z, *_vectors(made), 1e-5, *_ending(made))
    return _subject(reference.epilogue, arguments, lambda row: atrous.bn_act(z, *_vectors(made), **ending, backend=row))


def add_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    made, x = _feature_map(case, dtype)
    other, slope = made["residual"], made["slope"]
    arguments = (x, None, None, None, None, 1e-5, *_ending(made))
    return _subject(reference.epilogue, arguments, lambda row: atrous.add_act(x, other, slope=slope, backend=row))


def resnet34(batch: int, size: int, dtype: torch.dtype) -> Subject:
    """Each row with live parameters; "frozen": fuse(freeze=True), the row chosen by dispatch."""
    model = atrous.models.resnet34(act="prelu").to(DEVICE).eval()
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    exact = copy.deepcopy(model).double()(images.double())
    plain = model.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    x = images.to(dtype, memory_format=NHWC)
    twins: dict[str, torch.nn.Module] = {}

    def ours(row: str) -> Tensor:
        if row not in twins:
            frozen = row == "frozen"
            twins[row] = fusion.fuse(plain, backend="auto" if frozen else row, freeze=frozen)
        return twins[row](x)

    return Subject("model", plain, (x,), ours, exact)

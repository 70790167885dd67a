"""Providers to benchmark: plain torch, torch.compile and every backend, all on the same tensors."""

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
from atrous.core.spec import Epilogue, Spec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NHWC = torch.channels_last
BACKENDS = tuple(selection.backends())
OPS = ("eager", "compile", *BACKENDS)
MODELS = ("eager", "compile", "compile_freezing", *BACKENDS, "frozen")
BUDGET = {"op": testing.RATIO, "model": 2.0}  # allowed multiple of eager's error against fp64

Call = Callable[[], Tensor]


class Subject(NamedTuple):
    """One benchmark subject: the computation in plain torch, by a backend, and its fp64 reference."""

    kind: str
    plain: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    ours: Callable[[str], Tensor]
    exact: Tensor

    @property
    def eager(self) -> Call:
        return lambda: self.plain(*self.arguments)

    def call(self, provider: str) -> Call:
        """The provider as a callable. Raises ValueError, with the reasons, if a backend cannot run on this machine."""
        if provider == "eager":
            return self.eager
        if provider.startswith("compile"):
            options = {"freezing": True} if provider == "compile_freezing" else None
            compiled = torch.compile(self.plain, fullgraph=True, dynamic=False, options=options)
            return lambda: compiled(*self.arguments)
        reasons = selection.available(provider) if provider in BACKENDS else []
        if reasons:
            raise ValueError("; ".join(reasons))
        return lambda: self.ours(provider)

    def check(self, y: Tensor) -> None:
        """Raises AssertionError if the error against fp64 exceeds both BUDGET times eager's and one rounding."""
        relative = testing.roundings(y.dtype, stored=1, computed=0)
        testing.assert_tensor(y, self.eager(), self.exact, ratio=BUDGET[self.kind], relative=relative)


def _subject(plain, arguments: tuple, ours) -> Subject:
    return Subject("op", plain, arguments, ours, plain(*map(_double, arguments)))


def _double(value):
    if isinstance(value, Epilogue):
        return Epilogue(*map(_double, value))
    return value.double() if isinstance(value, Tensor) else value


def _call_args(case: testing.Case, dtype: torch.dtype) -> dict[str, Any]:
    return testing.arguments(case, dtype, str(DEVICE), NHWC)


def _batch_norm(arguments: dict[str, Any]) -> list[Tensor | None]:
    return [arguments.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]


def _epilogue(arguments: dict[str, Any]) -> Epilogue:
    kind, value, upper, slope = activation.parse_slope(arguments["slope"])
    numbers = kind, 1e-5, value, upper, arguments["residual_after_act"]
    return Epilogue(*_batch_norm(arguments), slope, arguments.get("residual"), *numbers)


def conv_bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named = _call_args(case, dtype)
    spec = Spec(*(named[name] for name in ("stride", "padding", "dilation", "groups")))
    arguments = (named["input"], named["weight"], named.get("bias"), spec, _epilogue(named))
    return _subject(reference.conv_epilogue, arguments, lambda backend: atrous.conv_bn_act(**named, backend=backend))


def _feature_map(case: testing.Case, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The case's per-channel vectors and residual, and a feature map of its output's shape."""
    named = _call_args(case, dtype)
    size = (case.size[0], case.out_channels, *named["residual"].shape[2:])
    return named, torch.randn(size, device=DEVICE).to(dtype, memory_format=NHWC)


def bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named, z = _feature_map(case, dtype)
    vectors, post_op = _batch_norm(named), {name: named[name] for name in ("slope", "residual", "residual_after_act")}
    return _subject(
        reference.epilogue,
        (z, _epilogue(named)),
        lambda backend: atrous.bn_act(z, *vectors, **post_op, backend=backend),
    )


def add_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named, x = _feature_map(case, dtype)
    other, slope = named["residual"], named["slope"]
    epilogue = _epilogue(named)._replace(mean=None, var=None, gamma=None, beta=None)
    return _subject(
        reference.epilogue, (x, epilogue), lambda backend: atrous.add_act(x, other, slope=slope, backend=backend)
    )


def resnet34(batch: int, size: int, dtype: torch.dtype) -> Subject:
    """fuse(model) by each backend; "frozen": fuse(model, backend="auto", freeze=True)."""
    model = atrous.models.resnet34(act="prelu").to(DEVICE).eval()
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    exact = copy.deepcopy(model).double()(images.double())
    plain = model.to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
    x = images.to(dtype, memory_format=NHWC)
    fused: dict[str, torch.nn.Module] = {}

    def ours(backend: str) -> Tensor:
        if backend not in fused:
            frozen = backend == "frozen"
            fused[backend] = fusion.fuse(plain, backend="auto" if frozen else backend, freeze=frozen)
        return fused[backend](x)

    return Subject("model", plain, (x,), ours, exact)

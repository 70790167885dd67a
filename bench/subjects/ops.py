"""The operators as subjects: plain torch, torch.compile and every backend, all on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import atrous
from atrous import reference, testing
from atrous.backends import selection
from atrous.core.spec import Epilogue, Spec

from .subject import DEVICE, NHWC, OURS, Call, Subject, Unavailable, compiled

STAGES = [case for case in testing.RESNET34 if case.name in ("layer1", "layer4")]


def _subject(dtype: torch.dtype, plain, arguments: tuple, ours: Callable[[str], Tensor]) -> Subject:
    """ours: backend -> result."""
    providers: dict[str, Callable[[], Call]] = {
        "eager": lambda: lambda: plain(*arguments),
        "torch.compile": compiled(plain, arguments),
    }
    for backend in selection.backends():
        providers[f"{OURS} {backend}"] = lambda backend=backend: _backend(backend, ours)
    return Subject(dtype, providers, providers["eager"](), plain(*map(_double, arguments)))


def _backend(name: str, ours: Callable[[str], Tensor]) -> Call:
    reasons = selection.available(name)
    if reasons:
        raise Unavailable("; ".join(reasons))
    return lambda: ours(name)


def _double(value):
    if isinstance(value, Epilogue):
        return Epilogue(*map(_double, value))
    return value.double() if isinstance(value, Tensor) else value


def _call_args(case: testing.Case, dtype: torch.dtype) -> dict[str, Any]:
    return testing.arguments(case, dtype, str(DEVICE), NHWC)


def conv_bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named = _call_args(case, dtype)
    spec = Spec(*(named[name] for name in ("stride", "padding", "dilation", "groups")))
    arguments = (named["input"], named["weight"], named.get("bias"), spec, testing.epilogue(named))
    return _subject(
        dtype, reference.conv_epilogue, arguments, lambda backend: atrous.conv_bn_act(**named, backend=backend)
    )


def _feature_map(case: testing.Case, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The case's per-channel vectors and residual, and a feature map of its output's shape."""
    named = _call_args(case, dtype)
    size = (case.size[0], case.out_channels, *named["residual"].shape[2:])
    return named, torch.randn(size, device=DEVICE).to(dtype, memory_format=NHWC)


def bn_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named, z = _feature_map(case, dtype)
    vectors, post_op = (
        testing.epilogue(named)[:4],
        {name: named[name] for name in ("slope", "residual", "residual_after_act")},
    )
    arguments = (z, testing.epilogue(named))
    return _subject(
        dtype, reference.epilogue, arguments, lambda backend: atrous.bn_act(z, *vectors, **post_op, backend=backend)
    )


def add_act(case: testing.Case, dtype: torch.dtype) -> Subject:
    named, x = _feature_map(case, dtype)
    other, slope = named["residual"], named["slope"]
    arguments = (x, testing.epilogue(named)._replace(mean=None, var=None, gamma=None, beta=None))
    return _subject(
        dtype, reference.epilogue, arguments, lambda backend: atrous.add_act(x, other, slope=slope, backend=backend)
    )

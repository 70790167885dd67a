"""The operators that certify measures: each by `atrous` and in plain torch, on the arguments of a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import functional, reference, testing
from ...testing import Case

GEOMETRY = ("stride", "padding", "dilation", "groups")
LEAVES = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")

Arguments = dict[str, Any]


class Operator(NamedTuple):
    """run(backend, arguments) and plain(arguments): the tensors to compare. convolves: a backend may refuse a layer."""

    name: str
    cases: Sequence[Case]
    run: Callable[[str, Arguments], list[Tensor]]
    plain: Callable[[Arguments], list[Tensor]]
    convolves: bool


def _convolution(backend: str, arguments: Arguments) -> list[Tensor]:
    with torch.no_grad():
        return [functional.conv_bn_act(**arguments, backend=backend)]


def _feature_map(arguments: Arguments) -> Tensor:
    """The residual in the place of a convolution's output."""
    return arguments["residual"] * 2 - 1


def _bn_act(backend: str, arguments: Arguments) -> list[Tensor]:
    e = testing.epilogue(arguments)
    options = dict(slope=arguments["slope"], residual=e.residual, residual_after_act=e.residual_after_act)
    with torch.no_grad():
        return [functional.bn_act(_feature_map(arguments), e.mean, e.var, e.gamma, e.beta, **options, backend=backend)]


def _plain_bn_act(arguments: Arguments) -> list[Tensor]:
    return [reference.epilogue(_feature_map(arguments), testing.epilogue(arguments))]


def _add_act(backend: str, arguments: Arguments) -> list[Tensor]:
    z, residual, slope = _feature_map(arguments), arguments["residual"], arguments["slope"]
    with torch.no_grad():
        return [functional.add_act(z, residual, slope=slope, backend=backend)]


def _plain_add_act(arguments: Arguments) -> list[Tensor]:
    e = testing.epilogue(arguments)
    return [reference.finish(_feature_map(arguments), e._replace(residual_after_act=False))]


def _training(backend: str, arguments: Arguments) -> list[Tensor]:
    statistics = {name: arguments[name].clone() for name in ("running_mean", "running_var")}
    return _with_gradients(
        arguments, lambda given: functional.conv_bn_act(**(given | statistics), training=True, backend=backend)
    )


def _plain_training(arguments: Arguments) -> list[Tensor]:
    def layer(given: Arguments) -> Tensor:
        z = torch.conv2d(given["input"], given["weight"], given.get("bias"), *(given[name] for name in GEOMETRY))
        z = F.batch_norm(z, None, None, given["bn_weight"], given["bn_bias"], True)
        return reference.epilogue(z, testing.epilogue(given)._replace(mean=None, var=None, gamma=None, beta=None))

    return _with_gradients(arguments, layer)


def _with_gradients(arguments: Arguments, layer: Callable[[Arguments], Tensor]) -> list[Tensor]:
    """y and the gradients of its operands; the gradient of y is a wave, the same in every dtype."""
    leaves = {
        name: arguments[name].detach().requires_grad_() for name in LEAVES
        if isinstance(arguments.get(name), Tensor) and not (name == "bias" and "bn_weight" in arguments)
    }  # fmt: skip
    y = layer(arguments | leaves)
    wave = torch.sin(torch.arange(y.numel(), dtype=torch.float64, device=y.device)).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), wave.to(y.dtype))]


_ALL = (*testing.CASES, *testing.RESNET34)
_WITH_RESIDUAL = [case for case in _ALL if case.residual and case.bn]
OPERATORS = (
    Operator("conv_bn_act", _ALL, _convolution, lambda arguments: [testing.eager(arguments)], True),
    Operator("bn_act", _WITH_RESIDUAL, _bn_act, _plain_bn_act, False),
    Operator("add_act", _WITH_RESIDUAL, _add_act, _plain_add_act, False),
    Operator("training", [case for case in testing.CASES if case.bn], _training, _plain_training, True),
)

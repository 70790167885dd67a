"""The gradients of a layer by torch's own operators, for a backward that is itself differentiated or transformed.

Our kernels compute first derivatives alone. torch differentiates the composition conv2d, batch_norm, add, activation at
the tensors that the layer saved. Where the layer saved none, the gradients do not depend on its values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..core import sync_stats
from ..core.spec import Epilogue
from .recompute import WithValue, connected
from .save import saved, stand_in


def gradients(ctx, grad: Tensor) -> list[Tensor | None]:
    """The gradients of input, weight, bias and the fields of the Epilogue, those that are needed."""
    sync_stats.check_single_process(ctx.config.group)
    needed = ctx.needs_input_grad[3:]
    with torch.autocast(grad.device.type, enabled=False):
        operands, value = _operands(ctx, grad)

        return pulled_back(lambda *given: _layer(ctx, *given, value=value), operands, needed, grad)


def pulled_back(
    layer: Callable[..., Tensor], operands: Sequence, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of those operands that need one, from that of layer(*operands); differentiable."""

    def of_needed(*wanted: Tensor) -> Tensor:
        given = iter(wanted)
        return layer(*(next(given) if need else one for one, need in zip(operands, needed)))

    pull = torch.func.vjp(of_needed, *(one for one, need in zip(operands, needed) if need))[1]
    computed = iter(pull(grad))
    return [next(computed) if need else None for need in needed]


def _operands(ctx, grad: Tensor) -> tuple[list, Tensor | None]:
    """input, weight, bias, the fields of the Epilogue, and the saved z or y."""
    saved_x, saved_z, saved_residual, (weight, bias, _, *arguments) = saved(ctx)
    e, value = Epilogue(*arguments), None
    if ctx.config.spec is None and saved_z and ctx.config.backward_reads == "z":
        x = connected(saved_z)
    else:
        x = connected(saved_x) if saved_x else stand_in(grad, *ctx.input_like)
        value = saved_z[0] if saved_z else None
    if ctx.needs_input_grad[5] and bias is None:
        bias = weight.new_zeros(weight.shape[0])
    if ctx.residual_place != "none":
        e = e._replace(residual=connected(saved_residual) if saved_residual else stand_in(grad, grad.shape, ctx.layout))
    return [x, weight, bias, *e], value


def _layer(ctx, x: Tensor, weight, bias, *arguments, value: Tensor | None) -> Tensor:
    """y, at the value that was saved: that of z, or that of y, which has the sign of the activation's input."""
    (_, spec, batch_stats, *_), e = ctx.config, Epilogue(*arguments)
    z = x if spec is None else F.conv2d(x, weight, bias, *spec)
    saves_y = ctx.config.backward_reads == "y"
    if value is not None and not saves_y:
        z = WithValue.apply(z, value)
    if batch_stats or e.mean is not None:
        statistics = (None, None) if batch_stats else (e.mean, e.var)
        z = F.batch_norm(z, *statistics, e.gamma, e.beta, batch_stats, 0.0, e.eps)
    if saves_y:
        return reference.activate(WithValue.apply(z if e.residual is None else z + e.residual, value), e)
    return reference.epilogue(z, e._replace(mean=None, var=None, gamma=None, beta=None))

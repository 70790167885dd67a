"""The short way of a layer with gradients: one autograd function that saves all of its tensors, since they are small.

Its values and gradients have the bits of the long way (autograd/function.py), whose kernels it calls. What the long way
saves by recomputing is at most 16 KB a layer here; the time of finding it out would be that of the layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..autograd.composition import pulled_back
from ..core.layout import memory_format
from ..core.spec import Epilogue
from ..core.torch_compat import apply_of, batched_gradients, caller, transformed

_epilogue, _statistics_epilogue, _epilogue_gradients = (
    caller(getattr(torch.ops.atrous, name).default)
    for name in ("_epilogue", "_statistics_epilogue", "_epilogue_gradients")
)
_convolution_backward = caller(torch.ops.aten.convolution_backward.default)


class Plan(NamedTuple):
    """A layer besides its tensors. geometry: that of its convolution, as torch.conv2d takes it, or None.

    mean, var: the running statistics: they normalize, or, with batch_stats, are updated with this momentum.
    numbers: the fields of its Epilogue from slope_kind to residual_after_act.
    """

    geometry: tuple | None
    batch_stats: bool
    mean: Tensor | None
    var: Tensor | None
    momentum: float
    numbers: tuple[str, float, float, float, bool]

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """running = (1 - momentum) * running + momentum * batch, with unbiased var."""
        if self.mean is not None and self.var is not None:
            self.mean.lerp_(mean, self.momentum)
            self.var.lerp_(var * (count / (count - 1)), self.momentum)


class SmallLayer(torch.autograd.Function):
    """y = act(bn(conv(x)) + r), or act(bn(conv(x))) + r. vectors: gamma, beta, slope and r."""

    @staticmethod
    def forward(ctx, plan: Plan, x, weight, bias, *vectors):
        z, mean, var = x, plan.mean, plan.var
        if plan.geometry is not None:
            z = torch.conv2d(x, weight, bias, *plan.geometry)
            if not (x.is_contiguous() and weight.is_contiguous() and z.is_contiguous()):
                z = z.contiguous(memory_format=memory_format(x, weight))
        if plan.batch_stats:
            y, mean, var = _statistics_epilogue(z, None, None, *vectors, *plan.numbers)
            plan.update(mean, var, z.numel() // z.shape[1])
        else:
            y = _epilogue(z, mean, var, *vectors, *plan.numbers)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, *vectors, z, mean, var)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor | None) -> tuple:
        plan, (*operands, z, mean, var) = ctx.plan, ctx.saved_tensors
        need_x, need_w, need_b, *need_vectors, need_r = needed = ctx.needs_input_grad[1:]
        if grad is None:
            return (None,) * 8
        if torch.is_grad_enabled() or transformed((grad,)) or batched_gradients(grad):
            return None, *_differentiable(plan, mean, var, operands, needed, grad)
        x, weight, _, *vectors = operands
        before = need_r and not plan.numbers[-1]  # the residual is added before the activation: its gradient is du
        need_z, same = need_x or need_w or need_b, mean is None  # without a BatchNorm dz = du
        if not (z.is_contiguous() and grad.is_contiguous()):
            grad = grad.contiguous(memory_format=memory_format(z))
        dz, du, *sums = _epilogue_gradients(
            grad, z, plan.batch_stats, need_z or (same and before), before and not same, any(need_vectors),
            mean, var, *vectors, *plan.numbers,
        )  # fmt: skip
        dx, dw, db = dz, None, None
        if plan.geometry is not None and need_z:
            dx, dw, db = _convolution_gradients(plan, dz, x, weight, (need_x, need_w, need_b))
        dr = grad if need_r and not before else dz if same else du
        sums = [one if need else None for one, need in zip(sums, need_vectors)]
        return None, dx if need_x else None, dw, db, *sums, dr if need_r else None


def _convolution_gradients(plan: Plan, dz: Tensor, x: Tensor, weight: Tensor, needed: tuple) -> tuple:
    """dx, dw and db. Batch statistics cancel the bias: its gradient is 0."""
    stride, padding, dilation, groups = plan.geometry  # type: ignore[misc]
    computed = [*needed[:2], needed[2] and not plan.batch_stats]
    dx, dw, db = _convolution_backward(
        dz, x, weight, [weight.shape[0]], stride, padding, dilation, False, (0, 0), groups, computed
    )
    return dx, dw, weight.new_zeros(weight.shape[0]) if needed[2] and plan.batch_stats else db


def _differentiable(plan: Plan, mean, var, operands: list, needed: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradients by torch's own operators, which are differentiable again."""
    e = Epilogue(None, None, None, None, None, None, *plan.numbers)

    def layer(x, weight, bias, gamma, beta, *rest) -> Tensor:
        z = x if plan.geometry is None else F.conv2d(x, weight, bias, *plan.geometry)
        if mean is not None:
            statistics = (None, None) if plan.batch_stats else (mean, var)
            z = F.batch_norm(z, *statistics, gamma, beta, plan.batch_stats, 0.0, e.eps)
            beta = None
        return reference.epilogue(z, e._replace(beta=beta, slope=rest[0], residual=rest[1]))

    return pulled_back(layer, operands, needed, grad)


small_layer = apply_of(SmallLayer)

"""A site as one differentiable operation over the primitives: what it computes, what it keeps, how it goes back.

    z = conv(x)       mean, var = statistics(z)       y = epilogue(z, mean, var, ...)

Backward: one pass over the data for the sums (dbeta, dgamma, dslope), one for dz and the residual's gradient, then the
convolution's own gradients. Kept are z and the vectors; x and the residual by their recipes, where they have one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import sync_stats
from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec
from . import recompute as recipes
from .recompute import Kept
from .save import once, save, saved, size_and_layout, stand_in


class Call(NamedTuple):
    """What a site is besides its tensors. spec is None: no convolution, its input is z.

    batch: normalise with the statistics of this batch; update is called with them: mean, biased variance and number of
    values. group: whose processes share them.
    """

    row: ModuleType
    spec: Spec | None = None
    batch: bool = False
    update: Callable[[Tensor, Tensor, Tensor | int], None] = lambda mean, var, count: None
    group: sync_stats.Group | None = None


def site(
    call: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, arguments: Epilogue, recompute: bool = True
) -> Tensor:
    """y. It carries its recipe if `recompute` and all that it is made of is kept."""
    if torch.compiler.is_compiling():
        input, weight, bias, arguments = _traceable(input, weight, bias, arguments)
    residual = arguments.residual
    kept = recipes.keep(input), () if residual is None else recipes.keep(residual)
    y, z, mean, var, total = Site.apply(call, *kept, input, weight, bias, *arguments)
    vectors = arguments if mean is None else arguments._replace(mean=mean, var=var)
    whole = len(kept[1]) < 2 and (z is not None or len(kept[0]) == 1)
    if recompute and y.requires_grad and whole and not _sign_suffices(arguments, call.batch):
        recipes.attach(y, (call.row, input if z is None else z, *vectors))
    if mean is not None and torch.compiler.is_compiling():
        call.update(mean, var, _count(y) if total is None else total)
    return y


def _traceable(input: Tensor, weight, bias, arguments: Epilogue) -> tuple[Tensor, Any, Any, Epilogue]:
    """What Dynamo needs: no tensor twice among a Function's arguments, and none that may change before its backward.

    It checks no versions of what is saved. Where nothing changes a tensor the compiler drops its copy.
    """

    def own(value):
        plain = isinstance(value, Tensor) and len(recipes.keep(value)) == 1  # what has a recipe is not kept itself
        return value.clone() if plain else value

    return own(input), weight, bias, Epilogue(*map(own, arguments))


def _count(z: Tensor) -> int:
    return z.numel() // max(z.shape[1], 1)


def _linear(arguments: Epilogue, batch: bool) -> bool:
    """Whether dz is dy: nothing of the forward is needed."""
    constant = arguments.slope_kind == "number" and arguments.slope_value == 1.0
    return constant and arguments.mean is None and not batch and not arguments.dropout


def _sign_suffices(arguments: Epilogue, batch: bool) -> bool:
    """Whether the backward needs no more than where u > 0, and y tells: then y is kept in place of z and residual."""
    monotone = arguments.slope_kind == "relu" or (arguments.slope_kind == "number" and arguments.slope_value >= 0)
    after = arguments.residual is not None and arguments.residual_after_act
    return monotone and arguments.mean is None and not (batch or after or arguments.dropout)


class Site(torch.autograd.Function):
    """y, and what is fresh of z, mean, var and the number of values over all processes."""

    @staticmethod
    def forward(ctx, call: Call, kept_input: Kept, kept_residual: Kept, input, weight, bias, *arguments):
        epilogue, mean, var, total, z = Epilogue(*arguments), None, None, None, input
        if call.batch:
            z, mean, var = _with_statistics(call, input, weight, bias)
            if call.group is not None:
                mean, var, total = sync_stats.statistics(mean, var, _count(z), call.group)
            if not torch.compiler.is_compiling():
                # here, where eager does it: checkpointing may stop its second run as soon as this function has saved
                call.update(mean, var, _count(z) if total is None else total)
            epilogue = epilogue._replace(mean=mean, var=var)
        elif call.spec is not None:
            z = call.row.convolution(input, weight, bias, call.spec)
        y = call.row.primitive("_epilogue", z)(z, *epilogue)
        made = None if call.spec is None else z
        ctx.set_materialize_grads(False)  # else it fills zeros for the gradients of z, mean and var
        ctx.mark_non_differentiable(*(t for t in (made, mean, var, total) if t is not None))
        kept_z = kept_input if made is None else (z,)
        if _linear(epilogue, call.batch):
            kept_z = kept_residual = ()
        elif _sign_suffices(epilogue, call.batch):
            kept_z, kept_residual = (y,), ()
        elif epilogue.residual_after_act:
            kept_residual = ()
        x = kept_input if ctx.needs_input_grad[4] else ()
        ctx.call, ctx.like = call, size_and_layout(input)
        ctx.place = None if epilogue.residual is None else "after" if epilogue.residual_after_act else "before"
        save(ctx, x, kept_z, kept_residual, (weight, total, *epilogue._replace(residual=None)))
        return y, made, mean, var, total

    @staticmethod
    @once
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        need_x, need_weight, need_bias = ctx.needs_input_grad[3:6]
        need = dict(zip(Epilogue._fields, ctx.needs_input_grad[6:])) | {"z": need_x or need_weight or need_bias}
        need["du"] = need["residual"] and ctx.place == "before"
        kept_x, kept_z, kept_residual, (weight, total, *arguments) = saved(ctx)
        epilogue, found = Epilogue(*arguments), dict.fromkeys(Epilogue._fields)
        dz, du = grad, grad
        if kept_z:
            epilogue = epilogue._replace(residual=recipes.value(kept_residual) if kept_residual else None)
            dz, du, sums = _epilogue_backward(ctx.call, grad, recipes.value(kept_z), epilogue, need, total)
            if sums is not None:
                found |= _gradients_of_vectors(sums, epilogue, need)
        if need["residual"]:
            found["residual"] = grad if ctx.place == "after" else du
        dx, dw, db = (dz if need_x else None), None, None
        if ctx.call.spec is not None and need["z"]:
            x = recipes.value(kept_x) if kept_x else stand_in(grad, *ctx.like)
            needed = [need_x, need_weight, need_bias]
            dx, dw, db = _convolution_backward(ctx.call, dz, x, weight, ctx.like[1], needed)
        return (None, None, None, dx, dw, db, *found.values())


def _with_statistics(call: Call, input: Tensor, weight, bias) -> tuple[Tensor, Tensor, Tensor]:
    if call.spec is not None:
        return call.row.convolution_statistics(input, weight, bias, call.spec)
    return input, *call.row.primitive("_statistics", input)(input)


def _epilogue_backward(
    call: Call, grad: Tensor, z: Tensor, epilogue: Epilogue, need: dict[str, bool], total: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dz, du and the sums, as far as they are needed."""
    grad = grad.contiguous(memory_format=memory_format(z))
    means = sums = None
    if need["gamma"] or need["beta"] or need["slope"] or (call.batch and need["z"]):
        sums = call.row.primitive("_epilogue_reduce", z)(grad, z, *epilogue)
    if call.batch and need["z"] and sums is not None:
        shared = sums[:2] if call.group is None else sync_stats.summed(sums[:2], call.group)
        means = shared / (_count(z) if total is None else total)
    if not (need["z"] or need["du"]):
        return grad, grad, sums
    alike = epilogue.mean is None  # then dz is du
    dz, du = call.row.primitive("_epilogue_backward", z)(
        grad, z, means, need["z"] or alike, need["du"] and not alike, *epilogue
    )
    return dz, dz if alike else du, sums


def _gradients_of_vectors(sums: Tensor, epilogue: Epilogue, need: dict[str, bool]) -> dict[str, Tensor]:
    found = {}
    for name, total in zip(("beta", "gamma", "slope"), sums.unbind()):
        if need[name]:
            vector = getattr(epilogue, name)
            total = total if vector.shape == total.shape else total.sum().reshape(vector.shape)
            found[name] = total.to(vector.dtype)
    return found


def _convolution_backward(call: Call, dz: Tensor, x: Tensor, weight: Tensor, layout, needed: list[bool]):
    """The gradients of input, weight and bias. Before the statistics of a batch a bias has no effect: its is 0."""
    cancelled = needed[2] and call.batch and call.group is None
    asked = [*needed[:2], needed[2] and not cancelled]
    dx, dw, db = call.row.convolution_backward(dz, x, weight, call.spec, layout, asked)
    return dx, dw, weight.new_zeros(weight.shape[0]) if cancelled else db

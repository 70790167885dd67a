"""One layer (convolution, BatchNorm, residual and activation) as a differentiable function over the primitives.

    z = conv(x)       mean, var = statistics(z)       y = epilogue(z, mean, var, ...)

Backward: one pass over the data for the sums (dbeta, dgamma, dslope), one for dz and the residual's gradient, then the
gradients of the convolution. z and the vectors are saved; x and the residual are recomputed where they can be, else
saved. A layer that needs no z saves y (sign.py). A backward that is itself differentiated or transformed is that of
torch's own operators (composition.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..core import sync_stats
from ..core.layout import memory_format
from ..core.spec import Epilogue, Spec
from ..core.torch_compat import batched_gradients, is_compiling, transformed
from . import composition, sign
from .recompute import Saved, attach, restore, to_save
from .save import save, saved, shape_and_layout, stand_in

if TYPE_CHECKING:
    from ..backends.base import Backend


class LayerConfig(NamedTuple):
    """Everything that defines a layer besides its tensors. spec is None: no convolution, z is the input.

    batch_stats: normalize with the statistics of this batch, and call update(mean, biased var, number of values).
    group: the processes that share these statistics. backward_reads: what of the forward (sign.py).
    """

    backend: Backend
    spec: Spec | None = None
    batch_stats: bool = False
    update: Callable[[Tensor, Tensor, Tensor | int], None] = lambda mean, var, count: None
    group: sync_stats.Group | None = None
    backward_reads: str = "z"


def fused_layer(
    config: LayerConfig,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epilogue: Epilogue,
    recompute: bool = True,
) -> Tensor:
    """y = epilogue(conv(x)), differentiable. With `recompute`, later layers may recompute y instead of saving it."""
    if is_compiling():
        input, weight, bias, epilogue = _traceable(input, weight, bias, epilogue)
    residual = epilogue.residual
    config = config._replace(backward_reads=sign.backward_reads(config, input, weight, epilogue))
    saved_input, saved_residual = to_save(input), () if residual is None else to_save(residual)
    y, z, mean, var, count = FusedLayer.apply(config, saved_input, saved_residual, input, weight, bias, *epilogue)
    vectors = epilogue if mean is None else epilogue._replace(mean=mean, var=var)
    # y is recomputed from saved tensors only, never from one that would be recomputed itself
    saves_z = config.backward_reads == "z" and (z is not None or len(saved_input) == 1)
    if recompute and y.requires_grad and saves_z and len(saved_residual) < 2:
        attach(y, (config.backend, input if z is None else z, *vectors))
    if mean is not None and is_compiling():
        config.update(mean, var, _count(y) if count is None else count)
    return y


def _traceable(input: Tensor, weight, bias, epilogue: Epilogue) -> tuple[Tensor, Any, Any, Epilogue]:
    """Copies the tensors that a Function saves: under Dynamo they must be distinct and must not change later.

    Dynamo does not check the versions of saved tensors. The compiler drops a copy of a tensor that nothing changes.
    """

    def own(value):
        saves_itself = isinstance(value, Tensor) and len(to_save(value)) == 1  # a recomputed tensor is not saved
        return value.clone() if saves_itself else value

    return own(input), weight, bias, Epilogue(*map(own, epilogue))


def _count(z: Tensor) -> int:
    """Values per channel."""
    return z.numel() // max(z.shape[1], 1)


class FusedLayer(torch.autograd.Function):
    """Returns y, z, mean, var, and the number of values per channel over all processes; None for those not computed."""

    @staticmethod
    def forward(ctx, config: LayerConfig, saved_input: Saved, saved_residual: Saved, input, weight, bias, *arguments):
        epilogue = Epilogue(*arguments)
        y, z, mean, var, count = _forward(config, input, weight, bias, epilogue)
        if mean is not None and var is not None:
            if not is_compiling():
                # here, as in eager: checkpointing may stop its second run once this function has saved its tensors
                config.update(mean, var, _count(y) if count is None else count)
            epilogue = epilogue._replace(mean=mean, var=var)
        conv_output = None if config.spec is None else z
        ctx.set_materialize_grads(False)  # otherwise autograd fills zeros for the gradients of z, mean and var
        ctx.mark_non_differentiable(*(t for t in (conv_output, mean, var, count) if t is not None))
        saved_z, needs_x = saved_input if config.spec is None else (z,), ctx.needs_input_grad[4]
        if config.backward_reads != "z":
            saved_z, saved_residual = (y,) if config.backward_reads == "y" else (), ()
            bias = None if epilogue.mean is None else bias
        else:  # the gradient of the weight needs x, and that of another gradient if it depends on x
            needs_x = needs_x or (config.spec is not None and ctx.needs_input_grad[3])
            saved_residual = () if epilogue.residual_place == "after" else saved_residual
        ctx.config, ctx.input_like, ctx.layout = config, shape_and_layout(input), memory_format(y)
        ctx.residual_place = epilogue.residual_place
        vectors = (weight, bias, count, *epilogue._replace(residual=None))
        save(ctx, saved_input if needs_x else (), saved_z, saved_residual, vectors)
        return y, conv_output, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if _differentiated(grad):
            return None, None, None, *composition.gradients(ctx, grad)
        grad = grad.contiguous(memory_format=ctx.layout)
        need_x, need_weight, need_bias = ctx.needs_input_grad[3:6]
        need = dict(zip(Epilogue._fields, ctx.needs_input_grad[6:])) | {"z": need_x or need_weight or need_bias}
        need["du"] = need["residual"] and ctx.residual_place == "before"
        saved_x, saved_z, saved_residual, (weight, bias, count, *arguments) = saved(ctx)
        epilogue, gradients = Epilogue(*arguments), dict.fromkeys(Epilogue._fields)
        if epilogue.mean is not None and ctx.config.backward_reads != "z":
            return None, None, None, *_of_constant_norm(ctx, grad, saved_x, saved_z, weight, bias, epilogue)
        dz, du = grad, grad
        if saved_z:
            epilogue = epilogue._replace(residual=restore(saved_residual) if saved_residual else None)
            dz, du, vectors = _epilogue_backward(ctx.config, grad, restore(saved_z), epilogue, need, count)
            gradients |= {name: vector for name, vector in vectors.items() if need[name]}
        if need["residual"]:
            gradients["residual"] = grad if ctx.residual_place == "after" else du
        dx, dw, db = (dz if need_x else None), None, None
        if ctx.config.spec is not None and need["z"]:
            x = restore(saved_x) if need_weight else stand_in(grad, *ctx.input_like)
            needed = [need_x, need_weight, need_bias]
            dx, dw, db = _convolution_backward(ctx.config, dz, x, weight, ctx.input_like[1], needed)
        return (None, None, None, dx, dw, db, *gradients.values())


def _of_constant_norm(ctx, grad: Tensor, saved_x: Saved, saved_z: Saved, weight, bias, epilogue: Epilogue) -> tuple:
    """The gradients of input, weight, bias and the fields of the Epilogue; see sign.py."""
    names = ("x", "weight", "bias", *Epilogue._fields)
    need = dict(zip(names, ctx.needs_input_grad[3:]))
    x = restore(saved_x) if saved_x else stand_in(grad, *ctx.input_like)
    y = restore(saved_z) if saved_z else None
    computed = sign.gradients(ctx, grad, y, x, weight, bias, epilogue, need)
    computed["residual"] = computed["u"]
    return tuple(computed.get(name) if need[name] else None for name in names)


def _differentiated(grad: Tensor) -> bool:
    """True if a backward is differentiated, as by create_graph=True, or transformed: kernels cannot compute it."""
    if is_compiling():
        return False
    return torch.is_grad_enabled() or transformed((grad,)) or batched_gradients(grad)


def _forward(
    config: LayerConfig, input: Tensor, weight, bias, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """y and z; with batch statistics mean and var; with those of a group its number of values."""
    backend, spec, count = config.backend, config.spec, None
    fused = config.group is None and not (spec is not None and backend.one_launch_statistics)
    # Dynamo attaches nothing (see recompute.py) to one of several results of an operator.
    if config.batch_stats and (not fused or is_compiling()):
        if spec is None:
            z = input
            mean, var = backend.primitive("_statistics", z)(z)
        else:
            z, mean, var = backend.convolution_statistics(input, weight, bias, spec)
        if config.group is not None:
            mean, var, count = sync_stats.statistics(mean, var, _count(z), config.group)
        return backend.primitive("_epilogue", z)(z, epilogue._replace(mean=mean, var=var)), z, mean, var, count
    if spec is not None and config.backward_reads != "z":
        return backend.conv_epilogue(input, weight, bias, spec, epilogue), None, None, None, None
    z = input if spec is None else backend.convolution(input, weight, bias, spec)
    if config.batch_stats:
        y, mean, var = backend.primitive("_statistics_epilogue", z)(z, epilogue)
        return y, z, mean, var, None
    return backend.primitive("_epilogue", z)(z, epilogue), z, None, None, None


VECTORS = ("gamma", "beta", "slope")  # in the order of _epilogue_gradients


def _epilogue_backward(
    config: LayerConfig, grad: Tensor, z: Tensor, epilogue: Epilogue, need: dict[str, bool], count: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """dz, du and the gradients of the vectors, as far as they are needed."""
    primitive, dz_is_du, need_vectors = config.backend.primitive, epilogue.mean is None, any(map(need.get, VECTORS))
    needed = need["z"] or (dz_is_du and need["du"]), need["du"] and not dz_is_du
    if config.group is None:
        run = primitive("_epilogue_gradients", z)
        dz, du, *vectors = run(grad, z, config.batch_stats, *needed, need_vectors, epilogue)
    else:
        assert count is not None
        sums = primitive("_epilogue_reduce", z)(grad, z, epilogue)
        means = sync_stats.all_reduce_sum(sums[:2], config.group) / count if need["z"] else None
        dz, du = primitive("_epilogue_backward", z)(grad, z, means, *needed, epilogue)
        vectors = reference.vector_gradients(sums, epilogue)
    return dz, dz if dz_is_du else du, dict(zip(VECTORS, vectors))


def _convolution_backward(config: LayerConfig, dz: Tensor, x: Tensor, weight: Tensor, layout, needed: list[bool]):
    """dx, dw and db. Batch statistics cancel the bias: its gradient is 0."""
    assert config.spec is not None
    cancelled = needed[2] and config.batch_stats and config.group is None
    computed = [*needed[:2], needed[2] and not cancelled]
    dx, dw, db = config.backend.convolution_backward(dz, x, weight, config.spec, layout, computed)
    return dx, dw, dz.new_zeros(weight.shape[0]) if cancelled else db

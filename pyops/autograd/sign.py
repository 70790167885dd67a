"""Layers whose backward needs no z: ReLU, a slope of at least 0 or no activation, and no batch statistics.

y shows where u > 0, and the next layer saves it anyway, as its input. After a BatchNorm of constant statistics, with
s = gamma / sqrt(var + eps) and G the gradient of the convolution's weight for du:

    dx = conv_transpose(s * du, w)      dw = s * G      db = s * sum(du)      dbeta = sum(du)
    dgamma = (sum(w * G) + (b - mean) * sum(du)) / sqrt(var + eps),    as sum(du * conv(x, w)) = sum(w * G)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.spec import Epilogue, Spec, accumulate_type
from ..core.torch_compat import is_compiling

if TYPE_CHECKING:
    from ..backends.base import Backend
    from .function import LayerConfig


LARGER = 16  # a weight with so many times the elements of z is not read more often to save z


def backward_reads(config: LayerConfig, input: Tensor, weight: Tensor | None, epilogue: Epilogue) -> str:
    """The value that the backward reads: "z", "y" for where u > 0, or "nothing" without an activation."""
    linear = epilogue.slope_kind == "number" and epilogue.slope_value == 1.0
    monotone = epilogue.slope_kind == "relu" or (epilogue.slope_kind == "number" and epilogue.slope_value >= 0)
    if not monotone or config.batch_stats or epilogue.dropout or (epilogue.residual_place == "after" and not linear):
        return "z"
    if epilogue.mean is not None:
        need_gamma = epilogue.gamma is not None and epilogue.gamma.requires_grad
        if weight is None or (need_gamma and not weight.requires_grad) or _much_larger(weight, input, config.spec):
            return "z"
    return "nothing" if linear else "y"


def _much_larger(weight: Tensor, input: Tensor, spec: Spec | None) -> bool:
    """True if the passes over the weight would cost more than z saves; False where a size is a symbol."""
    if spec is None or is_compiling() or not all(type(size) is int for size in (*input.shape, *weight.shape)):
        return False
    pixels = input.shape[0] * math.prod(spec.output_size(input.shape[2:], weight.shape[2:]))
    return weight.shape[1:].numel() > LARGER * pixels


def gradients(
    ctx, grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, need: dict
) -> dict[str, Tensor | None]:
    """du and those of dx, dweight, dbias, dgamma and dbeta that are needed, by their names without the d.

    y: None if there is no activation. x: only its size is used if dweight is not needed.
    """
    backend = ctx.config.backend
    assert epilogue.mean is not None and epilogue.var is not None
    wide = torch.promote_types(epilogue.mean.dtype, torch.float32)
    mean, factor = epilogue.mean.to(wide), torch.rsqrt(epilogue.var.to(wide) + epilogue.eps)
    scale = factor if epilogue.gamma is None else factor * epilogue.gamma
    need_sum = need["beta"] or need["gamma"] or need["bias"]
    du, total = _through_activation(backend, grad, y, epilogue, need_sum)
    result: dict[str, Tensor | None] = {"u": du}
    g, need_g = None, need["weight"] or need["gamma"]
    if need["x"] or need_g:
        result["x"], g = _through_convolution(ctx, du, x, weight, scale, need["x"], need_g)
    if need["gamma"]:
        assert g is not None
        center = mean if bias is None else mean - bias
        result["gamma"] = ((weight.to(mean.dtype) * g).sum((1, 2, 3)) - center * total) * factor
    if need["weight"]:
        assert g is not None
        result["weight"] = (g * _per_filter(scale)).to(weight.dtype)
    if need["bias"]:
        result["bias"] = (total * scale).to(weight.dtype)
    if need["beta"]:
        result["beta"] = total
    return result


def _through_convolution(
    ctx, du: Tensor, x: Tensor, weight: Tensor, scale: Tensor, need_x: bool, need_g: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and G. Scaling w costs less than scaling du, but in 16 bits its rounding error is the same at every pixel."""

    def backward(grad: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple:
        needed = [need_x, need_weight, False]
        return ctx.config.backend.convolution_backward(grad, x, weight, ctx.config.spec, ctx.input_like[1], needed)[:2]

    if not need_x or accumulate_type(weight.dtype) == weight.dtype:
        scaled = (weight * _per_filter(scale)).to(weight.dtype) if need_x else weight
        return backward(du, scaled, need_x, need_g)
    norm = Epilogue(torch.zeros_like(scale), torch.ones_like(scale), scale, eps=0.0)
    dz = ctx.config.backend.primitive("_epilogue", du)(du, norm)
    dx, _ = backward(dz, weight, True, False)
    return dx, backward(du, weight, False, True)[1] if need_g else None


def _through_activation(
    backend: Backend, grad: Tensor, y: Tensor | None, epilogue: Epilogue, need_sum: bool
) -> tuple[Tensor, Tensor]:
    """du, and its sums over each channel if they are needed."""
    if y is None and not need_sum:
        return grad, grad.new_empty(0)
    assert epilogue.mean is not None
    # the sum is the gradient of the beta of a layer without a BatchNorm
    plain = epilogue._replace(mean=None, var=None, gamma=None, residual=None, beta=torch.zeros_like(epilogue.mean))
    run = backend.primitive("_epilogue_gradients", grad)
    du, _, _, total, _ = run(grad, grad if y is None else y, False, y is not None, False, need_sum, plain)
    return grad if y is None else du, total


def _per_filter(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1, 1)

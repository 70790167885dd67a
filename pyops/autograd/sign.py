"""Layers whose backward needs no z: ReLU, a slope of at least 0 or no activation, and no batch statistics.

y shows where u > 0, and the next layer saves it anyway, as its input. After a BatchNorm of constant statistics, with s = gamma / sqrt(var + eps)
and G the gradient of the convolution's weight for du:

    dx = conv_transpose(du, s * w)      dw = s * G      db = s * sum(du)      dbeta = sum(du)
    dgamma = (sum(w * G) + (b - mean) * sum(du)) / sqrt(var + eps),    as sum(du * conv(x, w)) = sum(w * G)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.spec import Epilogue

if TYPE_CHECKING:
    from .function import LayerConfig


def backward_reads(config: LayerConfig, weight: Tensor | None, epilogue: Epilogue) -> str:
    """What a layer's backward reads of its forward: "z", "y" for where u > 0, or "nothing" without an activation."""
    linear = epilogue.slope_kind == "number" and epilogue.slope_value == 1.0
    monotone = epilogue.slope_kind == "relu" or (epilogue.slope_kind == "number" and epilogue.slope_value >= 0)
    if not monotone or config.batch_stats or epilogue.dropout or (epilogue.residual_place == "after" and not linear):
        return "z"
    if epilogue.mean is not None:
        need_gamma = epilogue.gamma is not None and epilogue.gamma.requires_grad
        if weight is None or (need_gamma and not weight.requires_grad):
            return "z"
    return "nothing" if linear else "y"


def gradients(
    config: LayerConfig, grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue,
    layout: torch.memory_format, needed: list[bool], need_gamma: bool, need_sum: bool,
) -> tuple:  # fmt: skip
    """du, dx, dw, db, dgamma and dbeta of a layer with a BatchNorm of constant statistics.

    y: None if there is no activation. x: only its size is used if dw is not needed.
    needed: which of dx, dw and db. need_sum: whether dbeta is needed.
    """
    mean, var = epilogue.mean, epilogue.var
    assert mean is not None and var is not None
    factor = torch.rsqrt(var + epilogue.eps)
    scale = factor if epilogue.gamma is None else factor * epilogue.gamma
    need_x, need_weight, need_bias = needed
    need_sum = need_sum or need_bias or need_gamma
    # beta: of a layer without a BatchNorm, whose gradient is sum(du)
    plain = epilogue._replace(mean=None, var=None, gamma=None, residual=None, beta=torch.zeros_like(mean))
    run = config.backend.primitive("_epilogue_gradients", grad)
    du, total = grad, None
    if y is not None or need_sum:
        du, _, _, total, _ = run(grad, grad if y is None else y, False, y is not None, False, need_sum, plain)
        du = grad if y is None else du
    dx, dw, db, dgamma = None, None, None, None
    if need_x or need_weight:
        scaled = (weight * per_filter(scale)).to(weight.dtype)
        computed = [need_x, need_weight, False]
        dx, dw, _ = config.backend.convolution_backward(du, x, scaled, config.spec, layout, computed)
    if need_gamma:
        center = mean if bias is None else mean - bias
        dgamma = ((weight.to(mean.dtype) * dw).sum((1, 2, 3)) - center * total) * factor
    if need_weight:
        dw = (dw * per_filter(scale)).to(weight.dtype)
    if need_bias:
        db = (total * scale).to(weight.dtype)
    return du, dx, dw, db, dgamma, total


def per_filter(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1, 1)

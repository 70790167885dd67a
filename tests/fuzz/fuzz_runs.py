"""The forms of a fuzzer's case, by a backend and in plain torch in any dtype."""

from __future__ import annotations

from typing import Any

import oracle
import torch
import torch.nn.functional as F
from fuzz_cases import SLOPES, Case
from torch import Tensor

import atrous
from atrous import reference
from atrous.backends import selection
from atrous.core import activation
from atrous.core.spec import Epilogue, accumulate_type, flat
from atrous.ops import eager as eager_ops

ops = torch.ops.atrous


def slope_of(case: Case, t: dict[str, Tensor]):
    return t["slope"] if SLOPES[case.slope] is None else SLOPES[case.slope]


def layer_arguments(case: Case, t: dict[str, Tensor]) -> dict[str, Any]:
    names = ("input", "weight", "bias", "running_mean", "running_var", "bn_weight", "bn_bias")
    geometry = dict(zip(("stride", "padding", "dilation", "groups"), case.geometry))
    return {name: t[name] for name in names if name in t} | geometry | {
        "training": case.norm == "batch", "eps": case.eps, "momentum": 0.25,
    }  # fmt: skip


def before_activation(case: Case, t: dict[str, Tensor]) -> Tensor:
    if case.norm == "shift":
        u = F.conv2d(t["input"], t["weight"], t.get("bias"), *case.geometry) + t["bn_bias"].view(-1, 1, 1)
    else:
        u = oracle.conv_bn_act(**layer_arguments(case, t))
    return u + t["residual"] if case.residual == "before" else u


def layer_ours(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(case.values)
    after = {"residual": t.get("residual"), "residual_after_act": case.residual == "after"}
    ways = {"backend": case.backend, "recompute": case.recompute}
    y = atrous.conv_bn_act(**layer_arguments(case, t), **after, slope=slope_of(case, t), **ways)
    return outcome(case, t, y)


def layer_plain(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(case.values)
    slope = activation.parse_slope(slope_of(case, t))
    seed = activation.draw_seed(t["input"].device) if slope.kind == "random" else None
    residual = t["residual"] if case.residual == "after" else None
    y = reference.finish(before_activation(case, t), Epilogue(
        slope=slope.tensor, residual=residual, slope_kind=slope.kind, slope_value=slope.value, slope_upper=slope.upper,
        residual_after_act=True, seed=seed,
    ))  # fmt: skip
    results = outcome(case, t, y)
    if case.norm == "batch" and "d bias" in results:  # the batch mean cancels the bias
        results["d bias"].zero_()
    return results


def outcome(case: Case, t: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """y, the gradients and the running statistics."""
    results = {"y": y.detach()}
    needed = [name for name in case.needs if name in t]
    if needed and y.requires_grad:
        gradients = torch.autograd.grad(y, [t[name] for name in needed], t["grad"])
        results |= {f"d {name}": gradient for name, gradient in zip(needed, gradients)}
    if case.norm == "batch":
        results |= {name: t[name].clone() for name in ("running_mean", "running_var")}
    return results


def epilogue_of(case: Case, t: dict[str, Tensor]) -> Epilogue:
    slope = activation.parse_slope(slope_of(case, t))
    vectors = [t.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]
    seed = t["seed"] if slope.kind == "random" or case.dropout else None
    numbers = slope.kind, case.eps, slope.value, slope.upper, case.residual == "after"
    return Epilogue(*vectors, slope.tensor, t.get("residual"), *numbers, seed, case.dropout)


def steps_ours(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backend functions that an inference call, or a frozen one, uses."""
    frozen, residual = case.form == "frozen", case.residual != "none"
    input, weight, bias, e = t["input"], t["weight"], t.get("bias"), epilogue_of(case, t)
    chosen = selection.choose(case.backend, input, weight, case.spec, frozen=frozen, residual=residual)
    if not frozen:
        return {"y": chosen.conv_epilogue(input, weight, bias, case.spec, e)}
    packed = chosen.pack(input, weight, case.spec)
    return {"y": chosen.packed_conv_epilogue(input, packed, weight, bias, case.spec, e)}


def steps_plain(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": reference.conv_epilogue(t["input"], t["weight"], t.get("bias"), case.spec, epilogue_of(case, t))}


def passes(primitive, case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The passes of a layer without its convolution, by these primitives."""
    z, e, grad = t["z"], epilogue_of(case, t), t["grad"]
    means = t["means"] if case.norm == "batch" else None
    mean, var = primitive("_statistics")(z)
    dz, du = primitive("_epilogue_backward")(grad, z, means, True, True, e)
    sums = primitive("_epilogue_reduce")(grad, z, e)
    return {"y": primitive("_epilogue")(z, e), "mean": mean, "var": var, "sums": sums, "dz": dz, "du": du}


def passes_ours(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    chosen = selection.choose(case.backend, t["z"])
    return passes(lambda name: chosen.primitive(name, t["z"]), case, t)


def passes_plain(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    return passes(lambda name: lambda *arguments: getattr(eager_ops, name)(*flat(*arguments)), case, t)


def winograd_ours(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    *tile, int16 = case.tile
    packed = ops._winograd_weight(t["weight"], False, tile, int16) if case.transformed else None
    geometry = False, tile, int16, t.get("bias"), case.padding, case.dilation
    return {"y": ops._winograd_epilogue(t["input"], t["weight"], packed, *geometry, *epilogue_of(case, t))}


def gradients_ours(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """dx is the convolution of grad with the turned weight."""
    *tile, int16 = case.tile
    packed = ops._winograd_weight(t["weight"], True, tile, int16) if case.transformed else None
    padding = [2 * d - p for d, p in zip(case.dilation, case.padding)]
    dx = ops._winograd_epilogue(
        t["grad"], t["weight"], packed, True, tile, int16, None, padding, case.dilation, *Epilogue()
    )
    return {"dx": dx, "dw": ops._winograd_weight_gradient(t["grad"], t["input"], case.padding, case.dilation, tile)}


def gradients_plain(case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """In fp32 and rounded once for 16-bit types, which oneDNN lacks on many processors."""
    wide = [t[name].to(accumulate_type(t[name].dtype)) for name in ("grad", "input", "weight")]
    options = case.stride, case.padding, case.dilation, False, (0, 0), 1, [True, True, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(*wide, None, *options)
    return {"dx": dx.to(t["grad"].dtype), "dw": dw.to(t["grad"].dtype)}


RUNS = {
    "forward": (layer_ours, layer_plain),
    "training": (layer_ours, layer_plain),
    "passes": (passes_ours, passes_plain),
    "primitive": (steps_ours, steps_plain),
    "frozen": (steps_ours, steps_plain),
    "winograd": (winograd_ours, steps_plain),
    "gradients": (gradients_ours, gradients_plain),
}

"""Compares a call of ours with torch's: values, derivatives, running statistics, dtype, strides and exceptions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import oracle
import torch
import torch.nn.functional as F
from opinfo_calls import Call, Tensors
from opinfo_samples import Sample
from torch import Tensor, nn
from torch.autograd import forward_ad

from atrous import testing
from atrous.core import checks

WAYS = ("value", "reverse", "second", "forward")
DATA = ("input", "residual", "other")  # arguments that no module holds
SAME, SAME_ERROR, AS_NCHW = "the same", "the same error", "the same, but for strides: NCHW"


def refusals(call: Call, entry: str, backend: str) -> dict[str, type[Exception]]:
    """The reasons to refuse a call that torch runs, in docs/differences.md, with the exception's type."""
    x, residual = call.arguments["input"], call.arguments.get("residual")
    convolves = entry in ("conv_bn_act", "ConvBNAct2d")
    norm = "running_mean" in call.arguments or "bn.running_mean" in call.tensors
    number = residual is not None and not isinstance(residual, Tensor)
    numbers = any(t.dtype not in checks.DTYPES for name, t in call.tensors.items() if "num_batches" not in name)
    cases = (
        (numbers, "integer and complex tensors", NotImplementedError),
        (number, "a number as the residual", TypeError),
        (convolves and x.dim() == 3 and not norm, "an unbatched input", ValueError),
        (convolves and backend == "triton" and x.dtype == torch.float64, "a convolution in fp64", RuntimeError),
        (isinstance(residual, Tensor) and _broadcasts(x, residual), "a residual larger than the output", RuntimeError),
    )
    return {} if entry == "fuse" else {reason: kind for applies, reason, kind in cases if applies}


def _broadcasts(x: Tensor, residual: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(x.shape, residual.shape) != x.shape
    except RuntimeError:
        return False


def check(sample: Sample, call: Call, entry: str, backend: str, way: str) -> str:
    """Asserts that the call agrees with torch's, raises as torch's does, or is refused for a reason; returns which."""

    def run(function: Callable[[Tensors], Tensor], tensors: Tensors) -> Tensors:
        return results(function, call, tensors, way)

    def ours() -> Tensors:
        return run(lambda tensors: call.ours(tensors, backend), call.tensors)

    if entry == "fuse":
        torch.compiler.reset()  # all samples share the code of a few modules, which Dynamo compiles eight times only
    refused = refusals(call, entry, backend)
    try:
        plain = run(call.plain, call.tensors)
    except Exception as error:
        raised(ours, type(error), *refused.values())
        return SAME_ERROR
    if refused and way == "forward":  # a transform runs torch's own operators, which may take it
        with contextlib.suppress(*refused.values()):
            torch.testing.assert_close(ours(), plain, equal_nan=True)
        return f"refused: {next(iter(refused))}"
    if refused:
        error = raised(ours, *refused.values())
        assert re.search(r"\w: expected .*got ", str(error)), (
            f"the message lacks what was expected and what came: {error}"
        )
        return f"refused: {next(iter(refused))}"
    layout = oracle.layout(plain["y"])
    if call.slopes or call.dropout:
        call = call._replace(plain=drawn(call, backend, way))
    elif sample.module is None and way == "value":  # the steps that were added change nothing
        y = sample.operator(**oracle.wide(sample.arguments))
        torch.testing.assert_close(run(call.plain, oracle.wide(call.tensors))["y"], y, equal_nan=True)
    values = oracle.retried(lambda one: compared(one, backend, way), call)
    return same_layout(values["y"], layout, call.tensors["input"])


def compared(call: Call, backend: str, way: str) -> Tensors:
    """Asserts that the results agree with those of call.plain; returns them."""
    actual = results(lambda tensors: call.ours(tensors, backend), call, call.tensors, way)
    plain = results(call.plain, call, call.tensors, way)
    exact = results(call.plain, call, oracle.wide(call.tensors), way)
    assert actual.keys() == exact.keys(), f"results: expected {list(exact)}, got {list(actual)}"
    for name, value in actual.items():
        testing.assert_tensor(value, plain[name], exact[name], name, relative=_relative(call, name, value, exact[name]))
    return actual


def raised(run: Callable[[], object], *kinds: type[Exception]) -> Exception:
    """The error that run() raises; asserts its type."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    try:
        run()
    except Exception as error:
        assert isinstance(error, kinds), f"expected {expected}, got {type(error).__name__}: {error}"
        return error
    raise AssertionError(f"expected {expected}, got a result")


def same_layout(y: Tensor, expected: list[int], x: Tensor) -> str:
    """Asserts torch's strides; for an input that is neither NCHW nor channels_last those of NCHW will do."""
    got, nchw = oracle.layout(y), oracle.layout(y.new_empty(y.shape))
    standard = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    assert got == expected or (got == nchw and not standard), f"y: expected strides {expected}, got {got}"
    return SAME if got == expected else AS_NCHW


def _relative(call: Call, name: str, value: Tensor, exact: Tensor) -> float:
    """The budget of assert_tensor: with drawn slopes one rounding more, that of the slope.

    Eager in fp64 is the truth itself, so it gives no error scale for sums: they are allowed the errors of fp32. In a
    BatchNorm in training large terms cancel: the rounding errors of a gradient are relative to these.
    """
    if not value.is_floating_point():
        return 0.0
    sums = name.startswith("d") and name.split()[-1] not in DATA
    arithmetic = torch.float32 if sums and value.dtype == torch.float64 else None
    relative = testing.roundings(value.dtype, 1.5 if call.slopes or call.dropout else 0.5, arithmetic=arithmetic)
    t, largest = call.tensors, exact.abs().max().item() if exact.numel() else 0.0
    if not (name.startswith("d") and call.arguments.get("training") and largest and t["input"].dim() == 4):
        return relative
    deviation = t["input"].double().var((0, 2, 3), correction=0).add(call.arguments.get("eps", 1e-5)).sqrt()
    gamma = next((t[name] for name in ("bn_weight", "bn.weight", "weight") if name in t), torch.ones(1))
    return relative * max(1.0, 4 * (gamma.abs().max() / deviation.min()).item() / largest)


def drawn(call: Call, backend: str, way: str) -> Callable[[Tensors], Tensor]:
    """u -> u * m, where m is read off the same call, with the same seed, of -1 and 1 at the signs of u."""
    x = call.tensors["input"]
    signs = torch.where(x <= 0, -1.0, 1.0).to(x.dtype)
    m = results(lambda tensors: call.ours(tensors, backend), call, call.tensors | {"input": signs}, way)["y"] / signs
    lower, upper = call.slopes or (1.0, 1.0)
    kept = [bound / (1 - call.dropout) if call.dropout < 1 else 0.0 for bound in (lower, upper, 1.0)]
    slack = torch.finfo(m.dtype).eps
    inside = torch.where(signs > 0, (m - kept[2]).abs() <= slack, (m >= kept[0] - slack) & (m <= kept[1] + slack))
    assert (inside | ((m == 0) & (call.dropout > 0))).all(), f"slopes or a mask outside {kept}: {m[~inside]}"

    def plain(tensors: Tensors) -> Tensor:
        u = tensors["input"]
        for weight in (value for name, value in tensors.items() if name.endswith("weight") and value.dim() == 4):
            u = F.conv2d(u, weight, groups=len(weight))  # the weight is 1; in forward mode the tangent at NaN is NaN
        return u * m.to(u.dtype)

    return plain


def direction(like: Tensor, call: Call) -> Tensor:
    """Random values of the call's dtype in the shape and dtype of a tensor; of one seed, the same."""
    values = torch.randn(like.shape, generator=torch.Generator().manual_seed(call.values))
    return values.to(call.tensors["input"].dtype).to(like.dtype)


def results(function: Callable[[Tensors], Tensor], call: Call, tensors: Tensors, way: str) -> Tensors:
    """The results of function(tensors) and of what follows from it, by name; running statistics change in a copy."""
    changed = [name for name in tensors if re.search("running|num_batches", name)]
    t = {name: value.detach().clone() if name in changed else value.detach() for name, value in tensors.items()}
    if way in ("reverse", "second"):
        t |= {name: t[name].requires_grad_() if name in DATA else nn.Parameter(t[name]) for name in call.needs}
    torch.manual_seed(1)
    if way == "value":
        with torch.no_grad():
            outputs = {"y": function(t)}
    elif way == "forward":
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(t[name], direction(t[name], call)) for name in call.needs}
            y, tangent = forward_ad.unpack_dual(function(t | dual))
            outputs = {"y": y, "tangent": torch.zeros_like(y) if tangent is None else tangent}
    else:
        outputs = backward(function(t), {name: t[name] for name in call.needs}, call, way == "second")
    return {name: value.detach() for name, value in (outputs | {name: t[name] for name in changed}).items()}


def backward(y: Tensor, leaves: Tensors, call: Call, second: bool) -> Tensors:
    """y and its gradients; second: also those of a weighted sum of the gradients, with y's own gradient as a leaf."""
    grad, wanted = direction(y, call).requires_grad_(second), list(leaves.values())
    options = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad(y, wanted, grad, create_graph=second, **options)
    outputs = {"y": y} | {f"d {name}": value for name, value in zip(leaves, gradients)}
    total = sum((value * direction(value, call)).sum() for value in gradients)
    if second and total.requires_grad:
        again = torch.autograd.grad(total, [*wanted, grad], **options)
        outputs |= {f"dd {name}": value for name, value in zip([*leaves, "grad"], again)}
    return outputs

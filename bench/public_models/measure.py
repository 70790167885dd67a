"""One model against its fused and its frozen copy: sites, errors in fp64, graph breaks, time in fp32."""

from __future__ import annotations

import copy
import functools
import re
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import atrous
from bench.public_models import chains
from bench.public_models.zoo import Model

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SEED = 7
ROUNDS, MILLISECONDS = (7, 60), 1500.0  # of timing a model
SMALLEST = 1e-3  # of the largest gradient: smaller gradients are compared on this scale, zero has no digits
Row = dict[str, Any]


def measure(model: Model) -> Iterator[Row]:
    """Yields the results of each step as they come; what raises is a result too.

    The model has run once in eval before it is fused: some libraries keep constants of their first call.
    """
    torch.manual_seed(SEED)
    net = randomized(model.make()).double()
    args = tuple(a.double() for a in model.args)
    yield {"dropouts": without_dropout(net)}
    found = attempt(lambda: chains.count(net.eval(), args))
    groups = found.pop("activated", [])
    yield {"counted": {**found, "activated": len(groups)}}
    for name, step in (("eval", in_eval), ("frozen", in_frozen), ("training", in_training)):
        result = attempt(functools.partial(step, copy.deepcopy(net), args))
        yield {name: compared(groups, result) if "both" in result else result}
    yield {"time": attempt(lambda: timed(net.float().eval(), model.args))}


def attempt(step: Callable[[], Row]) -> Row:
    begin = time.process_time()
    try:
        result = step()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        result = {"error": f"{type(error).__name__}: {lines[0]}", "where": traceback.format_exc().splitlines()[-12:]}
    return {**result, "seconds": round(time.process_time() - begin, 1)}


def randomized(net: nn.Module) -> nn.Module:
    """Parameters and running statistics that are constant (1, 0, a layer scale) get values of their own."""
    tensors = dict(net.named_parameters())
    tensors |= {name: b for name, b in net.named_buffers() if "running_" in name}
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.empty_like(tensor).uniform_(-0.5, 0.5))
    return net


def without_dropout(net: nn.Module) -> int:
    """Sets the p of dropout to 0: behind a site it draws other numbers than torch's. Returns how many it was set in."""
    dropouts = [m for m in net.modules() if isinstance(m, DROPOUTS) and m.p > 0.0]
    for module in dropouts:
        module.p = 0.0
    return len(dropouts)


def in_eval(net: nn.Module, args: tuple) -> Row:
    fused = atrous.fuse(net.eval())
    with torch.no_grad():
        expected, got = run(copy.deepcopy(net), args), run(fused, args)
    return {"output": error(got, expected), **described(fused.fusion_report)}


def in_frozen(net: nn.Module, args: tuple) -> Row:
    fused = atrous.fuse(net.eval(), freeze=True)
    with torch.no_grad():
        expected, got = run(net, args), run(fused, args)
    return {"output": error(got, expected), **described(fused.fusion_report)}


def in_training(net: nn.Module, args: tuple) -> Row:
    """draws: the outputs of the plain model depend on the seed."""
    plain = copy.deepcopy(net.train())
    fused = atrous.fuse(net)
    draws = error(run(copy.deepcopy(plain), args, SEED + 1), run(copy.deepcopy(plain), args)) != 0.0
    expected, got = run(plain, args), run(fused, args)
    for outputs in (expected, got):
        loss(outputs).backward()
    gradients = [[p.grad for p in m.parameters()] for m in (net, plain)]
    buffers = [list(m.buffers()) for m in (net, plain)]
    return {
        "output": error(got, expected), "gradient": error(*gradients, common=True), "buffer": error(*buffers),
        "draws": draws, **described(fused.fusion_report),
    }  # fmt: skip


def run(net: nn.Module, args: tuple, seed: int = SEED) -> list[Any]:
    torch.manual_seed(seed)
    return tree_leaves(net(*tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, args)))


def loss(outputs: list[Any]) -> Tensor:
    """A sum over all outputs, whose weights differ."""
    used = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    return sum((o * torch.linspace(-1.0, 1.0, o.numel(), dtype=o.dtype).cos().reshape(o.shape)).mean() for o in used)


def error(got: list[Any], expected: list[Any], common: bool = False) -> float:
    """The largest |got - expected| of a tensor, divided by the tensor's largest value. common: or by SMALLEST times the
    largest value of all tensors.
    """
    if len(got) != len(expected):
        raise RuntimeError(f"{len(got)} values, the model has {len(expected)}")
    scales = [e.abs().max().item() if numbers(e) else 0.0 for e in expected]
    smallest = SMALLEST * max(scales, default=0.0) if common else 0.0
    worst = 0.0
    for g, e, scale in zip(got, expected, scales):
        if not isinstance(e, Tensor):
            if type(g) is not type(e) or (isinstance(e, int | float | str | bool) and g != e):
                raise RuntimeError(f"a value is {g!r}, the model's is {e!r}")
            continue
        if g is None or (g.shape, g.dtype) != (e.shape, e.dtype):
            raise RuntimeError(f"a tensor is {like(g)}, the model's is {like(e)}")
        if numbers(e):
            off = (g - e).abs().max().item()
            worst = max(worst, off and off / max(scale, smallest), key=lambda v: (v != v, v))
        elif not torch.equal(g, e):
            raise RuntimeError(f"a tensor of {e.dtype} differs")
    return worst


def numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def like(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)


def described(report: Any) -> Row:
    """What the report says. both: the paths of the convolutions whose call has the activation; ends: the reasons of the
    others, by path.
    """
    sites = [site for graph in report.graphs for site in graph.sites]
    convs = [site for site in sites if site.pattern.startswith("conv")]
    both = {s.path for s in convs if s.fused and acted(s.pattern)}
    return {
        "sites": len({s.path for s in sites if s.fused}),
        "listed": len({s.path for s in convs}),
        "both": both,
        "ends": {s.path: f"{s.pattern}: {s.reason}" for s in convs if s.path not in both},
        "reasons": dict(Counter(normalized(s.reason) for s in convs if s.path not in both)),
        "graphs": len(report.graphs),
        "breaks": report.breaks,
        "plain": report.plain_calls,
        "fallbacks": sorted({reason for graph in report.graphs for reason in graph.fallbacks}),
    }


def compared(groups: list[tuple[str, ...]], result: Row) -> Row:
    """The results with the number of groups that are fused with both in place of the paths; missed: the others."""
    both, ends = result.pop("both"), result.pop("ends")
    missed = [group for group in groups if not both & set(group)]
    reasons = {" or ".join(g): "; ".join(ends.get(path, "not in the report") for path in g) for g in missed}
    return {**result, "activated": len(groups) - len(missed), "missed": reasons}


def acted(pattern: str) -> bool:
    return any(name in pattern.split("+") for name in ("relu", "leaky_relu", "prelu", "rrelu"))


def normalized(reason: str) -> str:
    """A reason without the numbers of one site."""
    return re.sub(r"\(?\d[\d, ]*\)?", "N", reason) or "none given"


def timed(net: nn.Module, args: tuple) -> Row:
    """Milliseconds of processor time of an eval call in fp32: medians, and the quartiles of the ratios of calls that
    alternate. compiled: seconds of the first fused call.
    """
    fused = atrous.fuse(copy.deepcopy(net))
    with torch.no_grad():
        compiled = milliseconds(fused, args) / 1e3
        each = milliseconds(net, args) + milliseconds(fused, args)
        rounds = int(min(max(MILLISECONDS / each, ROUNDS[0]), ROUNDS[1]))
        pairs = [(milliseconds(net, args), milliseconds(fused, args)) for _ in range(rounds)]
    ratios = statistics.quantiles([ours / plain for plain, ours in pairs], n=4)
    return {
        **dict(zip(("plain", "fused"), map(statistics.median, zip(*pairs)))),
        "ratios": ratios,
        "compiled": compiled,
    }


def milliseconds(net: nn.Module, args: tuple) -> float:
    """One thread's, so that other processes have little part in it."""
    begin = time.process_time()
    net(*args)
    return (time.process_time() - begin) * 1e3

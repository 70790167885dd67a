"""One model against its fused and its frozen copy: sites, errors in fp64, graph breaks, time in fp32."""

from __future__ import annotations

import copy
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import atrous

from . import chains

SEED = 7
SECONDS = 1.0  # of timing a model
FLOOR = 1e-3  # of the largest gradient: smaller gradients are compared on this scale, zero has no digits


def measure(factory: Callable[[], nn.Module], args: tuple) -> Iterator[dict[str, Any]]:
    """Yields the results of each step as they come; what raises is a result too."""
    torch.manual_seed(SEED)
    model = randomized(factory()).double()
    args = tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, args)
    yield attempt("count", lambda: chains.count(copy.deepcopy(model).eval(), args))
    for step in (in_eval, in_frozen, in_training, timed):
        begin = time.perf_counter()
        yield attempt(step.__name__, lambda: step(copy.deepcopy(model), args))
        yield {step.__name__ + " s": round(time.perf_counter() - begin, 1)}


def attempt(name: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {name: step()}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        where = traceback.format_exc().strip().splitlines()[-12:]
        return {name: {"error": f"{type(error).__name__}: {lines[0]}", "where": where}}


def randomized(model: nn.Module) -> nn.Module:
    """Parameters and running statistics that are constant (1, 0, a layer scale) get values of their own."""
    tensors = dict(model.named_parameters())
    tensors |= {name: b for name, b in model.named_buffers() if "running_" in name}
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.empty_like(tensor).uniform_(-0.5, 0.5))
    return model


def in_eval(model: nn.Module, args: tuple) -> dict[str, Any]:
    model.eval()
    fused = atrous.fuse(model)
    with torch.no_grad():
        expected, got = run(copy.deepcopy(model), args), run(fused, args)
    return {"output": error(got, expected), **described(fused.fusion_report)}


def in_frozen(model: nn.Module, args: tuple) -> dict[str, Any]:
    model.eval()
    fused = atrous.fuse(model, freeze=True)
    with torch.no_grad():
        expected, got = run(model, args), run(fused, args)
    return {"output": error(got, expected), **described(fused.fusion_report)}


def in_training(model: nn.Module, args: tuple) -> dict[str, Any]:
    model.train()
    plain = copy.deepcopy(model)
    fused = atrous.fuse(model)
    expected, got = run(plain, args), run(fused, args)
    again = run(copy.deepcopy(plain), args, SEED + 1)
    for outputs in (expected, got):
        loss(outputs).backward()
    gradients = [[p.grad for p in m.parameters()] for m in (model, plain)]
    buffers = [list(m.buffers()) for m in (model, plain)]
    return {
        "output": error(got, expected),
        "gradient": error(*gradients, common=True),
        "buffer": error(*buffers),
        "draws": error(again, run(copy.deepcopy(plain), args)) != 0.0,
        **described(fused.fusion_report),
    }


def run(model: nn.Module, args: tuple, seed: int = SEED) -> list[Any]:
    torch.manual_seed(seed)
    return tree_leaves(model(*tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, args)))


def loss(outputs: list[Any]) -> Tensor:
    """A sum over all outputs, whose weights differ."""
    used = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    return sum((o * torch.linspace(-1.0, 1.0, o.numel(), dtype=o.dtype).cos().reshape(o.shape)).mean() for o in used)


def error(got: list[Any], expected: list[Any], common: bool = False) -> float:
    """The largest |got - expected| of a tensor, divided by the tensor's largest value. common: or by FLOOR times the
    largest value of all tensors.
    """
    if len(got) != len(expected):
        raise RuntimeError(f"{len(got)} values, the model has {len(expected)}")
    scales = [e.abs().max().item() if numbers(e) else 0.0 for e in expected]
    floor = FLOOR * max(scales, default=0.0) if common else 0.0
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
            worst = max(worst, off and off / max(scale, floor), key=lambda v: (v != v, v))
        elif not torch.equal(g, e):
            raise RuntimeError(f"a tensor of {e.dtype} differs")
    return worst


def numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def like(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)


def described(report: Any) -> dict[str, Any]:
    """What the report says, by the paths of the convolutions."""
    sites = [site for graph in report.graphs for site in graph.sites]
    convs = [site for site in sites if site.pattern.startswith("conv")]
    inner = [s.path for s in convs if s.fused and acted(s.pattern)]
    return {
        "sites": len({s.path for s in sites if s.fused}),
        "activated": sorted(set(inner)),
        "reasons": dict(Counter(normalized(s.reason) for s in convs if not (s.fused and acted(s.pattern)))),
        "ends": {s.path: f"{s.pattern}: {s.reason}" for s in convs if not (s.fused and acted(s.pattern))},
        "graphs": len(report.graphs),
        "breaks": report.breaks,
        "plain": report.plain_calls,
        "fallbacks": sorted({reason for graph in report.graphs for reason in graph.fallbacks}),
    }


def acted(pattern: str) -> bool:
    return any(name in pattern.split("+") for name in ("relu", "leaky_relu", "prelu", "rrelu"))


def normalized(reason: str) -> str:
    """A reason without the numbers of one site."""
    return re.sub(r"\(?\d[\d, ]*\)?", "N", reason) or "nothing"


def timed(model: nn.Module, args: tuple) -> dict[str, Any]:
    """Milliseconds in fp32 eval, the smallest of calls that alternate."""
    model = model.float().eval()
    args = tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v, args)
    plain, fused = copy.deepcopy(model), atrous.fuse(model)
    best = {"plain": float("inf"), "fused": float("inf")}
    with torch.no_grad():
        begin = time.perf_counter()
        fused(*args)
        first = time.perf_counter() - begin
        plain(*args)
        begin = time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            for name, one in (("plain", plain), ("fused", fused)):
                start = time.perf_counter()
                one(*args)
                best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return {**best, "first call s": first}

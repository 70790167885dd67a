"""One model against its fused and its frozen copy: sites, errors in fp64, graph breaks, time in fp32."""

from __future__ import annotations

import copy
import functools
import math
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
from atrous.tools import timing
from bench.public_models import chains
from bench.public_models.errors import error
from bench.public_models.zoo import Model

CPU = torch.device("cpu")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SEED = 7
EPSILON = 2.0**-52
SECONDS, TRIES, NOISE = 2.0, 8, 1.02  # for timing a model: again, until nothing is slower than the fastest plain call
Row = dict[str, Any]


def measure(model: Model) -> Iterator[Row]:
    """Yields the results of each step as they come; what raises is a result too.

    The model has run once in eval before it is fused: some libraries keep constants of their first call.
    """
    torch.manual_seed(SEED)
    net = randomized(model.make()).double()
    args = tuple(a.double() for a in model.args)
    yield {"dropouts": without_dropout(net)}
    counted = attempt(lambda: chains.count(net.eval(), args))
    groups = counted.pop("activated", [])
    yield {"counted": {**counted, "activated": len(groups)}}
    for name, step in (("eval", in_eval), ("frozen", in_frozen), ("training", in_training)):
        result = attempt(functools.partial(step, copy.deepcopy(net), args))
        yield {name: compared(groups, result) if "both" in result else result}
    yield {"time": attempt(lambda: timed(net.float().eval(), model.args))}


def attempt(step: Callable[[], Row]) -> Row:
    begin = time.process_time()
    try:
        result = step()
    except Exception as error:
        traceback.print_exc()
        result = {"error": first_sentence(f"{type(error).__name__}: {error}")}
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
    """draws: the outputs of the plain model depend on the seed. rounding: the plain model's own errors for inputs that
    differ in their last bits.
    """
    plain, near = copy.deepcopy(net.train()), copy.deepcopy(net)
    fused = atrous.fuse(net)
    draws = error(run(copy.deepcopy(plain), args, SEED + 1), run(copy.deepcopy(plain), args)) != 0.0
    expected, got = trained(plain, args), trained(fused, args)
    rounded = trained(near, tuple(a * (1 + EPSILON * torch.randn_like(a)) for a in args))
    rounding, errors = (
        {name: error(values, expected[name], name == "gradient") for name, values in results.items()}
        for results in (rounded, got)
    )
    return {**errors, "rounding": rounding, "draws": draws, **described(fused.fusion_report)}


def trained(net: nn.Module, args: tuple) -> dict[str, list[Any]]:
    """The outputs of a forward, and the gradients and buffers after its backward."""
    outputs = run(net, args)
    loss(outputs).backward()
    return {"output": outputs, "gradient": [p.grad for p in net.parameters()], "buffer": list(net.buffers())}


def run(net: nn.Module, args: tuple, seed: int = SEED) -> list[Any]:
    torch.manual_seed(seed)
    return tree_leaves(net(*tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, args)))


def loss(outputs: list[Any]) -> Tensor:
    """A sum over all outputs, whose weights differ."""
    used = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    return sum((o * torch.linspace(-1.0, 1.0, o.numel(), dtype=o.dtype).cos().reshape(o.shape)).mean() for o in used)


def described(report: Any) -> Row:
    """Sums up the report. both: the paths of the convolutions whose call has the activation; ends: the reasons of the
    others, by path.
    """
    every = [s for graph in report.graphs for s in graph.sites]
    convs = [s for s in every if s.pattern.startswith("conv")]
    both = {s.path for s in convs if s.fused and acted(s.pattern)}
    return {
        "sites": len({s.path for s in every if s.fused}),
        "listed": len({s.path for s in convs}),
        "both": both,
        "ends": {s.path: f"{s.pattern}: {s.reason}" for s in convs if s.path not in both},
        "reasons": dict(Counter(normalized(s.reason) for s in convs if s.path not in both)),
        "graphs": len(report.graphs),
        "breaks": {first_sentence(reason): number for reason, number in report.breaks.items()},
        "plain": {first_sentence(reason): number for reason, number in report.plain_calls.items()},
        "fallbacks": sorted({first_sentence(reason) for graph in report.graphs for reason in graph.fallbacks}),
    }


def compared(groups: list[tuple[str, ...]], result: Row) -> Row:
    """The results with the number of groups that are fused with both in place of the paths; missed: the others."""
    both, ends = result.pop("both"), result.pop("ends")
    missed = [group for group in groups if not both & set(group)]
    reasons = {" or ".join(g): "; ".join(ends.get(path, "not in the report") for path in g) for g in missed}
    return {**result, "activated": len(groups) - len(missed), "missed": reasons}


def first_sentence(reason: str) -> str:
    """The rest of a reason may name files of this machine."""
    return re.split(r"\.\s|\n", reason.strip())[0][:200]


def acted(pattern: str) -> bool:
    return any(name in pattern.split("+") for name in ("relu", "leaky_relu", "prelu", "rrelu"))


def normalized(reason: str) -> str:
    """A reason without the numbers and the path of one site."""
    reason = re.sub(r"(?<= is fused into )\S+$", "another layer", reason)
    return re.sub(r"\(?\d+(, ?\d+)*\)?", "N", reason) or "none given"


def timed(net: nn.Module, args: tuple) -> Row:
    """Milliseconds of an eval call in fp32, the shortest of calls that alternate: other processes slow it down least.

    again: the plain model once more; its distance from plain is noise. compiled: seconds of the first fused call.
    """
    fused = atrous.fuse(net)  # the same tensors: a copy may lie in pages of another size
    calls = {"plain": lambda: net(*args), "fused": lambda: fused(*args), "again": lambda: net(*args)}
    best = dict.fromkeys(calls, math.inf)
    with torch.no_grad():
        compiled = timing.milliseconds(calls["fused"], CPU) / 1e3
        for _ in range(TRIES):
            times = timing.interleaved(calls, CPU, SECONDS)
            best = {name: min(ms, *times[name]) for name, ms in best.items()}
            low, high = sorted((best["plain"], best["again"]))
            if max(high, best["fused"]) < NOISE * low:
                break
    return {**best, "compiled": compiled}

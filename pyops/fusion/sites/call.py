"""A site as one functional call, and the operators that this call comes to for the tensors of a graph.

The call does on fake tensors what it does on real ones: it checks its arguments, casts, chooses a layout and a backend.
What it then calls is traced, so that a compiled graph holds the operators alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ... import functional
from ...backends.base import Backend
from ...core.call_args import BatchNormArgs, PostOpArgs
from ...core.graph_compat import trace
from ...core.layout import channels_last
from ...core.spec import Epilogue, Spec
from ...core.sync_stats import Group
from ...core.torch_compat import autocast_state
from ...nn import fold_batch_norm
from . import spellings
from .chains import Chain, uses_batch_statistics
from .effects import value

VECTORS = BatchNormArgs._fields[:4]  # mean, var, gamma, beta


class Options(NamedTuple):
    """How sites run. backend, recompute: those of functional calls. freeze: BatchNorms are folded into convolutions.
    compiled: another compiler reads the graph.
    """

    backend: str = "auto"
    recompute: bool = True
    freeze: bool = False
    compiled: bool = False


class PackInGraph:
    """Packs a frozen weight beside its use: what depends on weights alone is then computed once (constants.py).

    weight, bias: those of the model, before autocast. Where the packed convolution does not normalize as well, the
    BatchNorm is folded into a copy of them, unless their dtype is a low precision: that would round them again.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def bind(self, backend: Backend):
        def run(input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, epilogue: Epilogue) -> Tensor:
            dtype = weight.dtype
            if backend.packed_normalizes(input, weight, spec):
                weight = self.weight.to(dtype)  # not a copy in another layout: it stays in memory beside the packed one
            elif epilogue.mean is not None and self.weight.dtype in (torch.float32, torch.float64):
                folded = fold_batch_norm(self.weight, self.bias, *epilogue[:4], epilogue.eps)
                weight, bias = (tensor.to(dtype) for tensor in folded)
                weight = weight.contiguous(memory_format=torch.channels_last)
                epilogue = epilogue._replace(**dict.fromkeys(VECTORS))
            packed = backend.pack(input, weight, spec)
            return backend.packed_conv_epilogue(input, packed, weight, bias, spec, epilogue)

        return run


class Call:
    """One site as a function of its tensors, in the order of `names`.

    traces: the operators of calls so far, which those of the same graph share if they differ in their tensors alone.
    batch_stats: it normalizes with the statistics of the batch. deferred: it returns y, mean and the unbiased variance,
    and does not update the running statistics. layout: that of the result, where the functional call has another.
    nchw: a result that is dense in both layouts gets the strides of NCHW, as eager's; not where the first of its steps
    alone chooses strides (reads_input_alone), and reads a view of a map in channels_last.
    """

    def __init__(self, chain: Chain, options: Options, residual: fx.Node | None, traces: dict[str, fx.GraphModule]):
        self.options, self.after, self.deferred = options, chain.after, False
        self.layout: torch.memory_format | None = None
        self._traces = traces
        tensors: dict[str, Any] = {}
        self.geometry: tuple | None = None
        self.batch_stats, self.momentum, self.eps, self.group = False, 0.0, 0.0, None
        self._read_conv(chain.steps.get("conv"), tensors)
        self._read_bn(chain.steps.get("bn"), tensors)
        if "input" not in tensors:
            first, second = spellings.operands(chain.steps["add"])
            tensors["input"] = second if first is chain.residual else first
        self.slope = self._read_slope(chain.steps.get("act"), tensors)
        dropout = chain.steps.get("dropout")
        self.dropout = float(spellings.arguments(dropout).p) if dropout is not None else 0.0
        tensors["residual"] = residual
        self.tensors = {name: node for name, node in tensors.items() if node is not None}
        self.names = tuple(self.tensors)
        # in eager a convolution, PReLU and steps in place keep the strides of a map that is dense in both layouts
        steps = chain.steps.values()
        lays_out = [n for n in steps if spellings.role(n) not in ("conv", "prelu") and not spellings.in_place(n)]
        self.nchw, self.reads_input_alone = bool(lays_out), lays_out == [chain.nodes[0]]
        self.__name__ = self.__qualname__ = "site_" + chain.pattern.replace("+", "_")

    @property
    def folds(self) -> bool:
        """True if the call prepares its weight, into which it folds its BatchNorm, and its result is channels_last."""
        return (
            self.options.freeze and self.geometry is not None and not self.batch_stats and not torch.is_grad_enabled()
        )

    def traced(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """The operators of this call, without gradients."""
        ids = list(map(id, tensors))
        kinds = [(t.dtype, t.device, tuple(t.shape), t.stride(), ids.index(id(t))) for t in tensors]
        numbers = {name: value for name, value in vars(self).items() if name not in ("tensors", "_traces")}
        key = repr((numbers, kinds, autocast_state()))  # equal symbols have equal names
        if key not in self._traces:
            with torch.no_grad():
                self._traces[key] = trace(self, tensors, self.options.compiled)
        return self._traces[key]

    def for_joint_graph(self) -> Call:
        """The same call with the batch statistics among its results; the graph decides what is kept and recomputed."""
        call = copy.copy(self)
        call.deferred, call.options = self.batch_stats, self.options._replace(recompute=False, freeze=False)
        return call

    def _read_conv(self, conv: fx.Node | None, tensors: dict[str, Any]) -> None:
        if conv is not None:
            a = spellings.arguments(conv)
            tensors.update(input=a.input, weight=a.weight, bias=a.bias)
            self.geometry = (a.stride, a.padding, a.dilation, a.groups)

    def _read_bn(self, bn: fx.Node | None, tensors: dict[str, Any]) -> None:
        if bn is not None:
            a = spellings.arguments(bn)
            tensors.setdefault("input", a.input)
            tensors.update(zip(VECTORS, (a.running_mean, a.running_var, a.weight, a.bias)))
            self.batch_stats, self.eps = uses_batch_statistics(bn), number(a.eps)
            self.group = Group(*a.group) if hasattr(a, "group") else None
            self.momentum = 0.0 if a.momentum is None else number(a.momentum)

    def _read_slope(self, act: fx.Node | None, tensors: dict[str, Any]) -> Any:
        if act is None:
            return 1.0
        a = spellings.arguments(act)
        match spellings.role(act):
            case "relu":
                return "relu"
            case "leaky_relu":
                return number(a.negative_slope)
            case "prelu":
                tensors["slope"] = a.weight
                return None
        bounds = number(a.lower), number(a.upper)
        return bounds if a.training else sum(bounds) / 2

    def __call__(self, *tensors: Tensor) -> Any:
        t: dict[str, Any] = dict(zip(self.names, tensors))
        slope = t.get("slope", self.slope)
        post_op = PostOpArgs(slope, t.get("residual"), self.after, dropout=self.dropout)
        collected: list | None = [] if self.deferred else None
        numbers: Any = (self.batch_stats, self.momentum, self.eps, self.group)
        batch_norm = BatchNormArgs(*map(t.get, VECTORS), *numbers, deferred=collected)
        y = self._run(t, batch_norm, post_op)
        if self.layout is not None and not self.folds:
            y = y.contiguous(memory_format=self.layout)
        dense_in_both = y.shape[2:] == (1, 1) or y.shape[1] == 1  # later layers see by the strides which it is
        x = t["input"]
        of_a_view = self.reads_input_alone and not x.is_contiguous() and channels_last(x)
        if self.nchw and dense_in_both and not of_a_view:
            y = y.as_strided(y.shape, (y.shape[1] * y.shape[2] * y.shape[3], y.shape[2] * y.shape[3], y.shape[3], 1))
        if not collected:
            return y
        mean, var, count = collected[0]
        return y, mean, var * (count / (count - 1))

    def _run(self, t: dict[str, Any], batch_norm: BatchNormArgs, post_op: PostOpArgs) -> Tensor:
        backend, recompute = self.options.backend, self.options.recompute
        if self.geometry is None:
            if self.batch_stats or batch_norm.present:
                return functional.normalize(t["input"], batch_norm, post_op, backend, recompute)
            return functional.post_process(t["input"], post_op, backend, recompute)
        x, weight, bias, packed = t["input"], t["weight"], t.get("bias"), None
        if self.folds:
            # both: the strides of a 1x1 weight do not show a layout
            x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
            packed = PackInGraph(t["weight"], bias)
        return functional.convolve(
            x, weight, bias, self.geometry, batch_norm, post_op,
            prepacked=packed, backend=backend, recompute=recompute,
        )  # fmt: skip


def number(given: Any) -> float:
    """A number of a site: a symbolic one gets its value, on which the graph is then guarded."""
    return float(value(given))


def inline(graph: fx.Graph, node: fx.Node, traced: fx.GraphModule) -> fx.Node:
    """Replaces a node by a traced graph of its arguments; returns the node of the result, with the node's meta."""
    places = [n for n in traced.graph.nodes if n.op == "placeholder"]
    with graph.inserting_before(node):
        result: Any = graph.graph_copy(traced.graph, dict(zip(places, node.args)))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return result

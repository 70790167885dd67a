"""A graph with gradients: AOTAutograd's joint graph, our choice of what is kept, one autograd function around the two.

The batch statistics leave the graph as outputs, since a joint graph must not change an input, and update the running
statistics behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..core import dynamo_compat
from ..core.layout import channels_last
from . import spellings
from .call import Call
from .effects import value
from .lean import lean
from .updates import Updates

CONVOLUTIONS = ("aten.convolution", "atrous._conv_statistics", "atrous_triton._conv_statistics", "atrous._statistics",
                "atrous_triton._statistics", "atrous._winograd_epilogue", "aten.randint")  # fmt: skip


def compiled(gm: fx.GraphModule, plain: fx.GraphModule, fakes: Sequence[Any], recompute: bool) -> Callable[..., Any]:
    """gm with gradients. plain: the graph without sites, which second derivatives differentiate.

    Raises what AOTAutograd raises for a graph that it does not export.
    """
    gm = copied(gm)
    updates = Updates.take_from(gm)
    joint = dynamo_compat.joint_graph(gm, fakes)
    results = outputs(gm)
    _choose_kept(joint)
    forward, backward = dynamo_compat.partition(joint, fakes, len(results), recompute)
    whole = Whole(forward, backward, _without_updates(plain), results, fakes, updates.written)
    return updates.behind(whole)


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    return fx.GraphModule(gm, graph)


def outputs(gm: fx.GraphModule) -> list[Any]:
    """The values that a graph returns."""
    return list(next(iter(reversed(gm.graph.nodes))).args[0])  # type: ignore[arg-type]


def trains(node: fx.Node) -> bool:
    """True for a BatchNorm or a site that normalizes with the statistics of the batch."""
    if isinstance(node.target, Call):
        return node.target.batch_stats
    return spellings.role(node) == "bn" and bool(spellings.arguments(node).training)


def _without_updates(plain: fx.GraphModule) -> fx.GraphModule:
    """The graph as torch has it, but for the running statistics, which the first run has updated."""
    gm = copied(plain)
    for node in list(gm.graph.nodes):
        if spellings.role(node) == "bn" and spellings.arguments(node).training:
            a = spellings.arguments(node)
            node.target, node.kwargs = torch.nn.functional.batch_norm, {}
            node.args = (a.input, None, None, a.weight, a.bias, True, 0.0, a.eps)
        elif Updates.counts(node):
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _choose_kept(joint: fx.GraphModule) -> None:
    """The outputs of convolutions are kept, and epilogues recomputed from them: kept is what one of them needs.

    An epilogue whose residual would have to be recomputed first is kept.
    """
    again: set[Any] = set()
    for node in joint.graph.nodes:
        if node.op != "call_function" or dynamo_compat.is_backward(node):
            continue
        name = str(node.target)
        if "atrous._epilogue." in name or "atrous_triton._epilogue." in name:
            recomputed = not any(used in again for used in node.all_input_nodes)
            dynamo_compat.keep(node, not recomputed)
            again |= {node} if recomputed else set()
        elif name.startswith(CONVOLUTIONS):
            dynamo_compat.keep(node, True)


class Whole:
    """The forward graph as one differentiable function, whose backward is the backward graph."""

    def __init__(self, forward, backward, plain, results: list, fakes: Sequence[Any], written: set[int]):
        self.forward, self.backward, self.plain = lean(forward), lean(backward), plain.forward
        self.outputs = [value(result) for result in results]
        self.differentiable = [isinstance(v, Tensor) and v.requires_grad for v in self.outputs]
        self.wanted = [isinstance(fake, Tensor) and fake.requires_grad for fake in fakes]
        # Inputs that are changed behind the graph are not saved: autograd would refuse their new values.
        self.saved = [i for i, fake in enumerate(fakes) if isinstance(fake, Tensor) and i not in written]
        kept = [getattr(node, "name", None) for node in outputs(forward)[len(results) :]]
        names = [node.name for node in backward.graph.nodes if node.op == "placeholder"]
        self.order = [kept.index(name) for name in names if not name.startswith("tangents")]  # symbols stand first
        tangents = [name for name in names if name.startswith("tangents")]
        every = len(tangents) == len(results)
        self.tangents = [i for i, one in enumerate(self.differentiable) if one or every]
        self.apply = _function(self)

    def __call__(self, *args: Any) -> Any:
        return self.apply(*args)

    def dense(self, index: int, grad: Tensor | None, like: Tensor) -> Tensor:
        """The gradient of an output, dense in the layout that the graph was made for."""
        if grad is None:
            return torch.zeros_like(like)
        layout = torch.channels_last if channels_last(self.outputs[index]) else torch.contiguous_format
        return grad.contiguous(memory_format=layout)


def _function(whole: Whole) -> Callable[..., Any]:
    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            results = whole.forward(*args)
            outputs, kept = results[: len(whole.outputs)], results[len(whole.outputs) :]
            saved = set(whole.saved)
            ctx.arguments = [None if i in saved else arg for i, arg in enumerate(args)]
            ctx.symbols = [None if isinstance(one, Tensor) else one for one in kept]
            ctx.save_for_backward(*(args[i] for i in whole.saved), *(one for one in kept if isinstance(one, Tensor)))
            ctx.set_materialize_grads(False)
            ctx.like = [torch.empty_like(o, device="meta") if isinstance(o, Tensor) else None for o in outputs]
            constant = (o for o, one in zip(outputs, whole.differentiable) if isinstance(o, Tensor) and not one)
            ctx.mark_non_differentiable(*constant)
            return tuple(outputs)

        @staticmethod
        def backward(ctx, *grads):
            tensors = ctx.saved_tensors
            if torch.is_grad_enabled():  # create_graph=True: these gradients will be differentiated
                return _differentiable_backward(whole, ctx, tensors, grads)
            rest = iter(tensors[len(whole.saved) :])
            kept = [next(rest) if symbol is None else symbol for symbol in ctx.symbols]
            tangents = (whole.dense(i, grads[i], ctx.like[i]) for i in whole.tangents)
            return tuple(whole.backward(*(kept[i] for i in whole.order), *tangents))

    return Graph.apply


def _differentiable_backward(whole: Whole, ctx, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> tuple:
    """The gradients of the graph without sites: torch's own operators, differentiable again."""
    args = list(ctx.arguments)
    for index, tensor in zip(whole.saved, tensors):
        args[index] = tensor.view_as(tensor) if whole.wanted[index] else tensor
    outputs = whole.plain(*args)
    pairs = [(output, grad) for output, grad in zip(outputs, grads) if grad is not None]
    inputs = [arg for arg, wanted in zip(args, whole.wanted) if wanted]
    got = iter(torch.autograd.grad(*zip(*pairs), create_graph=True, allow_unused=True, inputs=inputs))  # type: ignore
    return tuple(next(got) if wanted else None for wanted in whole.wanted)

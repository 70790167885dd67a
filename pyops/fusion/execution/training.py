"""A graph with gradients: AOTAutograd's joint graph, our choice of what is kept, one autograd function around the two.

The batch statistics leave the graph as outputs, since a joint graph must not change an input, and update the running
statistics behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...core import graph_compat
from ...core.torch_compat import checkpointing, in_autocast_off, same_autocast, version, without_autocast
from ..sites import effects, spellings
from ..sites.call import Call
from ..sites.effects import storage, value, written
from .keeping import choose_kept
from .updates import Updates, counts

Finish = Callable[[fx.GraphModule], Callable[[list], Any]]  # makes a function of a finished graph


def compiled(
    gm: fx.GraphModule,
    plain: fx.GraphModule,
    fakes: Sequence[Any],
    recompute: bool,
    then_compiled: bool,
    finish: Finish,
) -> Callable[..., Any]:
    """gm with gradients. plain: the graph without sites, which second derivatives differentiate.
    then_compiled: Inductor gets the halves.

    Raises what AOTAutograd raises for a graph that it does not export.
    """
    gm = copied(gm)
    updates = Updates(gm)
    joint = graph_compat.joint_graph(gm, fakes, then_compiled)
    results = outputs(gm)
    if recompute:
        choose_kept(joint)
    forward, backward = graph_compat.partition(joint, fakes, len(results), recompute)
    return Whole(forward, backward, _without_updates(plain), results[: len(outputs(plain))], fakes, updates, finish)


def copied(gm: fx.GraphModule, copies: dict[fx.Node, fx.Node] | None = None) -> fx.GraphModule:
    """copies: receives node -> its copy."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {} if copies is None else copies))
    return fx.GraphModule(gm, graph)


def has_gradients(gm: fx.GraphModule) -> bool:
    """True if a result needs a gradient, or a tensor that exists outside the graph, after it is written."""
    outside = {storage(node) for node in gm.graph.nodes if node.op in ("placeholder", "get_attr")}
    for node in gm.graph.nodes:
        changed = any(storage(target) in outside for target in written_in_place(node))
        if changed and any(needs_gradient(value(used)) for used in node.all_input_nodes):
            return True
    return any(needs_gradient(value(result)) for result in outputs(gm))


def writes(gm: fx.GraphModule) -> bool:
    """True if an operator of the graph writes a tensor in place."""
    return any(written_in_place(node) for node in gm.graph.nodes)


def written_in_place(node: fx.Node) -> Sequence[fx.Node]:
    """Without the statistics of a BatchNorm, which have no gradients."""
    return () if isinstance(node.target, Call) or spellings.role(node) == "bn" else list(written(node))


def outputs(gm: fx.GraphModule) -> list[Any]:
    """The values that a graph returns."""
    return list(gm.graph.output_node().args[0])  # type: ignore[arg-type]


def mode(node: fx.Node) -> str:
    """That of a BatchNorm, or of a site with one: "train" if it uses the statistics of the batch. "" without one."""
    if isinstance(node.target, Call):
        return "train" if node.target.batch_stats else "eval" if node.target.eps else ""
    if spellings.role(node) != "bn":
        return ""
    return "train" if spellings.arguments(node).training else "eval"


def writes_into_a_leaf(gm: fx.GraphModule) -> bool:
    """True if the graph changes an input that needs a gradient."""
    leaves = {storage(node) for node in gm.graph.nodes if node.op == "placeholder" and needs_gradient(value(node))}
    return any(storage(target) in leaves for node in gm.graph.nodes for target in written(node))


def needs_gradient(fake: Any) -> bool:
    return isinstance(fake, Tensor) and fake.requires_grad


def _without_updates(plain: fx.GraphModule) -> fx.GraphModule:
    """The graph as torch has it, but for the running statistics, which the first run has updated."""
    gm = copied(plain)
    for node in list(gm.graph.nodes):
        if spellings.role(node) == "bn" and spellings.arguments(node).training:
            a = spellings.arguments(node)
            group = (a.group,) if hasattr(a, "group") else ()
            node.target, node.kwargs = node.target if group else torch.nn.functional.batch_norm, {}
            node.args = (a.input, None, None, a.weight, a.bias, True, 0.0, a.eps, *group)
        elif counts(node):
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


class Whole:
    """The forward graph as one differentiable function, whose backward is the backward graph."""

    def __init__(self, forward, backward, plain, results: list, fakes: Sequence[Any], updates: Updates, finish: Finish):
        self.updates, autocast = updates, effects.autocasts(plain.graph)
        self.wanted = [i for i, fake in enumerate(fakes) if needs_gradient(fake)]
        _return_gradients(backward, self.wanted)
        forward.graph.eliminate_dead_code()  # values that the backward alone computes again
        self.plain = same_autocast(plain.forward)
        self.outputs = [value(result) for result in results]
        self.differentiable = list(map(needs_gradient, self.outputs))
        self.first_kept = len(results) + 2 * len(updates.running)
        kept = [getattr(node, "name", None) for node in outputs(forward)[self.first_kept :]]
        places = [node.name for node in forward.graph.nodes if node.op == "placeholder"]
        # input -> its place among the kept values, which the backward reads; the others serve second derivatives alone,
        # but for those that are changed behind the graph
        self.kept = {i: kept.index(name) for i, name in enumerate(places) if name in kept}
        apart = self.kept.keys() | updates.written
        self.others = [i for i, fake in enumerate(fakes) if isinstance(fake, Tensor) and i not in apart]
        inputs = [node for node in backward.graph.nodes if node.op == "placeholder"]
        self.order = [kept.index(node.name) for node in inputs if not _is_tangent(node)]  # symbols stand first
        tangents = list(filter(_is_tangent, inputs))
        self.tangents = [i for i, one in enumerate(self.differentiable) if one or len(tangents) == self.first_kept]
        self.axes = list(map(_axes_in_memory, map(value, tangents)))
        self.sources = _sources(backward, self.tangents)
        with torch.no_grad(), without_autocast():  # last: the graphs are finish's own then
            self.forward, self.backward = finish(forward), finish(backward)
        if autocast:  # the graphs have cast already
            self.forward, self.backward = in_autocast_off(self.forward), in_autocast_off(self.backward)
        self.apply = _function(self)

    def __call__(self, *args: Any) -> Any:
        return self.apply(args, *map(args.__getitem__, self.wanted))  # autograd takes its time for each argument

    def of_given(self, gradients: Sequence[Any], grads: Sequence[Tensor | None]) -> Sequence[Any]:
        """Makes a gradient None where only outputs without a gradient depend on its input, as autograd does."""
        given = {i for i, grad in enumerate(grads) if grad is not None}
        if given.issuperset(self.tangents):
            return gradients
        return [gradient if sources & given else None for gradient, sources in zip(gradients, self.sources)]

    def dense(self, grads: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
        """The gradients that the backward graph reads, dense in the layouts that it was made for."""
        for index, axes in zip(self.tangents, self.axes):
            grad, like = grads[index], self.outputs[index]
            if grad is None:
                grad = torch.zeros(shapes[index], dtype=like.dtype, device=like.device)
            if axes == sorted(axes):
                yield grad.contiguous()
            else:
                yield grad.permute(axes).contiguous().permute([axes.index(axis) for axis in range(len(axes))])


def _is_tangent(node: fx.Node) -> bool:
    return node.name.startswith("tangents")


def _axes_in_memory(fake: Tensor) -> list[int]:
    """The axes of a tensor from the one of the largest stride to that of the smallest."""
    return sorted(range(fake.dim()), key=lambda axis: -graph_compat.hint(fake.stride(axis)))


def _return_gradients(backward: fx.GraphModule, wanted: list[int]) -> None:
    """Makes a backward graph return the gradients of these inputs of the forward alone."""
    output = backward.graph.output_node()
    output.args = (tuple(output.args[0][i] for i in wanted),)  # type: ignore[index]


def _sources(backward: fx.GraphModule, tangents: list[int]) -> list[frozenset[int]]:
    """For each gradient of a backward graph, the outputs of the forward whose gradients it depends on."""
    places = iter(tangents)
    known: dict[fx.Node, frozenset[int]] = {}
    for node in backward.graph.nodes:
        known[node] = frozenset().union(*(known[used] for used in node.all_input_nodes))
        if node.op == "placeholder" and _is_tangent(node):
            known[node] = frozenset([next(places)])
    return [known.get(gradient, frozenset()) for gradient in outputs(backward)]


def _function(whole: Whole) -> Callable[..., Any]:
    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx, args, *wanted):
            results = whole.forward(list(args))
            outputs, kept = results[: len(whole.outputs)], results[whole.first_kept :]
            statistics = results[len(whole.outputs) : whole.first_kept]
            whole.updates.apply(args, statistics)  # before anything is saved: there checkpointing may end a run
            ctx.statistics = whole.updates.repeated(statistics)
            # A checkpoint must be able to drop them; elsewhere they may be changed if there is no second derivative.
            ctx.saved = whole.others if checkpointing() else []
            ctx.arguments = [None if i in whole.kept or i in ctx.saved else arg for i, arg in enumerate(args)]
            ctx.versions = [version(args[i]) for i in whole.others]
            ctx.symbols = [None if isinstance(one, Tensor) else one for one in kept]
            ctx.save_for_backward(*(args[i] for i in ctx.saved), *(one for one in kept if isinstance(one, Tensor)))
            ctx.set_materialize_grads(False)
            ctx.shapes = [getattr(output, "shape", None) for output in outputs]
            constant = (o for o, one in zip(outputs, whole.differentiable) if isinstance(o, Tensor) and not one)
            ctx.mark_non_differentiable(*constant)
            return tuple(outputs)

        @staticmethod
        def backward(ctx, *grads):
            tensors = ctx.saved_tensors
            rest = iter(tensors[len(ctx.saved) :])
            kept = [next(rest) if symbol is None else symbol for symbol in ctx.symbols]
            if torch.is_grad_enabled():  # create_graph=True: these gradients will be differentiated
                return _differentiable_backward(whole, ctx, tensors, kept, grads)
            whole.updates.apply(ctx.arguments, ctx.statistics, again=True)
            inputs = [*map(kept.__getitem__, whole.order), *whole.dense(grads, ctx.shapes)]
            ctx.maybe_clear_saved_tensors()  # unless there is another backward: the graph frees each after its last use
            del tensors, rest, kept
            return None, *whole.of_given(whole.backward(inputs), grads)

    return Graph.apply


def _differentiable_backward(whole: Whole, ctx, tensors: Sequence[Tensor], kept: list, grads: Sequence) -> tuple:
    """The gradients of the graph without sites: torch's own operators, differentiable again."""
    args = list(ctx.arguments)
    for index, tensor in (*zip(ctx.saved, tensors), *((i, kept[place]) for i, place in whole.kept.items())):
        args[index] = tensor
    if ctx.versions != [version(args[i]) for i in whole.others] and not ctx.saved:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: an input "
            "of a fused model's graph, which its second derivative needs"
        )
    for index in whole.wanted:
        args[index] = args[index].view_as(args[index])
    outputs = whole.plain(*args)
    given = [i for i, grad in enumerate(grads) if grad is not None]
    got = torch.autograd.grad(
        [outputs[i] for i in given], [args[i] for i in whole.wanted], [grads[i] for i in given],
        create_graph=True, allow_unused=True,
    )  # fmt: skip
    return None, *got

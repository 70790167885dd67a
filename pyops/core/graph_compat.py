"""Private names of torch's graph compilers (make_fx, AOTAutograd, Inductor), each behind a public one.

Tried with torch 2.11.0, 2.13.0 and 2.14.1. Only functions import torch._functorch and torch._inductor: each import
takes a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import DispatchKey

from .torch_compat import outside_modes

# Tracing


@contextlib.contextmanager
def compiling(flag: bool) -> Iterator[None]:
    """Sets what torch.compiler.is_compiling() tells: False for a graph that runs as it is."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, flag  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before  # type: ignore[attr-defined]


def trace(function: Callable[..., Any], fakes: Sequence[Tensor], then_compiled: bool) -> fx.GraphModule:
    """The operators that function(*fakes) calls, as a graph, which may be compiled further.

    The fake tensors belong to one mode.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with fake_mode(fakes), compiling(then_compiled):
        return _without_checks(make_fx(function)(*fakes))


def _without_checks(gm: fx.GraphModule) -> fx.GraphModule:
    """Removes the checks of dtypes and devices, which the graph's guards hold: each keeps the value it checks alive."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        gm.graph.erase_node(node)
    return gm


def traced_module(
    model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[fx.GraphModule, list[Any], Callable[[Any], Any]]:
    """The operators of a module on fake tensors, apart from the compiler that traces its call.

    Returns a graph, its arguments (parameters, buffers and those of the call), and a function that makes the module's
    result of the graph's.
    """
    from torch._subclasses.functional_tensor import FunctionalTensor
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree

    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    structures: list[Any] = []

    def run(*tensors: Tensor) -> list[Any]:
        given = dict(zip(places, tensors[len(state) :]))
        values = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        arguments = _pytree.tree_unflatten(values, spec)
        results, structure = _pytree.tree_flatten(
            torch.func.functional_call(model, dict(zip(state, tensors)), *arguments)
        )
        structures[:] = [structure]
        return results

    tensors = [*state.values(), *(leaves[i] for i in places)]
    fakes = [t.from_functional() if isinstance(t, FunctionalTensor) else t for t in tensors]
    with outside_modes():
        gm = make_fx(run, tracing_mode="symbolic", pre_dispatch=True)(*fakes)
    return gm, tensors, lambda results: _pytree.tree_unflatten(results, structures[0])


def hint(number: Any) -> Any:
    """The number that a symbol stands for in the call that is compiled; the graph is not guarded on it."""
    return number.node.hint if isinstance(number, (torch.SymInt, torch.SymFloat)) else number


def fake_mode(values: Sequence[Any]) -> contextlib.AbstractContextManager:
    """The mode that the fake tensors among the values belong to, so that new tensors are fake as well."""
    return next((value.fake_mode for value in values if hasattr(value, "fake_mode")), contextlib.nullcontext())


def has_values(gm: fx.GraphModule) -> bool:
    """True if each node of a graph has a fake value, and none is a call of a module."""
    nodes = [node for node in gm.graph.nodes if node.op != "output"]
    return all(node.op != "call_module" and node.meta.keys() & {"val", "example_value"} for node in nodes)


def retrace(gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Replaces a graph by that of the operators it runs, with fake values. Inputs, outputs and attributes stay."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.nn.utils.stateless import _reparametrize_module

    state = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    old = [node for node in gm.graph.nodes if node.op == "placeholder"]

    def run(*values: Any) -> Any:
        with _reparametrize_module(gm, dict(zip(state, values))):
            return fx.Interpreter(gm).run(*values[len(state) :], enable_io_processing=False)

    mode = FakeTensorMode()
    values = [*state.values(), *gm.graph.process_inputs(*inputs)]
    graph = make_fx(run, pre_dispatch=True)(
        *(mode.from_tensor(one) if isinstance(one, Tensor) else one for one in values)
    ).graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for place, name in zip(places, state):
        with graph.inserting_before(place):
            attribute = graph.create_node("get_attr", name)
        attribute.meta = place.meta
        place.replace_all_uses_with(attribute)
        graph.erase_node(place)
    for place, before in zip(places[len(state) :], old):
        place.target = place.name = before.name
    graph.set_codegen(gm.graph._codegen)
    gm.graph = graph


# AOTAutograd


def joint_graph(gm: fx.GraphModule, fakes: Sequence[Any], then_compiled: bool) -> fx.GraphModule:
    """The forward and backward of a graph in one graph, whose nodes keep the tags of those that they come from.

    then_compiled: Inductor gets the two. Otherwise they run as they are, and a resize stays one operator.

    Raises RuntimeError if the graph changes an input, or returns a view of an input or of another output.
    """
    from torch._functorch.aot_autograd import aot_export_joint_simple

    def run(*args: Any) -> Any:
        return fx.Interpreter(gm).run(*args)

    sizes = [size for fake in fakes if isinstance(fake, Tensor) for size in fake.shape]
    whole = not then_compiled and all(isinstance(one, int) for one in (*sizes, *fakes) if not isinstance(one, Tensor))
    resizes = whole_resizes() if whole else contextlib.nullcontext()
    with compiling(False), fx.traceback.preserve_node_meta(), resizes:
        return _without_checks(aot_export_joint_simple(run, tuple(fakes), trace_joint=True))  # type: ignore[arg-type]


RESIZES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d",
)  # fmt: skip


@contextlib.contextmanager
def whole_resizes() -> Iterator[None]:
    """Traces a resize and its gradient as the operators of eager mode, which take sizes that are known.

    torch would replace them by indexing, which Inductor needs; run as it is, that takes several times as long.
    """
    packets = [getattr(torch.ops.aten, name) for name in RESIZES if hasattr(torch.ops.aten, name)]
    resizes = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    before = [dict(resize.py_kernels) for resize in resizes]
    for resize in resizes:
        for key in (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd):
            resize.py_kernels.pop(key, None)
        resize._dispatch_cache.clear()
    try:
        yield
    finally:
        for resize, kernels in zip(resizes, before):
            resize.py_kernels.update(kernels)
            resize._dispatch_cache.clear()


def partition(
    joint: fx.GraphModule, fakes: Sequence[Any], outputs: int, recompute: bool
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Splits a joint graph into forward and backward; what is kept between them follows the tags of keep()."""
    from torch._functorch import partitioners

    cut = partitioners.min_cut_rematerialization_partition if recompute else partitioners.default_partition
    return cut(joint, fakes, num_fwd_outputs=outputs)


def keep(node: fx.Node, kept: bool) -> None:
    """Tells partition() to keep the value of a node for the backward, or to recompute it there."""
    from torch.utils.checkpoint import CheckpointPolicy

    if "recompute" not in node.meta:  # otherwise the user's activation checkpointing has said it
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.MUST_RECOMPUTE
        node.meta["ac_graph_id"] = 0


def checkpointed(gm: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """The region of a node that is activation checkpointing; None for other nodes, and for a policy of the user's."""
    if node.target is not torch.ops.higher_order.tag_activation_checkpoint:
        return None
    region: Any = gm.get_submodule(str(node.args[0].target))  # type: ignore[union-attr]
    return None if "_checkpoint_context_fn" in region.meta else region


def recompute(node: fx.Node, region: int) -> None:
    """Tags a node of a checkpointed region."""
    from torch.utils.checkpoint import CheckpointPolicy

    node.meta["recompute"], node.meta["ac_graph_id"] = CheckpointPolicy.PREFER_RECOMPUTE, region + 1


def region_tags(node: fx.Node) -> dict[str, Any]:
    """The tags that recompute() has written into the meta of a node."""
    return {name: node.meta[name] for name in ("recompute", "ac_graph_id") if name in node.meta}


def is_backward(node: fx.Node) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward"


def with_aot_autograd(gm: fx.GraphModule, fakes: Sequence[Any]) -> Callable[..., Any]:
    """A graph with gradients, compiled by AOTAutograd to the two graphs as they are."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    def as_it_is(graph: fx.GraphModule, fakes: Sequence[Any]) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=as_it_is, bw_compiler=as_it_is, inference_compiler=as_it_is,
        partition_fn=min_cut_rematerialization_partition, keep_inference_input_mutations=True,
    )(gm, fakes)  # fmt: skip


def with_inductor(gm: fx.GraphModule, fakes: Sequence[Any], mode: str | None) -> Callable[..., Any]:
    """A graph compiled by Inductor, with the options of one of torch.compile's modes. It may change the graph.

    A graph that takes a list is a half of a training graph. It gets no CUDA graph: Inductor takes each half for a whole
    inference, and would write over what the forward saved.
    """
    from torch._inductor import config, list_mode_options
    from torch._inductor.compile_fx import compile_fx

    options = list_mode_options(mode) if mode else {}
    options |= {"fallback_random": True}  # the numbers that torch draws without a compiler
    inputs: list[Any] = list(fakes)
    if gm._boxed_call:
        options |= {"triton.cudagraphs": False}
        gm.graph.find_nodes(op="placeholder")[0].meta["steal_arg"] = True  # the list is emptied
        inputs = [inputs]
    with config.patch(options):
        return compile_fx(gm, inputs)  # type: ignore[return-value]


def take_a_list(gm: fx.GraphModule) -> None:
    """Makes the graph's function take a list of its inputs and empty it: each can be freed after its last use."""
    from torch.fx.graph import _BoxedCodeGen

    gm.graph.set_codegen(_BoxedCodeGen())
    gm.recompile()


# Inputs of a graph that Dynamo made


def copy_source(node: fx.Node, copy: fx.Node) -> None:
    """Gives a copy of a graph's input the source of the input, which fx does not copy."""
    if hasattr(node, "_dynamo_source"):
        copy._dynamo_source = node._dynamo_source  # type: ignore[attr-defined]


def source_name(node: fx.Node) -> str:
    """How Dynamo finds a graph's input: L['model']._modules['conv']._parameters['weight'], for example."""
    source = getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return name() if callable(name) else name

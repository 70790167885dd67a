"""Count what a training step saves and moves in each layer, on shapes alone: for a model and for its fused copy.

saved: bytes of non-parameters that the backward needs, each storage once, in the layer that allocated it.
passes: how many tensors of a layer's output size its operators read or write, forward and backward, without caches.
A layer here is a convolution and everything that runs until the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.torch_compat import TorchDispatchMode, storage_id, tree_leaves
from ...fusion import fuse, is_fused, observed
from ...ops.catalogue import CONVOLUTIONS
from .layers import Result, on_shapes

# Operands that an operator reads a second time: BatchNorm reads its input for the statistics or sums and again for the
# result, a convolution's backward reads the output gradient for the input's and again for the weight's gradient.
READ_TWICE: dict[str, tuple[int, ...]] = {
    "native_batch_norm": (0,),
    "native_batch_norm_backward": (0, 1),
    "cudnn_batch_norm": (0,),
    "cudnn_batch_norm_backward": (0, 1),
    "convolution_backward": (0,),
}


@dataclass
class Cost:
    """The cost of one layer. output: the bytes of its convolution's output."""

    name: str
    output: int
    saved: int = 0
    moved: int = 0

    @property
    def passes(self) -> float:
        return self.moved / self.output


@dataclass
class Ledger(TorchDispatchMode):
    """Counts while a model runs forward and backward; costs[0] includes what runs before the first convolution."""

    names: dict[int, str]  # id of a parameter -> its name
    parameters: set[int]  # their storages
    costs: list[Cost] = field(default_factory=list)
    # storage -> the layer that allocated it, and the storage: the reference keeps its address from being reused
    allocated: dict[int, tuple[int, torch.UntypedStorage]] = field(default_factory=dict)
    saved: set[int] = field(default_factory=set)  # storages
    layer: int = -1
    backward: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS and not self.backward:
            self.layer += 1
            z = result[0] if isinstance(result, tuple) else result
            self.costs.append(Cost(self.names.get(id(args[1]), ""), z.nbytes))
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        for output in outputs:
            self.allocated.setdefault(storage_id(output), (max(self.layer, 0), output.untyped_storage()))
        if self.costs and not func.is_view:
            self.costs[self.layer].moved += self._traffic(func, args, outputs)
        if func is torch.ops.aten.convolution_backward.default:
            self.layer = max(self.layer - 1, 0)
        return result

    def _traffic(self, func, args: tuple, outputs: list[Tensor]) -> int:
        name = func.name().partition("::")[2].partition(".")[0]
        if name.startswith(("empty", "new_empty", "detach", "zeros", "ones")):
            return 0
        inputs = [value for value in args if isinstance(value, Tensor)]
        again = [args[index] for index in READ_TWICE.get(name, ())]
        results = outputs[:1] if name == "convolution_backward" else outputs
        return sum(value.nbytes for value in (*inputs, *again, *results) if self._activation(value))

    def _activation(self, value: Tensor) -> bool:
        return value.dim() == 4 and storage_id(value) not in self.parameters

    def pack(self, value: Tensor) -> Tensor:
        """A saved-tensor hook."""
        self.saved.add(storage_id(value))
        return value

    def close(self) -> list[Cost]:
        for address in self.saved & self.allocated.keys() - self.parameters:
            layer, storage = self.allocated[address]
            self.costs[layer].saved += storage.nbytes()
        return self.costs


def step(model: nn.Module, input: Tensor) -> list[Cost]:
    """The costs of one forward and backward in training mode, in the order in which the convolutions ran."""
    names = {id(p): name.removesuffix("weight").removesuffix(".") for name, p in model.named_parameters()}
    ledger = Ledger(names, addresses(model, *model.buffers()))
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda value: value):
        with ledger:
            input = input.clone()  # allocated under the ledger, so that a saved image counts too
        results = tree_leaves(under(ledger, model, input))
        outputs = [value for value in results if isinstance(value, Tensor) and value.requires_grad]
        with ledger:
            ledger.backward = True
            torch.autograd.backward([value.sum() for value in outputs])
    return ledger.close()


def under(mode: TorchDispatchMode, call: Callable[..., Result], *args: Any) -> Result:
    """call(*args) under a dispatch mode. A fused model's graphs run under it, and not what compiles them."""

    def run(graph: Callable[..., Result], arguments: tuple) -> Result:
        with mode:
            return graph(*arguments)

    if not (isinstance(call, nn.Module) and is_fused(call)):
        return run(call, args)
    with observed(call, run):
        return call(*args)


def addresses(*things: Tensor | nn.Module) -> set[int]:
    """The storages of tensors; a module stands for its parameters."""
    tensors = [t for thing in things for t in (thing.parameters() if isinstance(thing, nn.Module) else [thing])]
    return {storage_id(tensor) for tensor in tensors}


def saved(call: Callable[[], Result], *without: Tensor | nn.Module) -> tuple[Result, int]:
    """The result of call(), and the bytes that autograd saved: each storage once, those of `without` not at all.

    Tensors that a compiled graph saves count too.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(value: Tensor) -> Tensor:
        storages[storage_id(value)] = value.untyped_storage()  # the reference keeps its address from being reused
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = call()
    known = addresses(*without)
    return result, sum(storage.nbytes() for address, storage in storages.items() if address not in known)


@dataclass
class LayerCosts:
    """The costs of one layer in the model and in its fused copy."""

    name: str
    eager: Cost
    fused: Cost


def costs(model: nn.Module, input_shape: Sequence[int], recompute: bool = True) -> list[LayerCosts]:
    """The layers of a training step on an input of this shape. Raises what the model and fuse() raise."""
    eager = on_shapes(step, model, input_shape, training=True)
    fused = on_shapes(step, fuse(model, recompute=recompute), input_shape, training=True)
    by_name = {cost.name: cost for cost in fused}
    return [LayerCosts(cost.name, cost, by_name[cost.name]) for cost in eager]

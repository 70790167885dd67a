"""Bytes that a forward leaves in memory for its backward, counted in two ways."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MB = 1e6


def saved(call, *without) -> tuple[object, int]:
    """The result of call(), and the bytes that autograd saved: each storage once, those of `without` not at all.

    without: tensors and modules; a module stands for its parameters. A compiled graph's saved tensors count too.
    """
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    known = _addresses(without)
    return result, sum(storage.nbytes() for address, storage in storages.items() if address not in known)


def alive(call, *without) -> tuple[object, int]:
    """The result of call(), and the bytes of all that its operators made and that lives on, whoever holds it.

    It sees what `saved` cannot: a tensor that hangs on a context, a module or another tensor. Eager only.
    """
    made = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            outputs = function(*arguments, **(named or {}))
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor):
                    made[tensor.untyped_storage()._cdata] = (
                        StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
                    )  # fmt: skip
            return outputs

    with Watch():
        result = call()
    gc.collect()
    known = _addresses(without)
    living = [size for address, (storage, size) in made.items() if address not in known and not storage.expired()]
    return result, sum(living)


def _addresses(things) -> set[int]:
    tensors = [t for thing in things for t in (thing.parameters() if isinstance(thing, nn.Module) else [thing])]
    return {tensor.untyped_storage()._cdata for tensor in tensors}

"""Bytes that a forward leaves in memory for its backward: those that autograd saved, and those still allocated."""

from __future__ import annotations

import gc

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from atrous.core.torch_compat import TorchDispatchMode, storage_id, tree_leaves
from atrous.tools.explain.training_cost import addresses, saved, under

__all__ = ["MB", "saved", "still_allocated"]

MB = 1e6


def still_allocated(call, arguments, *without) -> tuple[object, int]:
    """The result of call(*arguments), and the bytes of its operators' outputs that are still allocated.

    Unlike `saved`, it counts tensors referenced by a context, a module or another tensor.
    without: tensors that are not counted, and modules whose parameters are not.
    """
    outputs_by_storage = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            outputs = function(*arguments, **(named or {}))
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor):
                    outputs_by_storage[storage_id(tensor)] = (
                        StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
                    )  # fmt: skip
            return outputs

    result = under(Watch(), call, *arguments)
    gc.collect()
    excluded = addresses(*without)
    remaining = [
        size
        for address, (storage, size) in outputs_by_storage.items()
        if address not in excluded and not storage.expired()
    ]
    return result, sum(remaining)

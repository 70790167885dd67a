"""Bytes that a forward leaves in memory for its backward, counted in two ways: by autograd, and by what lives on."""

from __future__ import annotations

import gc

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atrous.tools.explain.training_cost import addresses, saved

__all__ = ["MB", "alive", "saved"]

MB = 1e6


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
    known = addresses(*without)
    living = [size for address, (storage, size) in made.items() if address not in known and not storage.expired()]
    return result, sum(living)

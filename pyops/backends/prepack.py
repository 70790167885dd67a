"""The forms of a frozen weight that backends want, made when first used."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..ops import triton_impl


class Packs:
    """A few packed weights, by row and by what the packing depends on; remade when the weight has changed.

    Packed forms are never copied, moved or saved: a copy starts empty.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self.made: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()  # the weight stays alive: ids recur

    def __reduce__(self):
        return (Packs, (self.most,))

    def bind(self, row: ModuleType):
        """row.packed_conv_epilogue with the arguments of row.conv_epilogue."""
        return partial(self._run, row)

    def _run(self, row, input, weight, bias, spec, arguments) -> Tensor:
        return row.packed_conv_epilogue(input, self._get(row, input, weight, spec), weight, bias, spec, arguments)

    def _get(self, row, input: Tensor, weight: Tensor, spec) -> Tensor:
        if torch.compiler.is_compiling():  # in a graph the packing is an operator like another
            return row.pack(input, weight, spec)
        version = None if weight.is_inference() else weight._version
        key = (row.name, row.pack_key(input, weight, spec), id(weight), weight.data_ptr(), version)
        if key not in self.made:
            if triton_impl.capturing(input):  # what is made now has no values before the graph is replayed
                return row.pack(input, weight, spec)
            for stale in [k for k in self.made if k[2:] != key[2:]]:
                del self.made[stale]
            self.made[key] = weight, row.pack(input, weight, spec)
            while len(self.made) > self.most:
                self.made.popitem(last=False)
        return self.made[key][1]

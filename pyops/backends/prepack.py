"""A cache of the packed weights of a frozen convolution, filled when a backend first runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..core.spec import Epilogue, Spec
from ..core.streams import wait_for
from ..core.torch_compat import is_compiling, version
from ..ops import triton_impl
from .base import Backend


class PrepackedWeights:
    """The last `capacity` packed weights, by backend and Backend.pack_key; packed again when the weight has changed.

    Packed weights are never copied, moved or saved: a copy of this object is empty.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        # key -> weight, packed weight. The weight is kept alive, since ids and addresses are reused. Another thread may
        # be reading this: it is replaced, never changed. (A lock that a thread has stays locked in a forked process.)
        self.entries: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __reduce__(self):
        return (PrepackedWeights, (self.capacity,))

    def bind(self, backend: Backend) -> Callable[..., Tensor]:
        """backend.packed_conv_epilogue with the arguments of backend.conv_epilogue."""
        return partial(self._run, backend)

    def _run(
        self, backend: Backend, input: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, arguments: Epilogue
    ) -> Tensor:
        packed = self._packed(backend, input, weight, spec)
        return backend.packed_conv_epilogue(input, packed, weight, bias, spec, arguments)

    def _packed(self, backend: Backend, input: Tensor, weight: Tensor, spec: Spec) -> Tensor:
        if is_compiling():  # in a compiled graph packing is an ordinary operator
            return backend.pack(input, weight, spec)
        changes = None if weight.is_inference() else version(weight)
        key = (backend.name, backend.pack_key(input, weight, spec), id(weight), weight.data_ptr(), changes)
        entry = self.entries.get(key)
        if entry is not None:
            return entry[1]
        packed = backend.pack(input, weight, spec)
        if not triton_impl.capturing(input):  # a tensor made under capture has no values until the graph is replayed
            wait_for([packed])  # the next call may be on another stream
            current = [item for item in self.entries.items() if item[0][2:] == key[2:]]
            self.entries = dict([*current, (key, (weight, packed))][-self.capacity :])
        return packed

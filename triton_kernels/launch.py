"""How every kernel is launched: on the device of its tensors, and under CUDA graph capture only if it is compiled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from .gpus import INT32_ELEMENTS

ACCESS_BYTES = 16
INTERPRETED = (90, 1)  # what the interpreter runs as: everything that a chip can do, on one multiprocessor


class NotCompiled(RuntimeError):
    """A CUDA graph is being captured, and to compile this kernel now would break the capture."""


@lru_cache
def chip(device: torch.device) -> tuple[int, int]:
    """Compute capability (80, 90, ...) and multiprocessors of a CUDA device."""
    if device.type != "cuda":
        return INTERPRETED
    card = torch.cuda.get_device_properties(device)
    return 10 * card.major + card.minor, card.multi_processor_count


def check_device(name: str, x: Tensor, kernel: object) -> None:
    if not x.is_cuda and isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            f"{name}: expected a CUDA tensor (on CPU only under TRITON_INTERPRET=1), got one on {x.device}"
        )


def wide(*elements: int) -> bool:
    """Whether offsets into a tensor of one of these sizes need 64 bits."""
    return max(elements) >= INT32_ELEMENTS


def aligned(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.data_ptr() % ACCESS_BYTES == 0 for tensor in tensors)


_launched: set[tuple] = set()  # what is compiled and loaded


@dataclass(eq=False)
class Plan:
    """A kernel, and all that does not change between launches of one kind, so that a call computes none of it again.

    programs: the grid. sizes: the integers that end the kernel's arguments. constants: its constexprs and the
    compiler's options. compiled: what launches its code, by the key of `launch`; empty under the interpreter.
    rest: what follows the numbers of a launch of compiled code.
    """

    kernel: Any
    programs: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    compiled: dict[tuple, Callable] = field(default_factory=dict)
    rest: tuple = ()

    def __post_init__(self) -> None:
        self.grid = self.programs, 1, 1


def launch(
    plan: Plan,
    device: torch.device,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[float] = (),
    descriptors: Sequence[Any] = (),
) -> None:
    """kernel[grid](*descriptors, *tensors, *numbers, *sizes, **constants) on the device; raises NotCompiled.

    Triton's own path from arguments to code takes most of a call's host time, so only the first launch of a kind goes
    by it. The code depends on the plan and on each tensor's dtype and alignment; descriptors are the plan's.
    """
    key = (device, *[None if t is None else (t.dtype, t.data_ptr() % ACCESS_BYTES == 0) for t in tensors])
    with torch.cuda.device(device if device.type == "cuda" else -1):
        run = plan.compiled.get(key)
        if run is not None:
            run(*descriptors, *tensors, *numbers, *plan.rest)
            return
        types = (None if d is None else d.base.dtype for d in descriptors)
        wide = (size >= 2**31 for size in plan.sizes)
        known = (plan.kernel, *key, *types, *wide, *plan.constants.items())
        if known not in _launched and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise NotCompiled(
                f"{plan.kernel.__name__}: a CUDA graph is being captured and this kernel is not compiled yet: call it "
                "once with tensors of these shapes and dtypes before the capture"
            )
        compiled = plan.kernel[plan.grid](*descriptors, *tensors, *numbers, *plan.sizes, **plan.constants)
        if compiled is not None:  # code takes a kernel's constexprs too, by their places
            constexprs = [plan.constants[name] for name in plan.kernel.arg_names if name in plan.constants]
            plan.rest = *plan.sizes, *constexprs
            plan.compiled[key] = compiled[plan.grid]
        _launched.add(known)

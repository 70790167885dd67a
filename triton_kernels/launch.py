"""Launches a kernel on the device of its tensors, and under CUDA graph capture only if it is already compiled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from .gpus import INT32_ELEMENTS

ACCESS_BYTES = 16
INTERPRETER_CHIP = (90, 1)  # every feature, on one multiprocessor


class NotCompiled(RuntimeError):
    """A CUDA graph is being captured and compiling this kernel now would break the capture."""


@lru_cache
def chip(device: torch.device) -> tuple[int, int]:
    """Compute capability (80, 90, ...) and number of multiprocessors of a CUDA device."""
    if device.type != "cuda":
        return INTERPRETER_CHIP
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def check_device(name: str, x: Tensor, kernel: object) -> None:
    if not x.is_cuda and isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            f"{name}: expected a CUDA tensor (on CPU only under TRITON_INTERPRET=1), got one on {x.device}"
        )


def needs_int64(*elements: int) -> bool:
    """True if a tensor of one of these sizes needs 64-bit offsets."""
    return max(elements) >= INT32_ELEMENTS


def aligned(*tensors: Tensor | None) -> bool:
    """True if every tensor that is not None starts at a multiple of 16 bytes."""
    return all(tensor is None or tensor.data_ptr() % ACCESS_BYTES == 0 for tensor in tensors)


_launched: set[tuple] = set()  # specializations that are compiled and loaded


@dataclass(eq=False)
class Plan:
    """A kernel and every launch argument that does not change between calls of one problem, so it is computed once.

    programs: the grid. sizes: the integers that end the kernel's arguments. constants: its constexprs and the
    compiler's options. compiled: launchers of its compiled code, keyed as in `launch`; empty under the interpreter.
    trailing: what follows the scalars when compiled code is launched directly: the sizes and the constexprs.
    """

    kernel: Any
    programs: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    compiled: dict[tuple, Callable] = field(default_factory=dict)
    trailing: tuple = ()

    def __post_init__(self) -> None:
        self.grid = self.programs, 1, 1


def launch(
    plan: Plan,
    device: torch.device,
    tensors: Sequence[Tensor | None],
    scalars: Sequence[float] = (),
    descriptors: Sequence[Any] = (),
) -> None:
    """kernel[grid](*descriptors, *tensors, *scalars, *sizes, **constants) on the device; raises NotCompiled.

    Triton's argument binder takes most of a call's host time, so only the first launch of a specialization goes through
    it. The code depends on the plan and on each tensor's dtype and alignment; descriptors belong to the plan.
    """
    key = (device, *[None if t is None else (t.dtype, t.data_ptr() % ACCESS_BYTES == 0) for t in tensors])
    with torch.cuda.device(device if device.type == "cuda" else -1):
        run = plan.compiled.get(key)
        if run is not None:
            run(*descriptors, *tensors, *scalars, *plan.trailing)
            return
        types = (None if d is None else d.base.dtype for d in descriptors)
        int64_sizes = (size >= 2**31 for size in plan.sizes)
        specialization = (plan.kernel, *key, *types, *int64_sizes, *plan.constants.items())
        compiling = specialization not in _launched
        if compiling and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise NotCompiled(
                f"{plan.kernel.__name__}: a CUDA graph is being captured and this kernel is not compiled yet: call it "
                "once with tensors of these shapes and dtypes before the capture"
            )
        compiled = plan.kernel[plan.grid](*descriptors, *tensors, *scalars, *plan.sizes, **plan.constants)
        if compiled is not None:  # compiled code also takes the kernel's constexprs, by position
            constexprs = [plan.constants[name] for name in plan.kernel.arg_names if name in plan.constants]
            plan.trailing = *plan.sizes, *constexprs
            plan.compiled[key] = compiled[plan.grid]
        _launched.add(specialization)

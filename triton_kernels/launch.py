"""How every kernel is launched: on the device of its tensors, and under CUDA graph capture only if it is compiled."""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .configs import INT32_ELEMENTS

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


def launch(kernel: Any, device: torch.device, programs: int, arguments: tuple, constants: dict[str, Any]) -> None:
    """kernel[(programs,)](*arguments, **constants) on the device; raises NotCompiled."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        known = (kernel, device, *map(_code, arguments), *constants.items())
        if known not in _launched and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise NotCompiled(
                f"{kernel.__name__}: a CUDA graph is being captured and this kernel is not compiled yet: call it once "
                "with tensors of these shapes and dtypes before the capture"
            )
        kernel[(programs,)](*arguments, **constants)
        _launched.add(known)


def _code(value: object) -> object:
    """What the compiled code of a launch depends on in one of its arguments."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % ACCESS_BYTES == 0
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, tuple(value.block_shape)
    return value is None or (type(value), isinstance(value, int) and value >= 2**31)

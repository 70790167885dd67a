"""Row `triton`: our Triton kernels. NVIDIA sm_80 and newer; on CPU only under TRITON_INTERPRET=1, for tests."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .. import ops
from ..spec import Epilogue, Spec

name = "triton"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> list[str]:
    if not ops.triton_found:
        return ["triton is not installed (pip install triton)"]
    if _interpreting():
        return []
    if not torch.cuda.is_available():
        return ["no CUDA device; on CPU it runs only under TRITON_INTERPRET=1, for tests"]
    if torch.cuda.get_device_capability() < (8, 0):
        return [f"expected compute capability 8.0 or newer, got {torch.cuda.get_device_capability()}"]
    return []


def reasons(input: Tensor, weight: Tensor | None, spec: Spec | None) -> list[str]:
    found = available()
    if weight is not None:
        found.append("its convolution is not part of this release: bn_act and add_act only")
    if not input.is_cuda and not (_interpreting() and input.device.type == "cpu"):
        found.append(f"input: expected a CUDA tensor, got one on {input.device}")
    return found


def epilogue(z: Tensor, arguments: Epilogue) -> Tensor:
    if z.is_cuda:
        return torch.ops.atrous._epilogue(z, *arguments)
    from ..triton_kernels import pointwise

    return pointwise.epilogue(z, *arguments)

"""Prints a digest of the bits of every result of thread_cases.py, as JSON: {kind: {dtype: [digest of a call]}}.

python tests/support/processes/digests.py functional gradients
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch
from thread_cases import DTYPES, calls
from torch import Tensor


def digest(tensors: list[Tensor]) -> str:
    value = hashlib.sha256()
    for tensor in tensors:
        value.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        value.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def digests(kinds: list[str]) -> dict[str, dict[str, list[str]]]:
    return {kind: {str(dtype): [digest(call()) for call in calls(kind, dtype)] for dtype in DTYPES} for kind in kinds}


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1:])))

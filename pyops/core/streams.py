"""CUDA streams: values that one call computes and that later calls read, perhaps on another stream."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def wait_for(values: Iterable[Tensor]) -> None:
    """Waits until the current streams have computed these values, so that calls on any stream may read them.

    It is for values that are computed once, since the host waits too. While a CUDA graph is captured nothing is
    computed, and a wait is an error.
    """
    devices = {value.device for value in values if value.is_cuda}
    if not devices or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return
    for device in devices:
        torch.cuda.current_stream(device).synchronize()

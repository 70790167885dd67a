"""The target that a model is explained for: a CPU or a GPU, dtype, layout, peak compute and peak memory bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ... import tuning
from ...backends import selection
from ...core.layout import channels_last
from ...triton_kernels.conv.configs import DTYPES, precision

CHIPS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # multiprocessors of an A100, an H100 and a B200


ASSUMED = "assumed for an H100, measured by none of our runs"


class Gpu(NamedTuple):
    chip: str
    multiprocessors: int


class Ceilings(NamedTuple):
    """Peak throughput of a matrix product alone and of a copy alone. source: where the two numbers come from."""

    tflops: float
    gbs: float
    source: str = "as given"

    def lower_bound_us(self, macs: int, moved: int) -> float:
        """max(2 * MAC / peak, bytes / bandwidth), in microseconds."""
        return max(2 * macs / (self.tflops * 1e6), moved / (self.gbs * 1e3))


@dataclass(frozen=True)
class Target:
    """gpu: None for a CPU. present: the device is in this machine, so that a backend can be asked whether it runs."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    gpu: Gpu | None = None
    present: bool = True
    ceilings: Ceilings | None = None

    def as_dict(self) -> dict:
        """The target for JSON."""
        return {
            "device": self.device.type,
            "dtype": short_name(self.dtype),
            "layout": short_name(self.layout),
            "gpu": self.gpu and self.gpu._asdict(),
            "present": self.present,
            "ceilings": self.ceilings and self.ceilings._asdict(),
        }


def target(
    model: nn.Module,
    backend: str = "auto",
    chip: str | None = None,
    dtype: torch.dtype | None = None,
    ceilings: tuple[float, float] | None = None,
) -> Target:
    """This machine's GPU, else the CPU. Backend native: the CPU. Backend triton: any chip of CHIPS, present or not.

    dtype: by default the model's own on a CPU, bfloat16 on a GPU. ceilings: TFLOP/s and GB/s. On a GPU the layout is
    channels_last, in which a frozen model runs.
    Raises ValueError for an argument that does not fit.
    """
    selection.check_name(backend)
    given = None if ceilings is None else Ceilings(*ceilings)
    local = _local_gpu()
    present = local is not None and chip in (None, local.chip)
    if backend == "triton" or (present and backend != "native"):
        gpu = local if local and present else Gpu(chip or "sm_90", CHIPS[chip or "sm_90"])
        return _on_gpu(gpu, present, dtype or torch.bfloat16, given)
    if chip:
        raise ValueError(f"chip: expected backend='triton' for a GPU that is absent, got backend={backend!r}")
    like = next(model.parameters(), torch.empty(0))
    any_last = any(map(channels_last, model.parameters()))
    layout = torch.channels_last if any_last else torch.contiguous_format
    return Target(torch.device("cpu"), dtype or like.dtype, layout, ceilings=given)


def _on_gpu(gpu: Gpu, present: bool, dtype: torch.dtype, given: Ceilings | None) -> Target:
    if not present and dtype not in DTYPES:  # on a GPU that is present, the backend reports this itself
        expected = ", ".join(map(short_name, DTYPES))
        raise ValueError(f"dtype: backend triton expects {expected}, got {short_name(dtype)}")
    peaks = given or _known(gpu, present, dtype)
    return Target(torch.device("cuda"), dtype, torch.channels_last, gpu, present, peaks)


def _local_gpu() -> Gpu | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)


def _known(gpu: Gpu, present: bool, dtype: torch.dtype) -> Ceilings | None:
    """The tuning table's ceilings, else those assumed for an H100. Both are of 16-bit operands; tf32 has half of that
    compute peak, and of other precisions none is known."""
    if dtype == torch.float64 or precision(dtype) != "tf32":
        return None
    table = tuning.ceilings(torch.device("cuda")) if present else None
    if table and {"matmul_tflops", "copy_gb_s"} <= table.keys():
        peaks = Ceilings(table["matmul_tflops"], table["copy_gb_s"], "as measured here")
    elif gpu.chip == "sm_90":
        peaks = Ceilings(798.0, 3000.0, ASSUMED)
    else:
        return None
    return peaks._replace(tflops=peaks.tflops * 2 / dtype.itemsize)


def short_name(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")

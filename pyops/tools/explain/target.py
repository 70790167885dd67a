"""What a model is explained for: a processor or a card, a dtype, a layout, and the two ceilings over every kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ... import tuning
from ...backends import selection
from ...core.layout import channels_last
from ...triton_kernels.conv.configs import precision

CHIPS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # multiprocessors of an A100, an H100 and a B200


class Card(NamedTuple):
    chip: str
    multiprocessors: int


class Ceilings(NamedTuple):
    """What products alone and memory alone reach. source: where the two numbers come from."""

    tflops: float
    gbs: float
    source: str = "as given"

    def floor(self, macs: int, moved: int) -> float:
        """The least microseconds for so many multiply-adds and bytes."""
        return max(2 * macs / (self.tflops * 1e6), moved / (self.gbs * 1e3))


@dataclass(frozen=True)
class Target:
    """card: None for a CPU. here: whether it is in this machine, so that a row can be asked whether it runs."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    card: Card | None = None
    here: bool = True
    ceilings: Ceilings | None = None

    def title(self) -> str:
        if self.card is None:
            return f"for {_name(self.dtype)} on this CPU"
        absent = "" if self.here else " (no such card here)"
        return f"for {_name(self.dtype)}, {_name(self.layout)}, on {self.card.chip}{absent}"

    def note(self) -> str:
        """Where the floors come from."""
        if self.ceilings is None:
            return "no floor: it needs two peaks, --ceilings TFLOPS,GBS"
        tflops, gbs, source = self.ceilings
        return f"floor (us): {tflops:g} TFLOP/s, {gbs:g} GB/s, {source}"

    def as_dict(self) -> dict:
        """The target for JSON."""
        return {
            "device": self.device.type,
            "dtype": _name(self.dtype),
            "layout": _name(self.layout),
            "card": self.card and self.card._asdict(),
            "here": self.here,
            "ceilings": self.ceilings and self.ceilings._asdict(),
        }


def target(
    model: nn.Module,
    backend: str = "auto",
    chip: str | None = None,
    dtype: torch.dtype | None = None,
    ceilings: tuple[float, float] | None = None,
) -> Target:
    """The card at hand, else the CPU. Row native: the CPU. Row triton: the chip of CHIPS, be it here or not.

    dtype: else the model's own on a CPU, bfloat16 on a card. ceilings: TFLOP/s and GB/s. On a card the layout is
    channels_last, in which a frozen model runs.
    Raises ValueError for what cannot be explained.
    """
    selection.named(backend)
    given = None if ceilings is None else Ceilings(*ceilings)
    own = _own_card()
    here = own is not None and chip in (None, own.chip)
    if backend == "triton" or (here and backend != "native"):
        card = own if own and here else Card(chip or "sm_90", CHIPS[chip or "sm_90"])
        return _on_card(card, here, dtype or torch.bfloat16, given)
    if chip:
        raise ValueError(f"chip: expected backend='triton' for a card that is not here, got backend={backend!r}")
    like = next(model.parameters(), torch.empty(0))
    last = any(map(channels_last, model.parameters()))
    layout = torch.channels_last if last else torch.contiguous_format
    return Target(torch.device("cpu"), dtype or like.dtype, layout, ceilings=given)


def _on_card(card: Card, here: bool, dtype: torch.dtype, given: Ceilings | None) -> Target:
    kernels = selection.rows()["triton"].DTYPES
    if not here and dtype not in kernels:  # where the card is here, the row says so itself
        raise ValueError(f"dtype: row triton expects {', '.join(map(_name, kernels))}, got {_name(dtype)}")
    peaks = given or _measured(card, here, dtype)
    return Target(torch.device("cuda"), dtype, torch.channels_last, card, here, peaks)


def _own_card() -> Card | None:
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card(f"sm_{found.major}{found.minor}", found.multi_processor_count)


def _measured(card: Card, here: bool, dtype: torch.dtype) -> Ceilings | None:
    """Those of the tuning table, else an H100's. Both were measured in 16 bits; tf32 has half of those products, and of
    other products none was measured."""
    if dtype == torch.float64 or precision(dtype) != "tf32":
        return None
    found = tuning.ceilings(torch.device("cuda")) if here else None
    if found and {"matmul_tflops", "copy_gb_s"} <= found.keys():
        peaks = Ceilings(found["matmul_tflops"], found["copy_gb_s"], "as measured here")
    elif card.chip == "sm_90":
        peaks = Ceilings(798.0, 3000.0, "as measured on an H100")
    else:
        return None
    return peaks._replace(tflops=peaks.tflops * 2 / dtype.itemsize)


def _name(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")

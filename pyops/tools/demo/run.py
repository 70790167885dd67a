"""Run the demo: check the agreement, count launches, then time. `result` is plain data; report.py renders it."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...fusion import fuse
from .. import timing
from . import training as demo_training
from .images import batch
from .variants import COMPILED, LABELS, NHWC, build, launches, measured, names, ready

# The largest accepted error of a logit, as a multiple of the plain model's own in the same dtype: the two round in
# another order, and neither is the better one each time. It is the `ratio` of testing.py's rule of a tensor.
BUDGET = 2.0
OTHERS = 2.0  # factor on that for torch's variants: they are not under test, and their summation order may be unlucky
TIMING_STEPS = 10  # steps of the progress bar for timing a batch; a first call is one step


@dataclass(frozen=True)
class Plan:
    """How much is measured; the tests measure less."""

    size: int = 224
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    variants: tuple[str, ...] = tuple(LABELS)
    training_batch: int = 8
    training_variants: tuple[str, ...] = tuple(demo_training.LABELS)
    training_seconds: float = 25.0
    seconds: float = 150.0  # beyond it, torch.compile is left out in training and in every dtype but the first
    batch_seconds: float = 20.0  # for timing a batch if no variant is slow


class Cell(NamedTuple):
    batch: int
    dtype: torch.dtype
    variant: str

    def as_dict(self, **values: Any) -> dict[str, Any]:
        return {"batch": self.batch, "dtype": _name(self.dtype), "variant": self.variant, **values}


class Disagreement(Exception):
    """The fused model's result differs from the plain one's by more than the budget."""


@dataclass
class Run:
    """One run on one device. Call agreement(), count(), prepare(), measure() and train() in this order."""

    model: nn.Module
    images: Tensor
    device: torch.device
    plan: Plan
    result: dict[str, Any]
    progress: Callable[[str, float], object] = lambda text, steps: None
    calls: dict[Cell, timing.Call] = field(default_factory=dict)
    took: dict[Cell, float] = field(default_factory=dict)  # seconds of the first call, compiling included

    def __post_init__(self):
        self.started = time.monotonic()
        self.images = batch(self.images, max(*self.plan.batches, len(self.images))).to(self.device)
        self.truth = copy.deepcopy(self.model).to(self.device).double()(self.images.double())
        self.models = {dtype: build(self.model, dtype, self.device, fuse) for dtype in self.plan.dtypes}

    def agreement(self) -> None:
        """Compares both models with fp64 in each dtype. Raises Disagreement once all of them are in the result."""
        count, wrong = len(self.images), []
        for dtype in self.plan.dtypes:
            errors: dict[str, Any] = {"images": count, "largest_logit": float(self.truth.abs().max())}
            for name in ("eager", "atrous_frozen"):
                self.progress(f"agreement, {_name(dtype)}", 1)
                y = self._call(Cell(count, dtype, name))
                errors[name] = self._error(y)
                errors[f"{name}_same_top1"] = int((y.argmax(1) == self.truth.argmax(1)).sum())
            errors["allowed"] = BUDGET * errors["eager"]
            errors["agrees"] = errors["atrous_frozen"] <= errors["allowed"]  # False for NaN
            self.result["agreement"][_name(dtype)] = errors
            if not errors["agrees"]:
                wrong.append(f"{_name(dtype)}: error {errors['atrous_frozen']:.3g}, allowed {errors['allowed']:.3g}")
        self.result["fusion"] = self.models[self.plan.dtypes[0]].frozen.fusion_report.to_dict()  # calls have filled it
        if wrong:
            raise Disagreement("; ".join(wrong))

    def count(self) -> None:
        """Counts the operators of one forward."""
        dtype = self.plan.dtypes[0]
        models, image = self.models[dtype], self.images[:1].to(dtype)
        fused = launches(models.frozen, image.to(memory_format=NHWC))
        self.result["launches"] = {"eager": launches(models.plain, image), "atrous_frozen": fused}

    def prepare(self) -> None:
        """Makes the first call of every variant and checks its error; compiled ones come last, optional ones after."""
        cells = [
            Cell(size, dtype, name)
            for dtype in self.plan.dtypes
            for size in self.plan.batches
            for name in names(self.device, size)
            if name in self.plan.variants
        ]
        for cell in sorted(cells, key=lambda cell: (cell.variant in COMPILED, self._optional(cell))):
            self.progress(f"{LABELS[cell.variant].strip()}, batch {cell.batch}, {_name(cell.dtype)}", 1)
            if cell in self.calls:
                continue
            reason = self._too_long(cell) if self._optional(cell) else None
            reason = reason or self._refusal(cell)
            if reason:
                self.result["not_run"].append(cell.as_dict(reason=reason))

    def _call(self, cell: Cell) -> Tensor:
        """Makes the first call of a variant, and adds the variant to `calls`."""
        begin = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile's advice is not about the demo
            call = ready(cell.variant, self.models[cell.dtype], self.images[: cell.batch])
            y = call()
        self.calls[cell], self.took[cell] = call, time.monotonic() - begin
        return y

    def _refusal(self, cell: Cell) -> str | None:
        """The reason why this variant is not measured; None if it is ready in `calls`."""
        try:
            error = self._error(self._call(cell))
        except Exception as failure:  # a variant of torch that cannot run here is reported as not run
            if cell.variant == "atrous_frozen":
                raise
            lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
            return f"{type(failure).__name__}: {lines[0] if lines else ''}"
        ours, allowed = cell.variant.startswith("atrous"), self.result["agreement"][_name(cell.dtype)]["allowed"]
        allowed *= 1.0 if ours else OTHERS
        if not error <= allowed:
            if ours:
                raise Disagreement(f"batch {cell.batch}, {_name(cell.dtype)}: error {error:.3g}, allowed {allowed:.3g}")
            del self.calls[cell]
            return f"disagrees with fp64 by {error:.3g}, allowed {allowed:.3g}"
        return None

    def _optional(self, cell: Cell) -> bool:
        later = cell.dtype != self.plan.dtypes[0] or cell.variant == "compile_max_autotune"
        return cell.variant in COMPILED and later

    def _too_long(self, cell: Cell) -> str | None:
        """The reason if a variant would exceed the time: the longest compilation so far, then at least three runs."""
        before = max((took for known, took in self.took.items() if known.variant in COMPILED), default=0.0)
        uncompiled = {known: took for known, took in self.took.items() if known.variant not in COMPILED}
        runs = sum(3 * took for took in uncompiled.values()) + len(self.plan.batches) * self.plan.batch_seconds / 2
        mine = before + 4 * self.took.get(cell._replace(variant="eager_channels_last"), 0.0)
        if time.monotonic() - self.started + runs + mine <= self.plan.seconds:
            return None
        return f"it would take the demo past {self.plan.seconds:g} s (--seconds)"

    def measure(self) -> None:
        """Times all variants of a batch in one interleaved run; speed-ups are over eager NCHW in the first dtype."""
        for size in self.plan.batches:
            calls = {cell: call for cell, call in self.calls.items() if cell.batch == size}
            progress = functools.partial(self._timed, f"timing batch {size}")
            warmup = 5 if self.device.type == "cuda" else 0  # on a CPU the first calls were enough
            times = timing.interleaved(calls, self.device, self.plan.batch_seconds, warmup=warmup, progress=progress)
            eager = times[Cell(size, self.plan.dtypes[0], "eager")]
            self.result["inference"] += [cell.as_dict(**measured(eager, values)) for cell, values in times.items()]
        order = [_name(dtype) for dtype in self.plan.dtypes], list(LABELS)
        self.result["inference"].sort(
            key=lambda row: (order[0].index(row["dtype"]), row["batch"], order[1].index(row["variant"]))
        )

    def _timed(self, text: str, rounds: int) -> None:
        self.progress(text, TIMING_STEPS / rounds)

    def train(self) -> None:
        """Compares gradients with fp64, counts saved bytes and times a training step. Raises Disagreement."""
        deadline = self.started + self.plan.seconds - 60  # compiling a training step takes about 60 s
        training = demo_training.Training(self.model, self.images, self.plan, self.result, self.progress, deadline)
        with torch.enable_grad():
            wrong = training.prepare()
            if wrong:
                raise Disagreement(f"gradients: {wrong}")
            training.measure()

    def steps(self) -> float:
        """The total number of progress steps."""
        cells = sum(name in self.plan.variants for size in self.plan.batches for name in names(self.device, size))
        training = len(self.plan.training_variants) + 1
        return len(self.plan.dtypes) * (2 + cells) + TIMING_STEPS * len(self.plan.batches) + training

    def _error(self, y: Tensor) -> float:
        return float((y.double() - self.truth[: len(y)]).abs().max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

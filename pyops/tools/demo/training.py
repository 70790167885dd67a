"""Compare training: SGD steps side by side, after their gradients agree with fp64, and the bytes that each saves."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fusion import fuse
from .. import timing
from ..explain.training_cost import saved
from .images import batch
from .variants import NCHW, NHWC, measured

LABELS = {  # in the order of the table; the keys are those of the JSON
    "eager": "eager NCHW",
    "eager_channels_last": "eager NHWC",
    "compile": "torch.compile",
    "atrous": "atrous",
    "atrous_no_recompute": "  recompute=False",
}
VARIANTS: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda model: model,
    "eager_channels_last": lambda model: model,
    "compile": lambda model: torch.compile(model, fullgraph=True, dynamic=False),
    "atrous": fuse,
    "atrous_no_recompute": functools.partial(fuse, recompute=False),
}
# The accepted relative error of all gradients together in fp64. In fp32 one rounding next to an activation's kink
# decides which slope applies, in the plain model as in the fused one: fp32 errors are reported and prove nothing.
BUDGET = 1e-6


class Step:
    """A copy of the model prepared by `variant` with a batch of photographs; a call is one step of SGD."""

    def __init__(self, variant: Callable[[nn.Module], Any], model: nn.Module, images: Tensor, layout=NHWC):
        self.model = copy.deepcopy(model).train().to(memory_format=layout)  # type: ignore[call-overload]
        self.run = variant(self.model)
        self.images = images.to(memory_format=layout, copy=True)
        self.labels = torch.arange(len(images), device=images.device) % 1000
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def gradients(self) -> Tensor:
        """The gradients of all parameters, concatenated."""
        self.optimizer.zero_grad()
        self.loss().backward()
        return torch.cat([p.grad.flatten().double() for p in self.model.parameters() if p.grad is not None])

    def loss(self) -> Tensor:
        return F.cross_entropy(self.run(self.images), self.labels)

    def saved_bytes(self) -> float:
        """Bytes per image that autograd saves for the backward of the loss, without parameters."""
        loss, size = saved(self.loss, self.model)
        loss.backward()
        return size / len(self.images)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def named(name: str, model: nn.Module, images: Tensor) -> Step:
    return Step(VARIANTS[name], model, images, NCHW if name == "eager" else NHWC)


class Training:
    """Compares the variants: prepare(), then measure(); both fill the result's `training` and `memory`."""

    def __init__(self, model: nn.Module, images: Tensor, plan, result: dict[str, Any], progress, deadline: float):
        self.images, self.result, self.plan, self.progress = batch(images, plan.training_batch), result, plan, progress
        self.model, self.deadline = model, deadline
        self.steps: dict[str, Step] = {}

    def prepare(self) -> str | None:
        """Runs the first step of every variant, compiling last. Returns None, or how the gradients disagree."""
        wide = copy.deepcopy(self.model).double()
        truth, ours = (named(name, wide, self.images.double()).gradients() for name in ("eager", "atrous"))
        exact = float((ours - truth).norm() / truth.norm())
        self.result["agreement_of_gradients"]["float64"] = exact
        if not exact <= BUDGET:
            return f"error {exact:.3g} in fp64, allowed {BUDGET:.3g}"
        for name in self.plan.training_variants:
            self.progress(f"training, {LABELS[name].strip()}", 1)
            if name == "compile" and time.monotonic() > self.deadline:
                self._leave_out(name, f"it would take the demo past {self.plan.seconds:g} s (--seconds)")
                continue
            try:
                step = named(name, self.model, self.images)
                error = float((step.gradients() - truth).norm() / truth.norm())
            except Exception as failure:  # a variant of torch that cannot run here is reported as not run
                if name.startswith("atrous"):
                    raise
                self._leave_out(name, f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}")
                continue
            self.result["memory"].append({"variant": name, "saved_bytes_per_image": step.saved_bytes()})
            self.result["agreement_of_gradients"][name] = error
            self.steps[name] = step
        return None

    def _leave_out(self, name: str, reason: str) -> None:
        self.result["training_not_run"].append({"variant": name, "reason": reason})

    def measure(self) -> None:
        device = self.images.device
        times = timing.interleaved(self.steps, device, self.plan.training_seconds, warmup=1)
        what = {"batch": self.plan.training_batch, "dtype": "float32"}
        self.result["training"] += [
            {**what, "variant": name, **measured(times["eager"], values)} for name, values in times.items()
        ]

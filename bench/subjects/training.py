"""A training step of ResNet34 as a subject: a step of SGD, in fp32 or under autocast in bf16."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import atrous
from atrous.tools.demo import training as demo_training
from atrous.tools.demo.variants import NCHW

from . import peers
from .subject import DEVICE, NHWC, OURS, Call, Subject

EXACT = demo_training.BUDGET  # the relative error of all gradients that is allowed in fp64
RECOMPUTE = f"{OURS}, recompute=False"
VARIANTS: dict[str, tuple[Callable[[nn.Module], Any], torch.memory_format]] = {
    "eager NCHW": (lambda model: model, NCHW),
    "eager NHWC": (lambda model: model, NHWC),
    "torch.compile": (functools.partial(torch.compile, fullgraph=True, dynamic=False), NHWC),
    OURS: (atrous.fuse, NHWC),
    RECOMPUTE: (functools.partial(atrous.fuse, recompute=False), NHWC),
}


class Step(demo_training.Step):
    """A step of SGD; in bf16 the model and the loss run under autocast."""

    def __init__(self, provider: str, model: nn.Module, images: Tensor, dtype: torch.dtype):
        variant, layout = VARIANTS[provider]
        super().__init__(variant, model, images, layout)
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def loss(self) -> Tensor:
        with self.autocast:
            return super().loss()


def resnet34(
    batch: int, size: int = 224, act: str = "prelu", dtype: torch.dtype = torch.float32, full: bool = False
) -> Subject:
    """A step; the baseline is eager NCHW in the same dtype. Nothing is checked: check_gradients() does.

    full: without recomputation too.
    """
    model = atrous.models.resnet34(act=act).to(DEVICE)
    images = torch.randn(batch, 3, size, size, device=DEVICE)

    def prepare(name: str) -> Call:
        return Step(name, model, images, dtype)  # type: ignore[return-value]  # a step returns nothing

    providers = {name: functools.partial(prepare, name) for name in VARIANTS if full or name != RECOMPUTE}
    providers["inplace_abn"] = lambda: peers.gpu_only("inplace_abn")
    return Subject(dtype, providers, lambda: images)


def check_gradients(act: str) -> None:
    """Raises AssertionError unless fused and plain gradients agree in fp64.

    In fp32 one rounding next to an activation's kink decides which slope applies, in plain torch as in ours.
    """
    model = copy.deepcopy(atrous.models.resnet34(act=act)).double().to(DEVICE)
    images = torch.randn(2, 3, 64, 64, device=DEVICE, dtype=torch.float64)
    exact, ours = (Step(name, model, images, torch.float64).gradients() for name in ("eager NCHW", OURS))
    error = float((ours - exact).norm() / exact.norm())
    assert error <= EXACT, f"gradients: expected an error of at most {EXACT} in fp64, got {error:.2g}"

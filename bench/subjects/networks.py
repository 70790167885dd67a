"""ResNet34 as a subject: eager, torch.compile, the peers, and fuse()."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import atrous

from . import peers
from .subject import DEVICE, NHWC, OURS, Call, Subject, compiled, dtypes

RATIO = 2.0  # allowed multiple of eager's error
COMPILED: dict[str, dict[str, Any]] = {  # options of torch.compile; one compilation takes 10 to 40 seconds
    "compile, freezing": {"options": {"freezing": True}},
    "torch.compile": {},
    "compile, max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
MODES = tuple(COMPILED)
Prepare = Callable[[], Call]


def resnet34(
    batch: int, size: int = 224, act: str = "prelu", output_stride: int | None = None, modes: Sequence[str] = MODES[:1]
) -> list[Subject]:
    """Inference, a subject for each dtype; the baseline is eager NCHW in fp32. modes: those of COMPILED to compile."""
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    model = calibrated(act, output_stride)
    subjects = []
    for dtype in dtypes():
        network = copy.deepcopy(model).to(dtype).to(memory_format=NHWC)  # type: ignore[call-overload]
        x = images.to(dtype, memory_format=NHWC)
        exact = copy.deepcopy(network).double()(x.double())
        providers = {} if subjects else {"eager NCHW": lambda: lambda: model(images)}
        providers |= _torch(network, x, modes) | _others(network, x, dtype) | _ours(network, x)
        subjects.append(Subject(dtype, providers, functools.partial(network, x), exact, RATIO))
    return subjects


def calibrated(act: str, output_stride: int | None = None) -> nn.Module:
    """Random weights; BatchNorm has the statistics of random images, else activations grow from block to block."""
    model = atrous.models.resnet34(act=act, output_stride=output_stride).to(DEVICE)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    model.train()(torch.randn(8, 3, 64, 64, device=DEVICE))
    for module in norms:
        module.momentum = 0.1
    return model.eval()


def _torch(network: nn.Module, x: Tensor, modes: Sequence[str]) -> dict[str, Prepare]:
    providers: dict[str, Prepare] = {"eager NHWC": lambda: lambda: network(x)}
    return providers | {mode: compiled(network, (x,), **COMPILED[mode]) for mode in modes}


def _others(network: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, Prepare]:
    """The peers have inputs and outputs in fp32; in bf16 these hold the same rounded values as the other providers'."""
    plain, images = copy.deepcopy(network).float(), x.float().contiguous()
    providers: dict[str, Prepare] = {"OpenVINO": lambda: peers.openvino(plain, images, dtype)}
    if dtype == torch.float32:
        providers["ONNX Runtime"] = lambda: peers.onnxruntime(plain, images)
        for name in ("TensorRT", "cudnn-frontend"):
            providers[name] = functools.partial(peers.gpu_only, name)
    return providers


def _ours(network: nn.Module, x: Tensor) -> dict[str, Prepare]:
    def prepare(freeze: bool) -> Call:
        fused = atrous.fuse(network, freeze=freeze)
        return lambda: fused(x)

    return {OURS: lambda: prepare(False), f"{OURS} frozen": lambda: prepare(True)}

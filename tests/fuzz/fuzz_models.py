"""The cases of the fuzzer that fuse a whole model: their fields, and the plain modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from outcomes import randomize
from torch import Tensor, nn

MODES = ("inference", "eval", "train", "frozen", "frozen with gradients")
ACTS = {
    "none": lambda channels: nn.Identity(),
    "relu": lambda channels: nn.ReLU(),
    "relu in place": lambda channels: nn.ReLU(inplace=True),
    "leaky": lambda channels: nn.LeakyReLU(-0.25),
    "shared": lambda channels: nn.PReLU(),
    "channel": lambda channels: nn.PReLU(channels),
    "random": lambda channels: nn.RReLU(),
    "random of equal bounds": lambda channels: nn.RReLU(0.25, 0.25),  # in training it draws what the plain model draws
}
VIEWS = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, :, 1:, 1:-1],
    "stepped": lambda x: x[..., ::2, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels of a larger one": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, 1::2],
    "offset": lambda x: torch.cat([x.flatten(), x.flatten()[:3]])[3:].view(x.shape),
}


class Block(NamedTuple):
    """act(bn(conv(x)) + r), or of "pre" order conv(act(bn(x))) + r; r is the input, projected if its shape differs."""

    width: int
    kernel: tuple[int, int]
    stride: int
    dilation: tuple[int, int]
    groups: int
    bias: bool
    eps: float | None  # the BatchNorm's; None: there is none
    affine: bool
    act: str
    residual: str
    order: str
    dropout: float

    @property
    def fusible(self) -> bool:
        """True if the block certainly has a chain of two parts."""
        return self.act != "none" and (self.order == "post" or self.eps is not None)


class Model(NamedTuple):
    """A model, its mode and its input; `values` seeds the values of both."""

    backend: str
    device: str
    mode: str
    dtype: str
    batch: int
    channels: int
    size: tuple[int, int]
    view: str
    blocks: tuple[Block, ...]
    recompute: bool
    values: int

    @property
    def frozen(self) -> bool:
        return self.mode.startswith("frozen")

    @property
    def gradients(self) -> bool:
        return self.mode in ("eval", "train", "frozen with gradients")

    @property
    def predicted_strides(self) -> bool:
        """True if strides may be those that torch predicts for fake tensors, which are not its own: docs/differences.md
        has RReLU, and maps of one channel in a frozen model."""
        single = self.frozen and any(block.width == 1 for block in self.blocks)
        return single or any(block.act.startswith("random") for block in self.blocks)

    def axes(self) -> dict[str, str]:
        """The values that the report counts, by axis."""
        return {
            "form": "frozen model" if self.frozen else "fused model",
            "backend": self.backend,
            "dtype": self.dtype,
            "mode": self.mode,
            "view": self.view,
            "blocks": str(len(self.blocks)),
            "model's activation": self.blocks[-1].act,
            "model's residual": self.blocks[-1].residual,
            "model's groups": "one" if self.blocks[-1].groups == 1 else "groups",
            "model's dilation": "1" if self.blocks[-1].dilation == (1, 1) else "dilated",
        }

    def build(self) -> tuple[nn.Module, Tensor]:
        """The model and the tensor whose view is its input."""
        torch.manual_seed(self.values)
        dtype, widths = getattr(torch, self.dtype), (self.channels, *(block.width for block in self.blocks))
        chain = [Layer(width, block) for width, block in zip(widths, self.blocks)]
        model = randomize(Viewed(self.view, nn.Sequential(*chain))).to(dtype).train(self.mode == "train")
        if dtype == torch.bfloat16:  # oneDNN of torch 2.13 reads uninitialized memory for such a weight's gradient
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.requires_grad_(False)
        return model, torch.randn(self.batch, self.channels, *self.size).to(dtype)


class Viewed(nn.Module):
    """A model of a view of its input: to copy the input would make it dense."""

    def __init__(self, view: str, model: nn.Module):
        super().__init__()
        self.view, self.model = VIEWS[view], model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.view(x))


class Layer(nn.Module):
    def __init__(self, channels: int, block: Block):
        super().__init__()
        width, self.block, normalized = block.width, block, channels if block.order == "pre" else block.width
        same = tuple(d * (k - 1) // 2 for k, d in zip(block.kernel, block.dilation))
        self.conv = nn.Conv2d(
            channels, width, block.kernel, block.stride, same, block.dilation, block.groups, bias=block.bias
        )
        self.bn = nn.Identity() if block.eps is None else nn.BatchNorm2d(normalized, block.eps, affine=block.affine)
        self.act, self.dropout = ACTS[block.act](normalized), nn.Dropout(block.dropout)
        projected = block.residual != "none" and (block.stride > 1 or width != channels)
        self.project = nn.Conv2d(channels, width, 1, block.stride) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        place, order = self.block.residual, self.block.order
        residual = None if place == "none" else self.project(x)
        if order == "pre":
            y = self.conv(self.act(self.bn(x)))
            return self.dropout(y if residual is None else y + residual)
        u = self.bn(self.conv(x))
        u = u + residual if place == "before" else u
        y = self.act(u)
        return self.dropout(y + residual if place == "after" else y)

"""The activations of a network in the order of its forward pass: their dead channels and their learned slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from atrous.tools.slopes.slopes import Slopes, learned

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)


@dataclass(frozen=True)
class Layer:
    """One activation. dead: its channels whose input is positive at no pixel; slopes: of PReLU, else None."""

    name: str
    channels: int
    dead: int
    slopes: Slopes | None

    @property
    def fraction(self) -> float:
        return self.dead / self.channels


def layers(model: nn.Module, images: Sequence[np.ndarray]) -> list[Layer]:
    """Returns the activations of a plain network in eval mode, by depth, on prepared images (H, W).

    A channel is dead if its pre-activation is positive at no pixel of any image. With ReLU its output is then 0
    everywhere; with a slope a gradient still passes, and the channel only has lost its bend.
    """
    alive: dict[str, Tensor] = {}  # in the order of the first call: a module's definition may differ
    hooks = [
        module.register_forward_pre_hook(_watch(name, alive))
        for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)
    ]  # fmt: skip
    weight = next(model.parameters())
    try:
        with torch.no_grad():
            for image in images:
                model(torch.from_numpy(np.ascontiguousarray(image))[None, None].to(weight.device, weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    slopes = {tensor.name.removesuffix(".weight"): tensor for tensor in learned(model.state_dict())}
    return [Layer(name, len(a), int((~a).sum()), slopes.get(name)) for name, a in alive.items()]


def _watch(name: str, alive: dict[str, Tensor]):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        positive = (inputs[0] > 0).transpose(0, 1).flatten(1).any(1).cpu()
        alive[name] = alive[name] | positive if name in alive else positive

    return hook


def slope_sentence(depth: Sequence[Layer]) -> str | None:
    """Returns how far the first layer's slopes are from 0 and the deep ones', for comparison with the PReLU paper."""
    means = [layer.slopes.mean for layer in depth if layer.slopes is not None and layer.slopes.mean is not None]
    if len(means) < 2:
        return None
    half = len(means) // 2
    deep = float(np.mean(np.abs(means[-half:])))
    relation = "farther from 0 than" if abs(means[0]) > deep else "not farther from 0 than"
    return (
        f"The mean slope of the first layer is {means[0]:.3f}; over the deeper half of the {len(means)} layers the "
        f"mean of their absolute values is {deep:.3f}. The first layer's is {relation} the deep ones'. The PReLU paper "
        "(He et al., 2015, table 1) reports 0.681 and 0.596 for the first layer, and smaller ones in deep layers, "
        "of another network on photographs."
    )

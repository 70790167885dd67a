"""Probabilities of whole images: in one pass, or the mean over overlapping patches; data/cut.py has the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .data import crop, cut, merge, pad, patches
from .dataset import Images
from .metrics import Prediction

PATCHES_AT_ONCE = 256
MULTIPLE = 2  # an image is padded to a multiple of the largest output stride


@dataclass(frozen=True)
class Way:
    """One pass over the image, or patches of this side and stride."""

    patch: int | None = None
    stride: int = cut.STRIDE

    def __str__(self) -> str:
        return f"patches of {self.patch}, stride {self.stride}" if self.patch else "whole images"


def probability(model: nn.Module, image: np.ndarray, way: Way | None = None) -> np.ndarray:
    """Returns (H, W) float32, the probability of a vessel at each pixel.

    model: in eval mode. image: (H, W) float32, prepared.
    """
    way = way or Way()
    if way.patch is None:
        padded = pad(image, MULTIPLE)
        return np.ascontiguousarray(crop(_run(model, padded[None])[0], image.shape))
    parts = patches(image, way.patch, way.stride).reshape(-1, way.patch, way.patch)
    groups = (parts[i : i + PATCHES_AT_ONCE] for i in range(0, len(parts), PATCHES_AT_ONCE))
    return merge((_run(model, group) for group in groups), image.shape, way.patch, way.stride)


def predictions(
    model: nn.Module, data: Images, way: Way | None = None, seen: Callable[[], object] = lambda: None
) -> list[Prediction]:  # fmt: skip
    """Returns the predictions of annotated images, for the metrics; `seen` is called behind each image."""
    return list(_predict(model, data, way, seen))


def _predict(model, data: Images, way: Way | None, seen: Callable[[], object]) -> Iterator[Prediction]:
    for sample, image in zip(data.samples, data.prepared):
        yield Prediction(sample.name, probability(model, image, way), sample.truth, sample.field, sample.second)
        seen()


@torch.no_grad()
def _run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """(n, H, W) -> (n, H, W) float32, probabilities."""
    weight = next(model.parameters())
    x = torch.from_numpy(np.ascontiguousarray(images))[:, None].to(weight.device, weight.dtype)
    return torch.sigmoid(model(x))[:, 0].float().cpu().numpy()

"""Prepare the demo's inputs: photographs, and a ResNet34 whose activations have a realistic range."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import models
from ...core.checks import UsageError
from ..image_file import read_rgb

# Photographs inside installed packages: (module, its name for pip, path in it). They are read as files: importing the
# packages takes seconds, and some versions of them would look for a download.
SHIPPED = (
    ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
    ("sklearn", "scikit-learn", "datasets/images/flower.jpg"),
    ("skimage", "scikit-image", "data/astronaut.png"),
    ("skimage", "scikit-image", "data/retina.jpg"),
)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's checkpoints expect them


def shipped() -> list[Path]:
    """The photographs that scikit-learn and scikit-image have installed on this machine."""
    paths = []
    for module, _, path in SHIPPED:
        package = importlib.util.find_spec(module)
        folders = package.submodule_search_locations if package else None
        paths += [Path(folder) / path for folder in folders or () if (Path(folder) / path).is_file()]
    if not paths:
        packages = " ".join(dict.fromkeys(name for _, name, _ in SHIPPED))
        raise UsageError(f"no photographs: pip install {packages}, or name your own with --image FILE")
    return paths


def photographs(paths: Sequence[Path], size: int = 224) -> Tensor:
    """(N, 3, size, size) fp32: the centre crop of each photograph, normalized with ImageNet's statistics."""
    return torch.stack([_photograph(Path(path), size) for path in paths])


def _photograph(path: Path, size: int) -> Tensor:
    try:
        import numpy
        from PIL import Image
    except ImportError as error:
        raise UsageError("reading photographs needs Pillow and NumPy: pip install pillow numpy") from error
    image = read_rgb(path)
    scale = size * 256 / 224 / min(image.size)  # the usual crop: 224 of 256
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = torch.from_numpy(numpy.array(image.crop((left, top, left + size, top + size))))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels.permute(2, 0, 1) / 255 - mean) / deviation


def batch(images: Tensor, count: int) -> Tensor:
    """`count` images: the photographs, then their mirror images, then both again."""
    both = torch.cat([images, images.flip(3)])
    return both[torch.arange(count) % len(both)]


def subject(weights: Path | None, images: Tensor, seed: int = 0) -> tuple[nn.Module, str]:
    """A ResNet34 in eval mode, and a line that describes its weights."""
    if weights is None:
        what = f"random (seed {seed}) with channel-wise PReLU and BatchNorm calibrated on the photographs"
        return random_model(images, seed), f"{what}; its classes mean nothing"
    try:
        network = models.resnet34(act="prelu")
        if models.load_weights(network, weights):  # no slopes in the file: a network with ReLU
            network = models.resnet34(act="relu")
            models.load_weights(network, weights)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--weights: {' '.join(str(error).removeprefix('path: ').split())}") from error
    kind = "PReLU" if any(isinstance(module, nn.PReLU) for module in network.modules()) else "ReLU"
    return network.eval(), f"{weights} ({kind})"


def random_model(images: Tensor, seed: int = 0) -> nn.Module:
    """A ResNet34 with channel-wise PReLU, varied gamma, beta and slopes, and BatchNorm statistics of the photographs.

    Without the statistics, activations would grow from block to block until the last ones overflow fp16.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.resnet34(act="prelu")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.2)
                module.momentum = None  # the plain average of all passes
            elif isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, 0.05, 0.45)
        with torch.no_grad():
            network.train()
            for shift in (0, 5, 11):
                network(batch(images, 2 * len(images)).roll((shift, shift), (2, 3)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network.eval()

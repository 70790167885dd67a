"""The cost of runs: epochs to a loss, seconds an epoch, bytes that a step saves, and fused runs beside plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F

import atrous
from atrous.tools.explain.training_cost import saved

from ..config import Config
from ..network import build

ASIDE = ("plain", "output", "device", "tensorboard")  # options in which a fused run and its plain one may differ


def saved_bytes(config: Config, plain: bool, in_place: bool = True) -> int:
    """Returns the bytes that autograd saves in one training step on the CPU, each storage once, weights aside.

    in_place: whether the activations overwrite their input, as those of `atrous.models` do; torch's default is not to.
    """
    model = build(config).train()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace &= in_place
    x = torch.rand(config.batch, 1, config.patch, config.patch, dtype=getattr(torch, config.dtype))
    if not plain:  # as in training
        model, x = (value.to(memory_format=torch.channels_last) for value in (model, x))
    trained = model if plain else atrous.fuse(model)
    return saved(lambda: F.binary_cross_entropy_with_logits(trained(x), torch.zeros_like(x)), model, x)[1]


def seconds(history: dict) -> float | None:
    """Returns the median of the training seconds of an epoch, without the first one, which prepares, if others are."""
    times = [line["seconds"] for line in history["epochs"]]
    return median(times[1:] or times) if times else None


def common_loss(histories: Sequence[dict], name: str) -> float | None:
    """Returns a loss that every run reaches: the largest of the runs' smallest losses."""
    smallest = [min((line[name] for line in history["epochs"]), default=None) for history in histories]
    return None if None in smallest or not smallest else max(smallest)


def epochs_to(history: dict, name: str, loss: float | None) -> int | None:
    """Returns the first epoch whose loss is at most `loss`, None if none is."""
    lines = history["epochs"] if loss is not None else []
    return next((line["epoch"] for line in lines if line[name] <= loss), None)


def pairs(configs: Sequence[Config]) -> list[tuple[int, int]]:
    """Returns (fused, plain), the indices of runs that differ in nothing but fusing."""
    keys = [{k: v for k, v in config.as_dict().items() if k not in ASIDE} for config in configs]
    return [
        (i, j)
        for i, first in enumerate(configs) if not first.plain
        for j, second in enumerate(configs) if second.plain and keys[i] == keys[j]
    ]  # fmt: skip

"""The files of a run beside its checkpoint: config.json, history.json and, if asked for, TensorBoard logs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import nn

import atrous

from . import checkpoint, network
from .config import Config, RunError
from .dataset import RunData

CONFIG, HISTORY = "config.json", "history.json"


def write_config(config: Config, data: RunData, model: nn.Module) -> None:
    """Writes the options, and what the run is of: versions, data, parameters, the head's audit."""
    audit = atrous.audit_dilation(config.rates, network.head_side(config))
    value = {
        "options": config.as_dict(),
        "versions": {"torch": torch.__version__, "atrous": atrous.__version__},
        "data": data.text.splitlines(),
        "training_images": [sample.name for sample in data.train.samples],
        "validation_images": [sample.name for sample in data.validation.samples],
        "synthetic": any(sample.synthetic for sample in data.train.samples),
        "preparation": dataclasses.asdict(data.preparation),
        "parameters": sum(p.numel() for p in model.parameters()),
        "padded_taps": network.padded_taps(config),
        "head": {"receptive_field": audit.receptive_field, "coverage": audit.coverage, "holes": audit.holes},
    }
    checkpoint.write_json(config.folder / CONFIG, value)


def head(config: Config) -> str:
    """Returns what the audit says of the head's rates, in a line."""
    audit, side = atrous.audit_dilation(config.rates), network.head_side(config)
    return (
        f"head: rates {','.join(map(str, config.rates))} read {audit.receptive_field[0]}x{audit.receptive_field[1]} "
        f"positions, {audit.coverage:.0%} of them, and {network.padded_taps(config):.1%} padding on a {side}x{side} map"
    )


@contextlib.contextmanager
def board(config: Config, writes: bool) -> Iterator[Callable[[dict], None]]:
    """Yields a function that logs an epoch's line of the history to TensorBoard; without the option it does nothing."""
    if not (config.tensorboard and writes):
        yield lambda line: None
        return
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(config.folder / "tensorboard")) as writer:

        def add(line: dict) -> None:
            for name, value in line.items():
                if name not in ("epoch", "step") and value is not None:
                    writer.add_scalar(name, value, line["step"])
            writer.flush()

        yield add


def check_tensorboard() -> None:
    """Raises RunError if the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise RunError("--tensorboard needs the package tensorboard: pip install tensorboard") from error

"""Loads the weights of a checkpoint file into a model, or raises an error that says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model")  # {"state_dict": weights, "epoch": ...}
PREFIXES = ("module.", "_orig_mod.")  # DataParallel and DistributedDataParallel; torch.compile


def load_weights(model: nn.Module, path: str | PathLike[str]) -> list[str]:
    """Copies the weights of a .safetensors file, or of one that torch.load(weights_only=True) reads, into the model.

    A "state_dict" or "model" wrapper and a "module." or "_orig_mod." prefix are removed. Three differences, those
    between torchvision's ResNet and ours, are accepted: PReLU slopes that the file lacks stay as they are. The file's
    classifier (fc) is skipped for a features_only model. And if the model's first nn.Conv2d has C input channels, and
    the file's weight w of it is for 3, it gets, as by timm's adapt_input_conv,

        w[:, 0:1] + w[:, 1:2] + w[:, 2:3] for C = 1        w[:, i % 3] * 3 / C for input channel i, if C > 1

    of which the first computes what the file's model computes of an image with 3 equal channels. If anything else does
    not fit, nothing is copied.

    Returns the names that the file lacks; [] for a complete file.
    Raises FileNotFoundError, ValueError (not a state_dict; names or shapes that do not fit), ImportError (safetensors).
    """
    path, weights = Path(path), read_weights(path)
    own = model.state_dict()
    slopes = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.PReLU)}
    if not any(name.startswith("fc.") for name in own):
        weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    weights |= _adapted_stem(model, weights)

    # Files older than torch 0.4.1 lack the counters, which BatchNorm accepts of a state_dict without a version.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    problems = _listed("lacks", [name for name in missing if name not in slopes])
    problems += _listed("has unknown", [name for name in weights if name not in own])
    problems += _listed("differs in the shape of", [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(value.shape)})"
        for name, value in weights.items() if name in own and value.shape != own[name].shape
    ])  # fmt: skip
    if problems:
        raise ValueError(f"path: expected the weights of this {type(model).__name__}, but {path} {'; '.join(problems)}")
    model.load_state_dict(weights, strict=False)
    return missing


def _adapted_stem(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the file's weight of the first convolution for the model's input channels; {} if it is right as it is."""
    convs = (item for item in model.named_modules() if isinstance(item[1], nn.Conv2d))
    name, conv = next(convs, ("", None))
    weight = weights.get(f"{name}.weight")
    if conv is None or weight is None or conv.groups != 1 or conv.in_channels == 3 or weight.shape[1:2] != (3,):
        return {}
    if conv.in_channels == 1:
        return {f"{name}.weight": weight.sum(1, keepdim=True)}
    channels = torch.arange(conv.in_channels, device=weight.device) % 3
    return {f"{name}.weight": weight[:, channels] * (3 / conv.in_channels)}


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Returns the state_dict of a file without wrapper and prefix. Files and errors are those of load_weights."""
    path = Path(path)
    return _unwrapped(_read(path), path)


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a checkpoint file, got {str(path)!r}, where there is none")
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"path: {path} needs the package safetensors: pip install safetensors") from error
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"path: expected a safetensors file, but {path} cannot be read ({error})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # for other files the unpickler raises almost anything
        raise ValueError(
            f"path: expected what torch.load(weights_only=True) reads, but {path} is another kind of file, or holds "
            "more than tensors: save model.state_dict()"
        ) from error


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"path: expected a state_dict (name -> tensor), but {path} holds {_described(loaded)}")
    weights = dict(loaded)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"path: expected a state_dict, but {path} holds {_described(value)} under {name!r}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _described(value: object) -> str:
    if isinstance(value, Mapping) and not value:
        return "an empty dict"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _listed(problem: str, names: list[str], shown: int = 5) -> list[str]:
    """Returns ["lacks a, b and 3 more"], or [] without names."""
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{problem} {', '.join(names[:shown])}{more}"]

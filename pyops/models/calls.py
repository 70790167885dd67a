"""The calls of a model's modules, for dilate_: their sizes and values, and the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.torch_compat import tree_leaves

Pair = tuple[int, int]


class FeaturesDifferError(ValueError):
    """The two models compute different features."""


class Call(NamedTuple):
    """A module's call: the size of its first 4-D input, None without one, and its 4-D outputs."""

    name: str
    module: nn.Module
    size: Pair | None
    outputs: list[Tensor]

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({type(self.module).__name__})"


def size_of(y: Tensor) -> Pair:
    return y.shape[2], y.shape[3]


def stride_of(image: Pair, size: Pair) -> Pair | None:
    """Returns the stride of a map; None for one behind a pool over all positions, or of sizes that do not divide."""
    if min(size) <= 1 or image[0] % size[0] or image[1] % size[1]:
        return None
    return image[0] // size[0], image[1] // size[1]


def run(model: nn.Module, x: Tensor, record: Callable[[Call], None], label: str) -> None:
    """Calls record with every module's call, in the order in which they end; errors name the model by its label."""

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            inputs = [size_of(value) for value in _maps((args, kwargs))]
            record(Call(name, module, inputs[0] if inputs else None, [value.clone() for value in _maps(output)]))

        return after

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(x)
    except FeaturesDifferError:
        raise
    except Exception as error:  # a model of the user's may raise anything
        shape = tuple(x.shape)
        kind = type(error).__name__
        raise ValueError(f"model: {label} raises for an input of shape {shape}: {kind}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def compare(strided: Call | None, dilated: Call, image: Pair, limit: int) -> None:
    """Raises FeaturesDifferError unless the values of the strided model's call are among those of the dilated one's."""
    if strided is None or (strided.name, len(strided.outputs)) != (dilated.name, len(dilated.outputs)):
        raise FeaturesDifferError(f"model: expected the same calls of its modules when dilated, got one of {dilated}")
    for y, whole in zip(strided.outputs, dilated.outputs):
        stride = stride_of(image, size_of(y))
        if stride is None:  # a pooled value may differ; a map that depends on it then differs too
            continue
        step = [max(1, side // limit) for side in stride]
        values = whole[..., :: step[0], :: step[1]]
        expected = f"model: expected features of stride {stride} in steps of {tuple(step)}, but those of {dilated}"
        if values.shape != y.shape:
            raise FeaturesDifferError(
                f"{expected} have shape {tuple(whole.shape)}, for {tuple(y.shape)} without dilation"
            )
        if not torch.allclose(values, y, rtol=1e-6, atol=1e-9 * float(y.abs().max())):
            reason = "a function there strides or upsamples, or it depends on a mean over all positions"
            raise FeaturesDifferError(f"{expected} differ: {reason}")


def _maps(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.dim() == 4]

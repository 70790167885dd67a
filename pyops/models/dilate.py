"""dilate_(model, output_stride): replaces the strides of a model's last stages by dilation, with the same weights.

It runs a copy of the model to learn at which stride each module works, changes another copy, and runs that too: its
features must be those of the first copy where both have one. Only then is the model itself changed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check, is_count
from .calls import Call, Pair, compare, run, size_of, stride_of
from .dilated_pool import POOLS, DilatedPool2d, pair, refusal

SIZE = (64, 96)  # at stride 32, that of most models, there are 2 x 3 positions
CHANGEABLE = "nn.Conv2d, nn.MaxPool2d or nn.AvgPool2d"
Change = dict[str, Pair]  # new values of stride, padding and dilation


def dilate_(model: nn.Module, output_stride: int, x: Tensor | None = None) -> nn.Module:
    """y[..., ::f, ::f] = y of the model as it was, for each feature map y that gets f times its resolution.

    Changes the model in place and returns it. A map whose stride exceeds output_stride gets that stride: strides on the
    way there become 1, and dilation and padding of all that follows are multiplied by f. Weights and names of
    state_dict stay. The convolution that was strided keeps the dilation of the stage before, as with
    first_dilation="previous" of ResNet.

    model: a convolutional network of your own, of torchvision or timm, without a decoder. nn.Conv2d, nn.MaxPool2d and
        nn.AvgPool2d without padding can be changed; a DilatedPool2d takes the place of a pool. An int attribute
        `stride` of the blocks around them follows; what else a library notes of its strides does not.
    output_stride: the stride of one of the model's maps, below the largest.
    x: an input (N, C, H, W) to try the model with; its strides must divide H and W, and be less. Default: a random one
        of shape (1, C, 64, 96), C from the first nn.Conv2d.

    Copies of both models run once in fp64 and eval mode, where the outputs of all modules are compared. A classifier
    behind a global pool works as before; its scores differ, as it averages over more positions.

    Raises TypeError if model is no module; ValueError, with nothing changed, for another output_stride; for strides
    elsewhere, in functions, other pools and transposed convolutions; and for features that would differ: of a model
    that upsamples, pads with something other than zero, or multiplies by a mean over all positions, as
    squeeze-and-excitation does.
    Source: Yu et al., Dilated residual networks (arXiv:1705.09914), section 2.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check("output_stride", is_count(output_stride), "a positive int", output_stride)
    strided = _varied(_copied(model))
    x = _example(strided, x)
    image = size_of(x)
    calls: list[Call] = []
    run(strided, x, calls.append, "the model")
    changes = _changes(calls, image, output_stride)

    dilated, remaining = copy.deepcopy(strided), iter(calls)
    _apply(dilated, changes)
    run(dilated, x, lambda call: compare(next(remaining, None), call, image, output_stride), "the dilated model")
    _apply(model, changes)
    return model


def _copied(model: nn.Module) -> nn.Module:
    """Returns a copy in fp64 and eval mode."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model: expected parameters with values to try, got the meta device")
    try:
        return copy.deepcopy(model).double().eval()
    except Exception as error:  # a module of the user's may raise anything
        raise ValueError(f"model: expected one that can be copied, got {type(error).__name__}: {error}") from error


def _varied(model: nn.Module) -> nn.Module:
    """Draws parameters that are constant, as a BatchNorm's weight of 0 behind which all features would be equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and parameter.min() == parameter.max():
                parameter.copy_(torch.rand(parameter.shape, dtype=torch.double, generator=generator) + 0.5)
    return model


def _example(model: nn.Module, x: Tensor | None) -> Tensor:
    """Returns x in fp64, or a random image, whose draw leaves torch's generator as it is."""
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None:
        raise ValueError(f"model: expected strides of {CHANGEABLE}, got {type(model).__name__} without nn.Conv2d")
    if x is None:
        x = torch.randn(1, conv.in_channels, *SIZE, generator=torch.Generator().manual_seed(0))
        x = x.to(conv.weight.device)
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(f"x: expected None or a tensor (N, C, H, W), got {getattr(x, 'shape', x)}")
    return x.detach().double()


def _changes(calls: list[Call], image: Pair, limit: int) -> dict[str, Change]:
    """Returns the changes by the names of modules."""
    strides = {stride_of(image, size_of(y)) or (1, 1) for call in calls for y in call.outputs} | {(1, 1)}
    *sides, last = sorted({side for stride in strides for side in stride})
    if not sides:
        raise ValueError("model: expected strided convolutions or pools, which dilation replaces, got none")
    one = "one of " * (len(sides) > 1)
    expected = f"{one}{', '.join(map(str, sides))}, strides of the model's maps below its output stride {last}"
    check("output_stride", limit in sides, expected, limit)
    changes: dict[str, Change] = {}
    for call in calls:
        change = _change(call, image, limit)
        if changes.setdefault(call.name, change) != change:
            raise ValueError(f"model: expected modules that work at one stride each, but {call} works at several")
    return {name: change for name, change in changes.items() if change}


def _change(call: Call, image: Pair, limit: int) -> Change:
    """Returns the change of the module of a call; {} without one."""
    module: Any = call.module
    if call.size is None or not call.outputs or any(True for _ in module.children()):
        return {}
    size = size_of(call.outputs[0])
    before, after = stride_of(image, call.size), stride_of(image, size)
    pool = type(module) in (*POOLS, DilatedPool2d)
    if not pool and not isinstance(module, nn.Conv2d):
        if before and after and before != after and max(*before, *after) > limit:
            raise ValueError(f"model: expected strides of {CHANGEABLE}, got {call}, which maps {call.size} to {size}")
        return {}
    kernel = pair(module.kernel_size)
    if kernel == pair(module.stride) == (1, 1) or (pool and size == (1, 1) and _covers(kernel, call.size)):
        return {}
    if before is None or after is None:
        raise ValueError(
            f"model: expected maps that divide {image}, the input's size, and are smaller, but {call} maps {call.size} "
            f"to {size}; another x may help"
        )
    if any(max(side, limit) % min(side, limit) for side in before + after):
        raise ValueError(f"output_stride: expected a divisor or multiple of the stride {before} of {call}, got {limit}")
    return _scaled(call, before, after, limit)


def _covers(kernel: Pair, size: Pair) -> bool:
    return kernel[0] >= size[0] and kernel[1] >= size[1]


def _scaled(call: Call, before: Pair, after: Pair, limit: int) -> Change:
    """Returns the change of a convolution or pool whose input and output have these strides."""
    module: Any = call.module
    factors = [max(1, side // limit) for side in before]
    kernel = pair(module.kernel_size)
    old = {"stride": pair(module.stride), "dilation": pair(getattr(module, "dilation", 1))}
    new = {
        "stride": pair([min(end, limit) // min(start, limit) for start, end in zip(before, after)]),
        "dilation": pair([d * f if k > 1 else d for d, f, k in zip(old["dilation"], factors, kernel)]),
    }
    if not isinstance(module, nn.Conv2d):
        if new != old and (expected := refusal(module)):
            raise ValueError(f"model: expected {expected} behind the stride {limit}, got {call}: {module}")
        return new if new != old else {}
    if not isinstance(module.padding, str):  # "same" and "valid" need no change
        old["padding"] = pair(module.padding)
        new["padding"] = pair([p * f for p, f in zip(old["padding"], factors)])
    change = {name: value for name, value in new.items() if value != old[name]}
    if "padding" in change and module.padding_mode != "zeros":
        raise ValueError(f"model: expected zero padding behind the stride {limit}, got {call}: {module.padding_mode}")
    return change


def _apply(model: nn.Module, changes: dict[str, Change]) -> None:
    for name, change in changes.items():
        module: Any = model.get_submodule(name)
        if type(module) in POOLS:
            model.set_submodule(name, DilatedPool2d(module, **change).train(module.training))
            continue
        for block in _blocks(model, name) if "stride" in change else ():
            if block.stride in (module.stride, module.stride[0]):
                block.stride = change["stride"][0]
        for attribute, value in change.items():
            setattr(module, attribute, value)


def _blocks(model: nn.Module, name: str) -> list[Any]:
    """Returns the modules around a module that note a stride as an int, as torchvision's blocks do."""
    parts = name.split(".")
    around = [model.get_submodule(".".join(parts[:index])) for index in range(len(parts))]
    return [block for block in around if isinstance(getattr(block, "stride", None), int)]

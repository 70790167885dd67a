"""The results of one call of a model, by name: to compare a fused copy with the model called the same way."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Set

import numpy
import torch
from oracle import layout
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


def seed_all(number: int = 7) -> None:
    """Seeds torch, numpy and random."""
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


def randomize(model: nn.Module) -> nn.Module:
    """Sets BatchNorms and slopes to values other than 0 and 1, some gammas and slopes negative."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.2, 0.8)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.6, 1.6)
                module.weight.data[::4] *= -0.8
                nn.init.uniform_(module.bias, -0.2, 0.5)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 1.2)
    return model


def equal_models(build: Callable[[], nn.Module], training: bool = False) -> tuple[nn.Module, nn.Module]:
    """Two models of equal values that have nothing in common, in fp64: closures and lists are not copied either."""
    models = []
    for _ in range(2):
        seed_all(0)
        models.append(randomize(build()).double().train(training))
    return models[0], models[1]


def parts(value: object, name: str = "y") -> Iterator[tuple[str, object]]:
    """(name, value) of everything in a result; the names have the types and keys of the containers."""
    kind = type(value).__name__
    items: object = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value):
        items = vars(value).items()
    elif isinstance(value, Set):
        items = enumerate(sorted(value, key=str))
    if items is None:
        yield name, value
        return
    yield f"{name}:", kind
    for key, part in items:
        yield from parts(part, f"{name}.{key}")


def cotangent(y: Tensor) -> Tensor:
    """Fixed numbers for y's gradient; a constant would hide faults behind a BatchNorm, where its sum is 0."""
    return torch.cos(torch.arange(y.numel(), dtype=torch.float64, device=y.device)).reshape(y.shape).to(y.dtype)


def outcome(model: Callable, *args: object, gradients: bool = True, buffers: bool = True, **kwargs: object) -> dict:
    """Outputs, the arguments after the call, gradients and buffers of one call after the same seeds, by name.

    gradients: inputs of a floating dtype require gradients. Parameters do as they are set.
    """
    seed_all()
    if isinstance(model, nn.Module):
        model.zero_grad()
    leaves: list[Tensor] = []

    def given(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        leaf = value.detach().clone(memory_format=torch.preserve_format)
        if not (gradients and leaf.is_floating_point()):
            return leaf
        leaves.append(leaf.requires_grad_())
        return leaf.clone(memory_format=torch.preserve_format)  # not a leaf: the model may write it in place

    arguments = tree_map(given, (args, kwargs))
    y = model(*arguments[0], **arguments[1])
    result = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in parts(y)}
    tensors = [value for _, value in parts(y) if isinstance(value, Tensor)]
    result["requires_grad"] = [tensor.requires_grad for tensor in tensors]
    result["inference"] = [tensor.is_inference() for tensor in tensors]
    result |= {f"strides of {name}": layout(value) for name, value in parts(y) if isinstance(value, Tensor)}
    result |= {f"argument {i}": v.detach() for i, v in enumerate(tree_leaves(arguments)) if isinstance(v, Tensor)}
    with torch.enable_grad():
        loss = [(tensor * cotangent(tensor)).double().sum() for tensor in tensors if tensor.requires_grad]
        if loss:
            torch.stack(loss).sum().backward()
    if loss:
        result |= {f"gradient of argument {i}": leaf.grad for i, leaf in enumerate(leaves)}
        result |= {f"gradient of {name}": p.grad for name, p in named(model, "named_parameters")}
    if buffers:
        result |= {f"buffer {name}": buffer.detach().clone() for name, buffer in named(model, "named_buffers")}
    return result


def named(model: Callable, method: str) -> list[tuple[str, Tensor]]:
    """Parameters or buffers by name; the name of torch.compile's and of DDP's wrapper is left out."""
    values = getattr(model, method)() if isinstance(model, nn.Module) else ()
    return [(name.removeprefix("_orig_mod.").removeprefix("module."), value) for name, value in values]


def assert_same(actual: Mapping, expected: Mapping, tolerance: float | None = None) -> None:
    """Asserts that two outcomes have the same names, types, dtypes and, within rounding, values.

    tolerance: by default that of a tensor's dtype; under autocast, gradients of fp32 are sums of low-precision terms.
    """
    assert actual.keys() == expected.keys(), f"{sorted(actual.keys() ^ expected.keys())} are in one outcome alone"
    for name, value in expected.items():
        ours = actual[name]
        if not isinstance(value, Tensor):
            assert type(ours) is type(value) and ours == value, f"{name}: expected {value!r}, got {ours!r}"
            continue
        assert isinstance(ours, Tensor), f"{name}: expected a tensor, got {ours!r}"
        allowed = TOLERANCES.get(value.dtype, 0.0) if tolerance is None else tolerance
        scale = float(value.abs().max()) if value.numel() and allowed else 0.0
        torch.testing.assert_close(
            ours, value, rtol=allowed, atol=allowed * max(1.0, scale), equal_nan=True,
            msg=lambda text: f"{name}: {text}",  # noqa: B023
        )  # fmt: skip


def assert_alike(
    fused: Callable, plain: Callable, *args: object, tolerance: float | None = None, strides: bool = True,
    **options: object,
) -> None:  # fmt: skip
    """Asserts that a call of `fused` leaves what the same call of `plain` leaves. strides: of the results as well."""
    expected, actual = outcome(plain, *args, **options), outcome(fused, *args, **options)
    if not strides:
        expected, actual = ({n: v for n, v in o.items() if not n.startswith("strides")} for o in (expected, actual))
    assert_same(actual, expected, tolerance)


def error_of(call: Callable, *args: object, **kwargs: object) -> type[BaseException] | None:
    """The type of the error that a call raises; None if it raises none."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


def agree(fused: nn.Module, plain: nn.Module, *args: object, **options: object) -> None:
    """assert_alike as the mode suggests: with gradients in training, and under no_grad in eval."""
    with torch.set_grad_enabled(plain.training):
        assert_alike(fused, plain, *args, gradients=plain.training, **options)

"""PyTorch's own samples of an operator (op_db) or a module (module_db), as arguments by name.

torch.testing._internal is private: a version of torch that lacks a piece of it cannot run these tests. Its import
changes torch's flags and hypothesis's profile, so they run in a process of their own.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atrous.core import checks

ERRORS = "errors"  # in place of a dtype: the calls for which torch has to raise


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return {"input": input, "weight": weight, "bias": bias, **geometry}


def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    vectors = {"running_mean": running_mean, "running_var": running_var, "bn_weight": weight, "bn_bias": bias}
    return {"input": input, **vectors, "training": training, "momentum": momentum, "eps": eps}


# Operators with torch's signatures: the arguments of conv_bn_act and add_act, or an `act` module in place of `slope`.
OPERATORS: dict[str, Callable[..., dict[str, Any]]] = {
    "nn.functional.conv2d": _conv2d,
    "nn.functional.batch_norm": _batch_norm,
    "nn.functional.relu": lambda input: {"input": input, "slope": "relu"},
    "nn.functional.leaky_relu": lambda input, negative_slope=0.01: {"input": input, "slope": negative_slope},
    "nn.functional.prelu": lambda input, weight: {"input": input, "slope": weight},
    "nn.functional.rrelu": lambda input, lower=1 / 8, upper=1 / 3, training=False: {
        "input": input, "act": nn.RReLU(lower, upper).train(training)},
    "nn.functional.dropout": lambda input, p=0.5, training=True: {
        "input": input, "dropout": p, "dropout_training": training},
    "add": lambda input, other, alpha=1: {"input": input, "residual": other, "alpha": alpha},
}  # fmt: skip
# Modules and their place in ConvBNAct2d. torch 2.13 lists neither RReLU nor Dropout.
PLACES = {
    "nn.Conv2d": "conv", "nn.BatchNorm2d": "bn", "nn.ReLU": "act", "nn.LeakyReLU": "act", "nn.PReLU": "act",
    "nn.RReLU": "act",
}  # fmt: skip
CONVOLUTIONS = ("nn.functional.conv2d", "nn.Conv2d")


class Sample(NamedTuple):
    """One call of an operator or of a module, whose only argument is `input`."""

    name: str
    arguments: dict[str, Any]
    module: nn.Module | None = None

    @property
    def operator(self) -> Callable[..., Tensor]:
        return databases()[self.name].op


@functools.cache
def databases() -> dict[str, Any]:
    """The OpInfo and ModuleInfo of each operator and module that this torch lists, by name."""
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    operators = [info for info in op_db if info.name in OPERATORS and not info.variant_test_name]
    return {info.name: info for info in (*operators, *(info for info in module_db if info.name in PLACES))}


def dtypes(name: str) -> list[str]:
    """The dtypes that torch supports, and ERRORS."""
    listed = sorted(str(dtype).removeprefix("torch.") for dtype in databases()[name].dtypes)
    return [*listed, ERRORS]


@functools.lru_cache(maxsize=1)  # most samples are small, but some have a million elements
def samples(name: str, dtype: str) -> list[Sample]:
    """Every sample of an operator or a module in a dtype, the same in each call."""
    torch.manual_seed(0)
    random.seed(0)
    return list((_modules if name in PLACES else _operators)(name, databases()[name], dtype))


def _operators(name: str, info: Any, dtype: str) -> Iterator[Sample]:
    if dtype == ERRORS:
        listed = (one.sample_input for one in (info.error_inputs("cpu") if info.error_inputs_func else ()))
    else:
        wanted = getattr(torch, dtype)
        listed = info.reference_inputs("cpu", wanted, requires_grad=wanted in checks.DTYPES)
    for one in listed:
        yield Sample(name, inspect.signature(OPERATORS[name]).bind(one.input, *one.args, **one.kwargs).arguments)


def _modules(name: str, info: Any, dtype: str) -> Iterator[Sample]:
    error, wanted = dtype == ERRORS, getattr(torch, dtype, torch.float32)
    make = info.module_error_inputs_func if error else info.module_inputs_func
    for training in (True, False) if make else ():
        for one in make(info, "cpu", wanted, requires_grad=True, training=training):
            one = one.module_error_input if error else one
            built = one.constructor_input
            module = info.module_cls(*built.args, **built.kwargs).to(wanted).train(training)
            yield Sample(name, {"input": one.forward_input.args[0]}, module)


def lifted(sample: Sample) -> Sample | None:
    """The sample with a 4-D input of the same channels; None if it has one, or its dimensions mean something else."""
    tensors = {name: sample.arguments.get(name) for name in ("input", "other")}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    dims = max((value.dim() for value in tensors.values()), default=4)
    norm = sample.name == "nn.functional.batch_norm"
    if dims == 4 or "input" not in tensors or sample.name in CONVOLUTIONS or (norm and dims < 2):
        return None

    def lift(x: Tensor) -> Tensor:
        x = x[(None,) * (dims - x.dim() + (2 if dims < 2 else 0))]  # broadcasting aligns the last dimensions
        return x[(..., *(None,) * (4 - x.dim()))] if x.dim() <= 4 else x.flatten(3)

    return sample._replace(arguments=sample.arguments | {name: lift(value) for name, value in tensors.items()})

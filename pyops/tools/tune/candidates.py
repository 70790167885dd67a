"""The candidates that the tuner compares for a layer: random tensors, and each candidate as a call on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import functional, testing, tuning
from ...backends import selection
from ...backends.prepack import PrepackedWeights
from ...core.call_args import NO_BATCH_NORM, BatchNormArgs, PostOpArgs
from ...core.layout import memory_format
from ...core.spec import Spec
from ...triton_kernels.conv.configs import Conv, ConvKey, conv_cycles, conv_prune
from ...tuning.format import Key
from ..explain.conv_layers import ConvLayer

Kwargs = dict[str, Any]  # arguments of conv_bn_act
Candidate: TypeAlias = str | Conv  # a backend, or backend triton in one config


class WrongResult(Exception):
    """A candidate's result differs from plain torch's by more than the budget."""


class Form(NamedTuple):
    """How a layer is called. frozen: with a weight that may be prepacked, as nn.FrozenConv2d does."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    frozen: bool = False


def forms(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> list[Form]:
    """The forms that differ: a frozen model is channels_last, and only the CPU backends prepack its weights."""
    live = Form(device, dtype, layout)
    return [live] if device.type == "cuda" else [live, Form(device, dtype, torch.channels_last, frozen=True)]


def arguments(layer: ConvLayer, form: Form) -> Kwargs:
    """Random arguments of conv_bn_act for a layer."""
    sizes, spec = (layer.input, layer.weight[0], layer.weight[2:]), layer.spec
    case = testing.Case(
        layer.name, *sizes, *spec, "relu",  # type: ignore[arg-type]
        None if layer.residual == "none" else layer.residual, bn=not form.frozen, bias=form.frozen,
    )  # fmt: skip
    return testing.arguments(case, form.dtype, str(form.device), form.layout)


def key(layer: ConvLayer, form: Form, kwargs: Kwargs) -> Key:
    """The key under which a call with these arguments looks for its entry."""
    tensors, residual = (kwargs["input"], kwargs["weight"]), layer.residual != "none"
    return tuning.key(*tensors, layer.spec, residual=residual, frozen=form.frozen)


def candidates(layer: ConvLayer, kwargs: Kwargs) -> list[Candidate]:
    """Every backend that can run the layer; triton in each config worth measuring, the best prediction first."""
    tensors = kwargs["input"], kwargs["weight"]
    backends = [name for name in selection.backends() if not selection.reasons(name, *tensors, layer.spec)]
    return [*(name for name in backends if name != "triton"), *(_configs(kwargs) if "triton" in backends else [])]


def call(candidate: Candidate, form: Form, kwargs: Kwargs) -> Callable[[], Tensor]:
    """conv_bn_act(**kwargs) by a candidate; in the frozen form as nn.FrozenConv2d calls it."""
    if isinstance(candidate, Conv):
        return _in_config(candidate, kwargs)
    if not form.frozen:
        return partial(functional.conv_bn_act, **kwargs, backend=candidate)
    operands = kwargs["input"], kwargs["weight"], kwargs["bias"], _spec(kwargs), NO_BATCH_NORM, _post_op(kwargs)
    return partial(functional.convolve, *operands, prepacked=PrepackedWeights(), backend=candidate)


class Expected(NamedTuple):
    """The result that a candidate must give: `exact` in fp64 for some images, within `budget` of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    images: Tensor  # indices
    exact: Tensor
    eager_error: float
    budget: float


def expected(kwargs: Kwargs, images: int = 4) -> Expected:
    """The result in fp64, and its budget by the rule of a tensor (testing.py). `relative` is what summing in another
    order may change: a rounding times the square root of the number of terms (Higham and Mary 2019,
    doi:10.1137/18M1226312).

    A few images of a large batch are compared, including the first and the last: each is its own convolution.
    """
    batch, device = len(kwargs["input"]), kwargs["input"].device
    indices = torch.linspace(0, batch - 1, min(batch, images), device=device).long()
    part = {name: value[indices] if name in ("input", "residual") else value for name, value in kwargs.items()}
    exact, plain = testing.truth(part), testing.eager(part)
    summation = testing.roundings(plain.dtype, stored=4, computed=kwargs["weight"][0].numel() ** 0.5)
    budget = testing.tensor_budget(plain, exact, relative=summation + testing.product_rounding(kwargs["input"]))
    eager_error = testing.largest_error(plain, exact)
    return Expected((batch, *plain.shape[1:]), plain.dtype, indices, exact, eager_error, budget)


def check(y: Tensor, wanted: Expected) -> None:
    """Raises WrongResult."""
    if (tuple(y.shape), y.dtype) != (wanted.shape, wanted.dtype):
        raise WrongResult(f"expected {wanted.shape, wanted.dtype}, got {tuple(y.shape), y.dtype}")
    error = testing.largest_error(y[wanted.images], wanted.exact)
    if error > wanted.budget:
        eager = wanted.eager_error
        raise WrongResult(f"error {error:.3g} against fp64, budget {wanted.budget:.3g}, plain torch {eager:.3g}")


def at_once(runs: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], object]:
    """All runs as one call, after a warm-up; on a GPU a CUDA graph of them, with cuDNN's fastest algorithms."""

    def run_all() -> None:
        for run in runs:
            run()

    with _cudnn_benchmark():
        run_all()
        if device.type != "cuda":
            return run_all
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run_all()
    return graph.replay


@contextlib.contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """cuDNN measures its algorithms instead of choosing one by its heuristic."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _spec(kwargs: Kwargs) -> Spec:
    return Spec(*(kwargs[name] for name in Spec._fields))


def _post_op(kwargs: Kwargs) -> PostOpArgs:
    return PostOpArgs(kwargs["slope"], kwargs.get("residual"), kwargs["residual_after_act"])


# Everything that the tuner knows of Triton's convolution.


def _configs(kwargs: Kwargs) -> list[Conv]:
    return conv_prune(_conv_key(kwargs))


def predictions(configs: Sequence[Conv], kwargs: Kwargs) -> dict[Conv, float]:
    """The cost model's predictions; only their ratios mean something."""
    return {config: conv_cycles(_conv_key(kwargs), config) for config in configs}


def _conv_key(kwargs: Kwargs) -> ConvKey:
    from ...triton_kernels.conv.problem import conv_key

    tensors = kwargs["input"], kwargs["weight"]
    return conv_key(*tensors, _spec(kwargs), memory_format(*tensors), kwargs.get("residual"))


def _in_config(config: Conv, kwargs: Kwargs) -> Callable[[], Tensor]:
    from ...triton_kernels.conv.forward import conv_epilogue

    input, weight, residual = kwargs["input"], kwargs["weight"], kwargs.get("residual")
    vectors: Any = (kwargs.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    layout, size = memory_format(input, weight), () if residual is None else residual.shape
    epilogue = _post_op(kwargs).epilogue(BatchNormArgs(*vectors), input, size, layout)
    operands = input, weight, kwargs.get("bias"), _spec(kwargs), epilogue
    return partial(conv_epilogue, *operands, memory_format=layout, config=config)

"""What the tuner compares: random tensors for a site, and each candidate as a call on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import functional, testing, tuning
from ...backends import selection
from ...backends.prepack import Packs
from ...core.call_args import NO_NORMALISATION, Ending, Normalisation
from ...core.layout import memory_format
from ...triton_kernels.conv.configs import Conv, ConvKey, conv_cycles, conv_prune
from ...tuning.format import Key
from ..explain.conv_sites import Site

Made = dict[str, Any]  # arguments of conv_bn_act
Candidate: TypeAlias = str | Conv  # a row, or row triton in a config


class Wrong(Exception):
    """A candidate does not give what plain torch gives."""


class Form(NamedTuple):
    """How a site is called. frozen: with a weight that may be packed, as nn.FrozenConv2d does."""

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    frozen: bool = False


def forms(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> list[Form]:
    """Those that differ: a frozen model is channels_last, and only a CPU's rows pack its weights."""
    asked = Form(device, dtype, layout)
    return [asked] if device.type == "cuda" else [asked, Form(device, dtype, torch.channels_last, frozen=True)]


def arguments(site: Site, form: Form) -> Made:
    sizes, spec = (site.input, site.weight[0], site.weight[2:]), site.spec
    case = testing.Case(
        site.name, *sizes, spec.stride, spec.padding, spec.dilation, spec.groups, "relu",  # type: ignore[arg-type]
        None if site.residual == "none" else site.residual, bn=not form.frozen, bias=form.frozen,
    )  # fmt: skip
    return testing.arguments(case, form.dtype, str(form.device), form.layout)


def key(site: Site, form: Form, made: Made) -> Key:
    """The key under which a call with these arguments looks for its choice."""
    layout = memory_format(made["input"], made["weight"])
    return tuning.key(
        made["input"], made["weight"], site.spec, residual=site.residual != "none", frozen=form.frozen,
        layout="channels_last" if layout == torch.channels_last else "NCHW",
    )  # fmt: skip


def candidates(site: Site, made: Made) -> list[Candidate]:
    """Every row that can run it; row triton in the configs that are worth measuring, the best prediction first."""
    asked = made["input"], made["weight"], site.spec
    rows = [name for name in selection.rows() if not selection.reasons(name, *asked)]
    return [*(name for name in rows if name != "triton"), *(_configs(made) if "triton" in rows else [])]


def call(candidate: Candidate, form: Form, made: Made) -> Callable[[], Tensor]:
    """conv_bn_act(**made) by a candidate; in the frozen form as nn.FrozenConv2d calls it."""
    if isinstance(candidate, Conv):
        return _in_config(candidate, made)
    if not form.frozen:
        return partial(functional.conv_bn_act, **made, backend=candidate)
    given = made["input"], made["weight"], made["bias"], _geometry(made), NO_NORMALISATION, _ending(made)
    return partial(functional.convolve, *given, packs=Packs(), backend=candidate)


class Expected(NamedTuple):
    """What a candidate has to give: `exact` in fp64, of a few images, and by how much it may differ from that."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    images: Tensor
    exact: Tensor
    eagers: float
    budget: float


def expected(made: Made, images: int = 4) -> Expected:
    """By plain torch and fp64: the tests' budget, and what sums in another order may differ by, a rounding for the
    square root of their length (Higham and Mary 2019, doi:10.1137/18M1226312).

    Of a large batch a few images are compared, the first and the last among them: each is a convolution of its own.
    """
    batch, device = len(made["input"]), made["input"].device
    some = torch.linspace(0, batch - 1, min(batch, images), device=device).long()
    few = {name: value[some] if name in ("input", "residual") else value for name, value in made.items()}
    exact, plain = testing.truth(few), testing.eager(few)
    eagers, storage = testing.largest_error(plain, exact), torch.finfo(plain.dtype)
    summed = torch.finfo(torch.float64 if plain.dtype == torch.float64 else torch.float32).eps
    roundings = 4 * storage.eps + made["weight"][0].numel() ** 0.5 * summed + testing.product_rounding(made["input"])
    budget = max(1.25 * eagers, roundings * float(exact.abs().max()))
    return Expected((batch, *plain.shape[1:]), plain.dtype, some, exact, eagers, budget)


def check(y: Tensor, wanted: Expected) -> None:
    """Raises Wrong."""
    if (tuple(y.shape), y.dtype) != (wanted.shape, wanted.dtype):
        raise Wrong(f"expected {wanted.shape, wanted.dtype}, got {tuple(y.shape), y.dtype}")
    error = testing.largest_error(y[wanted.images], wanted.exact)
    if not error <= wanted.budget:  # NaN is above every budget
        raise Wrong(f"error {error:.3g} against fp64, budget {wanted.budget:.3g}, plain torch {wanted.eagers:.3g}")


def at_once(runs: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], object]:
    """All runs in one call, warm; on a card a CUDA graph of them, with the library at its best."""

    def all_of_them() -> None:
        for run in runs:
            run()

    with _searching():
        all_of_them()
        if device.type != "cuda":
            return all_of_them
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
    return graph.replay


@contextlib.contextmanager
def _searching() -> Iterator[None]:
    """cuDNN measures its own algorithms instead of guessing one."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _geometry(made: Made) -> tuple:
    return tuple(made[name] for name in ("stride", "padding", "dilation", "groups"))


def _ending(made: Made) -> Ending:
    return Ending(made["slope"], made.get("residual"), made["residual_after_act"])


# All that the tuner knows of Triton's convolution.


def _configs(made: Made) -> list[Conv]:
    return conv_prune(_conv_key(made))


def predictions(configs: Sequence[Conv], made: Made) -> dict[Conv, float]:
    """By the cost model; they mean something beside one another."""
    return {config: conv_cycles(_conv_key(made), config) for config in configs}


def _conv_key(made: Made) -> ConvKey:
    from ...triton_kernels.conv.problem import conv_key

    tensors = made["input"], made["weight"]
    return conv_key(*tensors, *_geometry(made), memory_format(*tensors), made.get("residual"))


def _in_config(config: Conv, made: Made) -> Callable[[], Tensor]:
    from ...triton_kernels.conv.forward import conv_epilogue

    input, weight, residual = made["input"], made["weight"], made.get("residual")
    vectors: Any = (made.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias"))
    layout, size = memory_format(input, weight), () if residual is None else residual.shape
    epilogue = _ending(made).arguments(Normalisation(*vectors), input, size, layout)
    return partial(
        conv_epilogue, input, weight, made.get("bias"), *_geometry(made), *epilogue, memory_format=layout, config=config
    )  # fmt: skip

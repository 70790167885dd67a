"""Fuzzes the convolution: draws random calls and compares a backend's results with the fp64 oracle.

    python tests/fuzz/fuzz_conv.py --seed 3 --count 1000 --backend all

A case is plain data that depends only on the seed, its number, the backend and the device. Each runs twice in memory
that is NaN until it is written: both results must be bit-identical and within the error budget of oracle.py, and the
memory around the operands unchanged. On a CPU, TRITON_INTERPRET=1 adds Triton, and `--backend emulation` is csrc/cuda
compiled as C++ for the CPU (cuda_host.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

SUPPORT = Path(__file__).parents[1] / "support"
sys.path[:0] = [str(SUPPORT), str(SUPPORT / "host_cuda")]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP: see conftest.py

import oracle  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import triton_cases as cases  # noqa: E402
from torch import Tensor  # noqa: E402

import atrous  # noqa: E402
from atrous import reference, tuning  # noqa: E402
from atrous.backends import aten, selection  # noqa: E402
from atrous.core import activation, layout  # noqa: E402
from atrous.core.spec import Epilogue, Spec, accumulate_type  # noqa: E402
from atrous.ops import eager as eager_ops  # noqa: E402
from atrous.triton_kernels.conv import configs  # noqa: E402

FORMS = ("forward", "training", "training", "primitive", "frozen", "passes")
CHANNELS = (1, 2, 3, 7, 8, 12, 16, 17, 24, 31, 32, 64, 64, 65, 128)
KERNELS = ((3, 3), (3, 3), (1, 1), None)  # None: any rectangle
SLOPES = {"identity": 1.0, "relu": "relu", "number": -0.25, "shared": None, "channel": None, "random": (0.125, 0.4)}
NORMS = {
    "forward": ("none", "eval", "eval", "batch"),
    "training": ("none", "eval", "batch", "batch"),
    "primitive": ("none", "shift", "eval", "eval"),
    "frozen": ("none", "shift", "eval", "eval"),
    "passes": ("none", "shift", "eval", "batch"),
}
LEARNED = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")
MIN_VALUES, MIN_VARIANCE = 8, 1 / 16  # batch statistics below these amplify rounding errors: such cases get eps = 1


# Most multiply-adds and outputs of a case; the emulation runs a CPU thread for each thread of a block.
MOST = {"cuda": (3e9, 4e6), "cpu": (3e6, 1e5), "triton": (3e6, 2e4), "emulation": (1e6, 3e3)}
DRAWS = 3  # attempts with new values for a case whose results are over budget


class Case(NamedTuple):
    """One call; `values` seeds its tensors, `config` selects the Triton config among those that fit."""

    form: str  # forward, training: conv_bn_act; primitive, frozen: backend steps; passes: without the convolution
    dtype: str
    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int
    layouts: tuple[str, str]  # first: input and gradient; second: weight and residual
    memory: str  # aligned, odd (no address is 16-byte aligned), sliced (not dense)
    bias: bool
    norm: str
    vectors: str  # dtype of the BatchNorm vectors: "same" or "float32"
    eps: float
    slope: str
    residual: str
    broadcast: bool
    dropout: float
    needs: tuple[str, ...]  # operands whose gradients are computed
    precision: str  # fp32 MMA precision; the operands of a "tf32" case are exact in tf32
    config: int
    values: int

    @property
    def geometry(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def spec(self) -> Spec:
        return Spec(*self.geometry)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of input and weight."""
        weight = self.out_channels, self.channels // self.groups, *self.kernel
        return (self.batch, self.channels, *self.size), weight

    def output(self) -> tuple[int, ...]:
        return tuple(
            F.conv2d(*(torch.empty(shape, device="meta") for shape in self.shapes), None, *self.geometry).shape
        )


# Drawing


def draw_case(seed: int, number: int, backend: str, device: str) -> Case:
    """The case of this number: the first draw that is legal and that the device runs in milliseconds."""
    rng = random.Random(f"{seed} {number} {backend} {device}")
    while True:
        case = draw(rng, backend, device == "cuda")
        if legal(case, *MOST["cuda" if device == "cuda" else backend if backend in MOST else "cpu"]):
            return case


def draw(rng: random.Random, backend: str, on_gpu: bool) -> Case:
    pick = rng.choice
    form = pick([form for form in FORMS if (backend, form) != ("emulation", "frozen")])
    interpreted = backend == "triton" and not on_gpu  # the interpreter is wrong in bf16
    dtypes = ["float16", "float32"] + ["bfloat16"] * (not interpreted) + ["float64"] * (backend != "triton")
    dtype = pick(dtypes)
    norm, slope = pick(NORMS[form]), pick(list(SLOPES))
    dropping = form == "passes" or (form == "primitive" and backend != "triton")  # Triton's convolution refuses it
    tf32 = dtype == "float32" and form != "training" and rng.random() < 0.5
    return Case(
        form,
        dtype,
        *draw_geometry(rng, on_gpu, paired=form not in ("forward", "training")),
        layouts=(pick(list(cases.LAYOUTS)), pick(list(cases.LAYOUTS))),
        memory=pick(("aligned", "aligned", "odd", "sliced")),
        bias=pick((True, False)),
        norm=norm,
        vectors=pick(("same", "float32")) if dtype in ("float16", "bfloat16") and norm in ("eval", "batch") else "same",
        eps=pick((1e-5, 1e-3, 0.1)),
        slope=slope,
        residual=pick(cases.RESIDUALS),
        broadcast=form in ("forward", "training") and rng.random() < 0.2,
        dropout=pick((0.0, 0.0, 0.3, 1.0)) if dropping else 0.0,
        needs=draw_needs(rng, dtype, on_gpu) if form == "training" else (),
        precision="tf32" if tf32 else "ieee",
        config=rng.randrange(1 << 20),
        values=rng.randrange(1 << 32),
    )


def draw_needs(rng: random.Random, dtype: str, on_gpu: bool) -> tuple[str, ...]:
    """Operands that need gradients: no bf16 weight on a CPU, where oneDNN of torch 2.13 reads uninitialized memory."""
    excluded = () if on_gpu or dtype != "bfloat16" else ("weight",)
    return tuple(name for name in LEARNED if rng.random() < 0.7 and name not in excluded) or ("input",)


def draw_geometry(rng: random.Random, on_gpu: bool, paired: bool) -> tuple:
    """The fields from batch to groups. paired: padding must be two numbers."""
    pick, largest = rng.choice, 72 if on_gpu else 21

    def pair(low: int, high: int) -> tuple[int, int]:
        return rng.randint(low, high), rng.randint(low, high)

    groups, each, out = 1, pick(CHANNELS), pick(CHANNELS)
    kind = pick(("any", "any", "wide", "groups", "depthwise"))
    if kind == "wide":  # as descriptors and split-K need them
        each, out = pick((64, 64, 128)), pick((8, 24, 64, 128))
    elif kind == "groups":
        groups, each, out = pick((2, 3, 4)), pick((1, 3, 8, 16, 17)), pick((1, 3, 8, 16, 17))
    elif kind == "depthwise":
        groups, each, out = pick(CHANNELS), 1, pick((1, 1, 2, 3))
    kernel = pick(KERNELS) or (pair(1, 7) if each <= 3 else pair(1, 4))
    stride = pick(((1, 1), (1, 1), (2, 2), pair(1, 4)))
    dilation = pick(((1, 1), (1, 1), (2, 2), pair(1, 6), pair(1, 25)))
    size = pick((pair(1, largest), pair(1, largest), pair(1, 3), (7, 7), (8, 16)))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
    least = [max(0, math.ceil((span + 1 - extent) / 2)) for span, extent in zip(spans, size)]
    padding = pick(("pair", "pair", "half", *(() if paired else ("same", "valid", "number"))))
    if padding == "pair":
        padding = tuple(n + rng.randint(0, pick((0, 2, span + 1))) for n, span in zip(least, spans))
    elif padding == "half":
        padding = tuple(max(n, span // 2) for n, span in zip(least, spans))
    elif padding == "number":
        padding = max(least) + rng.randint(0, 3)
    batch = pick((1, 1, 2, 3, 5, 0 if rng.random() < 0.2 else 2))
    return batch, each * groups, size, out * groups, kernel, stride, padding, dilation, groups


def legal(case: Case, most_work: float = math.inf, most_outputs: float = math.inf) -> bool:
    """True if torch accepts the case and it has at most so many multiply-adds and outputs."""
    try:
        output = case.output()
    except RuntimeError:
        return False
    if not all(map(meets_input, case.size, output[2:], case.kernel, case.stride, pads_of(case), case.dilation)):
        return False
    pixels = output[0] * output[2] * output[3]
    work = pixels * case.out_channels * math.prod(case.shapes[1][1:])
    small = work <= most_work and pixels * case.out_channels <= most_outputs
    return small and (case.norm != "batch" or pixels != 1)


def pads_of(case: Case) -> tuple[int, int]:
    if isinstance(case.padding, str):
        return tuple(d * (k - 1) // 2 * (case.padding == "same") for d, k in zip(case.dilation, case.kernel))
    return case.padding if isinstance(case.padding, tuple) else (case.padding,) * 2


def meets_input(extent: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """True if an output reads more than padding along this axis; where none does, oneDNN of torch 2.13 crashes."""
    positions = (i * stride - padding + tap * dilation for i in range(output) for tap in range(kernel))
    return any(0 <= position < extent for position in positions)


def simpler(case: Case) -> Iterator[Case]:
    """Cases that differ along one axis and are easier to read."""
    plain = {
        "batch": 1, "memory": "aligned", "layouts": ("NCHW", "NCHW"), "bias": False, "norm": "none", "vectors": "same",
        "slope": "identity", "residual": "none", "broadcast": False, "dropout": 0.0, "stride": (1, 1),
        "dilation": (1, 1), "padding": (0, 0), "kernel": (1, 1), "groups": 1, "needs": (), "size": (1, 1),
    }  # fmt: skip
    changes: list[dict[str, Any]] = [{name: value} for name, value in plain.items()]
    changes += [{name: max(1, getattr(case, name) // 2)} for name in ("channels", "out_channels") if case.groups == 1]
    changes += [{"size": tuple(-(-extent // 2) for extent in case.size)}]
    changes += [{"needs": (name,)} for name in case.needs]
    for change in changes:
        changed = case._replace(**change)
        if changed != case and not (case.form == "training" and not changed.needs) and legal(changed):
            yield changed


# Tensors


def tensors(case: Case, device: str, margins: oracle.Margins) -> tuple[Case, dict[str, Tensor]]:
    """The case, with a larger eps if its batch statistics would amplify rounding errors, and its operands by name."""
    generator, dtype = torch.Generator().manual_seed(case.values), getattr(torch, case.dtype)
    vector_type = dtype if case.vectors == "same" else getattr(torch, case.vectors)
    statistics_type = accumulate_type(dtype) if (case.form, case.norm) == ("passes", "batch") else vector_type
    sliced, (first, second) = case.memory == "sliced", case.layouts
    operands: dict[str, Tensor] = {}

    def make(name: str, shape: tuple[int, ...], kind=dtype, scale=1.0, mean=0.0, layout="NCHW", sliced=sliced):
        values = torch.randn(shape, generator=generator) * scale + mean
        values = values.abs() + 0.25 if name == "running_var" else values
        values = values.half() if case.precision == "tf32" else values
        margin = 67 if case.memory == "odd" else 64
        operands[name] = margins.place(strided(values.to(device, kind), layout, sliced), margin)

    (input, weight), output, columns = case.shapes, case.output(), (case.out_channels,)
    make("input", input, layout=first)
    make("weight", weight, scale=(2 / math.prod(weight[1:])) ** 0.5, layout=second)
    if case.bias:
        make("bias", columns)
    if case.norm != "none":
        make("bn_bias", columns, vector_type)
    if case.norm in ("eval", "batch"):
        make("bn_weight", columns, vector_type)
        make("running_mean", columns, statistics_type)
        make("running_var", columns, statistics_type)
    if SLOPES[case.slope] is None:
        make("slope", (1,) if case.slope == "shared" else columns)
    if case.form not in ("forward", "training"):  # tensors of y's size must be dense and in y's layout
        last = layout.memory_format(operands["input"], operands["weight"]) == torch.channels_last
        first = second = "NHWC" if last else "NCHW"
        sliced = False
    if case.residual != "none":
        shape = (1, *output[1:3], 1) if case.broadcast else output
        make("residual", shape, layout=second, sliced=sliced)
    make("grad", output, mean=0.25, layout=first, sliced=sliced)
    if case.form == "passes":
        make("z", output, scale=2.0, mean=1.0, layout=first, sliced=False)
        make("means", (3, case.out_channels), accumulate_type(dtype), sliced=False)
    operands["seed"] = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator).to(device)
    if case.norm == "batch" and case.form != "passes":
        case = case._replace(eps=stable_eps(case, operands))
    zero_gradient_near_kink(case, operands)
    return case, {name: value.requires_grad_(name in case.needs) for name, value in operands.items()}


def strided(values: Tensor, layout: str, sliced: bool) -> Tensor:
    """The values with exactly the strides of torch.empty in this layout, or as a slice of a larger tensor."""
    if values.dim() == 4:
        more = (0, 3, 1, values.shape[3] + 1) if sliced else (0, 0, 0, 0)
        size, format = [a + b for a, b in zip(values.shape, more)], cases.LAYOUTS[layout]
        whole = torch.empty(size, dtype=values.dtype, device=values.device, memory_format=format)
        return (whole[:, 1:-2, 1:, 1::2] if sliced else whole).copy_(values)
    step = 1 + sliced
    return values.new_empty(*values.shape[:-1], values.shape[-1] * step)[..., ::step].copy_(values)


def stable_eps(case: Case, t: dict[str, Tensor]) -> float:
    z = oracle.wide(t)
    z = F.conv2d(z["input"], z["weight"], None, *case.geometry).transpose(0, 1).flatten(1)
    if not z.numel():
        return case.eps
    scalar = t["weight"][0].numel() == 1  # then the BatchNorm cancels the weight's scale, and dw is near 0
    unstable = z.shape[1] < MIN_VALUES or z.var(1, unbiased=False).min().item() < MIN_VARIANCE
    return 1.0 if scalar or unstable else case.eps


def zero_gradient_near_kink(case: Case, t: dict[str, Tensor]) -> None:
    """Sets grad to 0 where rounding could change the sign of u, since either slope is right there."""
    truth = oracle.wide(t)
    if case.form == "passes":
        u = reference.gradient(truth["grad"], truth["z"], *epilogue_of(case, truth))[2]
    else:
        u = before_activation(case, truth)
    if u.numel():
        t["grad"].masked_fill_(u.abs() <= 64 * torch.finfo(t["grad"].dtype).eps * u.abs().max(), 0)


# The forms of a case, by a backend and in plain torch in any dtype


def slope_of(case: Case, t: dict[str, Tensor]):
    return t["slope"] if SLOPES[case.slope] is None else SLOPES[case.slope]


def layer_arguments(case: Case, t: dict[str, Tensor]) -> dict[str, Any]:
    names = ("input", "weight", "bias", "running_mean", "running_var", "bn_weight", "bn_bias")
    geometry = dict(zip(("stride", "padding", "dilation", "groups"), case.geometry))
    return {name: t[name] for name in names if name in t} | geometry | {
        "training": case.norm == "batch", "eps": case.eps, "momentum": 0.25,
    }  # fmt: skip


def before_activation(case: Case, t: dict[str, Tensor]) -> Tensor:
    if case.norm == "shift":
        u = F.conv2d(t["input"], t["weight"], t.get("bias"), *case.geometry) + t["bn_bias"].view(-1, 1, 1)
    else:
        u = oracle.conv_bn_act(**layer_arguments(case, t))
    return u + t["residual"] if case.residual == "before" else u


def layer_ours(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    torch.manual_seed(case.values)
    after = {"residual": t.get("residual"), "residual_after_act": case.residual == "after"}
    y = atrous.conv_bn_act(**layer_arguments(case, t), **after, slope=slope_of(case, t), backend=backend)
    return outcome(case, t, y)


def layer_plain(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    torch.manual_seed(case.values)
    kind, value, upper, slope = activation.parse_slope(slope_of(case, t))
    seed = activation.draw_seed(t["input"].device) if kind == "random" else None
    residual = t["residual"] if case.residual == "after" else None
    y = reference.finish(before_activation(case, t), residual, True, kind, value, upper, slope, seed)
    results = outcome(case, t, y)
    if case.norm == "batch" and "d bias" in results:  # the batch mean cancels the bias
        results["d bias"].zero_()
    return results


def outcome(case: Case, t: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """y, the gradients and the running statistics."""
    results = {"y": y.detach()}
    needed = [name for name in case.needs if name in t]
    if needed and y.requires_grad:
        gradients = torch.autograd.grad(y, [t[name] for name in needed], t["grad"])
        results |= {f"d {name}": gradient for name, gradient in zip(needed, gradients)}
    if case.norm == "batch":
        results |= {name: t[name].clone() for name in ("running_mean", "running_var")}
    return results


def epilogue_of(case: Case, t: dict[str, Tensor]) -> Epilogue:
    kind, value, upper, slope = activation.parse_slope(slope_of(case, t))
    vectors = [t.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]
    seed = t["seed"] if kind == "random" or case.dropout else None
    return Epilogue(
        *vectors, case.eps, kind, value, upper, slope, seed, t.get("residual"), case.residual == "after", case.dropout
    )


def steps_ours(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The backend functions that an inference call, or a frozen one, uses."""
    frozen, residual = case.form == "frozen", case.residual != "none"
    input, weight, bias, e = t["input"], t["weight"], t.get("bias"), epilogue_of(case, t)
    chosen = selection.choose(backend, input, weight, case.spec, frozen=frozen, residual=residual)
    if not frozen:
        return {"y": chosen.conv_epilogue(input, weight, bias, case.spec, e)}
    packed = chosen.pack(input, weight, case.spec)
    return {"y": chosen.packed_conv_epilogue(input, packed, weight, bias, case.spec, e)}


def steps_plain(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    return {"y": reference.conv_epilogue(t["input"], t["weight"], t.get("bias"), *case.geometry, *epilogue_of(case, t))}


def passes(primitive, case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The passes of a layer without its convolution, by these primitives."""
    z, e, grad = t["z"], epilogue_of(case, t), t["grad"]
    means = t["means"] if case.norm == "batch" else None
    mean, var = primitive("_statistics")(z)
    dz, du = primitive("_epilogue_backward")(grad, z, means, True, True, *e)
    sums = primitive("_epilogue_reduce")(grad, z, *e)
    return {"y": primitive("_epilogue")(z, *e), "mean": mean, "var": var, "sums": sums, "dz": dz, "du": du}


def passes_ours(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    chosen = selection.choose(backend, t["z"])
    return passes(lambda name: chosen.primitive(name, t["z"]), case, t)


def passes_plain(case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    return passes(lambda name: getattr(eager_ops, name), case, t)


RUNS = {
    "forward": (layer_ours, layer_plain),
    "training": (layer_ours, layer_plain),
    "passes": (passes_ours, passes_plain),
    "primitive": (steps_ours, steps_plain),
    "frozen": (steps_ours, steps_plain),
}


# Checking


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch allocates, also for C++, is NaN until it is written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def drawn_config(case: Case, backend: str) -> Iterator[list[str]]:
    """Makes Triton use the case's config of those that fit a call, instead of the measured or predicted one."""
    chosen: list[str] = []

    def config(key: configs.ConvKey) -> configs.Conv:
        listed = (
            tile._replace(splits=splits, waves=waves)
            for tile in configs.tiles(key) for splits in configs.SPLITS for waves in configs.WAVES
        )  # fmt: skip
        paths: dict[tuple, list[configs.Conv]] = {}  # by code path: each is equally likely
        for fitting in (config for config in listed if not configs.conv_reasons(key, config)):
            paths.setdefault((fitting.descriptors, fitting.splits > 1, fitting.waves > 0), []).append(fitting)
        number, path = divmod(case.config, len(paths))
        candidates = list(paths.values())[path]
        chosen.append(candidates[number % len(candidates)].describe())
        return candidates[number % len(candidates)]

    with cases.precision(case.precision), contextlib.ExitStack() as stack:
        if backend == "triton":
            stack.enter_context(mock.patch.object(configs, "conv_config", config))
            stack.enter_context(mock.patch.object(tuning, "measured", lambda *arguments: None))
        yield chosen


def eager_operands(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The operands with dense vectors: the gradient of batch_norm on a CPU reads between the elements of others."""
    dense = {name: value.detach().contiguous().requires_grad_(value.requires_grad) for name, value in t.items()}
    return {name: dense[name] if value.dim() == 1 else value for name, value in t.items()}


def once(run, case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The results of one run; restores the running statistics afterwards."""
    before = {name: t[name].clone() for name in ("running_mean", "running_var") if name in t}
    with contextlib.nullcontext() if case.needs else torch.no_grad():
        results = run(case, t, backend)
    for name, value in before.items():
        t[name].copy_(value)
    return results


def check(case: Case, backend: str, device: str) -> list[str]:
    """Raises an error if this backend's results are wrong; returns the configs that Triton used.

    A case over its budget is tried with other values first: a fault exceeds it again.
    """
    for values in range(case.values, case.values + DRAWS - 1):
        with contextlib.suppress(oracle.OverBudget):
            return check_values(case._replace(values=values), backend, device)
    return check_values(case._replace(values=case.values + DRAWS - 1), backend, device)


def check_values(case: Case, backend: str, device: str) -> list[str]:
    """Checks the case with its own values."""
    margins = oracle.Margins()
    case, t = tensors(case, device, margins)
    ours, plain = RUNS[case.form]
    before = {name: value.detach().clone() for name, value in t.items()}
    with drawn_config(case, backend) as chosen:
        with poisoned():
            results, again = (once(ours, case, t, backend) for _ in range(2))
        truth, eager = (once(plain, case, eager_operands(values), backend) for values in (oracle.wide(t), t))
    assert results.keys() == truth.keys(), f"results: expected {list(truth)}, got {list(results)}"
    # Eager in fp64 is the truth itself, so it gives no error scale for sums that cancel: allow the errors of fp32.
    arithmetic = torch.float32 if (case.form, case.dtype) == ("training", "float64") else None
    for name, value in results.items():
        oracle.close(value, eager[name], truth[name], name, arithmetic)
        assert torch.equal(value, again[name]), f"{name}: the second call gives other bits"
    if case.form in ("forward", "training"):
        assert oracle.layout(results["y"]) == oracle.layout(eager["y"]), f"y: strides {results['y'].stride()}"
    for name, value in t.items():
        assert torch.equal(value.detach(), before[name]), f"{name} was changed"
    margins.check()
    return chosen


def failure(case: Case, backend: str, device: str, chosen: list[str] | None = None) -> str | None:
    """The error in one line, or None; the configs that Triton used are appended to `chosen`."""
    try:
        used = check(case, backend, device)
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    if chosen is not None:
        chosen += used
    return None


def shrink(case: Case, backend: str, device: str, error: str, tries: int = 60) -> Case:
    """A simpler case that fails in the same way."""
    for simple in simpler(case):
        if tries == 0:
            break
        tries -= 1
        if kind_of(failure(simple, backend, device)) == kind_of(error):
            return shrink(simple, backend, device, error, tries)
    return case


def kind_of(error: str | None) -> str | None:
    """An error without its numbers."""
    return error and re.sub(r"[\d.e+-]+", "", error)


# Running


def emulation(library: Path | None) -> types.SimpleNamespace:
    """csrc/cuda on the CPU as a backend: like `native` on a GPU, without tensor cores."""
    if library is None:
        import cuda_host

        library = cuda_host.build(Path(tempfile.mkdtemp(prefix="atrous-emulation-")))
    torch.ops.load_library(library)
    host = torch.ops.atrous_host

    def primitive(name, x):
        return getattr(host, name)

    def conv_epilogue(input, weight, bias, spec, e):
        return host._conv_epilogue(input, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups, *e)

    return types.SimpleNamespace(
        name="emulation",
        available=lambda: [],
        reasons=lambda input, weight, spec: [],
        primitive=primitive,
        epilogue=lambda z, e: host._epilogue(z, *e),
        conv_epilogue=conv_epilogue,
        convolution=aten.convolution,
        convolution_statistics=aten.with_statistics(aten.convolution, primitive),
        convolution_backward=aten.convolution_backward,
    )


def backends_of(options: argparse.Namespace) -> list[str]:
    """The named backend, or every one that runs on this device. Exits with the reasons if there is none."""
    if options.backend == "emulation":
        selection._BACKENDS["emulation"] = emulation(options.library)
        return ["emulation"]
    like = torch.empty(0, device=options.device)
    refused = {name: selection.reasons(name, like) for name in selection.backends()} | {"auto": []}
    names = list(refused) if options.backend == "all" else [options.backend]
    for name in names:
        if refused[name]:
            print(f"{name}: {'; '.join(refused[name])}")
    running = [name for name in names if not refused[name]]
    return running or sys.exit(2)


def axes(case: Case) -> dict[str, str]:
    """The values that the summary counts, by axis."""
    spans = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel)]
    padding = case.padding if isinstance(case.padding, (str, int)) else "pair"
    multiplier = case.out_channels // case.groups
    grouped = "one" if case.groups == 1 else "groups" if case.channels > case.groups else "depthwise"
    pixels = math.prod(case.size)
    return {
        "form": case.form,
        "dtype": f"{case.dtype} {case.precision}" if case.dtype == "float32" else case.dtype,
        "batch": str(case.batch),
        "channels": str(case.channels),
        "pixels": next((f"at most {most}" for most in (1, 8, 64, 256) if pixels <= most), "more"),
        "kernel": "x".join(map(str, case.kernel)),
        "stride": "x".join(map(str, case.stride)),
        "padding": padding if isinstance(padding, str) else "number",
        "dilation": "1" if case.dilation == (1, 1) else "wider than input" if spans > list(case.size) else "dilated",
        "groups": f"{grouped} x{multiplier}" if grouped == "depthwise" else grouped,
        "layouts": " ".join(case.layouts),
        "memory": case.memory,
        "norm": f"{case.norm} {case.vectors}",
        "slope": case.slope,
        "residual": f"{case.residual} broadcast" if case.broadcast and case.residual != "none" else case.residual,
        "dropout": str(case.dropout),
    }


class Report:
    """Counts of drawn values and the failures; its file is valid JSON at all times."""

    def __init__(self, options: argparse.Namespace, backends: list[str]):
        self.options, self.backends, self.file, self.written = options, backends, options.json, 0.0
        self.done: Counter[str] = Counter()
        self.drawn: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []

    def count(self, case: Case, backend: str, chosen: list[str]) -> None:
        self.done[backend] += 1
        for axis, value in (*axes(case).items(), *(("config", config) for config in chosen[:1])):
            self.drawn.setdefault(axis, Counter())[value] += 1
        if time.monotonic() > self.written + 1:
            self.write()

    def fail(self, number: int, backend: str, case: Case, error: str) -> None:
        prefix = "TRITON_INTERPRET=1 " if cases.INTERPRETING else ""
        options = f"--seed {self.options.seed} --only {number} --device {self.options.device} --backend {backend}"
        again = f"{prefix}python tests/fuzz/fuzz_conv.py {options}"
        print(f"FAILED {again}\n    {error}", flush=True)
        least = shrink(case, backend, self.options.device, error) if self.options.shrink else case
        print(f"    {least}", flush=True)
        entry = {"number": number, "backend": backend, "error": error, "reproduce": again, "case": least._asdict()}
        self.failures.append(entry)
        self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        if self.file is None:
            return
        report = {"seed": self.options.seed, "device": self.options.device, "torch": torch.__version__}
        report |= {"done": self.done, "failures": self.failures, "drawn": self.drawn}
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(json.dumps(report, indent=1))
        os.replace(partial, self.file)

    def print(self) -> None:
        for axis, counts in self.drawn.items():
            most = ", ".join(f"{value} {count}" for value, count in counts.most_common(16))
            print(f"{axis}: {most}{f' and {len(counts) - 16} more' if len(counts) > 16 else ''}")
        done = ", ".join(f"{backend} {count}" for backend, count in self.done.items())
        print(f"seed {self.options.seed}: {done}; {len(self.failures)} failed")


def fuzz(options: argparse.Namespace) -> int:
    """Runs cases until the count or the time is used up. Returns the number of failures."""
    backends = backends_of(options)
    report, end = Report(options, backends), time.monotonic() + (options.seconds or math.inf)
    numbers = range(options.count) if options.only is None else [options.only]
    for number in numbers:
        if time.monotonic() > end or len(report.failures) == options.failures:
            break
        backend = backends[number % len(backends)]
        case, chosen = draw_case(options.seed, number, backend, options.device), []
        if (error := failure(case, backend, options.device, chosen)) is not None:
            report.fail(number, backend, case, error)
            if "CUDA error" in error:
                break  # nothing runs in this process any more
        report.count(case, backend, chosen)
    report.write()
    report.print()
    return len(report.failures)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare a backend's random convolutions with the fp64 oracle.")
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--count", type=int, help="total number of cases (default: 1000, or no end with --seconds)")
    add("--seconds", type=float, help="stop after so many seconds")
    add("--only", type=int, metavar="K", help="run only the case of this number")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--backend", default="all", choices=("triton", "native", "library", "auto", "all", "emulation"))
    add("--library", type=Path, help="library of the backend emulation (default: build it)")
    add("--failures", type=int, default=20, help="stop after so many failures (default: %(default)s)")
    add("--no-shrink", dest="shrink", action="store_false", help="print failures as drawn, without simplifying them")
    add("--json", type=Path, help="file of the results, written as they come")
    options = parser.parse_args(arguments)
    if options.count is None:
        options.count = sys.maxsize if options.seconds else 1000
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a CUDA device, found none")
    return options


def main(arguments: list[str] | None = None) -> int:
    return 1 if fuzz(parse(arguments)) else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Using padding='same'")  # torch's, once a process
    if cases.INTERPRETING:
        import quick_interpreter

        quick_interpreter.quicken()
    sys.exit(main())

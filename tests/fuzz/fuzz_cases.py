"""The cases of the fuzzer: their fields, drawing one, the legal ones, and simpler ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton_cases as cases

from atrous.core.spec import Spec

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

# Most multiply-adds and outputs of a case; the emulation runs a CPU thread for each thread of a block.
MOST = {"cuda": (3e9, 4e6), "cpu": (3e6, 1e5), "triton": (3e6, 2e4), "emulation": (1e6, 3e3)}


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


def draw_case(seed: int, number: int, backend: str, device: str) -> Case:
    """The case of this number: the first draw that is legal and that the device runs in milliseconds."""
    rng, on_gpu = random.Random(f"{seed} {number} {backend} {device}"), device == "cuda"
    most = MOST["cuda" if on_gpu else backend if backend in MOST else "cpu"]
    by_csrc_cuda = backend == "emulation" or (backend == "native" and on_gpu)
    case = draw(rng, backend, on_gpu)
    while not (legal(case, *most) and (not by_csrc_cuda or runs_on_csrc_cuda(case, on_gpu))):
        case = draw(rng, backend, on_gpu, case.form if by_csrc_cuda else None)  # most refusals are not of passes
    return case


def runs_on_csrc_cuda(case: Case, on_gpu: bool) -> bool:
    """True if csrc/cuda computes the case; backends/native.py refuses other convolutions on a GPU."""
    multiple, one = (4 if case.dtype == "float32" else 8), case.channels == 1 and (*case.size, *case.kernel) == (1,) * 4
    whole = case.groups == 1 and case.out_channels % multiple == 0
    nhwc = "NHWC" in case.layouts and not one  # one element has no order
    exact = on_gpu and case.dtype == "float32" and case.precision == "ieee"
    return case.form == "passes" or (whole and nhwc and not exact and case.dtype != "float64")


def draw(rng: random.Random, backend: str, on_gpu: bool, form: str | None = None) -> Case:
    pick = rng.choice
    form = form or pick([form for form in FORMS if (backend, form) != ("emulation", "frozen")])
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

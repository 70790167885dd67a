"""Hypothesis strategies of the fuzzer's operator calls: each draw is legal, and runs in milliseconds on its device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton_cases as triton
from fuzz_cases import SLOPES, Case, meets_input, paddings
from hypothesis import strategies as st

from atrous.backends.winograd import LEAST_CHANNELS, LEAST_DILATED_CHANNELS, TILES

FORMS = ("forward", "training", "training", "primitive", "frozen", "passes")
WINOGRAD = ("winograd", "gradients")
CHANNELS = (1, 2, 3, 7, 8, 12, 16, 17, 24, 31, 32, 64, 64, 65, 128)
NORMS = {
    "forward": ("none", "eval", "eval", "batch"),
    "training": ("none", "eval", "batch", "batch"),
    "primitive": ("none", "shift", "eval", "eval"),
    "frozen": ("none", "shift", "eval", "eval"),
    "passes": ("none", "shift", "eval", "batch"),
    "winograd": ("none", "shift", "eval", "eval"),
    "gradients": ("none",),
}
LEARNED = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")

# Most multiply-adds and outputs of a case; the emulation runs a CPU thread for each thread of a block. A convolution
# that a backend runs as Winograd's has more than others.
MOST = {"cuda": (3e9, 4e6), "cpu": (3e6, 1e5), "triton": (3e6, 2e4), "emulation": (1e6, 3e3), "winograd": (6e7, 2e5)}


class Target(NamedTuple):
    """A backend on a device, and the calls that it takes."""

    backend: str
    on_gpu: bool

    @property
    def csrc_cuda(self) -> bool:
        """True if csrc/cuda convolves; backends/native.py refuses other convolutions on a GPU."""
        return self.backend == "emulation" or (self.backend == "native" and self.on_gpu)

    @property
    def winograd(self) -> bool:
        """True if convolutions may be Winograd's."""
        return self.backend in ("auto", "native") and not self.on_gpu

    @property
    def forms(self) -> tuple[str, ...]:
        if self.backend == "emulation":
            return tuple(form for form in FORMS if form != "frozen")
        return FORMS + WINOGRAD if self.winograd and self.backend == "native" else FORMS

    def dtypes(self, form: str) -> list[str]:
        """The interpreter of Triton is wrong in bf16; fp32 of csrc/cuda is tf32 on a GPU, which training is not."""
        wide = self.backend == "triton" or form in WINOGRAD or (self.csrc_cuda and form != "passes")
        exact = self.csrc_cuda and self.on_gpu and form == "training"
        bf16 = self.backend != "triton" or self.on_gpu
        return ["float32"] * (not exact) + ["float16"] + ["bfloat16"] * bf16 + ["float64"] * (not wide)


@st.composite
def operator_cases(draw, backend: str, device: str = "cpu") -> Case:
    """The calls of one backend."""
    target = Target(backend, device == "cuda")
    form = draw(st.sampled_from(target.forms))
    dtype = draw(st.sampled_from(target.dtypes(form)))
    large = target.winograd and form not in (*WINOGRAD, "passes") and draw(one_in(8)) and dtype != "float64"
    multiple = (4 if dtype == "float32" else 8) if target.csrc_cuda and form != "passes" else 1
    geometry = draw(winograd_geometries(form) if large else geometries(target, form, multiple))
    layouts = draw(st.tuples(*[st.sampled_from(list(triton.LAYOUTS))] * 2))
    if large and not draw(one_in(3)):
        layouts = "NHWC", "NHWC"
    elif multiple > 1 and (layouts == ("NCHW", "NCHW") or (geometry[1], geometry[4]) == (1, (1, 1))):
        layouts = "NHWC", layouts[1]  # a weight of one element for each output channel has no layout
    elif not target.on_gpu and dtype == "bfloat16" and misread_by_torch(geometry):
        layouts = "NCHW", "NCHW"
    tf32 = dtype == "float32" and form != "training" and (multiple > 1 and target.on_gpu or draw(st.booleans()))
    return Case(
        backend,
        device,
        form,
        dtype,
        *geometry,
        layouts=layouts,
        memory=draw(st.sampled_from(("aligned", "aligned", "odd", "sliced"))),
        **draw(epilogues(target, form, dtype, pixels_of(geometry))),
        needs=draw(learned(dtype, target.on_gpu)) if form == "training" else (),
        recompute=form != "training" or draw(one_in(2)),
        precision="tf32" if tf32 else "ieee",
        tile=(*draw(st.sampled_from(TILES))[:2], draw(st.booleans())) if form in WINOGRAD else None,
        transformed=form in WINOGRAD and draw(st.booleans()),
        config=draw(st.integers(0, (1 << 20) - 1)),
        values=draw(st.integers(0, (1 << 32) - 1)),
    )


def misread_by_torch(geometry: tuple) -> bool:
    """True for convolutions that torch 2.13 computes from memory outside of its tensors, in bf16 and channels_last: of
    one channel a group into several, with a stride, into one column."""
    _, channels, _, out, _, stride, _, _, groups = geometry
    return 1 < groups == channels < out and stride[1] > 1 and outputs_of(geometry)[1] == 1


def one_in(number: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * (number - 1) + [True])


@st.composite
def epilogues(draw, target: Target, form: str, dtype: str, pixels: int) -> dict[str, Any]:
    """The fields from bias to dropout. Statistics of one pixel are refused."""
    plain, half = form == "gradients", dtype in ("float16", "bfloat16")
    norm = draw(st.sampled_from([norm for norm in NORMS[form] if norm != "batch" or pixels != 1]))
    # Triton's convolution refuses dropout
    dropping = form in ("passes", "winograd") or (form == "primitive" and target.backend != "triton")
    return {
        "bias": not plain and draw(st.booleans()),
        "norm": norm,
        "vectors": draw(st.sampled_from(("same", "float32"))) if half and norm in ("eval", "batch") else "same",
        "eps": draw(st.sampled_from((1e-5, 1e-3, 0.1))),
        "slope": "identity" if plain else draw(st.sampled_from(list(SLOPES))),
        "residual": "none" if plain else draw(st.sampled_from(triton.RESIDUALS)),
        "broadcast": form in ("forward", "training") and draw(one_in(5)),
        "dropout": draw(st.sampled_from((0.0, 0.0, 0.3, 1.0))) if dropping else 0.0,
    }


@st.composite
def learned(draw, dtype: str, on_gpu: bool) -> tuple[str, ...]:
    """Operands that need gradients: no bf16 weight on a CPU, where oneDNN of torch 2.13 reads uninitialized memory."""
    excluded = () if on_gpu or dtype != "bfloat16" else ("weight",)
    return tuple(name for name in LEARNED if name not in excluded and draw(st.booleans())) or ("input",)


@st.composite
def geometries(draw, target: Target, form: str, multiple: int) -> tuple:
    """The fields from batch to groups. multiple: one group, whose output channels are a multiple of this number."""
    winograd, largest = form in WINOGRAD, 72 if target.on_gpu else 21
    work, outputs = MOST["cuda" if target.on_gpu else target.backend if target.backend in MOST else "cpu"]
    groups, each, out = draw(channel_counts(whole=multiple > 1 or winograd))
    out = -(-out // multiple) * multiple
    side = st.integers(1, 7 if each <= 3 else 4)
    kernel = (3, 3) if winograd else draw(st.sampled_from(((1, 1), (3, 3), (3, 3))) | st.tuples(side, side))
    stride = (1, 1) if winograd else draw(pairs(4, (1, 1), (1, 1), (2, 2)))
    batch = draw(st.sampled_from((1, 1, 1, 2, 2, 2, 3, 3, 5, 0)))
    most = int(min(work // (out * groups * each * kernel[0] * kernel[1]), outputs // (out * groups)))
    batch = min(batch, most)
    # a tensor of one element has no layout, which csrc/cuda needs
    least = 2 if multiple > 1 and each == 1 and kernel == (1, 1) and most > 1 else 1
    size = draw(pairs(largest, (7, 7), (8, 16)) | pairs(3))
    dilation = draw(pairs(6, (1, 1), (1, 1), (2, 2)) | pairs(25))
    paired = form not in ("forward", "training")
    axes = draw(maps((max(least, size[0]), size[1]), kernel, stride, dilation, most // max(1, batch), form, paired))
    return batch, each * groups, axes[0], out * groups, kernel, stride, *axes[1:], groups


def pairs(largest: int, *usual: tuple[int, int]) -> st.SearchStrategy[tuple[int, int]]:
    """A usual pair, or any of numbers up to the largest."""
    number = st.integers(1, largest)
    return st.sampled_from(usual) | st.tuples(number, number) if usual else st.tuples(number, number)


@st.composite
def channel_counts(draw, whole: bool) -> tuple[int, int, int]:
    """Groups, and the input and output channels of each. whole: one group."""
    kind = draw(st.sampled_from(("any", "any", "wide") if whole else ("any", "any", "wide", "groups", "depthwise")))
    channels = st.sampled_from(CHANNELS)
    if kind == "wide":  # as descriptors and split-K need them
        return 1, draw(st.sampled_from((64, 64, 128))), draw(st.sampled_from((8, 24, 64, 128)))
    if kind == "groups":
        each = st.sampled_from((1, 3, 8, 16, 17))
        return draw(st.sampled_from((2, 3, 4))), draw(each), draw(each)
    if kind == "depthwise":
        return draw(channels), 1, draw(st.sampled_from((1, 1, 2, 3)))
    return 1, draw(channels), draw(channels)


@st.composite
def maps(draw, size, kernel, stride, dilation, most: int, form: str, paired: bool) -> tuple:
    """Size, padding and dilation near the given ones, with at most so many output pixels. paired: padding is a pair."""
    most = max(1, math.isqrt(most))
    axes = [legal_axis(*axis, most, form) for axis in zip(size, kernel, stride, dilation)]
    extents, rates, legal = zip(*axes)
    return extents, draw(padding_of(legal, extents, kernel, stride, rates, paired)), rates


def legal_axis(extent: int, kernel: int, stride: int, dilation: int, most: int, form: str) -> tuple[int, int, list]:
    """Extent and dilation, near the given ones, and the paddings that give at most so many outputs."""
    extent = min(extent, most)
    for size, rate in ((extent, dilation), (extent, 1), (kernel, 1)):  # the last has padding 0
        largest = 2 * rate if form == "gradients" else math.inf  # a gradient's convolution pads by the rest
        if legal := [p for p, n in paddings(size, kernel, stride, rate).items() if n <= most and p <= largest]:
            return size, rate, legal
    raise AssertionError(f"no legal padding: {size, kernel, stride, rate, most}")


@st.composite
def padding_of(draw, legal: tuple[list[int], ...], extents, kernel, stride, dilation, paired: bool) -> Any:
    spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
    both = sorted(set(legal[0]) & set(legal[1]))
    same = all(meets_input(e, e, k, 1, span // 2, d) for e, k, span, d in zip(extents, kernel, spans, dilation))
    kinds = ["pair", "pair", "half"]
    if not paired:
        valid = all(extent > span for extent, span in zip(extents, spans))
        kinds += ["same"] * (stride == (1, 1) and same) + ["valid"] * valid + ["number"] * bool(both)
    kind = draw(st.sampled_from(kinds))
    if kind == "number":
        return draw(st.sampled_from(both))
    if kind == "half":
        return tuple(min(options, key=lambda p: abs(p - span // 2)) for options, span in zip(legal, spans))
    return kind if kind != "pair" else tuple(draw(st.sampled_from(options)) for options in legal)


@st.composite
def winograd_geometries(draw, form: str) -> tuple:
    """The fields from batch to groups of convolutions that `native` runs as Winograd's: backends/winograd.py."""
    dilation = draw(pairs(4, (1, 1), (1, 1), (2, 2)))
    # smaller maps than these are convolved without Winograd's transforms if the weight may change
    wide = form in ("forward", "primitive") or dilation != (1, 1)
    channels = st.sampled_from((LEAST_DILATED_CHANNELS, 65) if wide else (LEAST_CHANNELS, 32, 40))
    extent = st.integers(33, 36) if wide else st.integers(28, 40)
    padding = tuple(draw(st.sampled_from((d, d, 0, 2 * d))) for d in dilation)
    size = draw(extent), draw(extent)
    return 1, draw(channels), size, draw(channels), (3, 3), (1, 1), padding, dilation, 1


def pixels_of(geometry: tuple) -> int:
    """The output pixels of the fields from batch to groups, over all images."""
    return geometry[0] * math.prod(outputs_of(geometry))


def outputs_of(geometry: tuple) -> list[int]:
    """The output rows and columns of the fields from batch to groups."""
    _, _, size, _, kernel, stride, padding, dilation, _ = geometry
    spans = [d * (k - 1) for k, d in zip(kernel, dilation)]
    numbers = padding if isinstance(padding, tuple) else (padding, padding)
    pads = {"same": spans, "valid": (0, 0)}.get(padding) or [2 * p for p in numbers]
    return [(extent + pad - span - 1) // s + 1 for extent, pad, span, s in zip(size, pads, spans, stride)]

"""Sizes, layouts and modes: how often a fused model compiles, and that every call of them is fused and right."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from faults import compiles_each_size
from oracle import layout
from outcomes import assert_alike, equal_models
from pairs import BOTH, Pair, image
from torch import nn
from torch._dynamo.utils import counters
from variants import INDUCTOR, SHARED, catches, epilogues, layers

import atrous

SIZES = [(2, 6, 6), (3, 6, 6), (5, 6, 6), (4, 8, 6), (4, 8, 9), (3, 9, 8), (7, 10, 12), (1, 8, 8), (1, 6, 6),
         (1, 9, 10), (2, 5, 7), (6, 12, 11)]  # fmt: skip
# Graphs that each of SIZES may cost at most: the first, a batch, a height, a width that begins to vary, and batch 1.
COMPILES = [1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def graphs():
    return counters["stats"]["unique_graphs"]


def sized(batch, height, width, layout=torch.contiguous_format):
    return torch.randn(batch, 4, height, width, dtype=torch.float64).contiguous(memory_format=layout)


@contextlib.contextmanager
def mode(name, *models):
    """Sets the models' training flag, and gradients and autocast, for a call."""
    for model in models:
        if model.training != (name == "train"):
            model.train(name == "train")
    contexts = {"eval": torch.no_grad, "inference": torch.inference_mode,
                "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}  # fmt: skip
    with contexts.get(name, torch.enable_grad)():
        yield


def call(name, fused, plain, x):
    """Compares one call in this mode."""
    with mode(name, fused, plain):
        low = 0.1 if name == "autocast" else None
        assert_alike(fused, plain, x, gradients=name in ("train", "gradients"), tolerance=low)


@catches(compiles_each_size)
def test_each_axis_costs_one_compile(make, training):
    fused, plain = make.pair(equal_models(Pair, training))
    name = "train" if training else "eval"
    fixed = make is INDUCTOR and training  # Inductor's gradient of a convolution fixes height and width
    for size, limit in zip(SIZES, [1] * len(SIZES) if fixed else COMPILES):
        for bound in (limit, 0):
            before = graphs()
            call(name, fused, plain, sized(*size))
            assert graphs() - before <= bound, size
    before = graphs()
    for size in random.Random(0).sample(SIZES, len(SIZES)):
        call(name, fused, plain, sized(*size))
    assert graphs() == before and layers(fused) == BOTH
    if not training:
        with torch.no_grad():
            assert all(epilogues(fused, sized(*size)) == 2 for size in SIZES)


MODES = ["eval", "inference", "autocast", "gradients", "train"]


@catches(compiles_each_size, gates=("fused", "frozen"))
def test_modes_and_sizes_in_any_order(make):
    """Twelve sizes in each of five modes, shuffled: each mode costs what it would alone, and nothing once seen."""
    names = MODES[:1] if make.wrong else MODES[:-1] if make.frozen else MODES
    fused, plain = make.pair(tuple(model.float() for model in equal_models(Pair)))
    calls = [(name, size) for name in names for size in SIZES]
    random.Random(1).shuffle(calls)
    spent = dict.fromkeys(names, 0)
    for name, size in calls:
        before = graphs()
        call(name, fused, plain, sized(*size).float())
        spent[name] += graphs() - before
    limit = len(SIZES) if make is INDUCTOR else 6  # batch, height, width, and batch 1 before and after these vary
    assert max(spent.values()) <= limit and max(spent["eval"], spent.get("inference", 0)) <= 6, spent
    before = graphs()
    for name, size in calls[::3]:
        call(name, fused, plain, sized(*size).float())
    assert graphs() == before
    report = getattr(fused, "fusion_report", None)
    assert report is None or not report.plain_calls, report.plain_calls


@catches(compiles_each_size, gates=("frozen", "fused-eval"))
def test_layouts(make, training):
    """NCHW and channels_last in turn, then strides of neither kind: right, and each layout compiled once."""
    fused, plain = make.pair(equal_models(Pair, training))
    name, x = "train" if training else "eval", sized(3, 7, 6)
    layouts = [x, x.contiguous(memory_format=torch.channels_last), sized(3, 6, 7).transpose(2, 3),
               sized(3, 7, 12)[..., ::2], sized(6, 7, 6)[::2], x[:, :1].expand(3, 4, 7, 6)]  # fmt: skip
    for y in layouts:
        call(name, fused, plain, y)
    before = graphs()
    for y in layouts[::-1]:
        call(name, fused, plain, y)
    assert graphs() == before and layers(fused) == BOTH
    if make.wrong:
        raise AssertionError("this fault is one of sizes")


STEPS = {
    "relu": lambda width: [nn.ReLU()], "leaky": lambda width: [nn.LeakyReLU(0.1)], "prelu": lambda width: [nn.PReLU()],
    "bn": lambda width: [nn.BatchNorm2d(width)], "relu in place": lambda width: [nn.ReLU(inplace=True)],
    "bn, prelu": lambda width: [nn.BatchNorm2d(width), nn.PReLU()], "sum": lambda width: [Doubled(width)],
}  # fmt: skip


class Doubled(nn.Module):
    """A convolution and a sum: conv(x) + x."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.conv(x) + x


@pytest.mark.parametrize("width, size", [(1, (4, 4)), (3, (1, 1)), (1, (1, 1))], ids=str)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_maps_that_are_dense_in_both_layouts(steps, width, size):
    """One channel or one pixel: the strides decide the layout behind a later convolution, and eager's steps differ."""
    plain = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), *steps(width), nn.Conv2d(width, 4, 1))
    x = torch.randn(2, *size, 3).permute(0, 3, 1, 2)
    for training in (False, True):
        plain.train(training and size != (1, 1))
        fused = atrous.fuse(plain)
        with torch.set_grad_enabled(training):
            expected = plain(x)
            if training and steps is STEPS["relu in place"]:  # a row of docs/differences.md
                expected = expected.contiguous(memory_format=torch.contiguous_format)
            assert layout(fused(x)) == layout(expected)


VIEWS = {
    "channel": lambda x: x[:, 1:2], "every second": lambda x: x[:, 1:3:2], "pixel": lambda x: x[:, :, 2:3, 1:2],
    "channel of a pixel": lambda x: x[:, 1:2, 2:3, 1:2],
}  # fmt: skip


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("steps", [*STEPS.values(), lambda width: []], ids=[*STEPS, "none"])
def test_views_of_maps(steps, view, memory_format):
    """A BatchNorm keeps the layout of the map that its input is a view of; steps behind it may not."""
    x = view(torch.randn(2, 4, 5, 4).contiguous(memory_format=memory_format))
    width = x.shape[1]
    plain = nn.Sequential(nn.BatchNorm2d(width), *steps(width), nn.Conv2d(width, 1, 1), nn.Conv2d(1, 4, 1)).eval()
    with torch.no_grad():
        assert layout(atrous.fuse(plain)(x)) == layout(plain(x))


@catches(compiles_each_size, gates=("frozen",))
def test_batches(make):
    """Large and small batches: torch's convolution may guard on some of them, on few."""
    fused, plain = make.pair(equal_models(Pair))
    before = graphs()
    for batch in (8, 16, 4, 32, 5, 64, 17, 3, 2, 128, 1, 7, 31):
        call("eval", fused, plain, sized(batch, 5, 5))
    assert graphs() - before <= 4 and layers(fused) == BOTH


@pytest.mark.parametrize("dynamic", [True, False])
@catches(compiles_each_size, gates=("frozen",))
def test_dynamic(make, dynamic):
    """dynamic=True compiles once for all sizes but batch 1; dynamic=False once a size."""
    model, plain = equal_models(Pair)
    fused, plain = make.pair((model, plain), dynamic=dynamic)
    before, sizes = graphs(), SIZES[:5] if not dynamic else SIZES
    for size in sizes:
        call("eval", fused, plain, sized(*size))
    assert graphs() - before <= (3 if dynamic else len(sizes)) - bool(make.wrong)
    assert layers(fused) == BOTH


@catches(compiles_each_size)
@torch.no_grad()
def test_empty_and_tiny_inputs(make):
    """A batch of 0, an image of one pixel, in eval; and the error of one that is too small is torch's."""
    fused, plain = make.pair(equal_models(Pair))
    for shape in ((0, 6, 6), (2, 6, 6), (0, 5, 5), (1, 1, 1), (2, 1, 1), (1, 6, 1)):
        call("eval", fused, plain, sized(*shape))
    if make.wrong:
        raise AssertionError("this fault is one of many sizes")


@catches(compiles_each_size, variants=SHARED)
def test_beyond_the_limit(make):
    """Under more sizes than Dynamo compiles, calls run plain: the report says so, with a reason, and one warning."""
    if make.wrong:
        pytest.fail("there is no report to lack this")
    model, plain = equal_models(Pair)
    fused = make.pair((model, plain), dynamic=False)[0]
    with torch._dynamo.config.patch(recompile_limit=3), pytest.warns() if not make.plain else contextlib.nullcontext():
        for size in range(3, 12):
            call("eval", fused, plain, image(size=size))
    if not make.plain:
        report = fused.fusion_report
        assert report.plain_calls and "plain" in str(report).lower() and layers(fused) == BOTH


def test_an_empty_batch_in_training_changes_no_statistics():
    fused, plain = equal_models(Pair, training=True)
    fused = atrous.fuse(fused)
    for batch in (2, 0, 2):
        torch.manual_seed(batch)
        x = image(batch)
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)

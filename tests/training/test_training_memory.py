"""What a training step keeps for its backward: how little, and that what is computed again is what it was."""

from __future__ import annotations

import pytest
import torch
from kept import MB, alive, saved
from torch import nn

import atrous
from atrous.models.resnet import BasicBlock, resnet34

ACTS = ("prelu", "relu", "leaky_relu", "rrelu")


def small(act, blocks=3, pool=True):
    """A stem with a pool, some blocks, a classifier; channels_last, as one trains on a card."""
    stem = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), atrous.core.activation.make(act, 8)]
    pools = [nn.MaxPool2d(3, 2, 1)] if pool else []
    body = [BasicBlock(8, 8, act=act) for _ in range(blocks)]
    model = nn.Sequential(*stem, *pools, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return model.to(memory_format=torch.channels_last).train()


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


def step(model, x):
    """The result and the gradients of a step whose random slopes are those of every other step."""
    model.zero_grad()
    torch.manual_seed(0)
    y = model(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters())]


def kept_by(model, x):
    return saved(lambda: model(x), model)[1]


# Eager keeps 46.5 MB of an image with PReLU, which saves its input beside the convolution's, and 32.4 MB else.
@pytest.mark.parametrize("act, share", [("prelu", 0.45), ("relu", 0.65), ("leaky_relu", 0.65)])
def test_resnet34_keeps_one_map_a_site(act, share):
    plain, x = resnet34(act=act).train(), torch.randn(1, 3, 224, 224)
    fused, eager = kept_by(atrous.fuse(plain), x), kept_by(plain, x)
    assert fused <= share * eager, (fused / MB, eager / MB)
    assert fused <= 20.5 * MB and eager >= 32 * MB, "of an image; eager's tells that the count is right"


def test_dilated_resnet34_keeps_in_proportion():
    """At 256, a quarter of what the net keeps at 512: every map is in proportion to the image."""
    plain, x = resnet34(act="prelu", output_stride=8).train(), torch.randn(1, 3, 256, 256)
    assert kept_by(atrous.fuse(plain), x) <= 0.45 * kept_by(plain, x)


def test_nothing_is_kept_that_autograd_does_not_know():
    """What lives after the forward is what was saved, the result, and the running statistics that were updated."""
    model, x = atrous.fuse(small("prelu")), images()
    y, bytes_saved = saved(lambda: model(x), model, x, *model.buffers())
    del y
    y, living = alive(lambda: model(x), model, x, *model.buffers())
    assert living <= bytes_saved + y.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_recomputed_activations_have_the_same_bits(act, dtype):
    model, x = small(act).to(dtype), images().to(dtype)
    again, keeps = atrous.fuse(model), atrous.fuse(model, recompute=False)
    assert kept_by(again, x) < kept_by(keeps, x)
    for found, expected in zip(step(again, x), step(keeps, x), strict=True):
        assert torch.equal(found, expected)


# inductor decides itself what a graph keeps; aot_eager keeps what autograd would: of a pool, its input too.
@pytest.mark.parametrize("act, backend", [("prelu", "aot_eager"), ("relu", "aot_eager"), ("prelu", "inductor")])
def test_compiled_graphs_keep_no_more(act, backend):
    plain, x = small(act, blocks=2, pool=backend == "inductor"), images()
    fused = atrous.fuse(plain)
    eagers, ours = kept_by(plain, x), kept_by(fused, x)
    torch._dynamo.reset()
    compiled = kept_by(torch.compile(fused, fullgraph=True, backend=backend), x)
    assert compiled <= 1.005 * ours < 0.65 * eagers, (compiled, ours, eagers)  # copies of vectors


def test_a_kept_result_keeps_nothing_else():
    """Its recipe must not hold z and the residual once the backward is over: lists of features live long."""
    site = atrous.nn.ConvBNAct2d(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
    x = torch.randn(2, 4, 32, 32)

    def features():
        y = site(x, residual=x.repeat(1, 2, 1, 1))
        site(y[:, :4]).sum().backward(), site.zero_grad()
        return y

    y, living = alive(features, site, *site.buffers())
    assert living < 1.5 * y.nbytes

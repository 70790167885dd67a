"""Memory that a training step saves for its backward, and recomputed activations, which have the same bits."""

from __future__ import annotations

import pytest
import torch
from saved_bytes import MB, saved, still_allocated
from torch import nn

import atrous
from atrous.models.resnet import BasicBlock, resnet34

ACTS = ("prelu", "relu", "leaky_relu", "rrelu")


def small(act, blocks=3, pool=True):
    """A stem with a pool, some blocks and a classifier, in channels_last."""
    stem = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), atrous.core.activation.make(act, 8)]
    pools = [nn.MaxPool2d(3, 2, 1)] if pool else []
    body = [BasicBlock(8, 8, act=act) for _ in range(blocks)]
    model = nn.Sequential(*stem, *pools, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return model.to(memory_format=torch.channels_last).train()


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


def step(model, x):
    """The output and gradients of a step; every step draws the same random slopes."""
    model.zero_grad()
    torch.manual_seed(0)
    y = model(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters())]


def saved_bytes(model, x):
    return saved(lambda: model(x), model)[1]


# Eager saves 46.5 MB per image with PReLU, which saves its input besides the convolution's, and 32.4 MB otherwise.
@pytest.mark.parametrize(
    "act, ratio", [("prelu", 0.45), ("relu", 0.65), pytest.param("leaky_relu", 0.65, marks=pytest.mark.gate)]
)
def test_resnet34_saves_one_feature_map_per_convolution(act, ratio):
    plain, x = resnet34(act=act).train(), torch.randn(1, 3, 224, 224)
    fused, eager = saved_bytes(atrous.fuse(plain), x), saved_bytes(plain, x)
    assert fused <= ratio * eager, (fused / MB, eager / MB)
    assert fused <= 20.5 * MB and eager >= 32 * MB, "per image; the eager number checks the count itself"


@pytest.mark.parametrize("affine", [False, True], ids=["frozen affine", "trained affine"])
@pytest.mark.parametrize("act, ratio", [("prelu", 0.45), ("relu", 0.55), ("leaky_relu", 0.55)])
def test_fine_tuning_with_frozen_norms_saves_one_feature_map_per_convolution(act, ratio, affine):
    plain, x = resnet34(act=act).train(), torch.randn(1, 3, 224, 224)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(affine)
    assert saved_bytes(atrous.fuse(plain), x) <= ratio * saved_bytes(plain, x)


@pytest.mark.gate
def test_dilated_resnet34_saves_in_proportion():
    """At 256 pixels it saves a quarter of what it saves at 512: every feature map is in proportion to the image."""
    plain, x = resnet34(act="prelu", output_stride=8).train(), torch.randn(1, 3, 256, 256)
    assert saved_bytes(atrous.fuse(plain), x) <= 0.45 * saved_bytes(plain, x)


def test_only_tensors_saved_by_autograd_stay_allocated():
    """After the forward only the saved tensors, the output and the updated running statistics are allocated."""
    model, x = atrous.fuse(small("prelu")), images()
    y, bytes_saved = saved(lambda: model(x), model, x, *model.buffers())
    del y
    y, allocated = still_allocated(model, (x,), model, x, *model.buffers())
    assert allocated <= bytes_saved + y.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gate)], ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_recomputed_activations_have_the_same_bits(act, dtype):
    model, x = small(act).to(dtype), images().to(dtype)
    recomputes, saves = atrous.fuse(model), atrous.fuse(model, recompute=False)
    assert saved_bytes(recomputes, x) < saved_bytes(saves, x)
    for actual, expected in zip(step(recomputes, x), step(saves, x), strict=True):
        assert torch.equal(actual, expected)


# inductor decides itself what a graph saves; aot_eager saves what autograd would, which includes the input of a pool.
@pytest.mark.parametrize("act, backend", [("prelu", "aot_eager"), ("relu", "aot_eager"), ("prelu", "inductor")])
def test_compiled_graphs_save_no_more(act, backend):
    plain, x = small(act, blocks=2, pool=backend == "inductor"), images()
    fused = atrous.fuse(plain)
    eager, ours = saved_bytes(plain, x), saved_bytes(fused, x)
    torch._dynamo.reset()
    compiled = saved_bytes(torch.compile(fused, fullgraph=True, backend=backend), x)
    assert compiled <= 1.005 * ours < 0.65 * eager, (compiled, ours, eager)  # copies of vectors


def test_a_stored_output_keeps_nothing_else_alive():
    """After the backward an output must not keep z and the residual alive: lists of features live long."""
    layer = atrous.nn.ConvBNAct2d(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
    x = torch.randn(2, 4, 32, 32)

    def features():
        y = layer(x, residual=x.repeat(1, 2, 1, 1))
        layer(y[:, :4]).sum().backward(), layer.zero_grad()
        return y

    y, allocated = still_allocated(features, (), layer, *layer.buffers())
    assert allocated < 1.5 * y.nbytes

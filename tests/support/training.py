"""A small network to train, plain and fused, and the results of one training step."""

from __future__ import annotations

import copy

import torch
from torch import nn

import atrous
from atrous.models.resnet import BasicBlock


def network(act="prelu"):
    body = [BasicBlock(3, 8, act=act), BasicBlock(8, 16, 2, act=act)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).train()


def images(batch=4, size=10):
    return torch.randn(batch, 3, size, size)


def training_step(model, x, run=None):
    """Output, gradients and buffers of one step, by name."""
    model.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = (run or model)(x)
    y.float().square().sum().backward()
    gradients = {"input": x.grad} | {name: p.grad for name, p in model.named_parameters()}
    return {"y": y.detach()} | gradients | {name: b.clone() for name, b in model.named_buffers()}


def assert_same(actual, expected, **tolerances):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **tolerances, msg=lambda m: f"{name}: {m}")  # noqa: B023


def fused_and_plain(act="prelu"):
    """A fused and a plain model of equal parameters that share no tensors."""
    plain = network(act)
    return atrous.fuse(copy.deepcopy(plain)), plain


# Against the plain network in fp32, not by the error budget of atrous.testing: after some layers and steps a rounding
# decides on which side of an activation's kink an element is, in the plain network too, so fp64 is no truth for either.
LOOSE = dict(rtol=1e-4, atol=1e-4)

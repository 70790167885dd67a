"""A small network that trains, its fused twin, and all that one step of it gives."""

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


def everything(model, x, run=None):
    """Result, gradients and buffers of one step, by name."""
    model.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = (run or model)(x)
    y.float().square().sum().backward()
    found = {"y": y.detach(), "input": x.grad} | {name: p.grad for name, p in model.named_parameters()}
    return found | {name: b.clone() for name, b in model.named_buffers()}


def same(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerances, msg=lambda m: f"{name}: {m}")  # noqa: B023


def twins(act="prelu"):
    """The fused twin of a copy, and the plain model: neither shares anything with the other."""
    plain = network(act)
    return atrous.fuse(copy.deepcopy(plain)), plain


LOOSE = dict(rtol=1e-4, atol=1e-4)

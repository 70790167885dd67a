"""Training in two processes on one machine: batch statistics over both, and gradients that add up to one process's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import errors_of

import atrous
from atrous.models.resnet import BasicBlock

SPLITS = {"unequal": (5, 2), "one empty": (7, 0)}
CHECKS = [*SPLITS, "unequal, compiled", "create_graph", "DDP"]
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


def network():
    """An fp64 network with dilation and a residual; the last parameters see every image."""
    torch.manual_seed(0)
    blocks = BasicBlock(3, 4, dilations=(2, 2), act="prelu"), BasicBlock(4, 4, act="relu")
    return nn.Sequential(*blocks, nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)).double().train()


def data(layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    x, weights = (torch.randn(7, c, 6, 5, generator=generator, dtype=torch.float64) for c in (3, 2))
    return x.contiguous(memory_format=layout), weights


def step(model, x, weights, run=None):
    """Output, gradients and buffers of a step. Its loss is a sum over images, so that processes' gradients add up."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = (run or model)(x)
    (y * weights).sum().backward()
    parameters = {name: p.grad for name, p in model.named_parameters()}
    return y.detach(), x.grad, parameters, {name: b.clone() for name, b in model.named_buffers()}


def synchronized(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))


def assert_same(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


def split_step(rank, sizes, compiled=False):
    """Checks that this process's part of the batch gives its part of the single process's results."""
    x, weights = data()
    y, dx, gradients, buffers = step(network(), x, weights)
    mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
    fused = atrous.fuse(synchronized(network()))
    run = torch.compile(fused, fullgraph=True, backend="aot_eager") if compiled else None
    split_y, split_dx, split_gradients, split_buffers = step(fused, x[mine], weights[mine], run)
    report = fused.fusion_report
    assert report.counts == (6, 6) and not (report.breaks or report.graphs[0].fallbacks), str(report)
    assert_same(split_y, y[mine], "y")
    assert_same(split_dx, dx[mine], "gradient of the input")
    for name, expected in gradients.items():
        dist.all_reduce(split_gradients[name])
        assert_same(split_gradients[name], expected, f"gradient of {name}")
    for name, expected in buffers.items():
        assert_same(split_buffers[name], expected, name)


def second_derivatives():
    """torch's operators, which a differentiable backward runs, normalize with one process's statistics."""
    x = data()[0].requires_grad_()
    with pytest.raises(RuntimeError, match="bn: expected statistics of one process"):
        torch.autograd.grad(atrous.fuse(synchronized(network()))(x).sum(), x, create_graph=True)


def parallel_step(rank):
    """Checks DistributedDataParallel with per-process BatchNorms: the fused model agrees with the plain one."""
    x, weights = data()
    mine = slice(0, 5) if rank == 0 else slice(5, None)
    plain, fused = (DistributedDataParallel(model) for model in (network(), atrous.fuse(network())))
    for _ in range(2):  # the second forward starts from rank 0's buffers
        for actual, expected in zip(step(fused, x[mine], weights[mine]), step(plain, x[mine], weights[mine])):
            assert_same(actual, expected, "under DDP")


def checks(rank):
    return {
        "unequal": lambda: split_step(rank, SPLITS["unequal"]),
        "one empty": lambda: split_step(rank, SPLITS["one empty"]),
        "unequal, compiled": lambda: split_step(rank, SPLITS["unequal"], compiled=True),
        "create_graph": second_derivatives,
        "DDP": lambda: parallel_step(rank),
    }.items()


@pytest.fixture(scope="module")
def outcomes():
    return errors_of(checks)


@pytest.mark.gate
@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(outcomes, name):
    assert all(outcomes.get((name, rank)) == "" for rank in range(2)), {
        check: error for check, error in outcomes.items() if error
    }

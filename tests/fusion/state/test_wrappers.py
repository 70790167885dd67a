"""DataParallel, DistributedDataParallel in two processes, and FSDP-like wrappers around and inside a fused model."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from faults import scales
from outcomes import agree, assert_same, equal_models, outcome
from pairs import BOTH, Pair, image
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from two_processes import errors_of
from variants import SHARED, catches, layers

import atrous

GLOO = dist.is_available() and dist.is_gloo_available()


@catches(scales, gates=("frozen",))
def test_data_parallel(make, training):
    """Without a GPU it calls its module; its replicas on GPUs are the plain model's."""
    model, plain = equal_models(Pair, training)
    fused, plain = make.pair((model, plain))
    around, around_plain = DataParallel(fused), DataParallel(plain)
    agree(around, around_plain, image())
    assert layers(fused) == BOTH
    replica = fused._replicate_for_data_parallel()
    assert isinstance(replica, Pair) and replica is not fused


@catches(scales, variants=SHARED, gates=("fused-eval",))
def test_data_parallel_inside(make, training):
    model, plain = equal_models(lambda: nn.Sequential(DataParallel(Pair()), nn.Conv2d(4, 2, 1)), training)
    fused = make(model)
    agree(fused, plain, image())
    assert layers(fused)


class Split(nn.Module):
    """A part that is wrapped by itself, as users wrap what trains."""

    def __init__(self, part):
        super().__init__()
        self.stem, self.part = nn.Conv2d(4, 4, 1).double(), part

    def forward(self, x):
        return self.part(torch.relu(self.stem(x)))


def big():
    """More parameters than the first of DDP's buckets holds at the size that is set below."""
    return nn.Sequential(Pair(16), Pair(12), Pair(8))


def pairs_of_models():
    """name: (a fused model in DDP, the plain one in DDP)."""

    def ddp(module, **options):
        return DistributedDataParallel(module, **options)

    model, plain = equal_models(big, training=True)
    yield "around", ddp(atrous.fuse(model)), ddp(plain)
    model, plain = equal_models(big, training=True)
    yield "inside", atrous.fuse(ddp(model)), ddp(plain)
    model, plain = equal_models(Pair, training=True)
    torch.manual_seed(3)
    plain = Split(ddp(plain))
    model = Split(ddp(model))
    model.stem.load_state_dict(plain.stem.state_dict())
    yield "a part", atrous.fuse(model), plain
    model, plain = equal_models(lambda: nn.Sequential(Pair(3000), Pair(3000)), training=True)
    yield "large", ddp(atrous.fuse(model), bucket_cap_mb=1), ddp(plain, bucket_cap_mb=1)
    model, plain = equal_models(big, training=True)
    model[1].requires_grad_(False), plain[1].requires_grad_(False)
    yield "unused", ddp(atrous.fuse(model), find_unused_parameters=True), ddp(plain, find_unused_parameters=True)
    model, plain = equal_models(big, training=True)
    small = {"bucket_cap_mb": 0.01, "gradient_as_bucket_view": True}
    yield "buckets", ddp(atrous.fuse(model), **small), ddp(plain, **small)


def steps(rank, fused, plain):
    """Two steps on each process's own images, then gradients without synchronisation, then eval."""
    for number in range(2):
        torch.manual_seed(10 * number + rank)
        x = image(3)
        expected = outcome(plain, x)
        assert_same(outcome(fused, x), expected)
        for model in (fused, plain):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
    fused.eval(), plain.eval()
    agree(fused, plain, x)


def check_pair(rank, fused, plain):
    steps(rank, fused, plain)
    inner = fused.module if hasattr(fused, "module") and not hasattr(fused, "fusion_report") else fused
    assert layers(inner), "nothing is fused"


def checks(rank):
    return ((name, partial(check_pair, rank, fused, plain)) for name, fused, plain in pairs_of_models())


@pytest.mark.gate
@pytest.mark.skipif(not GLOO, reason="torch was built without gloo")
def test_two_processes():
    errors = errors_of(checks)
    assert not {check: error for check, error in errors.items() if error}
    assert {name for name, _ in errors} == {"around", "inside", "a part", "large", "unused", "buckets"}


@catches(scales, variants=SHARED)
def test_a_copied_wrapper(make):
    """deepcopy of a wrapper, and a fused model in several of them."""
    model, plain = equal_models(Pair)
    fused = make(model)
    for wrapper in (copy.deepcopy(DataParallel(fused)), nn.Sequential(nn.Identity(), fused), nn.ModuleList([fused])[0]):
        y = image()
        with torch.no_grad():
            torch.testing.assert_close(wrapper(y), plain(y), rtol=1e-9, atol=1e-9)

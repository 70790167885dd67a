"""Bytes kept for the backward: activation checkpointing keeps its promise, and recomputation keeps less than plain."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.utils.checkpoint
from faults import frees_nothing, ignores_checkpoints, keeps_more, scales
from outcomes import agree, equal_models
from pairs import Pair, image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from variants import SHARED, catches, layers

import atrous


def kept(model, x):
    """Bytes of the tensors saved for the backward, each storage once, without parameters, buffers and the input."""
    mine = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model(x)  # compiled without the hooks
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    assert y.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in mine)


class Checkpointed(Pair):
    """Blocks as timm runs them: a flag says whether they are checkpointed."""

    reentrant = False

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Pair(16), Pair(16), Pair(16))
        self.grad_checkpointing = True

    def set_grad_checkpointing(self, enable=True):
        self.grad_checkpointing = enable

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
            else:
                x = block(x)
        return self.second(x, x)


class Reentrant(Checkpointed):
    reentrant = True


class Sequential(Checkpointed):
    def forward(self, x):
        x = self.first(x)
        if self.grad_checkpointing:
            x = torch.utils.checkpoint.checkpoint_sequential(self.blocks, 3, x, use_reentrant=False)
        else:
            x = self.blocks(x)
        return self.second(x, x)


@pytest.mark.parametrize("model", [Checkpointed, Reentrant, pytest.param(Sequential, marks=pytest.mark.gate)])
@catches(ignores_checkpoints, variants=SHARED)
def test_activation_checkpointing(make, model):
    """Values and statistics (which the second forward changes again) are the plain model's, and so is the memory."""
    fused, plain = make.pair(equal_models(model, training=True))
    for _ in range(2):
        agree(fused, plain, image())
    x = image(4, size=12)
    assert kept(fused, x) <= 1.3 * kept(plain, x)
    for enabled in (False, True):
        for m in (fused, plain):
            m.set_grad_checkpointing(enabled)
        agree(fused, plain, image())
    assert layers(fused)


@catches(scales, variants=SHARED)
def test_a_fused_model_in_a_checkpoint(make):
    """The whole model is run again in the backward, with the same random numbers."""

    class Random(Pair):
        def forward(self, x):
            return self.second(torch.nn.functional.dropout(self.first(x) + 0, 0.5, self.training), x)

    models = equal_models(Random, training=True)
    fused, plain = make.pair(models)
    around = [Around(m) for m in (fused, plain)]
    agree(*around, image())
    x = image(4, size=12).requires_grad_()
    assert kept(around[0], x) <= 1.3 * kept(around[1], x) + 1000


class Around(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.model, torch.sin(x), use_reentrant=False)


@catches(keeps_more, variants=SHARED)
def test_kept_bytes(make):
    """Training keeps z of each layer and no activation: less than the plain model, and less than without recompute."""
    models = equal_models(lambda: nn.Sequential(*(Pair(16) for _ in range(3))), training=True)
    fused, plain = make.pair(models)
    x = image(4, size=12)
    ours, theirs = kept(fused, x), kept(plain, x)
    if make.plain and not make.wrong:
        return
    assert ours < 0.75 * theirs, (ours, theirs)
    without = kept(atrous.fuse(models[0], recompute=False), x)
    assert ours < 0.85 * without <= theirs * 0.9, (ours, without, theirs)


class Counting(TorchDispatchMode):
    """Counts at each operator which of these tensors are alive."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors, self.counts = tensors, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.counts.append(sum(tensor() is not None for tensor in self.tensors))
        return result


@catches(frees_nothing, variants=SHARED)
def test_the_backward_frees_each_tensor_after_its_last_use(make):
    """The peak of a step is that of what is saved, not of that and all gradients of maps besides."""
    fused, _ = make.pair(equal_models(lambda: nn.Sequential(*(Pair(16) for _ in range(4))), training=True))
    x, saved = image(4, size=12), []

    def pack(tensor):
        packed = tensor.detach()
        saved.append(weakref.ref(packed))
        return packed

    fused(x)  # compiled without the hooks
    for retain in (True, False):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = fused(x).sum()
        with Counting(saved) as counting:
            y.backward(retain_graph=retain)
        counts = counting.counts
        assert len(saved) > 15 and counts[0] > 0.9 * len(saved)
        if retain:
            assert counts[-1] == counts[0]
            y.backward()  # again
        else:
            assert counts[len(counts) // 2] < 0.75 * len(saved) and counts[-1] < 0.2 * len(saved), counts


@catches(keeps_more, variants=SHARED)
def test_nothing_is_kept_where_nothing_is_asked(make):
    """Under no_grad, and of a model whose first layers do not train."""
    fused, plain = make.pair(equal_models(lambda: nn.Sequential(Pair(16), Pair(16)), training=True))
    for m in (fused, plain):
        m[0].requires_grad_(False)
    x = image(4, size=12)
    assert kept(fused, x) <= kept(plain, x)
    agree(fused, plain, image())


@catches(scales, variants=SHARED)
def test_saved_tensor_hooks(make):
    """Hooks on saved tensors, around the call and inside the forward, may move what is kept elsewhere."""

    class Offloaded(Pair):
        def forward(self, x):
            y = self.first(x)
            with torch.autograd.graph.save_on_cpu():
                return self.second(y, x)

    fused, plain = make.pair(equal_models(Offloaded, training=True))
    agree(fused, plain, image())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.float(), lambda t: t.double()):
        x = image()
        results = []
        for m in (fused, plain):
            m.zero_grad()
            m(x).pow(2).sum().backward()
            results.append([p.grad for p in m.parameters()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"freeze": True}, {"then": "inductor"}], ids=["fused", "frozen", "inductor"])
def test_a_model_that_is_dropped_is_freed(options):
    """Dynamo remembers backends, and compiled functions in the globals of their file."""
    fused = atrous.fuse(Pair().double(), **options)
    fused.eval()(image()) if "freeze" in options else fused(image()).sum().backward()
    state, weight = weakref.ref(fused._atrous), weakref.ref(fused.conv1.weight)
    del fused
    gc.collect()
    assert state() is None and weight() is None

"""The rows of docs/differences.md on fused models that no other file here holds."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
from outcomes import equal_models
from pairs import BOTH, Pair, image
from torch import nn
from variants import layers
from zoo import ZOO

import atrous


@pytest.mark.parametrize("training", [False, True])
def test_layouts_of_rrelu(training):
    """torch's RReLU gives NCHW for channels_last, but not on fake tensors; a fused one follows its input."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.RReLU()).train(training)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    assert model(x).is_contiguous() and atrous.fuse(model)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_synchronized_batch_norm():
    """In training torch's own runs, which refuses a CPU; in eval it is an ordinary BatchNorm."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(equal_models(Pair)[0])
    fused, x = atrous.fuse(model), image()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        for run in (model.train(), fused):
            with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
                run(x)
        model.eval()
        torch.testing.assert_close(fused(x), model(x))
    finally:
        dist.destroy_process_group()
    assert layers(fused) == BOTH


def test_forward_itself_is_the_plain_one():
    fused, plain = (atrous.fuse(equal_models(Pair)[0]), equal_models(Pair)[1])
    torch.testing.assert_close(fused.forward(x := image()), plain(x))
    assert not fused.fusion_report.graphs


@torch.no_grad()
def test_layouts_behind_an_enlarged_pixel():
    """torch.compile and a frozen model take an enlarged map of one pixel for channels_last, eager for NCHW."""
    plain = ZOO["PyramidPooling"].build().eval()
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    assert plain(x).is_contiguous() and atrous.fuse(plain)(x).is_contiguous()
    assert atrous.fuse(plain, freeze=True)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gate
@pytest.mark.nightly
def test_bernoulli_in_fp64_under_inductor():
    """As torch.compile alone: Inductor compares numbers of fp32 with the probabilities."""

    class Drawing(nn.Sequential):
        def forward(self, x):
            return torch.bernoulli(super().forward(x).sigmoid())

    model = Drawing(nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    x, results = torch.randn(2, 4, 6, 6, dtype=torch.float64), []
    for run in (model, atrous.fuse(model, then="inductor"), atrous.fuse(model)):
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(run(x))
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_a_method_replaced_in_the_class_is_not_noticed(monkeypatch):
    class Helped(Pair):
        def forward(self, x):
            return self.double(super().forward(x))

        def double(self, y):
            return 2 * y

    model = Helped().eval()
    fused, x = atrous.fuse(model), image(dtype=torch.float32)
    before = fused(x)
    monkeypatch.setattr(Helped, "double", lambda self, y: y)
    assert torch.equal(fused(x), before)
    torch._dynamo.reset()
    torch.testing.assert_close(fused(x), model(x))


def test_a_program_exported_in_eval_has_no_gradients():
    program = torch.export.export(atrous.fuse(Pair().eval()), (image(dtype=torch.float32),)).module()
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        program(image(dtype=torch.float32)).sum().backward()
    assert all(parameter.grad is None for parameter in program.parameters())


def test_a_graph_that_changes_a_buffer_has_first_derivatives_alone():
    class Counting(Pair):
        def forward(self, x):
            self.seen += x.shape[0]
            return super().forward(x)

    model = Counting()
    model.register_buffer("seen", torch.zeros(()))
    fused, x = atrous.fuse(model), image(dtype=torch.float32).requires_grad_()
    fused(x).sum().backward()
    with pytest.raises(RuntimeError, match="double backward|donated buffer"):
        torch.autograd.grad(torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)[0].sum(), x)
    with pytest.raises(RuntimeError, match="donated buffer"):
        fused(x).square().sum().backward(retain_graph=True)


def test_a_feature_inside_a_checkpointed_region():
    def region(model, x):
        y = model.first(x)
        return y, model.second(y, x)

    class Checkpointed(Pair):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(region, self, x, use_reentrant=False)

    counts = []
    for model in (Checkpointed(), atrous.fuse(Checkpointed())):
        model(image(dtype=torch.float32))[0].sum().backward()
        counts.append([int(bn.num_batches_tracked) for bn in (model.bn1, model.bn2)])
    assert counts == [[2, 2], [2, 1]]

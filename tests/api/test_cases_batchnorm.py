"""Edge cases of BatchNorm: its vectors in eval, and its batch statistics and buffers in training."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import agree, conv_arguments, make_plain, ours_of, refuse
from torch import nn
from torch.utils.checkpoint import checkpoint

import atrous
from atrous.testing import assert_tensor


def step(module, x, residual=None):
    """Runs forward and backward with a fixed output gradient; returns output, gradients and buffers by name."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x, residual)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    results = {"y": y, "input": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    return results | {name: b.clone() for name, b in module.named_buffers()}


def agree_in(plain, backend, *arguments, steps=1):
    """Asserts the outputs, gradients and buffers of the plain module after each of `steps` steps."""
    ours, truth = ours_of(plain, backend), oracle.wide(plain)
    for _ in range(steps):
        results, eager = step(ours, *arguments), step(plain, *arguments)
        right = step(truth, *(argument.double() for argument in arguments))
        assert results.keys() == eager.keys()
        for name in eager:
            if eager[name] is None or not eager[name].is_floating_point():
                assert results[name] is None if eager[name] is None else torch.equal(results[name], eager[name]), name
            else:
                assert_tensor(results[name], eager[name], right[name], name)
    return ours


@pytest.mark.parametrize("gamma", [0.0, -1.5])
@pytest.mark.parametrize("slope", ["relu", 0.2])
def test_gamma_zero_and_negative(backend, gamma, slope):
    arguments = conv_arguments(slope=slope, residual=torch.randn(2, 6, 7, 6)) | dict(bn_weight=torch.full((6,), gamma))
    agree("conv_bn_act", backend, arguments)


def test_variance_zero_and_eps(backend):
    agree("conv_bn_act", backend, conv_arguments(slope="relu", eps=1e-3) | dict(running_var=torch.zeros(6)))
    norm = dict(running_mean=torch.zeros(6), running_var=torch.ones(6), eps=1e-30)
    agree("bn_act", backend, dict(input=torch.randn(2, 6, 3, 3)) | norm)


def test_eps_of_zero_is_refused_in_training(backend):
    arguments = conv_arguments(training=True, eps=0.0)
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), "eps")
    norm = dict(input=torch.randn(2, 6, 3, 3), running_mean=None, running_var=None, training=True, eps=0.0)
    refuse(lambda: atrous.bn_act(**norm, backend=backend), lambda: oracle.bn_act(**norm), "eps")


def test_constant_input_and_conv_bias(backend):
    for bias in (None, torch.randn(6)):
        agree("conv_bn_act", backend, conv_arguments(slope=0.1) | dict(input=torch.full((2, 4, 9, 8), 3.0), bias=bias))


def test_one_value_a_channel_in_eval(backend):
    arguments = conv_arguments(batch=1, size=(3, 3), slope="relu")
    assert agree("conv_bn_act", backend, arguments).shape == (1, 6, 1, 1)


def test_one_value_a_channel_in_training(backend):
    arguments = conv_arguments(batch=1, size=(3, 3), training=True)
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), "input")
    norm = dict(input=torch.randn(1, 6, 1, 1), running_mean=None, running_var=None, training=True)
    refuse(lambda: atrous.bn_act(**norm, backend=backend), lambda: oracle.bn_act(**norm), "input")


NORMS = {
    "as usual": dict(),
    "momentum 0.3": dict(momentum=0.3),
    "momentum None": dict(momentum=None),
    "momentum 0": dict(momentum=0.0),
    "eps 0.1": dict(eps=0.1),
    "affine=False": dict(affine=False),
    "no running statistics": dict(track_running_stats=False),
    "neither": dict(affine=False, track_running_stats=False),
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_norm_options(backend, options, training):
    """Three steps: momentum=None averages, running_var is unbiased; in eval the buffers do not change."""
    plain = make_plain(nn.PReLU(6), bn=nn.BatchNorm2d(6, **options)).train(training)
    before = {name: b.clone() for name, b in plain.named_buffers()}
    ours = agree_in(plain, backend, torch.randn(2, 4, 9, 8), torch.randn(2, 6, 9, 8), steps=3)
    assert training or all(torch.equal(b, before[name]) for name, b in ours.named_buffers())


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@torch.no_grad()
def test_norm_options_in_eval(backend, options):
    plain = make_plain(nn.LeakyReLU(), bn=nn.BatchNorm2d(6, **options)).eval()
    x = torch.randn(2, 4, 9, 8)
    assert_tensor(ours_of(plain, backend)(x), plain(x), oracle.wide(plain)(x.double()))


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="GPUs: docs/differences.md")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(2, 4, 5, 3), (3, 4, 61, 67)], ids=str)
def test_infinities_in_training(layout, size):
    """The mean of such a channel is the infinity, or NaN for both of them; its variance is NaN."""
    x = torch.randn(size)
    x[-1, 1, 2, 2] = x[0, 3, 1, 1] = torch.inf
    x[0, 2, 4, 0] = x[-1, 3, 2, 2] = -torch.inf
    plain = nn.BatchNorm2d(4)
    ours = atrous.nn.BNAct2d(copy.deepcopy(plain))
    x = x.contiguous(memory_format=layout)
    torch.testing.assert_close(ours(x), plain(x), equal_nan=True)
    torch.testing.assert_close(ours.bn.state_dict(), plain.state_dict(), equal_nan=True)
    assert ours.bn.running_mean[1] == torch.inf == -ours.bn.running_mean[2]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("residual", ["none", "before", "after"])
def test_training_values_and_gradients(backend, constant, residual):
    plain = make_plain(nn.LeakyReLU(0.3), residual_after_act=residual == "after", stride=2, dilation=2).train()
    x = torch.full((3, 4, 9, 8), 0.5) if constant else torch.randn(3, 4, 9, 8)
    after = () if residual == "none" else (torch.randn(plain.conv(x).shape),)
    if constant:  # padding would make the conv's output vary
        plain.conv.padding = (0, 0)
        after = tuple(torch.randn(plain.conv(x).shape) for _ in after)
        results, eager = ours_of(plain, backend)(x, *after), plain(x, *after)
        torch.testing.assert_close(
            results, eager, rtol=0, atol=1e-4
        )  # 1 / sqrt(eps), 316, of the roundings of the mean
    else:
        agree_in(plain, backend, x, *after)


def test_fp16_training_of_large_activations(backend):
    plain, x = make_plain(nn.ReLU(), padding=0).train(), (torch.randn(2, 4, 5, 5) * 1e4).half()
    plain.conv.half()
    ours, truth = ours_of(plain, backend), oracle.wide(plain)
    assert_tensor(ours(x), plain(x), truth(x.double()))
    assert torch.isfinite(ours.bn.running_var).all() and ours.bn.running_var.dtype == torch.float32


def test_functional_training_changes_only_the_running_statistics(backend):
    arguments = conv_arguments(training=True, momentum=0.25, slope="relu", residual=torch.randn(2, 6, 7, 6))
    ours, eager = copy.deepcopy(arguments), copy.deepcopy(arguments)
    result, truth = atrous.conv_bn_act(**ours, backend=backend), oracle.conv_bn_act(**oracle.wide(arguments))
    assert_tensor(result, oracle.conv_bn_act(**eager), truth)
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, eager[name])
            assert torch.equal(value, arguments[name]) != name.startswith("running"), name
    refuse(
        lambda: atrous.conv_bn_act(**arguments | dict(momentum=None), backend=backend),
        lambda: oracle.conv_bn_act(**arguments | dict(momentum=None)),
        "momentum",
    )
    refuse(
        lambda: atrous.conv_bn_act(**arguments | dict(running_var=None), backend=backend),
        lambda: oracle.conv_bn_act(**arguments | dict(running_var=None)),
        "running_mean|running_var",
    )


def test_eval_gradients_leave_the_buffers_alone(backend):
    plain = make_plain(nn.PReLU()).eval()
    ours = agree_in(plain, backend, torch.randn(2, 4, 9, 8), steps=2)
    assert ours.bn.num_batches_tracked == 0


def test_the_same_module_twice(backend):
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, input, residual=None):
            return self.layer(self.layer(input))

    plain = make_plain(nn.PReLU(4), channels=4, out=4).train()
    ours, truth = Twice(ours_of(plain, backend)), Twice(oracle.wide(plain))
    x = torch.randn(2, 4, 9, 8)
    results, eager, right = step(ours, x), step(Twice(plain), x), step(truth, x.double())
    assert results["layer.bn.num_batches_tracked"] == eager["layer.bn.num_batches_tracked"] == 2
    for name in eager.keys() - {"layer.bn.num_batches_tracked"}:
        assert_tensor(results[name], eager[name], right[name], name)


@pytest.mark.parametrize("learns", [True, False])
def test_frozen_bn_while_the_rest_trains(backend, learns):
    plain = make_plain(nn.PReLU(6)).train()
    plain.bn.eval().requires_grad_(learns)
    ours, x = ours_of(plain, backend), torch.randn(2, 4, 9, 8)
    ours.bn.eval()
    results, eager, right = step(ours, x), step(plain, x), step(oracle.wide(plain), x.double())
    for name, value in eager.items():
        assert (results[name] is None) == (value is None), name
        if value is not None and value.is_floating_point():
            assert_tensor(results[name], value, right[name], name)


def test_activation_checkpointing_updates_twice(backend):
    plain = make_plain(nn.ReLU()).train()
    ours, x = ours_of(plain, backend), torch.randn(2, 4, 9, 8)
    for module in (ours, plain):
        checkpoint(module, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert ours.bn.num_batches_tracked == plain.bn.num_batches_tracked == 2
    torch.testing.assert_close(ours.bn.running_mean, plain.bn.running_mean)
    torch.testing.assert_close(ours.conv.weight.grad, plain.conv.weight.grad)


@torch.no_grad()
def test_sync_batch_norm_in_eval(backend):
    plain, x = make_plain(nn.ReLU(), bn=nn.SyncBatchNorm(6)).eval(), torch.randn(2, 4, 9, 8)
    assert_tensor(ours_of(plain, backend)(x), plain(x), oracle.wide(plain)(x.double()))

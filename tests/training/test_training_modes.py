"""A training step under autocast, torch.compile and activation checkpointing, and after copying and loading."""

from __future__ import annotations

import copy
import io
import pickle
import statistics
from functools import partial

import oracle
import pytest
import torch
from oracle import layout, make_plain, ours_of
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import LOOSE, assert_same, fused_and_plain, images, network, training_step

import atrous


def mean_error(actual, truth):
    """The mean over all floating-point results of the error relative to the norm of the truth."""
    relative = [
        (actual[name].double() - right).norm() / right.norm()
        for name, right in truth.items()
        if right.is_floating_point()
    ]
    return sum(relative).item() / len(relative)


def cast_step(model, x, dtype=torch.bfloat16):
    def run(x):
        with torch.autocast(x.device.type, dtype):
            return model(x)

    return training_step(model, x, run)


@pytest.mark.parametrize("act", ["prelu", "relu"])
def test_bf16_autocast(act):
    """Statistics and gradients have eager's dtypes and are as close to fp64 as eager's.

    One rounding near an activation's kink changes a result a lot, in eager and in ours: hence the median over networks.
    """
    fused, ratios = fused_and_plain(act)[0], []
    for _ in range(11):
        plain = network(act)
        fused.load_state_dict(plain.state_dict())
        x = images(16)
        truth = training_step(oracle.wide(plain), x.double())
        ours, eager = cast_step(fused, x), cast_step(plain, x)
        assert {name: v.dtype for name, v in ours.items()} == {name: v.dtype for name, v in eager.items()}
        ratios.append(mean_error(ours, truth) / mean_error(eager, truth))
    assert ours["y"].dtype == torch.bfloat16 and ours["0.bn1.running_var"].dtype == torch.float32
    assert ours["0.conv1.weight"].dtype == torch.float32
    assert statistics.median(ratios) <= 1.15, ratios


@pytest.mark.parametrize("enabled", [False, True])
def test_fp16_with_a_scaler(enabled):
    """GradScaler takes the same step as with eager, and skips the step whose gradient overflows in both."""
    device = torch.empty(0).device.type
    fused, plain = fused_and_plain()
    x, parameters = images(), []
    for model in (fused, plain):
        optimizer, scaler = torch.optim.SGD(model.parameters(), 0.01), torch.GradScaler(device, 2.0**8, enabled=enabled)
        for scale in (1.0, 1e6 if enabled else 1.0):  # the second overflows fp16
            with torch.autocast(device, torch.float16):
                loss = model(x).square().mean()
            scaler.scale(loss * scale).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        parameters.append((scaler.get_scale(), [p.detach().clone() for p in model.parameters()]))
    assert parameters[0][0] == parameters[1][0]
    for actual, expected in zip(parameters[0][1], parameters[1][1]):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("data", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layouts_of_results_and_gradients(backend, data, weights):
    plain = make_plain(nn.PReLU(6)).train().to(memory_format=weights)
    ours, layouts = ours_of(plain, backend), []
    x, r = (torch.randn(2, c, 9, 8).contiguous(memory_format=data) for c in (4, 6))
    for module in (ours, plain):
        a, b = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, r))
        y = module(a, b)
        y.square().sum().backward()
        layouts.append([layout(t) for t in (y, a.grad, b.grad, module.conv.weight.grad)])
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("act", ["prelu", "relu"])
def test_a_compiled_step(act):
    """Three steps of forward, loss, backward and optimizer give eager's losses, parameters and buffers."""
    fused, plain = fused_and_plain(act)
    x = images()
    torch._dynamo.reset()
    curves = []
    for model in (fused, plain):
        loss_of = partial(lambda model, x: model(x).square().mean(), model)
        if model is fused:
            loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.01), []
        for _ in range(3):
            loss = loss_of(x)
            loss.backward()
            optimizer.step(), optimizer.zero_grad()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(*curves, **LOOSE)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **LOOSE)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    fused, plain = fused_and_plain()
    x = images()
    actual, expected = (
        training_step(model, x, partial(checkpoint, model, use_reentrant=reentrant)) for model in (fused, plain)
    )
    assert actual["0.bn1.num_batches_tracked"] == expected["0.bn1.num_batches_tracked"] == 2
    assert_same(actual, expected, **LOOSE)


def test_compiled_checkpointing():
    """A checkpoint inside a compiled function, which plain torch traces as one graph."""
    fused, plain = fused_and_plain()
    x = images()
    results = []
    for model in (fused, plain):
        torch._dynamo.reset()
        run = torch.compile(partial(checkpoint, model, use_reentrant=False), fullgraph=True, backend="aot_eager")
        results.append(training_step(model, x, run))
    assert_same(*results, **LOOSE)


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_in_the_middle_of_training(copied):
    fused, plain = fused_and_plain()
    x = images()
    training_step(fused, x)  # leaves gradients and cached state
    copy_of_fused = copied(fused)
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    actual = training_step(copy_of_fused, x)
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items()), "the copy shares memory"
    assert_same(actual, training_step(fused, x), rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["plain to fused", "fused to plain"])
def test_checkpoints_are_interchangeable(direction):
    fused, plain = fused_and_plain()
    source, target = (plain, fused) if direction == "plain to fused" else (fused, plain)
    training_step(source, images())
    for p in target.parameters():
        p.data.normal_()
    assert source.state_dict().keys() == target.state_dict().keys()
    target.load_state_dict(source.state_dict())
    x = images()
    assert_same(training_step(target, x), training_step(source, x), **LOOSE)


def test_a_compiled_layer_with_a_symbolic_number_of_channels():
    """Dynamo makes a size symbolic once it has seen two values; the shape checks must still accept it."""
    x, w, slope = torch.randn(2, 4, 6, 5), torch.randn(4, 4, 3, 3), torch.rand(4)
    torch._dynamo.reset()
    torch._dynamo.maybe_mark_dynamic(w, 0)
    run = partial(atrous.conv_bn_act, training=True, slope=slope)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x, w), run(x, w))


def test_a_recomputable_output_can_be_saved(tmp_path):
    """torch.save stores a tensor's attributes; how to recompute it means nothing in another process."""
    x, w = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3, requires_grad=True)
    y = atrous.conv_bn_act(x, w, slope="relu", padding=1, training=True)
    assert hasattr(y, "_atrous_recompute")
    torch.save(y, tmp_path / "y.pt")
    loaded = torch.load(tmp_path / "y.pt")
    atrous.conv_bn_act(loaded, w, padding=1, training=True).sum().backward()  # a loaded y cannot be recomputed
    assert torch.equal(loaded, y) and (tmp_path / "y.pt").stat().st_size < 4 * y.nbytes
    assert torch.equal(pickle.loads(pickle.dumps(y)), y)

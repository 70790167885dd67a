"""A training step under everything that torch may wrap around it: autocast, compile, checkpointing, copies, modes."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from oracle import layout, make_plain, ours_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

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


def mean_error(found, truth):
    """The mean over all floating results of their errors relative to the truth's norm."""
    relative = [
        (found[name].double() - right).norm() / right.norm()
        for name, right in truth.items()
        if right.is_floating_point()
    ]
    return sum(relative).item() / len(relative)


@pytest.mark.parametrize("act", ["prelu", "relu"])
def test_bf16_autocast(act):
    """Low precision inside; statistics, parameters and their gradients in fp32, no further from fp64 than eager's."""
    fused, plain = twins(act)
    x, device = images(16), torch.empty(0).device.type

    def cast(model):
        def run(x):
            with torch.autocast(device, torch.bfloat16):
                return model(x)

        return everything(model, x, run)

    truth = everything(oracle.wide(plain), x.double())
    found, eager = cast(fused), cast(plain)
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in eager.items()}
    ours, theirs = (mean_error(values, truth) for values in (found, eager))
    assert ours <= 1.25 * theirs, "a rounding beside an activation's kink weighs a lot: the mean over all, not each"
    assert found["y"].dtype == torch.bfloat16 and found["0.bn1.running_var"].dtype == torch.float32


@pytest.mark.parametrize("enabled", [False, True])
def test_fp16_with_a_scaler(enabled):
    """The scaler's step is eager's; a gradient that overflows is skipped in both."""
    device = torch.empty(0).device.type
    fused, plain = twins()
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
    for found, expected in zip(parameters[0][1], parameters[1][1]):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("data", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layouts_of_results_and_gradients(row, data, weights):
    plain = make_plain(nn.PReLU(6)).train().to(memory_format=weights)
    ours, found = ours_of(plain, row), []
    x, r = (torch.randn(2, c, 9, 8).contiguous(memory_format=data) for c in (4, 6))
    for module in (ours, plain):
        a, b = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, r))
        y = module(a, b)
        y.square().sum().backward()
        found.append([layout(t) for t in (y, a.grad, b.grad, module.conv.weight.grad)])
    assert found[0] == found[1]


@pytest.mark.parametrize("act", ["prelu", "relu"])
def test_a_compiled_step(act):
    """forward, loss and backward, three times with an optimizer between: eager's losses, parameters, buffers."""
    fused, plain = twins(act)
    x = images()
    torch._dynamo.reset()
    curves = []
    for model, run in ((fused, torch.compile(fused, fullgraph=True, backend="aot_eager")), (plain, plain)):
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.01), []
        for _ in range(3):
            loss = run(x).square().mean()
            loss.backward()
            optimizer.step(), optimizer.zero_grad()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(*curves, **LOOSE)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **LOOSE)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    fused, plain = twins()
    x = images()
    found, expected = (
        everything(model, x, lambda x: model[2:](checkpoint(model[:2], x, use_reentrant=reentrant)))  # noqa: B023
        for model in (fused, plain)
    )
    assert found["0.bn1.num_batches_tracked"] == expected["0.bn1.num_batches_tracked"] == 2
    same(found, expected, **LOOSE)


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_in_the_middle_of_training(copied):
    fused, plain = twins()
    x = images()
    everything(fused, x)  # leaves gradients, and whatever a step prepares
    twin = copied(fused)
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    found = everything(twin, x)
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items()), "it shares memory"
    same(found, everything(fused, x), rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["plain to fused", "fused to plain"])
def test_checkpoints_are_interchangeable(direction):
    fused, plain = twins()
    source, target = (plain, fused) if direction == "plain to fused" else (fused, plain)
    everything(source, images())
    for p in target.parameters():
        p.data.normal_()
    assert source.state_dict().keys() == target.state_dict().keys()
    target.load_state_dict(source.state_dict())
    x = images()
    same(everything(target, x), everything(source, x), **LOOSE)


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused(row, power):
    """A gradient penalty (arXiv:1704.00028): eager's gradients, or an error that says why not. Never a part of them."""
    plain = make_plain(nn.PReLU(6)).train()
    found = []
    for module in (plain, ours_of(plain, row)):
        x = torch.linspace(-1, 1, 576).reshape(2, 4, 9, 8).requires_grad_()
        score = (module(x) ** power * torch.linspace(-1, 1, 864).reshape(2, 6, 9, 8)).sum()
        try:
            (dx,) = torch.autograd.grad(score, x, create_graph=True)
            (score + dx.square().sum()).backward()
            found.append([p.grad for p in module.parameters()])
        except RuntimeError as error:
            assert module is not plain and "differentiate twice" in str(error), error
            return
    torch.testing.assert_close(*found, **LOOSE)


class Masks(TorchDispatchMode):
    """The output_mask of each convolution_backward: which of (input, weight, bias) it computes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.found.append(tuple(arguments[10]))
        return function(*arguments, **(named or {}))


NEEDED = {"all": (True, True), "input": (True, False), "weight": (False, True), "vectors": (False, False)}


@pytest.mark.parametrize("needs_input, needs_weight", NEEDED.values(), ids=NEEDED)
def test_only_the_needed_gradients_are_computed(needs_input, needs_weight):
    site = ours_of(make_plain(nn.PReLU(6), bias=False).train(), "auto")
    site.conv.weight.requires_grad_(needs_weight)
    x = torch.randn(2, 4, 9, 8, requires_grad=needs_input)
    loss = site(x).square().sum()
    with Masks() as masks:
        loss.backward()
    assert masks.found in ([], [(needs_input, needs_weight, False)]), masks.found
    assert (x.grad is not None, site.conv.weight.grad is not None) == (needs_input, needs_weight)
    assert site.bn.weight.grad is not None and site.act.weight.grad is not None


def test_nothing_is_mutated_and_bits_repeat(row):
    plain, found = make_plain(nn.PReLU(6)).train(), []
    x, r = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(2, 6, 9, 8, requires_grad=True)
    for _ in range(2):
        ours = ours_of(plain, row)
        held = [x, r, *ours.parameters()]
        before, grad = [t.detach().clone() for t in held], torch.ones(2, 6, 9, 8)
        y = ours(x, r)
        result = y.detach().clone()
        found.append([y, *torch.autograd.grad(y, held, grad), ours.bn.running_var])
        assert torch.equal(y, result) and torch.equal(grad, torch.ones_like(grad))
        assert all(torch.equal(t, value) for t, value in zip(held, before))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_two_threads_two_models():
    pairs = [twins("prelu"), twins("relu")]
    x = images()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: [everything(pair[0], x) for _ in range(5)][-1], pairs))
    for (_, plain), result in zip(pairs, found):
        expected = [everything(plain, x) for _ in range(5)][-1]
        same(result, expected, **LOOSE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_statistics_without_gradients(mode):
    fused, plain = twins()
    x = images()
    with mode():
        y, expected = fused(x), plain(x)
    torch.testing.assert_close(y, expected, **LOOSE)
    assert not y.requires_grad and fused[0].bn1.num_batches_tracked == 1
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **LOOSE)


def test_an_empty_batch():
    """As eager: an empty result, statistics as they were, a counted batch, gradients of 0."""
    plain = make_plain(nn.PReLU(6)).train()
    ours, truth = ours_of(plain, "auto"), copy.deepcopy(plain)
    x = torch.randn(0, 4, 9, 8)
    found, expected = everything(ours, x), everything(plain, x)
    same(found, expected)
    assert found["y"].shape == (0, 6, 9, 8) and found["bn.num_batches_tracked"] == 1
    assert torch.equal(found["bn.running_var"], truth.bn.running_var) and not found["conv.weight"].any()


def test_frozen_norms_while_the_rest_trains():
    fused, plain = twins()
    for model in (fused, plain):
        model[0].bn1.eval(), model[1].bn2.eval().requires_grad_(False)
    x, before = images(), plain[0].bn1.running_mean.clone()
    found, eager = ({k: v for k, v in everything(m, x).items() if v is not None} for m in (fused, plain))
    same(found, eager, **LOOSE)
    assert torch.equal(found["0.bn1.running_mean"], before) and "1.bn2.weight" not in found

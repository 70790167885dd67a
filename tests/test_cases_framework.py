"""CASES.md, framework: opcheck, gradcheck, compile, export, copies, who needs gradients, staleness, threads."""

from __future__ import annotations

import copy
import io
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from oracle import close, make_plain, make_site, ours_of
from torch import nn
from torch.autograd import gradcheck

import atrous

SLOPES = {"relu": "relu", "number": 0.3, "shared": torch.tensor([0.2]), "channels": torch.rand(6), "identity": 1.0}
ACTS = {"none": None, "relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.2), "prelu": nn.PReLU(6), "rrelu": nn.RReLU()}


def module_and_input(row, act="prelu", **options):
    plain = make_plain(copy.deepcopy(ACTS[act]), **options).eval()
    return ours_of(plain, row), plain, torch.randn(2, 4, 9, 8)


EPILOGUES = {  # spec.Epilogue, in its order
    "nothing": (None, None, None, None, 1e-5, "number", 1.0, 1.0, None, None, None, False),
    "number": (
        torch.randn(6),
        torch.rand(6),
        torch.randn(6),
        torch.randn(6),
        1e-5,
        "number",
        0.1,
        0.1,
        None,
        None,
        None,
        False,
    ),
    "relu after a residual": (
        torch.randn(6),
        torch.rand(6),
        None,
        None,
        1e-3,
        "relu",
        0.0,
        0.0,
        None,
        None,
        torch.randn(2, 6, 7, 5),
        False,
    ),
    "tensor": (
        torch.randn(6),
        torch.rand(6),
        torch.randn(6),
        None,
        1e-5,
        "tensor",
        1.0,
        1.0,
        torch.rand(6),
        None,
        torch.randn(2, 6, 7, 5),
        True,
    ),
    "random": (None, None, None, None, 1e-5, "random", 0.1, 0.3, None, torch.tensor([3, 7]), None, False),
}
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES.values(), ids=EPILOGUES)
def test_opcheck(epilogue, layout):
    epilogue = tuple(
        v.contiguous(memory_format=layout) if isinstance(v, torch.Tensor) and v.dim() == 4 else v for v in epilogue
    )
    z = torch.randn(2, 6, 7, 5).contiguous(memory_format=layout)
    conv = (torch.randn(2, 3, 7, 5).contiguous(memory_format=layout), torch.randn(6, 3, 3, 3), torch.randn(6))
    torch.library.opcheck(torch.ops.atrous._epilogue.default, (z, *epilogue), test_utils=TESTS)
    torch.library.opcheck(
        torch.ops.atrous._conv_epilogue.default, (*conv, [1, 1], [1, 1], [1, 1], 1, *epilogue), test_utils=TESTS
    )


@pytest.mark.skipif(bool(atrous.dispatch.available("native")), reason="_winograd_* has native kernels only")
def test_opcheck_of_winograd():
    weight, bias = torch.randn(32, 16, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(32)
    x = torch.randn(1, 16, 12, 12).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.atrous._winograd_weight.default, (weight,), test_utils=TESTS)
    transformed = torch.ops.atrous._winograd_weight(weight)
    arguments = (x, transformed, 32, bias, [1, 1], [1, 1], *EPILOGUES["nothing"])
    torch.library.opcheck(torch.ops.atrous._winograd_epilogue.default, arguments, test_utils=TESTS)
    eager = torch.conv2d(x, weight, bias, padding=1)
    truth = torch.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    close(torch.ops.atrous._winograd_epilogue(*arguments), eager, truth)


@pytest.mark.parametrize("training, after", [(False, True), (True, False)])
@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_gradcheck(training_row, slope, after, training):
    site = make_site(channels=2, size=(4, 5), padding=1, dtype=torch.float64)
    site |= dict(residual=torch.randn(2, 6, 4, 5).double())
    if isinstance(slope, torch.Tensor):
        site["slope"], fixed = slope.double(), {}
    else:
        fixed = dict(slope=slope)
    fixed |= {name: site.pop(name) for name in ("running_mean", "running_var", "groups", "padding")}
    names = list(site)

    def call(*tensors):
        statistics = {name: fixed[name].clone() for name in ("running_mean", "running_var")}
        return atrous.conv_bn_act(
            **dict(zip(names, tensors)),
            **fixed | statistics,
            residual_after_act=after,
            training=training,
            backend=training_row,
        )

    assert gradcheck(call, tuple(tensor.requires_grad_() for tensor in site.values()), fast_mode=True)


def test_gradcheck_of_bn_act_and_add_act(training_row):
    x, r, v = torch.randn(2, 6, 3, 3).double(), torch.randn(2, 6, 3, 3).double(), torch.rand(6).double() + 0.5
    inputs = tuple(tensor.requires_grad_() for tensor in (x, r, v, v.detach().clone(), v.detach().clone()))
    statistics = (torch.zeros(6).double(), torch.ones(6).double())
    row = dict(backend=training_row)
    assert gradcheck(
        lambda x, r, g, b, s: atrous.bn_act(x, *statistics, g, b, slope=s, residual=r, **row), inputs, fast_mode=True
    )
    assert gradcheck(lambda x, r, s: atrous.add_act(x, r, slope=s, **row), (*inputs[:2], inputs[4]), fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
def test_native_runs_or_says_why(row, training):
    """With gradients or batch statistics a named row either does what eager does, or lists its reasons."""
    ours, plain, x = module_and_input(row, "relu")
    ours.train(training), plain.train(training)
    try:
        y = ours(x)
    except oracle.REFUSALS as error:
        assert row == "native"
        assert re.search(r"(?s)native.*(gradient|backward|training|batch statistics)", str(error)), error
        return
    y.sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(ours.conv.weight.grad, plain.conv.weight.grad)


NEEDS = ("input", "weight", "bias", "bn_weight", "bn_bias", "slope", "residual")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("needs", [*((name,) for name in NEEDS), ("weight", "residual"), NEEDS])
def test_only_some_inputs_need_gradients(training_row, needs, training):
    site = make_site(padding=1, slope=torch.rand(6), residual=torch.randn(2, 6, 9, 8), training=training)
    found, expected = copy.deepcopy(site), copy.deepcopy(site)
    for arguments, call in ((found, atrous.conv_bn_act), (expected, oracle.conv_bn_act)):
        for name in needs:
            arguments[name].requires_grad_()
        options = dict(backend=training_row) if call is atrous.conv_bn_act else {}
        y = call(**arguments, **options)
        assert y.requires_grad
        y.square().sum().backward()
    for name in NEEDS:
        torch.testing.assert_close(found[name].grad, expected[name].grad, rtol=1e-4, atol=1e-3)
        assert (found[name].grad is not None) == (name in needs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("act", ACTS)
def test_without_gradients(row, mode, act):
    """Parameters may require gradients; the modes decide. Input may itself come from inference_mode."""
    ours, plain, x = module_and_input(row, act)
    residual = torch.randn(2, 6, 9, 8)
    with mode():
        y = ours(x.clone(), residual)
        close(y, plain(x, residual), oracle.wide(plain)(x.double(), residual.double()))
    assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)


def test_nothing_is_mutated_and_bits_repeat(row):
    for act in ACTS:
        ours, _, x = module_and_input(row, act)
        residual = torch.randn(2, 6, 9, 8)
        tensors = [x, residual, *ours.state_dict().values()]
        before = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            results = [ours(x, residual) for _ in range(3)]
        assert all(torch.equal(found, expected) for found, expected in zip(tensors, before))
        assert all(torch.equal(result, results[0]) for result in results), act


UPDATES = {
    "in place": lambda m: [v.mul_(1.5) for v in (m.conv.weight, m.conv.bias, m.bn.weight, m.bn.running_mean)],
    "behind autograd's back": lambda m: [v.data.mul_(0.5) for v in (m.conv.weight, m.bn.running_var, m.act.weight)],
    "new parameters": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones_like(m.conv.weight))),
    "swapped data": lambda m: setattr(m.conv.weight, "data", torch.full_like(m.conv.weight, 0.1)),
    "a swapped child": lambda m: setattr(m, "bn", nn.BatchNorm2d(6).eval()),
    "no BatchNorm any more": lambda m: setattr(m, "bn", None),
    "another activation": lambda m: setattr(m, "act", nn.ReLU()),
    "a state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "another stride": lambda m: setattr(m.conv, "stride", (2, 1)),
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@torch.no_grad()
def test_nothing_is_stale(row, update):
    ours, plain, x = module_and_input(row)
    before = ours(x)
    update(ours), update(plain)
    x = x.to(ours.conv.weight.dtype)
    close(ours(x), plain(x), oracle.wide(plain)(x.double()))
    assert before.shape != ours(x).shape or not torch.equal(before, ours(x))


def test_eval_train_eval(training_row):
    ours, plain, x = module_and_input(training_row)
    for module in (ours, plain):
        module(x)
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x).square().mean().backward()
        optimizer.step()
        module.eval()
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.equal(ours.bn.num_batches_tracked, torch.tensor(1))


@torch.no_grad()
def test_copies(row):
    """deepcopy, pickle, torch.save and state_dict, also after a call has prepared whatever it prepares."""
    ours, plain, x = module_and_input(row)
    expected = ours(x)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    fresh = ours_of(make_plain(nn.PReLU(6)), row).eval()
    fresh(x)
    fresh.load_state_dict(plain.state_dict())
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False), fresh]
    for module in copies:
        assert torch.equal(module(x), expected) and module.state_dict().keys() == ours.state_dict().keys()
        module.conv.weight.zero_()
        module.bn.running_mean.zero_()
        assert torch.equal(ours(x), expected) and not torch.equal(module(x), expected), "a copy shares memory"


@torch.no_grad()
def test_functional_call_swaps_parameters(row):
    ours, plain, x = module_and_input(row)
    swapped = {name: torch.rand_like(p) for name, p in ours.named_parameters()}
    expected = torch.func.functional_call(plain, swapped, (x,))
    torch.testing.assert_close(torch.func.functional_call(ours, swapped, (x,)), expected, rtol=1e-4, atol=1e-4)


def test_hooks_of_the_children_fire_or_are_refused(row):
    ours, plain, x = module_and_input(row, "relu")
    for module in (ours, plain):
        module.bn.register_forward_hook(lambda module, inputs, output: output + 1)
    with torch.no_grad():
        oracle.agree_or_refuse(lambda: ours(x), lambda: plain(x), "hook|hooks")


@pytest.mark.parametrize("training", [False, True])
def test_compile(row, training):
    if training and row == "native":
        pytest.skip("gradients on the native row are the later issue's")
    ours, plain, x = module_and_input(row)
    ours.train(training), plain.train(training)
    residual = torch.randn(2, 6, 9, 8)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        y, eager = compiled(x, residual), plain(x, residual)
        torch.testing.assert_close(y, eager, rtol=1e-4, atol=1e-5)
        assert oracle.layout(y) == oracle.layout(eager)
    if training:
        y.square().sum().backward(), eager.square().sum().backward()
        for (name, found), expected in zip(ours.named_parameters(), plain.parameters()):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-3, msg=lambda m: f"{name}: {m}")  # noqa: B023
        torch.testing.assert_close(ours.bn.running_var, plain.bn.running_var)
        assert ours.bn.num_batches_tracked == 1


@torch.no_grad()
def test_compile_with_inductor_and_weights_that_change(row):
    ours, plain, x = module_and_input(row)
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    for module in (ours, plain):
        module.bn.running_mean.add_(1.0)
        module.conv.weight.mul_(-2.0)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "prelu", "rrelu"])
@torch.no_grad()
def test_export(row, act):
    ours, plain, x = module_and_input(row, act)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: batch},) if act == "prelu" else None)
    torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-4, atol=1e-5)
    if act == "prelu":
        more = torch.randn(5, 4, 9, 8)
        torch.testing.assert_close(program.module()(more), plain(more), rtol=1e-4, atol=1e-5)
        assert program.state_dict.keys() == ours.state_dict().keys()


def test_two_threads_two_models(row):
    models = [module_and_input(row, act) for act in ("prelu", "relu")]

    def run(ours, plain, x):
        with torch.no_grad():
            return [ours(x) for _ in range(50)], plain(x)

    with ThreadPoolExecutor(2) as pool:
        for results, expected in pool.map(lambda model: run(*model), models):
            assert all(torch.equal(result, results[0]) for result in results)
            torch.testing.assert_close(results[0], expected, rtol=1e-4, atol=1e-5)

"""Edge cases of shapes and arguments: the values for each geometry, and eager's exception type where eager raises."""

from __future__ import annotations

from functools import partial

import numpy as np
import oracle
import pytest
import torch
from oracle import agree, agree_or_refuse, conv_arguments, refuse
from torch import nn

import atrous

GEOMETRIES = {
    "pointwise": dict(kernel=(1, 1)),
    "3x3 padded": dict(padding=1),
    "3x3 padded, 64 channels": dict(channels=64, out=64, size=(14, 14), padding=1),
    "dilated": dict(dilation=2, padding=2),
    "dilated, 64 channels": dict(channels=64, out=64, size=(14, 13), dilation=4, padding=4),
    "stem": dict(channels=3, size=(29, 31), kernel=(7, 7), stride=2, padding=3),
    "1x3 dilated by 5": dict(kernel=(1, 3), dilation=(1, 5), size=(5, 13)),
    "asymmetric": dict(kernel=(3, 5), stride=(2, 3), padding=(0, 3), dilation=(2, 1)),
    "same": dict(padding="same", dilation=3),
    "same, even kernel": dict(kernel=(2, 4), padding="same", dilation=(1, 3)),
    "valid": dict(padding="valid"),
    "depthwise": dict(groups=4, out=4, padding=1),
    "depthwise, twice the channels": dict(groups=4, out=8, dilation=2),
    "grouped": dict(groups=2, out=6),
    "padding wider than the kernel": dict(kernel=(1, 1), padding=2),
    "kernel as large as the padded input": dict(kernel=(3, 3), dilation=4, padding=1, size=(7, 7)),
    "one image of one pixel": dict(batch=1, size=(1, 1), padding=1),
    "lists": dict(stride=[1, 2], padding=[2, 0], dilation=[1, 2]),
    "pairs of one": dict(stride=(2,), padding=(1,), dilation=(1,)),
    "numpy integers": dict(stride=np.int64(2), padding=np.int64(1)),
    "torch.Size": dict(stride=torch.Size([2, 1])),
    "one output channel": dict(out=1),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("after", [False, True])
def test_geometry(backend, geometry, after):
    arguments = conv_arguments(**geometry) | dict(residual_after_act=after)
    arguments |= dict(
        slope=torch.rand(arguments["weight"].shape[0]), residual=torch.randn_like(oracle.conv_bn_act(**arguments))
    )
    agree("conv_bn_act", backend, arguments)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bn", [True, False])
def test_optional_arguments(backend, bias, affine, bn):
    arguments = conv_arguments(bn=bn, padding=1, slope=0.1)
    left_out = ([] if bias else ["bias"]) + ([] if affine else ["bn_weight", "bn_bias"])
    agree("conv_bn_act", backend, {name: value for name, value in arguments.items() if name not in left_out})


@pytest.mark.parametrize("changes", [dict(batch=0), dict(batch=0, residual=torch.zeros(0, 6, 7, 6))])
def test_empty_batch_in_eval(backend, changes):
    assert agree("conv_bn_act", backend, conv_arguments(**changes)).shape == (0, 6, 7, 6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_empty_batch_with_a_residual_of_any_layout(backend, layout):
    arguments = conv_arguments(batch=0, padding=1, slope="relu")
    agree("conv_bn_act", backend, arguments | dict(residual=torch.empty(0, 6, 9, 8, memory_format=layout)))


def test_empty_batch_in_bn_act_and_add_act(backend):
    empty = torch.zeros(0, 4, 5, 5)
    agree("bn_act", backend, dict(input=empty, running_mean=torch.zeros(4), running_var=torch.ones(4), slope="relu"))
    agree("add_act", backend, dict(input=empty, other=empty, slope=torch.zeros(4)))


EMPTY = [(0, 4, 5, 5), (2, 4, 5, 0), (2, 0, 5, 5), (0, 1, 1, 1)]


@pytest.mark.parametrize("size", EMPTY, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_empty_results_have_torchs_strides(backend, layout, size):
    x, vector = torch.empty(size).contiguous(memory_format=layout).requires_grad_(), torch.ones(size[1])
    for options in ({}, {"slope": "relu"}, {"residual": torch.empty(size)}):
        calls = [partial(m.bn_act, x, vector, vector, **options) for m in (atrous, oracle)]
        calls += [partial(m.add_act, x, x, slope=options.get("slope", 1.0)) for m in (atrous, oracle)]
        ours, plain = [call(backend=backend) for call in calls[::2]], [call() for call in calls[1::2]]
        assert [(y.shape, y.stride()) for y in ours] == [(y.shape, y.stride()) for y in plain]
        sum(y.sum() for y in ours).backward()
        assert x.grad.shape == x.shape


def test_empty_batch_in_training(backend):
    """The result is empty, statistics are unchanged, the counter increases, gradients are zero."""
    plain = oracle.make_plain(nn.PReLU(6)).train()
    ours = oracle.ours_of(plain, backend)
    before = {name: value.clone() for name, value in ours.bn.named_buffers()}
    y = ours(torch.zeros(0, 4, 9, 8))
    y.sum().backward()
    assert y.shape == plain(torch.zeros(0, 4, 9, 8)).shape == (0, 6, 9, 8)
    assert torch.equal(ours.bn.running_mean, before["running_mean"])
    assert torch.equal(ours.bn.running_var, before["running_var"])
    assert ours.bn.num_batches_tracked == before["num_batches_tracked"] + 1
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


WRONG = (
    {  # changes to a valid call, and the arguments that the message may name
        "5-D input": (dict(input=torch.randn(1, 2, 4, 9, 8)), "input"),
        "3-D input with a BatchNorm": (dict(input=torch.randn(4, 9, 8)), "input"),
        "2-D input": (dict(input=torch.randn(4, 9)), "input"),
        "3-D weight": (dict(weight=torch.randn(6, 3, 3)), "weight"),
        "5-D weight": (dict(weight=torch.randn(1, 6, 4, 3, 3)), "weight"),
        "no output channel": (dict(weight=torch.randn(0, 4, 3, 3), bias=None), "weight"),
        "no height": (dict(input=torch.randn(2, 4, 0, 8), padding=2), "input"),
        "kernel beyond the input": (dict(dilation=9, padding=1), "input|weight|dilation|kernel"),
        "channel mismatch": (dict(weight=torch.randn(6, 3, 3, 3)), "input|weight"),
        "bias of another size": (dict(bias=torch.randn(5)), "bias"),
        "same with a stride": (dict(padding="same", stride=2), "padding|stride"),
        "unknown padding": (dict(padding="foo"), "padding"),
        "negative padding": (dict(padding=-1), "padding"),
        "negative padding in a pair": (dict(padding=(1, -1)), "padding"),
        "padding None": (dict(padding=None), "padding"),
        "dilation 0": (dict(dilation=0), "dilation"),
        "dilation -1": (dict(dilation=(1, -1)), "dilation"),
        "dilation a string": (dict(dilation="1"), "dilation"),
        "stride 0": (dict(stride=0), "stride"),
        "stride -1": (dict(stride=-1), "stride"),
        "float stride": (dict(stride=1.5), "stride"),
        "float stride in a pair": (dict(stride=(1, 2.0)), "stride"),
        "stride True": (dict(stride=True), "stride"),
        "three strides": (dict(stride=(1, 2, 3)), "stride"),
        "groups 0": (dict(groups=0), "groups"),
        "groups -1": (dict(groups=-1), "groups"),
        "groups that do not divide": (dict(groups=3), "groups|input|weight"),
        "groups a float": (dict(groups=1.0), "groups"),
        "BatchNorm of other features": (dict(running_mean=torch.zeros(3), running_var=torch.ones(3)), "running_mean"),
        "running_var of another size": (dict(running_var=torch.ones(3)), "running_var"),
        "gamma of another size": (dict(bn_weight=torch.ones(3)), "bn_weight|weight"),
        "beta of another size": (dict(bn_bias=torch.ones(3)), "bn_bias|bias"),
        "running_mean alone": (dict(running_var=None), "running_var"),
        "PReLU of other features": (dict(slope=torch.rand(3)), "slope"),
        "PReLU of no features": (dict(slope=torch.rand(0)), "slope"),
        "PReLU of two dimensions": (dict(slope=torch.rand(6, 1)), "slope"),
        "slope None": (dict(slope=None), "slope"),
        "residual of a wrong shape": (dict(residual=torch.randn(2, 6, 7, 7)), "residual"),
        "residual of wrong channels": (dict(residual=torch.randn(2, 4, 7, 6)), "residual"),
        "residual after, of a wrong shape": (
            dict(residual=torch.randn(2, 6, 7, 7), residual_after_act=True),
            "residual",
        ),
        "negative eps": (dict(eps=-0.1), "eps"),
    }
    | {
        f"{argument} a {type(value).__name__}": ({argument: value}, argument)
        for argument in ("input", "weight", "bias", "running_mean", "bn_weight")
        for value in ([1.0] * 6, np.ones(6, np.float32))
    }
    | {f"{argument} None": ({argument: None}, argument) for argument in ("input", "weight")}
)


@pytest.mark.parametrize("changes, named", WRONG.values(), ids=WRONG)
def test_refused_as_eager_refuses(backend, changes, named):
    arguments = conv_arguments() | changes
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), named)


MODULE_WRONG = {
    "3-D input": (dict(), torch.randn(4, 9, 8), None, "input"),
    "5-D input": (dict(), torch.randn(1, 2, 4, 9, 8), None, "input"),
    "channel mismatch": (dict(), torch.randn(2, 3, 9, 8), None, "input|weight"),
    "BatchNorm of other features": (dict(bn=nn.BatchNorm2d(5)), torch.randn(2, 4, 9, 8), None, "running_mean|bn"),
    "PReLU of other features": (dict(act=nn.PReLU(5)), torch.randn(2, 4, 9, 8), None, "slope|act"),
    "residual of a wrong shape": (dict(), torch.randn(2, 4, 9, 8), torch.randn(2, 6, 9, 9), "residual"),
    "input None": (dict(), None, None, "input"),
    "a numpy input": (dict(), np.ones((2, 4, 9, 8), np.float32), None, "input"),
    "residual a list": (dict(), torch.randn(2, 4, 9, 8), [1.0], "residual"),
}


@pytest.mark.parametrize("options, input, residual, named", MODULE_WRONG.values(), ids=MODULE_WRONG)
@torch.no_grad()
def test_module_refuses_as_eager_refuses(backend, options, input, residual, named):
    plain = oracle.make_plain(**options).eval()
    refuse(lambda: oracle.ours_of(plain, backend)(input, residual), lambda: plain(input, residual), named)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4, 5), (6, 4, 4)])
def test_bn_act_refuses_what_is_not_4d(backend, shape):
    arguments = dict(input=torch.randn(shape), running_mean=torch.zeros(shape[1]), running_var=torch.ones(shape[1]))
    refuse(lambda: atrous.bn_act(**arguments, backend=backend), lambda: oracle.bn_act(**arguments), "input")


def test_bn_act_without_statistics(backend):
    arguments = dict(input=torch.randn(2, 4, 3, 3), running_mean=None, running_var=None)
    refuse(lambda: atrous.bn_act(**arguments, backend=backend), lambda: oracle.bn_act(**arguments), "running_mean")


@pytest.mark.parametrize("other", [None, [1.0], torch.randn(2, 4, 5, 6), torch.randn(3, 4, 5, 5)])
def test_add_act_refuses_as_eager_refuses(backend, other):
    input = torch.randn(2, 4, 5, 5)
    refuse(lambda: atrous.add_act(input, other, backend=backend), lambda: oracle.add_act(input, other), "other")


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,), (), (2, 1, 7, 6), (7, 6), (1, 6, 7, 6)])
@pytest.mark.parametrize("after", [False, True])
def test_residual_that_broadcasts(backend, shape, after):
    agree("conv_bn_act", backend, conv_arguments(residual=torch.randn(shape), residual_after_act=after, slope=0.2))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (2, 1, 5, 5), ()])
def test_add_act_broadcasts(backend, shape):
    agree("add_act", backend, dict(input=torch.randn(2, 4, 5, 5), other=torch.randn(shape), slope="relu"))


def test_calls_that_no_network_needs(backend):
    """Agrees with eager, or raises an error that names the argument."""
    wider = conv_arguments(batch=1, residual=torch.randn(3, 6, 7, 6))
    unbatched = conv_arguments(bn=False, slope=0.1) | dict(input=torch.randn(4, 9, 8))
    no_channel = dict(
        input=torch.randn(2, 0, 9, 8), weight=torch.randn(6, 0, 3, 3)
    )  # eager's output has no channel either
    for arguments, named in ((wider, "residual"), (unbatched, "input"), (no_channel, "input|weight")):
        agree_or_refuse(
            lambda: atrous.conv_bn_act(**arguments, backend=backend),  # noqa: B023
            lambda: oracle.conv_bn_act(**arguments),  # noqa: B023
            named,
        )
    for shape in ((3, 4), (4,), (), (2, 4, 6), (1, 2, 4, 3, 3)):
        pair = dict(input=torch.randn(shape), other=torch.randn(shape), slope=0.1)
        agree_or_refuse(lambda: atrous.add_act(**pair, backend=backend), lambda: oracle.add_act(**pair), "input")  # noqa: B023


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@torch.no_grad()
def test_padding_modes_of_the_module(backend, mode):
    plain, x = oracle.make_plain(padding_mode=mode, padding=(2, 1)).eval(), torch.randn(2, 4, 9, 8)
    agree_or_refuse(lambda: oracle.ours_of(plain, backend)(x), lambda: plain(x), "padding_mode")


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"(?s)backend.*native"):
        atrous.conv_bn_act(**conv_arguments(), backend="fastest")

"""conv_bn_act, bn_act and add_act over the shared cases, backends, dtypes and layouts. Edge cases: test_cases_*.py."""

import dataclasses
import itertools

import pytest
import torch
from parameters import CPU_BACKENDS, DTYPES

import atrous
from atrous import testing
from atrous.core import activation
from atrous.testing import CASES, assert_close

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "auto"])
def test_conv_bn_act(backend, case, dtype, layout):
    arguments = testing.arguments(case, dtype, memory_format=LAYOUTS[layout])
    y = atrous.conv_bn_act(**arguments, backend=backend)
    assert_close(y, arguments)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("slope", testing.SLOPES, ids=str)
@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "auto"])
def test_each_slope(backend, slope):
    arguments = testing.arguments(dataclasses.replace(CASES[1], slope=slope))
    torch.manual_seed(7)
    y = atrous.conv_bn_act(**arguments, backend=backend)
    torch.manual_seed(7)
    assert_close(y, arguments, activation.draw_seed("cpu"))


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (3, 8), (2, 8, 9), (4,), (), (2, 3, 4, 5, 6)], ids=str)
def test_add_act_takes_any_rank(shape):
    x, o = torch.randn(shape), torch.randn(shape)
    assert torch.equal(atrous.add_act(x, o, slope=0.25), torch.nn.functional.leaky_relu(x + o, 0.25))


def test_bn_act_is_batch_norm_and_activation():
    x, r = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    vectors = (torch.randn(5), torch.rand(5) + 0.5, torch.randn(5), torch.randn(5))
    bn = torch.nn.functional.batch_norm(x, *vectors)
    torch.testing.assert_close(atrous.bn_act(x, *vectors, slope="relu"), bn.relu())
    torch.testing.assert_close(atrous.bn_act(x, *vectors, slope="relu", residual=r), (bn + r).relu())
    after = atrous.bn_act(x, *vectors, slope="relu", residual=r, residual_after_act=True)
    torch.testing.assert_close(after, bn.relu() + r)


def test_gradients_flow_in_eval_and_training():
    arguments = testing.convert(testing.arguments(CASES[1]), torch.float64)
    leaves = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor) and "running" not in k}
    for training in (False, True):
        y = atrous.conv_bn_act(**arguments, training=training)
        got = torch.autograd.grad(y.square().sum(), leaves.values())
        plain = testing.eager(arguments)
        if training:
            z = torch.conv2d(arguments["input"], arguments["weight"], padding=1)
            u = torch.nn.functional.batch_norm(z, None, None, arguments["bn_weight"], arguments["bn_bias"], True)
            plain = torch.nn.functional.prelu(u + arguments["residual"], arguments["slope"])
        wanted = torch.autograd.grad(plain.square().sum(), leaves.values())
        for name, a, b in zip(leaves, got, wanted):
            torch.testing.assert_close(a, b, msg=name)


def test_it_compiles_without_a_graph_break():
    arguments = testing.arguments(CASES[0])
    compiled = torch.compile(atrous.conv_bn_act, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments), atrous.conv_bn_act(**arguments))


@pytest.mark.parametrize("backend", ["library", "native"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 1), (2, 1, 5, 5), (1, 2, 1, 1), (2, 2, 5, 5)], ids=str)
def test_strides_of_a_convolution_of_slices(shape, kernel, backend):
    """torch makes a slice dense before it chooses the layout, and that of maps of one number says nothing then."""

    def operands(shape):
        for layout in (torch.contiguous_format, torch.channels_last):
            whole = torch.randn(shape[0], *(2 * size for size in shape[1:])).contiguous(memory_format=layout)
            yield whole[:, : shape[1], : shape[2], : shape[3]]
            yield torch.randn(shape).contiguous(memory_format=layout)

    for input, weight in itertools.product(operands(shape), operands((3, shape[1], kernel, kernel))):
        expected = torch.conv2d(input, weight, padding=1)
        y = atrous.conv_bn_act(input, weight, padding=1, backend=backend)
        assert y.stride() == expected.stride(), (input.stride(), weight.stride())

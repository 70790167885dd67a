"""opcheck of every primitive, and torch.compile and torch.export of ConvBNAct2d."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import module_and_input
from torch import nn

import atrous
from atrous.core.spec import Epilogue
from atrous.testing import assert_tensor


def vectors(*names):
    return {name: torch.rand(6) for name in names}


EPILOGUES = {
    "nothing": Epilogue(),
    "number": Epilogue(**vectors("mean", "var", "gamma", "beta"), slope_value=0.1),
    "relu after a residual": Epilogue(**vectors("mean", "var"), slope_kind="relu", residual=torch.randn(2, 6, 7, 5)),
    "tensor": Epilogue(
        **vectors("mean", "var", "gamma", "slope"),
        slope_kind="tensor",
        residual=torch.randn(2, 6, 7, 5),
        residual_after_act=True,
    ),
    "random": Epilogue(slope_kind="random", slope_value=0.1, slope_upper=0.3, seed=torch.tensor([3, 7])),
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
    if z.is_cpu:  # a GPU's kernels compute other sizes: tests/ops/test_ops.py
        arguments = (*conv, [1, 1], [1, 1], [1, 1], 1, *epilogue)
        torch.library.opcheck(torch.ops.atrous._conv_epilogue.default, arguments, test_utils=TESTS)


@pytest.mark.skipif(bool(atrous.backends.selection.available("native")), reason="_winograd_* has native kernels only")
def test_opcheck_of_winograd():
    weight, bias = torch.randn(32, 16, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(32)
    x = torch.randn(1, 16, 12, 12).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.atrous._winograd_weight.default, (weight, True, (4, 2), True), test_utils=TESTS)
    transformed = torch.ops.atrous._winograd_weight(weight)
    arguments = (x, weight, transformed, False, [2, 2], False, bias, [1, 1], [1, 1], *EPILOGUES["nothing"])
    torch.library.opcheck(torch.ops.atrous._winograd_epilogue.default, arguments, test_utils=TESTS)
    eager = torch.conv2d(x, weight, bias, padding=1)
    truth = torch.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert_tensor(torch.ops.atrous._winograd_epilogue(*arguments), eager, truth)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Dynamo limits the recompilations of a function, and all tests count."""
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [False, True])
def test_compile(backend, training):
    ours, plain, x = module_and_input(backend)
    ours.train(training), plain.train(training)
    residual = torch.randn(2, 6, 9, 8)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        y, eager = compiled(x, residual), plain(x, residual)
        torch.testing.assert_close(y, eager, rtol=1e-4, atol=1e-5)
        assert oracle.layout(y) == oracle.layout(eager)
    if training:
        y.square().sum().backward(), eager.square().sum().backward()
        for (name, parameter), expected in zip(ours.named_parameters(), plain.parameters()):
            message = f"gradient of {name}: {{}}".format
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-3, msg=message)
        torch.testing.assert_close(ours.bn.running_var, plain.bn.running_var)
        assert ours.bn.num_batches_tracked == 1


@pytest.mark.parametrize("training", [False, True])
def test_compiled_layers_call_our_operators(training):
    """Plain composition would give the same values."""
    graphs, x, r = [], torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=compiler)
    layers = module_and_input("auto")[0], atrous.nn.BNAct2d(nn.BatchNorm2d(4), nn.ReLU()), atrous.nn.AddAct(nn.ReLU())
    for layer in layers:
        compiled = torch.compile(layer.train(training), fullgraph=True, backend=backend)
        with torch.set_grad_enabled(training):
            compiled(x) if layer is layers[0] else compiled(x, r)
        assert any("atrous._" in str(node.target) for node in graphs.pop().graph.nodes)


@torch.no_grad()
def test_compile_with_inductor_and_weights_that_change(backend):
    ours, plain, x = module_and_input(backend)
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    for module in (ours, plain):
        module.bn.running_mean.add_(1.0)
        module.conv.weight.mul_(-2.0)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "prelu", "rrelu"])
@torch.no_grad()
def test_export(backend, act):
    ours, plain, x = module_and_input(backend, act)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: batch},) if act == "prelu" else None)
    torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-4, atol=1e-5)
    if act == "prelu":
        more = torch.randn(5, 4, 9, 8)
        torch.testing.assert_close(program.module()(more), plain(more), rtol=1e-4, atol=1e-5)
        assert program.state_dict.keys() == ours.state_dict().keys()

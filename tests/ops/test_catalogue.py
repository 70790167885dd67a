"""The catalogue of convolutions: it is complete, and it reads weight, geometry and epilogue of a call."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atrous import ops
from atrous.core.spec import Epilogue, Spec
from atrous.nn import ConvBNAct2d, FrozenConv2d
from atrous.ops.catalogue import CONVOLUTIONS, ConvCall

X, W = torch.empty(1, 8, 9, 9), torch.empty(16, 4, 3, 5)
SPEC, EPILOGUE = Spec((2, 1), (3, 0), (1, 4), 2), Epilogue(eps=1e-3, slope_kind="number", slope_value=0.1, dropout=0.5)
OTHERS = {"input": X, "X": X, "weight": W, "W": W, "turned": False, "transposed": False}


def test_every_primitive_with_a_dilation_is_listed():
    convolve = {name for name, schema in ops.schemas().items() if "dilation" in schema and "gradient" not in name}
    for namespace in (torch.ops.atrous, torch.ops.atrous_triton):
        assert {getattr(namespace, name).default for name in convolve if hasattr(namespace, name)} < set(CONVOLUTIONS)


@pytest.mark.parametrize("operator", CONVOLUTIONS, ids=str)
def test_a_call_is_read_as_its_schema_names_it(operator):
    names = [argument.name for argument in operator._schema.arguments]
    by_name = OTHERS | SPEC._asdict() | EPILOGUE._asdict()
    spec = Spec(**{name: value for name, value in SPEC._asdict().items() if name in names})
    call = ConvCall(tuple(W.shape), spec, EPILOGUE if "dropout" in names else Epilogue())
    arguments = [by_name.get(name) for name in names]
    assert CONVOLUTIONS[operator](*arguments) == call
    shapes = [value.shape if isinstance(value, torch.Tensor) else value for value in arguments]
    assert CONVOLUTIONS[operator](*shapes) == call


def test_a_transposed_convolution_is_none():
    read = CONVOLUTIONS[torch.ops.aten.convolution.default]
    assert read(X, W, None, *SPEC[:3], True, (0, 0), 2) is None
    assert read(X[0], W[0], None, (1,), (0,), (1,), False, (0,), 1) is None


def flops(layer, x, training):
    """The operations of a call, or of a training step."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        y = layer(x.clone().requires_grad_(training))
        if training:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("channels, size", [(4, 9), (24, 24)], ids=["direct", "Winograd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_torchs_counter_counts_the_operators(backend, layout, channels, size):
    children = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
    x = torch.randn(2, channels, size, size).contiguous(memory_format=layout)
    for training in (True, False):
        fused = ConvBNAct2d(*children, backend=backend).train(training)
        expected = flops(nn.Sequential(*children), x, training)
        assert flops(fused, x, training) == expected
    assert flops(FrozenConv2d(*children[:2], backend=backend), x, False) == expected


@pytest.mark.parametrize("first", ["atrous", "torch.utils.flop_counter"])
def test_the_counter_may_be_imported_before_or_after(first):
    code = f"""
import {first}, sys
import atrous.ops, torch
assert {first == "atrous"} == ("torch.utils.flop_counter" not in sys.modules)
from torch.utils.flop_counter import flop_registry
assert torch.ops.atrous._conv_epilogue in flop_registry
"""
    subprocess.run([sys.executable, "-c", code], check=True)

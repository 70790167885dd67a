"""The catalogue of convolutions: it is complete, and it reads weight, geometry and epilogue of a call."""

import pytest
import torch

from atrous import ops
from atrous.core.spec import Epilogue, Spec
from atrous.ops.catalogue import CONVOLUTIONS, ConvCall

X, W = torch.empty(1, 8, 9, 9), torch.empty(16, 4, 3, 5)
SPEC, EPILOGUE = Spec((2, 1), (3, 0), (1, 4), 2), Epilogue(eps=1e-3, slope_kind="number", slope_value=0.1, dropout=0.5)
OTHERS = {"input": X, "X": X, "weight": W, "W": W, "transformed": W, "out_channels": 16, "transposed": False}


def test_every_primitive_with_a_dilation_is_listed():
    convolve = {name for name, schema in ops.schemas().items() if "dilation" in schema}
    for namespace in (torch.ops.atrous, torch.ops.atrous_triton):
        assert {getattr(namespace, name).default for name in convolve if hasattr(namespace, name)} < set(CONVOLUTIONS)


@pytest.mark.parametrize("operator", CONVOLUTIONS, ids=str)
def test_a_call_is_read_as_its_schema_names_it(operator):
    names = [argument.name for argument in operator._schema.arguments]
    by_name = OTHERS | SPEC._asdict() | EPILOGUE._asdict()
    weight = (16, 8, 3, 3) if "transformed" in names else tuple(W.shape)
    spec = Spec(**{name: value for name, value in SPEC._asdict().items() if name in names})
    call = ConvCall(weight, spec, EPILOGUE if "dropout" in names else Epilogue())
    arguments = [by_name.get(name) for name in names]
    assert CONVOLUTIONS[operator](*arguments) == call
    shapes = [value.shape if isinstance(value, torch.Tensor) else value for value in arguments]
    assert CONVOLUTIONS[operator](*shapes) == call


def test_a_transposed_convolution_is_none():
    read = CONVOLUTIONS[torch.ops.aten.convolution.default]
    assert read(X, W, None, *SPEC[:3], True, (0, 0), 2) is None
    assert read(X[0], W[0], None, (1,), (0,), (1,), False, (0,), 1) is None

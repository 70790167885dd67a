import itertools

import torch

from atrous.core.spec import Epilogue, Spec


def test_output_size_is_torchs():
    for stride, padding, dilation, kernel in itertools.product((1, 2, 3), (0, 1, 4), (1, 2, 5), (1, 2, 3)):
        spec = Spec((stride, 1), (padding, padding + 1), (dilation, 1))
        x, w = torch.zeros(1, 1, 17, 12), torch.zeros(1, 1, kernel, kernel)
        y = torch.conv2d(x, w, None, spec.stride, spec.padding, spec.dilation)
        assert spec.output_size((17, 12), (kernel, kernel)) == tuple(y.shape[2:])


def test_epilogue_travels_in_the_order_of_the_schemas():
    from atrous import ops

    schema = torch._C.parse_schema(ops.schemas()["_epilogue"])
    assert tuple(argument.name for argument in schema.arguments[1:]) == Epilogue._fields

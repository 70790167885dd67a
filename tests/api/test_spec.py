import itertools

import torch

from atrous.core.spec import Epilogue, Spec, flat


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
    assert tuple(argument.default_value for argument in schema.arguments[1:]) == Epilogue()


def test_flat_has_the_fields_in_the_place_of_the_whole():
    from atrous import ops

    spec, epilogue = Spec(stride=(2, 1)), Epilogue(eps=0.5)
    values = flat("input", "weight", None, spec, epilogue)
    assert values == ["input", "weight", None, *spec, *epilogue]
    assert len(values) == len(torch._C.parse_schema(ops.schemas()["_conv_epilogue"]).arguments)


def test_the_place_of_the_residual():
    residual = torch.ones(1)
    assert Epilogue(residual_after_act=True).residual_place == "none"
    assert Epilogue(residual=residual).residual_place == "before"
    assert Epilogue(residual=residual, residual_after_act=True).residual_place == "after"


def test_a_spec_of_lists_is_hashable_and_equal_to_that_of_tuples():
    assert {Spec.of([2, 1], [0, 3], [1, 4], 2)} == {Spec((2, 1), (0, 3), (1, 4), 2)}

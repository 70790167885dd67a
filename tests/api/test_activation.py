import pytest
import torch
from torch import nn

from atrous.core import activation


@pytest.mark.parametrize("name", activation.ACTIVATIONS)
def test_each_name_makes_its_module_and_the_module_its_slope(name):
    module = activation.make(name, 8).eval()
    assert activation.is_activation(module)
    slope = activation.parse_slope(activation.module_slope(module))
    u = torch.tensor([[-2.0], [-0.0], [3.0], [float("-inf")]]).expand(4, 8).contiguous()
    y = (
        u.clamp_min(0)
        if slope.kind == "relu"
        else torch.where(u > 0, u, u * (slope.value if slope.tensor is None else slope.tensor))
    )
    assert torch.equal(module(u.clone()), y)


def test_rrelu_draws_in_training_and_takes_the_mean_in_eval():
    module = nn.RReLU(0.1, 0.3)
    assert activation.module_slope(module, training=True) == (0.1, 0.3)
    assert activation.module_slope(module, training=False) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("slope", "error", "text"),
    [
        ("gelu", ValueError, "slope: expected 'relu', a number, a tensor or a pair .*, got 'gelu'"),
        (None, TypeError, "slope: expected .* got NoneType"),
        (True, TypeError, "slope: expected .* got bool"),
        ((0.5, 0.1), RuntimeError, "slope: expected finite bounds, lower <= upper"),
        ((0.1, 0.2, 0.3), TypeError, "slope: expected"),
    ],
)
def test_a_bad_slope_says_what_was_expected(slope, error, text):
    with pytest.raises(error, match=text):
        activation.parse_slope(slope)


def test_unknown_names_and_modules_are_refused():
    with pytest.raises(ValueError, match="act: expected one of identity, relu, .* got 'swish'"):
        activation.make("swish", 8)
    with pytest.raises(TypeError, match="act: expected .* got GELU"):
        activation.module_slope(nn.GELU())

    class Mine(nn.ReLU):
        pass

    assert not activation.is_activation(Mine())

"""Writes in place between the parts of a layer, views, out=, a residual used twice: fused or not, it is right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from faults import scales
from outcomes import assert_same, equal_models, outcome
from pairs import image, written
from variants import catches, layers

import atrous


def input_written_behind_the_convolution(s, x):
    z = s.conv1(x)
    x.mul_(2)
    return s.relu(s.bn1(z)) + x


def view_of_the_input_written(s, x):
    z, v = s.conv1(x), x.view(-1)
    v[0:5] = 3.0
    return s.relu(s.bn1(z)) + x.flatten()[0]


def convolution_written(s, x):
    z = s.conv1(x)
    z.add_(1)
    return s.relu(s.bn1(z))


def slice_of_the_result_written(s, x):
    z = s.bn1(s.conv1(x))
    z[:, 1] = 0.5
    return s.relu(z)


def residual_written_before_the_sum(s, x):
    z = s.bn1(s.conv1(x))
    r = x * 1.0
    r.add_(1)
    return s.prelu(z + r)


def residual_written_behind_the_sum(s, x):
    r = x * 1.0
    u = s.bn1(s.conv1(x)) + r
    r.zero_()
    return s.relu(u) + r


def written_into_the_argument(s, x):
    x += s.bn1(s.conv1(x))
    return s.relu(x) * 2


def sum_into_a_residual_that_is_read_again(s, x):
    r = x * 1.0
    v = r[:, 1:2]
    r += s.bn1(s.conv1(x))
    return s.relu(r) + v


def activation_in_place_on_a_value_that_is_read(s, x):
    u = s.bn1(s.conv1(x))
    y = F.relu_(u)
    return y + u * 2


def in_place_chain(s, x):
    y = s.bn1(s.conv1(x)).add_(x).relu_()
    y = y * 2
    return s.bn2(s.conv2(y)).add_(y)


def residual_used_twice(s, x):
    y = s.first(x)
    u = s.bn2(s.conv2(y)) + y
    return s.relu(u) + y + u


def the_result_is_its_own_residual(s, x):
    u = s.bn1(s.conv1(x))
    return s.relu(u + u)


def convolution_used_again(s, x):
    z = s.conv1(x)
    return s.relu(s.bn1(z)) + z


def into_out(s, x):
    y = torch.empty_like(x)
    torch.add(s.bn1(s.conv1(x)).detach(), x.detach(), out=y)
    return s.relu(y) + s.first(x)


def weight_written_between(s, x):
    y = s.first(x)
    with torch.no_grad():
        s.prelu.weight.add_(0.1)
    return s.prelu(s.bn2(s.conv2(y)) + x)


def statistics_written_between(s, x):
    z = s.conv1(x)
    s.bn1.running_mean.add_(0.5)
    return s.relu(s.bn1(z)) + s.bn1.running_mean.sum()


def statistics_read_behind(s, x):
    y = s.relu(s.bn1(s.conv1(x)))
    return y * s.bn1.running_var.mean() + s.bn1.running_mean.sum()


def one_batch_norm_between(s, x):
    """Its statistics change between the convolution and its second use."""
    z = s.conv1(x)
    y = s.bn1(x)
    return s.relu(s.bn1(z)) + y


def expanded_residual(s, x):
    r = x[:, :, :1, :1].expand_as(x)
    return s.relu(s.bn1(s.conv1(x)) + r)


def transposed_residual(s, x):
    return s.relu(s.bn1(s.conv1(x)) + x.transpose(2, 3))


def detached_residual(s, x):
    y = s.first(x)
    return s.relu(s.bn2(s.conv2(y)) + y.detach())


def copied_into_a_buffer(s, x):
    y = torch.zeros_like(x)
    y[:, :2].copy_(s.first(x)[:, :2])
    y[:, 2:] = s.first(x)[:, 2:]
    return s.second(y, x)


def _added_to_the_argument(s, x):
    return s.relu(x + s.bn1(s.conv1(x))) * 2


FORWARDS = [
    value for name, value in list(globals().items()) if getattr(value, "__module__", "") == __name__ and name[0] != "_"
]


def called(model, x, gradients):
    """An outcome, or the type of the error: torch refuses the backward of some writes in place."""
    try:
        with torch.set_grad_enabled(gradients):
            return outcome(model, x, gradients=gradients)
    except RuntimeError as error:
        return {"error": type(error)}


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
@catches(scales, training=True)
def test_aliasing(make, training, forward):
    aliasing(make, training, forward, gradients=training)


@pytest.mark.gate
@pytest.mark.nightly
@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
@catches(scales, training=True)
def test_aliasing_in_the_other_gradient_mode(make, training, forward):
    aliasing(make, training, forward, gradients=not training)


def aliasing(make, training, forward, gradients):
    fused, plain = make.pair(equal_models(written(forward), training))
    x = image()
    expected = called(plain, x, gradients)
    if make.wrong and "error" in expected:
        pytest.fail("torch refuses it")
    actual = called(fused, x, gradients)
    runs = make.frozen and not make.plain and gradients and forward is written_into_the_argument
    if runs:  # where torch raises: a row of docs/differences.md
        assert expected == {"error": RuntimeError}
        model = equal_models(written(_added_to_the_argument), training)[1].requires_grad_(False)
        expected = called(model, x, gradients) | {"argument 0": actual["argument 0"]}
    assert_same(actual, expected)


def test_the_plain_gradients_exist():
    """Torch refuses three of these forwards at most, or the comparison would be one of errors."""
    models = [equal_models(written(forward), training=True)[0] for forward in FORWARDS]
    refused = [forward.__name__ for forward, model in zip(FORWARDS, models) if "error" in called(model, image(), True)]
    assert len(refused) <= 3, refused


@catches(scales)
def test_what_is_fused_all_the_same(make):
    """In-place chains on values that nobody else reads are fused whole."""
    fused, plain = make.pair(equal_models(written(in_place_chain)))
    x = image()
    with torch.no_grad():
        expected = plain(x.clone())
        torch.testing.assert_close(fused(x.clone()), expected, rtol=1e-9, atol=1e-9)
    assert layers(fused) == {"conv+bn+add+relu": 1, "conv+bn+add": 1}


@pytest.mark.parametrize("gradients", [False, True])
def test_statistics_are_read_inside_a_layer(gradients):
    """Between the BatchNorm, which changes them, and the activation, at whose place a layer runs."""

    def forward(s, x):
        u = s.bn1(s.conv1(x))
        mean = s.bn1.running_mean * 1.0
        return s.relu(u) + mean[:, None, None]

    model, plain = equal_models(written(forward), training=True)
    with torch.set_grad_enabled(gradients):
        x = image()
        assert_same(*(outcome(run, x, gradients=gradients) for run in (atrous.fuse(model), plain)))


def test_a_result_is_written_into_an_argument():
    """The graph has no result, and its gradients reach the model through the argument."""

    def forward(s, x, out):
        out.copy_(s.first(x))

    models = equal_models(written(forward), training=True)
    x, gradients = image(), []
    for model in (atrous.fuse(models[0]), models[1]):
        out = torch.zeros_like(x)
        model(x, out)
        assert out.requires_grad
        out.sin().sum().backward()
        gradients.append(model.conv1.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_an_input_that_no_gradient_needs_may_change_before_the_backward():
    def prepare(model):
        model.register_buffer("offset", torch.ones(4, 6, 6))

    def forward(s, x):
        return torch.tanh(s.first(x)) + s.offset

    models, gradients = equal_models(written(forward, prepare), training=True), []
    x = image()
    for model in (atrous.fuse(models[0]), models[1]):
        y = model(x)
        model.offset.mul_(0.5)
        y.sin().sum().backward()
        gradients.append(model.conv1.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    y = atrous.fuse(models[0])(x)
    models[0].offset.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), models[0].conv1.weight, create_graph=True)

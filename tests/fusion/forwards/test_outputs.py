"""Gradients between the outputs of one call: a returned or captured feature, and what is computed from it."""

from __future__ import annotations

import pytest
import torch
from faults import separates_outputs
from outcomes import agree, assert_same, equal_models
from pairs import BOTH, image, written
from torch import nn
from variants import FUSED, INDUCTOR, PLAIN, catches, layers


def feature_behind(s, x):
    y = s.first(x)
    return s.second(y, x), y


def feature_before(s, x):
    y = s.first(x)
    return y, s.second(y, x)


def feature_of_a_convolution(s, x):
    z = s.conv1(x)
    return s.second(s.relu(s.bn1(z)), x), z


def three_stages(s, x):
    y = s.first(x)
    z = s.second(y, x)
    return [y, z, s.second(z, y) * y]


def features_apart(s, x):
    y, z = s.first(x), s.second(x, x)
    return y, z, y * z


def feature_and_its_view(s, x):
    y = s.first(x)
    return s.second(y, x), y, y.flatten(1)


def feature_by_sizes(s, x):
    """A result that takes only its shape from a feature does not depend on it."""
    y = s.first(x)
    return s.second(x, x).reshape(y.shape[0], -1), y


def feature_among_random_numbers(s, x):
    """They are drawn in the order of the forward."""
    y = s.first(x)
    noise = [torch.nn.functional.dropout(x, 0.5)]
    z = s.second(y, x)
    noise.append(torch.nn.functional.dropout(x, 0.3))
    return z, y, (noise[0] - 2 * noise[1]) * y


def feature_written(s, x):
    y = s.bn1(s.conv1(x))
    y += 1
    return s.second(y, x), y


def feature_in_halves(s, x):
    y = s.first(x)
    a, b = y.chunk(2, 1)
    return s.second(torch.cat([b, a], 1), x), y


def feature_normalized(s, x):
    y = s.first(x)
    var, mean = torch.var_mean(y, (2, 3), keepdim=True)
    return s.second((y - mean) / (var + 1).sqrt(), x), y


def feature_with_indices(s, x):
    y = s.first(x)
    z, indices = torch.nn.functional.max_pool2d(y, 2, return_indices=True)
    return torch.nn.functional.max_unpool2d(z, indices, 2), y


def feature_as_views(s, x):
    y = s.first(x)
    return s.second(y, x), y, y.flatten(1), y.contiguous(), y[:, :2].transpose(2, 3)


def feature_detached(s, x):
    y = s.first(x)
    return s.second(y.detach() + y, x), y


def residual_in_place(s, x):
    y = s.first(x)
    z = s.bn2(s.conv2(y))
    z += y
    return s.prelu(z), y


def feature_under_autocast(s, x):
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        y = s.first(x)
        return s.second(y, x), y


def feature_at_a_checkpoint(s, x):
    y = torch.utils.checkpoint.checkpoint(s.first, x, use_reentrant=False)
    return s.second(y, x), y


FORWARDS = (
    feature_behind, feature_before, feature_of_a_convolution, three_stages, features_apart, feature_and_its_view,
    feature_by_sizes, feature_among_random_numbers, feature_written, feature_in_halves, feature_normalized,
    feature_with_indices, feature_as_views, feature_detached, residual_in_place, feature_under_autocast,
    feature_at_a_checkpoint,
)  # fmt: skip
WHERE = (FUSED, INDUCTOR, PLAIN)


def gradients(model, x, create_graph=False):
    """The gradients of the outputs together by each of them and by the input; None where there is no way."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    results = list(model(x))
    total = sum(torch.cos(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)).mul(y).sum() for y in results)
    return torch.autograd.grad(total, [*results, x], create_graph=create_graph, allow_unused=True)


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
@catches(separates_outputs, training=True, variants=WHERE, gates=("inductor",))
def test_gradients_by_an_output(make, training, forward):
    fused, plain = make.pair(equal_models(written(forward), training))
    x = image()
    for _ in range(2):
        assert_same(dict(enumerate(gradients(fused, x))), dict(enumerate(gradients(plain, x))))
        agree(fused, plain, x)


@catches(separates_outputs, training=True, variants=WHERE, gates=("inductor",))
def test_a_returned_feature_is_fused_all_the_same(make, training):
    fused, plain = make.pair(equal_models(written(feature_behind), training))
    agree(fused, plain, image())
    assert layers(fused) == BOTH


def halves_written(s, x):
    y = s.first(x)
    out = torch.zeros(x.shape[0], 8, *x.shape[2:], dtype=x.dtype)
    out[:, :4] = y
    out[:, 4:] = s.second(y, x)
    return out, y


def sum_written(s, x):
    y, out = s.first(x), s.second(x, x)
    out.add_(y)
    return out, y


def copied_into_a_view(s, x):
    y, out = s.first(x), s.second(x, x) * 1
    out[:, 1:3].copy_(y[:, :2])
    return out, y


@pytest.mark.parametrize("forward", (halves_written, sum_written, copied_into_a_view), ids=lambda one: one.__name__)
@catches(separates_outputs, training=True, variants=WHERE, gates=("inductor",))
def test_a_feature_written_into_another_tensor(make, training, forward):
    """No part can be cut off there: the plain graph runs, and the report says why."""
    fused, plain = make.pair(equal_models(written(forward), training))
    x = image()
    assert_same(dict(enumerate(gradients(fused, x))), dict(enumerate(gradients(plain, x))))
    agree(fused, plain, x)
    if not make.plain:
        reasons = [site.reason for site in fused.fusion_report.sites if not site.fused]
        assert reasons and all("into memory that is read later" in reason for reason in reasons)
        assert {"conv1", "conv2"} <= {site.path for site in fused.fusion_report.sites if not site.fused}


@catches(separates_outputs, training=True, variants=(FUSED, PLAIN))
def test_sizes_that_vary(make, training):
    """Sizes of a feature pass between the parts, and another backward runs through the graph."""

    def forward(s, x):
        y = s.first(x)
        z = s.first(torch.nn.functional.max_pool2d(y, 2))
        z = torch.nn.functional.interpolate(z, size=y.shape[-2:])
        return s.second(z, y.view(*y.shape)), z, y

    fused, plain = make.pair(equal_models(written(forward), training))
    for batch, size in ((2, 8), (3, 8), (4, 12), (5, 16)):
        x = image(batch, 4, size)
        assert_same(dict(enumerate(gradients(fused, x))), dict(enumerate(gradients(plain, x))))
        for model in (fused, plain):
            model.zero_grad()
            y, z, _ = model(x)
            y.square().sum().backward(retain_graph=True)
            z.sum().backward()
        grads = ({name: p.grad for name, p in model.named_parameters()} for model in (fused, plain))
        assert_same(*grads)
    assert make.plain or not [reason for graph in fused.fusion_report.graphs for reason in graph.fallbacks]


@pytest.mark.parametrize("forward", (feature_behind, feature_as_views, feature_detached), ids=lambda one: one.__name__)
@catches(separates_outputs, training=True, variants=(FUSED, PLAIN))
def test_second_derivatives_by_an_output(make, training, forward):
    fused, plain = make.pair(equal_models(written(forward), training))
    x = image()
    second = []
    for model in (fused, plain):
        first = gradients(model, x, create_graph=True)
        grads = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()), allow_unused=True)
        second.append(dict(enumerate(grads)))
    assert_same(*second)


@catches(separates_outputs, training=True, variants=(FUSED, PLAIN))
def test_a_hook_on_a_returned_feature(make, training):
    """A gradient that is stopped there does not reach the layers before it."""
    fused, plain = make.pair(equal_models(written(feature_behind), training))
    x, grads = image(), []
    for model in (fused, plain):
        y, feature = model(x)
        feature.register_hook(lambda g: g * 0)
        (y.square().sum() + feature.sum()).backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert not grads[0]["conv1.weight"].any() and grads[0]["conv2.weight"].any()
    assert_same(*grads)


@catches(separates_outputs, training=True, variants=(FUSED, PLAIN))
def test_a_feature_of_a_forward_hook(make, training):
    """As Grad-CAM takes it."""

    def build():
        return nn.Sequential(written(lambda s, x: s.first(x))(), written(lambda s, x: s.second(x, x))())

    def gradients_at_the_feature(model):
        features = []
        model[0].register_forward_hook(lambda module, args, y: features.append(y))
        y = model(torch.ones(2, 4, 6, 6, dtype=torch.float64))
        features[0].retain_grad()
        y.square().sum().backward()
        return {"feature": features[0].grad, "weight": model[0].conv1.weight.grad}

    assert_same(*map(gradients_at_the_feature, make.pair(equal_models(build, training))))

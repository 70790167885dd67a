import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrous.nn import AddAct, BNAct2d, ConvBNAct2d, FrozenConv2d
from atrous.testing import largest_error, tensor_budget


def a_layer(channels=16, out=32, act=None, **geometry):
    conv, bn = nn.Conv2d(channels, out, 3, **{"padding": 1, **geometry}), nn.BatchNorm2d(out)
    for tensor in (bn.weight, bn.bias, bn.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(bn.running_var, 0.5, 2.0)
    return conv.eval(), bn.eval(), (act or nn.PReLU(out)).eval()


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(32), nn.RReLU(), nn.Identity(), None], ids=str
)
@torch.no_grad()
def test_conv_bn_act_is_its_three_children(act):
    conv, bn, act = a_layer(act=act or nn.Identity())
    x, r = torch.randn(2, 16, 9, 11), torch.randn(2, 32, 9, 11)
    torch.testing.assert_close(ConvBNAct2d(conv, bn, act).eval()(x, r), act(bn(conv(x)) + r))
    torch.testing.assert_close(ConvBNAct2d(conv, bn, act, residual_after_act=True).eval()(x, r), act(bn(conv(x))) + r)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
@torch.no_grad()
def test_padding_modes(mode):
    conv, bn, act = a_layer(padding_mode=mode, padding=2)
    x = torch.randn(2, 16, 9, 11)
    torch.testing.assert_close(ConvBNAct2d(conv, bn, act).eval()(x), act(bn(conv(x))))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_counts_and_averages_as_batch_norm(momentum):
    conv, bn, act = a_layer()
    bn.momentum = momentum
    plain = copy.deepcopy(bn).train()
    layer = ConvBNAct2d(conv, bn, act).train()
    for _ in range(3):
        x = torch.randn(4, 16, 6, 6)
        torch.testing.assert_close(layer(x), act(plain(conv(x))))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(bn.state_dict()[name], value)


@torch.no_grad()
def test_bn_act_and_add_act():
    _, bn, act = a_layer()
    x, r = torch.randn(2, 32, 5, 5), torch.randn(2, 32, 5, 5)
    torch.testing.assert_close(BNAct2d(bn, act).eval()(x, r), act(bn(x) + r))
    torch.testing.assert_close(AddAct(act).eval()(x, r), act(x + r))
    assert torch.equal(AddAct(act, dropout=0.5).eval()(x, r), AddAct(act).eval()(x, r))
    dropped = AddAct(nn.ReLU(), dropout=0.5).train()(x.abs() + 1, r.abs())
    assert 0.3 < (dropped == 0).float().mean() < 0.7


def test_wrong_children_are_refused():
    conv, bn, act = a_layer()
    with pytest.raises(TypeError, match="conv: expected nn.Conv2d, got Linear"):
        ConvBNAct2d(nn.Linear(3, 3), bn, act)
    with pytest.raises(RuntimeError, match="bn: expected num_features=32.* got 31"):
        ConvBNAct2d(conv, nn.BatchNorm2d(31), act)
    with pytest.raises(TypeError, match="act: expected .* got GELU"):
        ConvBNAct2d(conv, bn, nn.GELU())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2}, {"dilation": 3, "padding": 3}, {"groups": 4}, {"padding": "same"}], ids=str
)
@torch.no_grad()
def test_frozen_is_as_near_to_fp64_as_eager(geometry, dtype):
    conv, bn, act = a_layer(**geometry)
    conv, bn, act = (m.to(dtype) for m in (conv, bn, act))
    x = torch.randn(2, 16, 13, 10, dtype=dtype)
    r = torch.randn_like(conv(x))
    y = FrozenConv2d(conv, bn)(x, r, act.weight)
    exact_conv, exact_bn, exact_act = (m.double() for m in copy.deepcopy((conv, bn, act)))
    truth = exact_act(exact_bn(exact_conv(x.double())) + r.double())
    # A frozen weight is rounded once more, after the BatchNorm is folded into it: one unit above the rule of a tensor.
    budget = tensor_budget(act(bn(conv(x)) + r), truth, relative=0) + torch.finfo(dtype).eps
    assert largest_error(y, truth) <= budget
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_frozen_prepacked_weights_are_never_stale_copied_or_saved():
    conv, bn, _ = a_layer()
    frozen, x = FrozenConv2d(conv, bn), torch.randn(1, 16, 8, 8)
    before = frozen(x)
    assert len(frozen.prepacked.entries) == 1
    for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert not copied.prepacked.entries and torch.equal(copied(x), before)
    assert set(frozen.state_dict()) == {"weight", "bias"}
    other = FrozenConv2d(*a_layer()[:2])
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    frozen.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(frozen(x), other(x)) and not torch.equal(frozen(x), before)
    frozen.weight = torch.zeros_like(frozen.weight)
    assert torch.equal(frozen(x), frozen.bias[None, :, None, None].expand_as(before))
    assert torch.equal(frozen.double()(x.double()).float(), frozen.bias.float()[None, :, None, None].expand_as(before))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("channels, kernel, groups", [(24, 3, 24), (16, 1, 1), (1, 3, 1), (16, 3, 1)])
@torch.no_grad()
def test_frozen_has_the_layout_of_eager(backend, channels, kernel, groups, dtype):
    """For NCHW weights the input decides the layout, whatever layout the packed convolution has."""
    conv = nn.Conv2d(channels, 48, kernel, padding=kernel // 2, groups=groups, dtype=dtype)
    frozen = FrozenConv2d(conv, backend=backend)
    formats = (torch.channels_last, torch.contiguous_format)
    for of_weight, of_input in itertools.product(formats, formats):
        conv.weight.data = frozen.to(memory_format=of_weight).weight
        x = torch.randn(2, channels, 9, 8).to(dtype, memory_format=of_input)
        r = torch.randn_like(conv(x))
        tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}
        for y, eager in ((frozen(x, r), conv(x) + r), (frozen(x, None, 0.5), F.leaky_relu(conv(x), 0.5))):
            torch.testing.assert_close(y, eager, **tolerance)
            assert y.stride() == eager.stride()


@torch.no_grad()
def test_frozen_takes_a_bias_of_any_stride(backend):
    frozen, x = FrozenConv2d(nn.Conv2d(8, 16, 5), backend=backend), torch.randn(1, 8, 9, 8)
    dense = frozen(x)
    frozen.bias = torch.stack([frozen.bias, torch.full_like(frozen.bias, float("nan"))], 1)[:, 0]
    assert torch.equal(frozen(x), dense)


@torch.no_grad()
def test_frozen_keeps_few_prepacked_weights_for_many_sizes():
    frozen = FrozenConv2d(*a_layer(stride=2)[:2])
    for size in range(8, 20):
        frozen(torch.randn(1, 16, size, size))
    assert len(frozen.prepacked.entries) <= frozen.prepacked.capacity


def test_conv_bn_act_compiles_and_exports():
    conv, bn, act = a_layer()
    layer, x = ConvBNAct2d(conv, bn, act).eval(), torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

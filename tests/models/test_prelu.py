"""prelu_training.py: initialization of PReLU networks, and the parameter groups with and without decay."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import atrous
from atrous.models import resnet34
from atrous.nn import AddAct, BNAct2d, ConvBNAct2d, FrozenConv2d, init_prelu_kaiming_

GAIN = 2 / (1 + 0.25**2)  # equation 15 with a = 0.25


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Initialisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer, inputs", [
    (nn.Conv2d(64, 128, 3), 9 * 64),
    (nn.Conv2d(64, 128, (1, 5), stride=2, dilation=3), 5 * 64),
    (nn.Conv2d(128, 1024, 3, groups=4), 9 * 32),
    (nn.Conv2d(8192, 8192, 3, groups=8192), 9),
    (nn.Conv1d(64, 512, 3), 3 * 64),
    (nn.Conv3d(16, 128, 3), 27 * 16),
    (nn.Linear(512, 256), 512),
], ids=str)  # fmt: skip
def test_weights_are_normal_with_the_variance_of_equation_15(layer, inputs, dtype):
    model = nn.Sequential(copy.deepcopy(layer), nn.PReLU(7, init=0.9)).to(dtype)
    assert init_prelu_kaiming_(model) is model
    weight = model[0].weight.detach().double()
    std, count = math.sqrt(GAIN / inputs), weight.numel()
    assert weight.mean().abs() < 5 * std / math.sqrt(count)
    assert abs(weight.var() / std**2 - 1) < 5 * math.sqrt(2 / count)  # five standard errors of a variance
    assert (
        abs((weight.abs() < std).double().mean() - 0.6827) < 5 * math.sqrt(0.22 / count) + 0.005
    )  # normal, not uniform
    assert torch.equal(model[0].bias, torch.zeros_like(model[0].bias))
    assert torch.equal(model[1].weight, torch.full_like(model[1].weight, 0.25))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in model.parameters())


def convolution():
    return nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular")  # zero padding would weaken the signal


@pytest.mark.parametrize("layer, depth, signal, factor", [
    (lambda: nn.Linear(1024, 1024), 40, (16, 1024), 3), (convolution, 20, (8, 128, 8, 8), 6),
], ids=["linear", "conv"])  # fmt: skip
@torch.no_grad()
def test_variance_survives_a_deep_stack_without_batch_norm(layer, depth, signal, factor):
    """From the first output to the last. With the variance 2 / n of ReLU the signal grows elevenfold in 40 layers.

    factor: exp(3 s) rounded up, s the standard deviation of log(ratio) over 20 seeds (0.33 linear, 0.57 conv).
    """
    model = nn.Sequential(*(module for _ in range(depth) for module in (layer(), nn.PReLU(init=0.9))))
    powers, value = [], torch.randn(signal)
    for module in init_prelu_kaiming_(model):
        value = module(value)
        powers += [float(value.square().mean())] if not isinstance(module, nn.PReLU) else []
    assert len(powers) == depth and 1 / factor < powers[-1] / powers[0] < factor, powers


def test_the_first_layer_is_no_exception():
    """Its output has 2 / (1 + a^2) times the variance of its input; the factor does not grow with the depth."""
    model = init_prelu_kaiming_(nn.Sequential(nn.Linear(512, 2048), nn.PReLU()))
    with torch.no_grad():
        assert float(model[0](torch.randn(512, 512)).var()) == pytest.approx(GAIN, rel=0.03)


def test_resnet34_and_what_is_left_alone():
    model = resnet34(act="prelu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    model.extra = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 2), "table": nn.Embedding(3, 4)})
    before, own = values(model), values(init_prelu_kaiming_(model))
    changed = {name for name in own if not torch.equal(own[name], before[name])}
    convolutions = {name for name, value in own.items() if value.dim() == 4} - {"extra.up.weight"}
    slopes = {name for name in own if ".act" in name or name.startswith("act")}
    assert len(convolutions) == 36 and len(slopes) == 33
    assert changed == convolutions | slopes | {"fc.weight", "fc.bias"}
    assert all(bool((own[name] == 0.25).all()) for name in slopes)
    assert own["layer4.2.conv2.weight"].var() == pytest.approx(GAIN / (9 * 512), rel=0.01)


def test_fused_models_and_layers():
    model = resnet34(act="prelu")
    fused = atrous.fuse(model)
    torch.manual_seed(1)
    init_prelu_kaiming_(fused)
    through_the_fused_copy = values(model)
    torch.manual_seed(1)
    for name, value in values(init_prelu_kaiming_(model)).items():
        torch.testing.assert_close(value, through_the_fused_copy[name], rtol=0, atol=0)
    layer = init_prelu_kaiming_(ConvBNAct2d(nn.Conv2d(64, 256, 3), nn.BatchNorm2d(256), nn.PReLU(256, init=0.1)))
    assert layer.conv.weight.detach().var() == pytest.approx(GAIN / (9 * 64), rel=0.05)
    assert bool((layer.act.weight == 0.25).all())


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(init=0.1), nn.Conv2d(4, 4, 3), nn.PReLU(init=0.1))
    for parameter in (*model[0].parameters(), model[1].weight, model[2].bias):
        parameter.requires_grad_(False)
    before, after = values(model), values(init_prelu_kaiming_(model))
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"2.weight", "3.weight"}
    assert [p.requires_grad for p in model.parameters()] == [False, False, False, True, False, True]


def test_it_is_recorded_by_nobody_and_reproducible():
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU())
    model(torch.randn(2, 8)).sum().backward()
    torch.manual_seed(3)
    once = values(init_prelu_kaiming_(model))
    assert torch.is_grad_enabled() and model[0].weight.is_leaf
    torch.manual_seed(3)
    with torch.no_grad():
        assert all(torch.equal(value, once[name]) for name, value in values(init_prelu_kaiming_(model)).items())


def lazy():
    return nn.LazyConv2d(4, 3)


def pruned():
    return prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.ReLU, TypeError, "model: expected a torch.nn.Module, got type"),
    (lambda: resnet34(), ValueError, "model: expected a model with nn.PReLU, got ResNet without one"),
    (lambda: atrous.fuse(resnet34(act="prelu").eval(), freeze=True), ValueError, "got none that requires gradients"),
    (lambda: nn.Sequential(FrozenConv2d(nn.Conv2d(3, 4, 3)), nn.PReLU()), ValueError, "got the buffer 0.weight"),
    (lambda: nn.Sequential(nn.PReLU(), lazy()), ValueError, "weight of known shape, got LazyConv2d"),
    (lambda: nn.Sequential(nn.PReLU(), pruned()), ValueError, "weight to be a parameter, got one that is computed"),
    (lambda: nn.Sequential(nn.PReLU(), parametrizations.weight_norm(nn.Linear(3, 3))), ValueError, "that is computed"),
])  # fmt: skip
def test_mistakes_of_initialisation(make, error, message):
    model = make()
    if isinstance(model, nn.Module):
        first = next(module for module in model.modules() if not list(module.children()))
        before = values(first)
    with pytest.raises(error, match=message):
        init_prelu_kaiming_(model)
    assert error is TypeError or all(torch.equal(value, before[name]) for name, value in values(first).items())


def test_class_weights_are_no_frozen_ones():
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU(init=0.1))
    model.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert init_prelu_kaiming_(model)[1].weight == 0.25


# Weight decay


def names(model, groups):
    """Returns the names of the parameters of each group."""
    known = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=True)}
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


def test_groups_of_resnet34():
    model = resnet34(act="prelu")
    groups = atrous.param_groups(model, 1e-4)
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0] and [len(group) for group in groups] == [2, 2]
    decayed, exempt = names(model, groups)
    order = [name for name, _ in model.named_parameters()]
    matrices = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    assert decayed == [*matrices, "fc.bias"] and len(matrices) == 37
    assert exempt == [name for name in order if name not in decayed] and len(exempt) == 33 + 2 * 36


def test_groups_of_a_fused_model_are_those_of_the_model():
    model = resnet34(act="prelu")
    groups, fused_groups = (atrous.param_groups(each, 0.1) for each in (model, atrous.fuse(model)))
    assert [list(map(id, group["params"])) for group in groups] == [
        list(map(id, group["params"])) for group in fused_groups
    ]
    layer = nn.Sequential(
        ConvBNAct2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)), BNAct2d(nn.BatchNorm2d(4), nn.PReLU())
    )
    layer.add = AddAct(nn.PReLU(4))
    decayed, exempt = names(layer, atrous.param_groups(layer, 0.1))
    assert decayed == ["0.conv.weight", "0.conv.bias"] and len(exempt) == 7
    frozen = atrous.fuse(model.eval(), freeze=True)  # for inference only: nothing of it is trained
    assert [group["params"] for group in atrous.param_groups(frozen, 0.1)] == [[], []]


@pytest.mark.parametrize("norm", [
    nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4),
    nn.LayerNorm(4), nn.RMSNorm(4), nn.PReLU(4),
], ids=str)  # fmt: skip
def test_norms_and_slopes_are_not_decayed(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm)
    decayed, exempt = atrous.param_groups(model, 0.1)
    assert list(map(id, decayed["params"])) == list(map(id, model[0].parameters()))
    assert list(map(id, exempt["params"])) == list(map(id, norm.parameters())) and exempt["params"]


class Own(nn.Module):
    """A module with its own parameter, a slope under a second name, a module used twice and a frozen module."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.first = self.again = nn.Linear(4, 4)
        self.act = nn.PReLU(4)
        self.tied = self.act.weight
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.first.weight
        self.still = nn.Linear(4, 4).requires_grad_(False)


def test_each_parameter_once():
    model = Own()
    decayed, exempt = names(model, atrous.param_groups(model, 0.1))
    assert decayed == ["scale", "first.weight", "first.bias"] and exempt == ["tied"]  # which is the slope
    assert names(model, atrous.param_groups(model, 0.1)) == [decayed, exempt]


def test_a_slope_under_a_parametrization_is_one():
    act = nn.PReLU(4)
    parametrize.register_parametrization(act, "weight", nn.Softplus(), unsafe=True)
    assert [len(group["params"]) for group in atrous.param_groups(nn.Sequential(act), 0.1)] == [0, 1]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_decays_weights_alone(optimizer):
    """With zero gradients a step applies only the decay."""
    model = init_prelu_kaiming_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8)))
    nn.init.ones_(model[0].bias)
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer(atrous.param_groups(model, 0.5), lr=0.1).step()
    after = values(model)
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(after[name], 0.95 * before[name])
    assert all(torch.equal(after[name], before[name]) for name in ("1.weight", "1.bias", "2.weight"))


def test_nothing_to_decay():
    groups = atrous.param_groups(nn.Sequential(nn.PReLU()), 0.1)
    torch.optim.SGD(groups, lr=0.1).step()
    assert [len(group["params"]) for group in groups] == [0, 1]
    assert [group["params"] for group in atrous.param_groups(nn.Identity(), 0)] == [[], []]


@pytest.mark.parametrize("model, decay, error, message", [
    (nn.PReLU(), -1e-4, ValueError, "weight_decay: expected a finite number that is not negative, got -0.0001"),
    (nn.PReLU(), math.nan, ValueError, "got nan"),
    (nn.PReLU(), math.inf, ValueError, "got inf"),
    (nn.PReLU(), "0.1", TypeError, "weight_decay: expected a number, got '0.1'"),
    ([nn.PReLU()], 0.1, TypeError, "model: expected a torch.nn.Module, got list"),
], ids=str)  # fmt: skip
def test_mistakes_of_groups(model, decay, error, message):
    with pytest.raises(error, match=message):
        atrous.param_groups(model, decay)

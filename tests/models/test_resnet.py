"""ResNet34 and its dilated variants: sizes, names and values; other ResNets are in test_resnet_options.py."""

import math

import pytest
import torch
from torch import nn

import atrous
from atrous.core.activation import ACTIVATIONS
from atrous.models import BasicBlock, ResNet, resnet34

BLOCKS = {"layer1": (64, 3), "layer2": (128, 4), "layer3": (256, 6), "layer4": (512, 3)}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_keys():
    """Yields the names of torchvision's ResNet34 state_dict in order."""
    yield "conv1.weight"
    yield from (f"bn1.{name}" for name in BN)
    for layer, (_, blocks) in BLOCKS.items():
        for block in range(blocks):
            for index in (1, 2):
                yield f"{layer}.{block}.conv{index}.weight"
                yield from (f"{layer}.{block}.bn{index}.{name}" for name in BN)
            if block == 0 and layer != "layer1":
                yield f"{layer}.0.downsample.0.weight"
                yield from (f"{layer}.0.downsample.1.{name}" for name in BN)
    yield from ("fc.weight", "fc.bias")


def vary(model):
    """Sets BatchNorms and slopes to values as after training, so that no layer is the identity by chance."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                tensor.data.uniform_(low, high)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.2, 0.5)
    return model


@pytest.fixture(scope="module")
def relu():
    torch.manual_seed(0)
    return vary(resnet34()).eval()


@pytest.fixture(scope="module")
def double(relu):
    return {name: value.double() for name, value in relu.state_dict().items() if not name.startswith("fc.")}


def with_weights(weights, **arguments):
    """Returns a model with these weights, without initializing it first; PReLU slopes are set here."""
    with torch.device("meta"):
        model = resnet34(**arguments)
    slopes = {
        name: torch.linspace(-0.2, 0.5, value.numel(), dtype=torch.float64)
        for name, value in model.state_dict().items()
        if name not in weights
    }
    model.load_state_dict(weights | slopes, assign=True)
    return model.eval()


def test_parameters_and_names_are_torchvisions(relu):
    assert atrous.models.resnet34 is resnet34
    assert sum(parameter.numel() for parameter in relu.parameters()) == 21_797_672
    assert list(relu.state_dict()) == list(torchvision_keys())
    assert relu.fc.weight.shape == (1000, 512)
    for layer, (channels, blocks) in BLOCKS.items():
        stage = relu.get_submodule(layer)
        assert len(stage) == blocks
        assert {block.conv2.weight.shape for block in stage} == {(channels, channels, 3, 3)}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_is_its_own_module(act):
    with torch.device("meta"):
        model = resnet34(act=act)
    modules = [module for module in model.modules() if type(module) is ACTIVATIONS[act].module]
    assert len(modules) == len(set(map(id, modules))) == 33
    if act == "prelu":
        assert sorted(module.num_parameters for module in modules) == [64] * 7 + [128] * 8 + [256] * 12 + [512] * 6
        assert len({id(module.weight) for module in modules}) == 33


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_training_step(act):
    """In-place activations and the in-place add do not overwrite values that the gradients need."""
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, act=act)
    slopes = [module.weight for module in model.modules() if isinstance(module, nn.PReLU)]
    assert len(slopes) == (9 if act == "prelu" else 0)
    assert all(torch.equal(slope, torch.full_like(slope, 0.25)) for slope in slopes)
    model(torch.randn(2, 3, 40, 40)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_relu_checkpoint_loads_into_prelu_with_slopes_alone_missing(relu):
    with torch.device("meta"):
        prelu = resnet34(act="prelu")
    missing, unexpected = prelu.load_state_dict(relu.state_dict(), strict=False, assign=True)
    assert unexpected == [] and len(missing) == 33
    assert all(name.endswith(("act1.weight", "act2.weight")) for name in missing)


def test_initialisation_is_kaiming_normal_fan_out():
    for name, module in resnet34().named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            expected = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name  # 8,192 draws or more: 6 sigma
            assert abs(module.weight.mean().item()) < 0.07 * expected, name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


@pytest.mark.parametrize("output_stride, size, sizes", [
    (32, 224, (112, 56, 28, 14, 7)),
    (16, 224, (112, 56, 28, 14, 14)),
    (8, 224, (112, 56, 28, 28, 28)),
    (8, 512, (256, 128, 64, 64, 64)),
    (8, 225, (113, 57, 29, 29, 29)),
])  # fmt: skip
@pytest.mark.parametrize("first_dilation", ["previous", "new"])
def test_feature_sizes(output_stride, size, sizes, first_dilation):
    with torch.device("meta"):
        model = resnet34(output_stride=output_stride, first_dilation=first_dilation, features_only=True)
        features = model(torch.empty(2, 3, size, size))
    channels = (64, 64, 128, 256, 512)
    assert [tuple(feature.shape) for feature in features] == [(2, c, s, s) for c, s in zip(channels, sizes)]


D = [1] * 6 + [1] * 8  # layers 1 and 2


@pytest.mark.parametrize("output_stride, multi_grid, first_dilation, dilations", [
    (32, None, "previous", D + [1] * 12 + [1] * 6),
    (32, None, "new", D + [1] * 12 + [1] * 6),
    (16, None, "previous", D + [1] * 12 + [1, 2, 2, 2, 2, 2]),
    (16, None, "new", D + [1] * 12 + [2, 2, 2, 2, 2, 2]),
    (8, None, "previous", D + [1] + [2] * 11 + [2, 4, 4, 4, 4, 4]),
    (8, None, "new", D + [2] * 12 + [4, 4, 4, 4, 4, 4]),
    (32, (1, 2, 4), "previous", D + [1] * 12 + [1, 1, 2, 2, 4, 4]),
    (32, (2, 2, 4), "new", D + [1] * 12 + [2, 2, 2, 2, 4, 4]),
    (16, (1, 2, 4), "previous", D + [1] * 12 + [1, 2, 4, 4, 8, 8]),
    (16, (2, 4, 8), "new", D + [1] * 12 + [4, 4, 8, 8, 16, 16]),
    (8, (1, 2, 4), "previous", D + [1] + [2] * 11 + [2, 4, 8, 8, 16, 16]),
    (8, [1, 2, 4], "new", D + [2] * 12 + [4, 4, 8, 8, 16, 16]),
])  # fmt: skip
def test_dilations(output_stride, multi_grid, first_dilation, dilations):
    with torch.device("meta"):
        model = resnet34(output_stride=output_stride, multi_grid=multi_grid, first_dilation=first_dilation)
    convs = [module for name, module in model.named_modules() if name.startswith("layer") and name[-5:-1] == "conv"]
    assert [conv.dilation for conv in convs] == [(rate, rate) for rate in dilations]
    assert all(conv.padding == conv.dilation for conv in convs)
    stem = [model.conv1.stride, (model.maxpool.stride,) * 2]
    strides = [stage[0].conv1.stride for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    assert math.prod(stride[0] for stride in stem + strides) == output_stride
    shortcuts = [stage[0].downsample[0].stride for stage in (model.layer2, model.layer3, model.layer4)]
    assert shortcuts == strides[1:]


@pytest.mark.parametrize("output_stride, size, multi_grid, act", [
    (8, (32, 64), None, "relu"),
    (16, (33, 51), None, "relu"),
    *((8, (33, 51), (1, 2, 4), act) for act in ACTIVATIONS),
])  # fmt: skip
def test_dilated_features_contain_the_strided_ones(double, output_stride, size, multi_grid, act):
    """With first_dilation="previous" dilation replaces stride exactly, at borders too; see resnet34's docstring."""
    steps = (1, 1, 1, 16 // output_stride, 32 // output_stride)
    strided = with_weights(double, act=act, multi_grid=multi_grid, features_only=True)
    dilated = with_weights(double, act=act, multi_grid=multi_grid, features_only=True, output_stride=output_stride)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for step, strided_map, dilated_map in zip(steps, strided(image), dilated(image), strict=True):
            torch.testing.assert_close(dilated_map[..., ::step, ::step], strided_map, rtol=1e-9, atol=1e-9)


def test_the_other_convention_computes_something_else(double):
    strided = with_weights(double, features_only=True)
    dilated = with_weights(double, features_only=True, output_stride=8, first_dilation="new")
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        strided_map, dilated_map = strided(image)[4], dilated(image)[4][..., ::4, ::4]
    assert (strided_map - dilated_map).abs().max() > 0.01 * strided_map.abs().max()


def test_features_are_those_of_the_whole_model(relu):
    weights = {name: value for name, value in relu.state_dict().items() if not name.startswith("fc.")}
    backbone = with_weights(weights, features_only=True)
    image = torch.randn(2, 3, 64, 64)
    seen = []
    hooks = [
        relu.get_submodule(name).register_forward_hook(lambda module, arguments, output: seen.append(output))
        for name in ("act1", "layer1", "layer2", "layer3", "layer4")
    ]
    with torch.no_grad():
        logits, features = relu(image), backbone(image)
    for hook in hooks:
        hook.remove()
    assert isinstance(features, list) and len(features) == 5
    assert all(torch.equal(one, other) for one, other in zip(seen, features))
    torch.testing.assert_close(relu.fc(features[4].mean((2, 3))), logits)


def test_input_channels_classes_and_dropout():
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, in_channels=1, dropout=1.0)
    image = torch.randn(2, 1, 40, 40)
    assert torch.equal(model(image), model.fc.bias.expand(2, 10))  # all dropped: the bias is left
    plain = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, in_channels=1)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(image), plain.eval()(image))


def test_fx_traces_the_model_and_its_blocks(relu):
    tracer = torch.fx.Tracer()
    graph = tracer.trace(relu.layer2[0])
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert called == ["downsample.0", "downsample.1", "conv1", "bn1", "act1", "conv2", "bn2", "act2"]
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(relu)(image), relu(image))


@pytest.mark.parametrize("arguments, message", [
    ({"output_stride": 2}, r"output_stride: expected None, 4, 8, 16 or 32 with stem_stride=4, got 2"),
    ({"output_stride": "8"}, r"output_stride: .* got '8'"),
    ({"multi_grid": (1, 2)}, r"multi_grid: expected None or 3 positive ints.* got \(1, 2\)"),
    ({"multi_grid": (1, 2, 0)}, r"multi_grid: .* got \(1, 2, 0\)"),
    ({"multi_grid": (1, 2.0, 4)}, r"multi_grid: .* got \(1, 2.0, 4\)"),
    ({"multi_grid": 2}, r"multi_grid: .* got 2"),
    ({"first_dilation": "old"}, r"first_dilation: expected 'previous' or 'new', got 'old'"),
    ({"act": "gelu"}, r"act: expected one of .*relu.*, got 'gelu'"),
    ({"num_classes": 0}, r"num_classes: expected a positive int, got 0"),
    ({"num_classes": True}, r"num_classes: .* got True"),
    ({"in_channels": -3}, r"in_channels: expected a positive int, got -3"),
    ({"in_channels": 3.0}, r"in_channels: .* got 3.0"),
    ({"dropout": 1.5}, r"dropout: expected a number from 0 to 1, got 1.5"),
    ({"dropout": float("nan")}, r"dropout: .* got nan"),
    ({"dropout": "0.5"}, r"dropout: .* got '0.5'"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet34(**arguments)


@pytest.mark.parametrize("make", [resnet34, atrous.models.resnet50, atrous.models.drn_d_22])
def test_an_unknown_option_is_named_with_the_known_ones(make):
    with pytest.raises(TypeError, match=rf"{make.__name__}: expected the options act, .*, got 'stride'$"):
        make(stride=8)
    with pytest.raises(TypeError, match=r"got 'pretrained'; atrous.models.load_weights loads a checkpoint"):
        make(pretrained=True)

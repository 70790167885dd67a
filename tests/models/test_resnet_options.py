"""resnet18 and resnet50, and the options that ResNet34's tests leave out: hdc, stem_stride, width."""

import inspect

import pytest
import torch
from outcomes import randomize
from torch import nn

from atrous.models import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50
from atrous.models.resnet import Options

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MODELS = {
    resnet18: (11_689_512, (2, 2, 2, 2), (64, 64, 128, 256, 512)),
    resnet34: (21_797_672, (3, 4, 6, 3), (64, 64, 128, 256, 512)),
    resnet50: (25_557_032, (3, 4, 6, 3), (64, 256, 512, 1024, 2048)),
}


def torchvision_shapes():
    """Yields names and shapes of torchvision's ResNet50 state_dict in order."""

    def norm(name, channels):
        yield from ((f"{name}.{part}", (channels,) if part != BN[-1] else ()) for part in BN)

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    inputs = 64
    for stage, (blocks, channels) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            yield f"{block}.conv1.weight", (channels, inputs, 1, 1)
            yield from norm(f"{block}.bn1", channels)
            yield f"{block}.conv2.weight", (channels, channels, 3, 3)
            yield from norm(f"{block}.bn2", channels)
            yield f"{block}.conv3.weight", (4 * channels, channels, 1, 1)
            yield from norm(f"{block}.bn3", 4 * channels)
            if index == 0:
                yield f"{block}.downsample.0.weight", (4 * channels, inputs, 1, 1)
                yield from norm(f"{block}.downsample.1", 4 * channels)
            inputs = 4 * channels
    yield from (("fc.weight", (1000, 2048)), ("fc.bias", (1000,)))


def convs(model, kernel=3):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]


def meta(make, **options):
    with torch.device("meta"):
        return make(**options)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_sizes(make):
    parameters, blocks, channels = MODELS[make]
    model = meta(make)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert tuple(len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)) == blocks
    assert (model.channels, model.strides) == (channels, (2, 4, 8, 16, 32))
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_resnet50_has_the_names_and_shapes_of_torchvision():
    shapes = {name: tuple(value.shape) for name, value in meta(resnet50).state_dict().items()}
    assert list(shapes.items()) == list(torchvision_shapes())


def test_resnet50_has_its_strides_in_the_3x3_convolutions():
    """torchvision's ResNet V1.5; the shortcuts have them too."""
    model = meta(resnet50)
    strided = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["conv1", *(f"layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv2", "downsample.0"))]


def test_options_are_the_arguments_of_resnet():
    parameters = list(inspect.signature(ResNet).parameters.values())
    assert [parameter.name for parameter in parameters[3:]] == list(Options.__annotations__)
    assert all(parameter.default is not parameter.empty for parameter in parameters[2:])
    with pytest.raises(TypeError, match="no_such_option"):
        resnet18(no_such_option=1)


STEM = [1] * 3 + [1] * 4  # 3x3 convolutions of layers 1 and 2 of ResNet50


@pytest.mark.parametrize("options, dilations", [
    ({"output_stride": 32}, STEM + [1] * 6 + [1] * 3),
    ({"output_stride": 16}, STEM + [1] * 6 + [1, 2, 2]),
    ({"output_stride": 8}, STEM + [1] + [2] * 5 + [2, 4, 4]),
    ({"output_stride": 4}, [1] * 3 + [1] + [2] * 3 + [2] + [4] * 5 + [4, 8, 8]),
    ({"output_stride": 8, "first_dilation": "new"}, STEM + [2] * 6 + [4] * 3),
    ({"output_stride": 8, "multi_grid": (1, 2, 4)}, STEM + [1] + [2] * 5 + [2, 8, 16]),
    ({"output_stride": 8, "multi_grid": (2, 2, 4), "first_dilation": "new"}, STEM + [2] * 6 + [8, 8, 16]),
    ({"output_stride": 16, "hdc": (1, 2, 5)}, STEM + [1] * 6 + [1, 2, 5]),
    ({"output_stride": 8, "hdc": (1, 2, 5, 9)}, STEM + [1, 2, 5, 9, 1, 2] + [1, 2, 5]),
    ({"output_stride": 8, "hdc": [(1, 2, 3), [3, 4, 5]]}, STEM + [1, 2, 3, 1, 2, 3] + [3, 4, 5]),
    ({"output_stride": 8, "hdc": (2, 1), "first_dilation": "new"}, STEM + [2, 1] * 3 + [2, 1, 2]),
    ({"output_stride": 8, "stem_stride": 1}, STEM + [1] * 6 + [1] * 3),
    ({"output_stride": 2, "stem_stride": 1}, STEM + [1] + [2] * 5 + [2, 4, 4]),
    ({"output_stride": 8, "stem_stride": 2}, STEM + [1] * 6 + [1, 2, 2]),
])  # fmt: skip
def test_dilations(options, dilations):
    model = meta(resnet50, **options)
    assert [conv.dilation for conv in convs(model)] == [(rate, rate) for rate in dilations]
    assert all(conv.padding == conv.dilation for conv in convs(model))
    assert all(conv.dilation == (1, 1) for conv in convs(model, 1))


def test_hdc_of_basic_blocks_is_in_both_convolutions():
    model = meta(resnet34, output_stride=8, hdc=(1, 2, 5))
    cycle = [1, 1, 2, 2, 5, 5]
    assert [conv.dilation[0] for conv in convs(model)] == [1] * 14 + cycle * 2 + cycle


@pytest.mark.parametrize("stem_stride, output_stride, sizes", [
    (4, None, (32, 16, 8, 4, 2)), (4, 4, (32, 16, 16, 16, 16)),
    (2, None, (32, 32, 16, 8, 4)), (2, 16, (32, 32, 16, 8, 4)), (2, 4, (32, 32, 16, 16, 16)),
    (1, None, (64, 64, 32, 16, 8)), (1, 1, (64, 64, 64, 64, 64)), (1, 4, (64, 64, 32, 16, 16)),
])  # fmt: skip
@pytest.mark.parametrize("make, expansion", [(resnet18, 1), (resnet50, 4)])
def test_feature_sizes_channels_and_strides(make, expansion, stem_stride, output_stride, sizes):
    options = {"stem_stride": stem_stride, "output_stride": output_stride, "width": 8, "features_only": True}
    model = meta(make, **options)
    features = model(torch.empty(2, 3, 64, 64, device="meta"))
    channels = (8, *(expansion * c for c in (8, 16, 32, 64)))
    assert [tuple(feature.shape) for feature in features] == [(2, c, s, s) for c, s in zip(channels, sizes)]
    assert model.channels == channels and model.strides == tuple(64 // size for size in sizes)
    names = [name for name in meta(make, width=8).state_dict() if not name.startswith("fc.")]
    assert list(model.state_dict()) == names


def test_stem_strides():
    stems = {stride: meta(resnet18, stem_stride=stride) for stride in (4, 2, 1)}
    assert [stem.conv1.stride[0] for stem in stems.values()] == [2, 2, 1]
    assert [type(stem.maxpool) for stem in stems.values()] == [nn.MaxPool2d, nn.Identity, nn.Identity]


@pytest.mark.parametrize("stem_stride, output_stride, multi_grid", [(4, 8, None), (4, 16, (1, 2)), (1, 2, None)])
def test_dilated_features_contain_the_strided_ones(stem_stride, output_stride, multi_grid):
    def make(output_stride):
        options = {"stem_stride": stem_stride, "multi_grid": multi_grid, "features_only": True, "width": 8}
        return ResNet(Bottleneck, (1, 2, 2, 2), output_stride=output_stride, **options).double().eval()

    strided, dilated = randomize(make(None)), make(output_stride)
    dilated.load_state_dict(strided.state_dict())
    steps = [whole // part for whole, part in zip(strided.strides, dilated.strides)]
    assert max(steps) == 8 * stem_stride // output_stride
    image = torch.randn(1, 3, 49, 66, dtype=torch.float64)
    with torch.no_grad():
        for step, strided_map, dilated_map in zip(steps, strided(image), dilated(image), strict=True):
            torch.testing.assert_close(dilated_map[..., ::step, ::step], strided_map, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_training_step_of_bottlenecks(act):
    model = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=3, act=act, width=8, output_stride=8, hdc=(1, 2))
    model(torch.randn(2, 3, 40, 40)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    slopes = [module.num_parameters for module in model.modules() if isinstance(module, nn.PReLU)]
    assert slopes == ([8, 8, 8, 32, 16, 16, 64, 32, 32, 128, 64, 64, 256] if act == "prelu" else [])


@pytest.mark.parametrize("arguments, message", [
    ({"stem_stride": 3}, r"stem_stride: expected 1, 2 or 4, got 3"),
    ({"stem_stride": True}, r"stem_stride: .* got True"),
    ({"stem_stride": 1, "output_stride": 16}, r"output_stride: expected None, 1, 2, 4 or 8 with stem_stride=1, got 16"),
    ({"stem_stride": 2, "output_stride": 32}, r"output_stride: expected None, 2, 4, 8 or 16 with stem_stride=2"),
    ({"width": 0}, r"width: expected a positive int, got 0"),
    ({"hdc": (1, 2, 5)}, r"hdc: expected None, since output_stride leaves no stage to dilate, got \(1, 2, 5\)"),
    ({"hdc": (1, 2), "output_stride": 8, "multi_grid": (1, 2)}, r"multi_grid: expected None with hdc"),
    ({"hdc": (), "output_stride": 8}, r"hdc: expected None, positive ints, or 2 sequences of them, .* got \(\)"),
    ({"hdc": ((1, 2),), "output_stride": 8}, r"hdc: .* got \(\(1, 2\),\)"),
    ({"hdc": ((1, 2), ()), "output_stride": 8}, r"hdc: "),
    ({"hdc": (1, 0), "output_stride": 8}, r"hdc: .* got \(1, 0\)"),
    ({"hdc": 2, "output_stride": 8}, r"hdc: .* got 2"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**arguments)


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 1, 1, 0), 4])
def test_bad_blocks_are_named(blocks):
    with pytest.raises(ValueError, match="blocks: expected 4 positive ints, got"):
        ResNet(BasicBlock, blocks)

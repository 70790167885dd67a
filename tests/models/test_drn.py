"""drn_c_26 and drn_d_22: sizes, names, dilations and residuals as in fyu/drn, and the layers that fuse() finds."""

import pytest
import torch
from outcomes import randomize
from torch import nn

import atrous
from atrous.models import DRN, drn_c_26, drn_d_22, load_weights, segmenter
from atrous.models.blocks import BasicBlock

CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names(variant):
    """Names of the state_dict in fyu/drn, in order."""

    def layer(conv, norm):
        return [f"{conv}.weight", *(f"{norm}.{name}" for name in NORM)]

    names = layer("conv1", "bn1") if variant == "C" else layer("layer0.0", "layer0.1")
    for stage, blocks in enumerate((1, 1, 2, 2, 2, 2, 1, 1), start=1):
        for block in range(blocks):
            if variant == "D" and stage in (1, 2, 7, 8):
                names += layer(f"layer{stage}.{3 * block}", f"layer{stage}.{3 * block + 1}")
                continue
            path = f"layer{stage}.{block}"
            names += layer(f"{path}.conv1", f"{path}.bn1") + layer(f"{path}.conv2", f"{path}.bn2")
            if block == 0 and stage in (2, 3, 4, 5, 6):
                names += layer(f"{path}.downsample.0", f"{path}.downsample.1")
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("make, variant, parameters", [(drn_c_26, "C", 21_126_584), (drn_d_22, "D", 16_393_752)])
def test_parameters_and_names_are_the_published_ones(make, variant, parameters):
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert list(model.state_dict()) == published_names(variant)
    assert model.fc.weight.shape == (1000, 512, 1, 1)
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("make, dilations", [
    (drn_c_26, [1] * 12 + [2] * 4 + [4] * 4 + [2] * 2 + [1] * 2),
    (drn_d_22, [1] * 10 + [2] * 4 + [4] * 4 + [2, 1]),
])  # fmt: skip
def test_dilations(make, dilations):
    with torch.device("meta"):
        convs = [m for m in make().modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [conv.dilation[0] for conv in convs] == dilations
    assert all(conv.padding == conv.dilation for conv in convs)


def test_the_last_layers_of_c_have_no_sum():
    with torch.device("meta"):
        blocks = [module for module in drn_c_26().modules() if isinstance(module, BasicBlock)]
    assert [block.residual for block in blocks] == [True] * 10 + [False] * 2


@torch.no_grad()
def test_a_block_without_sum():
    block = randomize(BasicBlock(4, 4, dilations=(2, 2), residual=False)).eval()
    x = torch.randn(1, 4, 9, 9)
    expected = block.act2(block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x))))))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("make", [drn_c_26, drn_d_22])
def test_features(make):
    with torch.device("meta"):
        model = make(features_only=True, in_channels=1, act="prelu")
        features = model(torch.empty(2, 1, 33, 48))
    assert model.channels == CHANNELS and model.strides == (1, 2, 4, 8, 8, 8, 8, 8)
    sizes = [(-(-33 // stride), -(-48 // stride)) for stride in model.strides]
    assert [tuple(y.shape) for y in features] == [(2, c, *size) for c, size in zip(CHANNELS, sizes)]
    slopes = [m for m in model.modules() if isinstance(m, nn.PReLU)]
    assert len(slopes) == (25 if make is drn_c_26 else 21)


@pytest.mark.gate
@pytest.mark.parametrize("make, layers", [(drn_c_26, 30), (drn_d_22, 25)])
@torch.no_grad()
def test_every_layer_is_fused(make, layers):
    model = randomize(segmenter(make(features_only=True), None, 3)).eval()
    x = torch.randn(1, 3, 24, 24)
    expected, fused = model(x), atrous.fuse(model)
    torch.testing.assert_close(fused(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert sum(layer.fused for layer in fused.fusion_report.sites) == layers + 1


def test_a_checkpoint_for_three_channels_loads_into_one(tmp_path):
    saved, model = drn_d_22(num_classes=2), drn_d_22(num_classes=2, in_channels=1)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    assert load_weights(model, tmp_path / "weights.pth") == []
    torch.testing.assert_close(model.layer0[0].weight, saved.layer0[0].weight.sum(1, keepdim=True))


@pytest.mark.parametrize("make, message", [
    (lambda: DRN("A", (1,) * 8), "variant: expected 'C' or 'D', got 'A'"),
    (lambda: DRN("C", (1,) * 7), "blocks: expected 8 positive ints, got"),
    (lambda: drn_c_26(0), "num_classes: expected a positive int, got 0"),
    (lambda: drn_c_26(dropout=-1), "dropout: expected a number from 0 to 1, got -1"),
    (lambda: drn_d_22(act="gelu"), "act: expected one of"),
])  # fmt: skip
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

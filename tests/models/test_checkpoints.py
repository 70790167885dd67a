"""weights.py: checkpoints of ResNets and of other models, wrapped, cut, incomplete, and for other input channels."""

import pickle

import pytest
import torch
from torch import nn

from atrous.models import load_weights, resnet18, resnet34


class Small(nn.Module):
    """A small module with names as in a ResNet, for small checkpoint files."""

    def __init__(self, act=nn.ReLU, head=True):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), act()
        if head:
            self.fc = nn.Linear(4, 5)


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_resnet34_checkpoint_round_trip(tmp_path):
    saved = resnet34()
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    with torch.device("meta"):
        model = resnet34()
    model.to_empty(device="cpu")
    assert load_weights(model, tmp_path / "weights.pth") == []
    assert same(model, saved.state_dict())


@pytest.mark.parametrize("wrap", [
    lambda weights: {"state_dict": weights, "epoch": 90},
    lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}, "lr": 0.1},
    lambda weights: {f"module._orig_mod.{name}": value for name, value in weights.items()},
], ids=["state_dict", "model-module", "module-compiled"])  # fmt: skip
def test_wrapped_checkpoints(tmp_path, wrap):
    saved, model = Small(), Small()
    torch.save(wrap(saved.state_dict()), tmp_path / "weights.pth")
    assert load_weights(model, str(tmp_path / "weights.pth")) == []
    assert same(model, saved.state_dict())


def test_safetensors_round_trip(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    saved, model = Small(), Small()
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(model, tmp_path / "weights.safetensors") == []
    assert same(model, saved.state_dict())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"path: expected a safetensors file, but .*cut.safetensors"):
        load_weights(model, tmp_path / "cut.safetensors")


def test_what_a_checkpoint_may_lack_or_hold_besides(tmp_path):
    saved = Small()
    weights = {name: value for name, value in saved.state_dict().items() if "num_batches" not in name}  # before 0.4.1
    torch.save(weights, tmp_path / "weights.pth")
    assert load_weights(Small(), tmp_path / "weights.pth") == []
    prelu = Small(nn.PReLU)
    assert load_weights(prelu, tmp_path / "weights.pth") == ["act1.weight"]
    assert prelu.act1.weight.item() == 0.25 and torch.equal(prelu.conv1.weight, saved.conv1.weight)
    backbone = Small(head=False)
    assert load_weights(backbone, tmp_path / "weights.pth") == []
    assert torch.equal(backbone.conv1.weight, saved.conv1.weight)


def renamed(weights):
    weights["conv9.weight"] = weights.pop("conv1.weight")
    return weights


@pytest.mark.parametrize("change, message", [
    (renamed, r"lacks conv1.weight; has unknown conv9.weight"),
    (lambda weights: {"fc.bias": weights["fc.bias"]}, r"lacks conv1.weight, bn1.weight, .* and 1 more"),
    (lambda weights: weights | {"fc.bias": torch.zeros(10)}, r"shape of fc.bias \(expected \(5,\), got \(10,\)\)"),
    (lambda weights: [1, 2], r"expected a state_dict .* holds a list"),
    (lambda weights: torch.zeros(3), r"expected a state_dict .* holds a Tensor"),
    (lambda weights: {}, r"holds an empty dict"),
    (lambda weights: {"epoch": 3, **weights}, r"holds an int under 'epoch'"),
], ids=["names", "most missing", "shape", "list", "tensor", "empty", "value"])  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused_whole(tmp_path, change, message):
    path, model = tmp_path / "weights.pth", Small()
    torch.save(change(dict(Small().state_dict())), path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model, path)
    assert str(path) in str(error.value) and str(error.value).startswith("path: ")
    assert same(model, before)


def test_files_that_cannot_be_read(tmp_path):
    model = Small()
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="path: expected a checkpoint file"):
            load_weights(model, path)
    torch.save(model, tmp_path / "module.pth")  # pickled code is never run
    (tmp_path / "text.pth").write_text("these are no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"weights": print}, protocol=2))
    for name in ("module.pth", "text.pth", "empty.pth", "pickle.pth"):
        with pytest.raises(ValueError, match=rf"path: expected what torch.load\(weights_only=True\) reads.*{name}"):
            load_weights(model, tmp_path / name)


@pytest.mark.parametrize("suffix, expected", [
    (".pth", r"what torch.load\(weights_only=True\) reads"), (".safetensors", "a safetensors file")
])  # fmt: skip
def test_files_that_are_cut_off(tmp_path, suffix, expected):
    """At any place: in the first bytes, in the values, in the list of the values at the end."""
    path, model = tmp_path / f"weights{suffix}", Small()
    save = torch.save if suffix == ".pth" else pytest.importorskip("safetensors.torch").save_file
    save(Small().state_dict(), path)
    whole, before = path.read_bytes(), {name: value.clone() for name, value in model.state_dict().items()}
    for size in {*range(0, len(whole), len(whole) // 50), 1, 8, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"^path: expected {expected}, but {path} ") as error:
            load_weights(model, path)
        assert "\n" not in str(error.value) and same(model, before)
    path.write_bytes(whole)
    assert load_weights(model, path) == []


def test_a_stem_of_one_channel_computes_what_three_equal_channels_give(tmp_path):
    colour, grey = resnet18(width=8, num_classes=5).eval(), resnet18(width=8, num_classes=5, in_channels=1).eval()
    torch.save(colour.state_dict(), tmp_path / "weights.pth")
    assert load_weights(grey, tmp_path / "weights.pth") == []
    image = torch.randn(2, 1, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_a_stem_of_other_channels_repeats_the_weights(tmp_path, channels):
    colour, other = resnet18(width=8, num_classes=5), resnet18(width=8, num_classes=5, in_channels=channels)
    torch.save(colour.state_dict(), tmp_path / "weights.pth")
    assert load_weights(other, tmp_path / "weights.pth") == []
    for channel in range(channels):
        expected = colour.conv1.weight[:, channel % 3] * 3 / channels
        torch.testing.assert_close(other.conv1.weight[:, channel], expected)
    assert same(other.layer1, {name: value for name, value in colour.layer1.state_dict().items()})


def test_only_weights_for_three_channels_are_adapted(tmp_path):
    torch.save(resnet18(width=8, in_channels=2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"shape of conv1.weight \(expected \(8, 4, 7, 7\), got \(8, 2, 7, 7\)\)"):
        load_weights(resnet18(width=8, in_channels=4), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"shape of conv1.weight"):
        load_weights(resnet18(width=8), tmp_path / "weights.pth")

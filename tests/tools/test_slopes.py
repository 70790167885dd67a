"""Slopes of a checkpoint: which entries are slopes, their table and plot, and the answers to a user's errors."""

import json
import math
import sys
from collections import OrderedDict

import pytest
import torch
from test_cli import error_line
from torch import nn

import atrous
from atrous.models import read_weights, resnet34
from atrous.nn import ConvBNAct2d
from atrous.tools.slopes.report import number
from atrous.tools.slopes.slopes import learned

STAGES = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
ACTS = ["act1", *(f"{s}.{block}.act{i}" for s, count in STAGES.items() for block in range(count) for i in (1, 2))]


def trained():
    """A ResNet34 whose slopes spread more in deeper layers."""
    model = resnet34(act="prelu", num_classes=10)
    slopes = [module.weight for module in model.modules() if isinstance(module, nn.PReLU)]
    for depth, slope in enumerate(slopes):
        nn.init.normal_(slope, 0.3 - 0.008 * depth, 0.1 + 0.006 * depth)
    return model


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "trained.pt")
    return tmp_path / "trained.pt"


def names(weights):
    return [slopes.name.removesuffix(".weight") for slopes in learned(weights)]


# Which entries are slopes


def test_slopes_of_resnet34_plain_fused_and_frozen():
    model = trained()
    assert names(model.state_dict()) == ACTS and len(ACTS) == 33
    assert names(atrous.fuse(model).state_dict()) == ACTS
    assert names(atrous.fuse(model.eval(), freeze=True).state_dict()) == ACTS
    assert learned(resnet34(num_classes=10).state_dict()) == []


def test_slopes_by_name():
    """torchvision's names, numbered names, and 1-D tensors that are no slopes."""
    model = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3), bn1=nn.BatchNorm2d(8), relu=nn.PReLU(8), shared=nn.PReLU(),
        features=nn.Sequential(nn.Conv1d(8, 8, 1, bias=False), nn.BatchNorm1d(8), nn.PReLU(8), nn.InstanceNorm1d(8)),
        group=nn.GroupNorm(2, 8), attention_norm=nn.RMSNorm(8), ln_1=nn.LayerNorm(8, bias=False),
        site=ConvBNAct2d(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8)), norm_act=nn.Sequential(nn.PReLU()),
        fc=nn.Linear(1, 1, bias=False), mean=nn.BatchNorm1d(8, affine=False), still=nn.PReLU(8).requires_grad_(False),
    )  # fmt: skip
    weights = nn.Sequential(model).state_dict()
    assert names(weights) == ["relu", "shared", "features.2", "site.act", "norm_act.0", "still"]
    assert names(nn.PReLU(4).state_dict()) == ["weight"] and names(nn.BatchNorm1d(4).state_dict()) == []
    assert (
        names({"a.weight": torch.ones(4, dtype=torch.int64), "b.weight": torch.ones(0), "c_weight": torch.ones(3)})
        == []
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_numbers(dtype):
    (slopes,) = learned({"act.weight": torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5], dtype=dtype)})
    assert (slopes.channels, slopes.min, slopes.mean, slopes.max) == (5, -0.5, 0.45, 1.5)
    assert (slopes.below_0, slopes.above_1, slopes.not_finite) == (1, 1, 0)


def test_numbers_that_are_not_finite():
    some, none = learned({
        "some.weight": torch.tensor([math.nan, -0.5, math.inf, 0.5]), "none.weight": torch.tensor([math.nan] * 2),
    })  # fmt: skip
    assert (some.min, some.mean, some.max, some.below_0, some.above_1, some.not_finite) == (-0.5, 0.0, 0.5, 1, 0, 2)
    assert (none.min, none.mean, none.max, none.not_finite) == (None, None, None, 2)


@pytest.mark.parametrize("value, text", [
    (0.25, "0.250"), (-9.9994, "-9.999"), (9.9996, "1e+01"), (-123456.0, "-1e+05"), (None, "-"),
])  # fmt: skip
def test_number(value, text):
    assert number(value) == text


# The text, JSON and plot of explain --slopes


@pytest.mark.parametrize("columns", [30, 40, 41, 60, 80, 200])
def test_the_table(run, checkpoint, columns):
    status, out, err = run("explain", "--slopes", checkpoint, columns=columns)
    lines = out.splitlines()
    assert status == 0 and err == "" and max(map(len, lines)) <= max(columns, 40)
    first, last = (index for index, line in enumerate(lines) if set(line) == {"-"})
    rows, expected = lines[first + 1 : last], learned(read_weights(checkpoint))
    apart = columns < 60
    assert len(rows) == 33 * (1 + apart)
    assert [row.split()[0] for row in (rows[::2] if apart else rows)] == ACTS
    for slopes, row in zip(expected, rows[1::2] if apart else rows):
        counts = (str(slopes.channels), number(slopes.min), number(slopes.mean), number(slopes.max))
        assert row.split()[1 - apart : 7 - apart] == [*counts, str(slopes.below_0), str(slopes.above_1)]
    assert all("-" in row and "o" in row for row in (rows[::2] if apart else rows))
    assert "33 slope tensors, 7,616 channels" in " ".join(" ".join(lines[last:]).split())


def test_the_bar(run, tmp_path):
    """All bars have one scale, from the least slope to the largest including 0; a long name is cut at its start."""
    long = "backbone.stages.0.blocks.0.branch.activation_of_the_first_convolution"
    weights = {"low": [-1.0, 0.0], "high": [1.0, 2.0], "same": [0.5, 0.5], long: [math.nan] * 2}
    torch.save({f"{name}.weight": torch.tensor(value) for name, value in weights.items()}, tmp_path / "few.pt")
    status, out, _ = run("explain", "--slopes", tmp_path / "few.pt", columns=40)
    lines = out.splitlines()
    head, bars = lines[0], [line[-13:] for line in (f"{line:40}" for line in lines[3:11:2])]
    assert status == 0 and head.endswith("-1.000  2.000")
    assert bars == ["--o-|        ", "    |   --o--", "    | o      ", "    |        "]
    assert lines[9].split()[0] == "..of_the_first_convolution"
    assert "NOT FINITE: 2 of 2 in backbone" in out and "4 slope tensors, 8 channels" in out


def test_slopes_of_zero_have_a_table(run, tmp_path):
    torch.save({"act.weight": torch.zeros(3)}, tmp_path / "zero.pt")
    status, out, _ = run("explain", "--slopes", tmp_path / "zero.pt")
    assert status == 0 and "1 slope tensor, 3 channels: 0 below 0, 0 above 1" in out


@pytest.mark.parametrize("wrap", [
    lambda weights: {"state_dict": weights, "epoch": 3},
    lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}, "optimizer": {}},
    lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
], ids=["state_dict", "model, module", "compiled"])  # fmt: skip
def test_checkpoints_of_other_forms(run, checkpoint, tmp_path, wrap):
    torch.save(wrap(read_weights(checkpoint)), tmp_path / "wrapped.pt")
    assert run("explain", "--slopes", tmp_path / "wrapped.pt") == run("explain", "--slopes", checkpoint)


def test_safetensors_are_put_in_the_order_of_their_names(run, tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    save({f"layer.{index}.act.weight": torch.full((4,), 0.25) for index in range(12)}, tmp_path / "a.safetensors")
    status, _, _ = run("explain", "--slopes", tmp_path / "a.safetensors", "--json", tmp_path / "a.json")
    slopes = json.loads((tmp_path / "a.json").read_text())["slopes"]
    assert status == 0 and [tensor["name"] for tensor in slopes] == [f"layer.{index}.act.weight" for index in range(12)]


def test_json_and_plot(run, checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--json", tmp_path / "slopes.json", "--plot", tmp_path / "slopes.png")
    status, _, err = run("explain", "--slopes", checkpoint, *options)
    assert status == 0 and err == ""
    result = json.loads((tmp_path / "slopes.json").read_text())
    assert result["checkpoint"] == str(checkpoint) and len(result["slopes"]) == 33
    weight = read_weights(checkpoint)["layer4.2.act2.weight"]
    last = result["slopes"][-1]
    assert (last["name"], last["channels"]) == ("layer4.2.act2.weight", 512)
    assert last["mean"] == pytest.approx(float(weight.mean()), abs=1e-6)
    assert (last["min"], last["max"]) == (float(weight.min()), float(weight.max()))
    assert (last["below_0"], last["above_1"]) == (int((weight < 0).sum()), int((weight > 1).sum()))
    assert (tmp_path / "slopes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 2, 90])
def test_plots_of_few_and_of_many(run, tmp_path, count):
    pytest.importorskip("matplotlib")
    weights = {f"{index}.weight": torch.randn(8) for index in range(count)}
    torch.save({**weights, "nan.weight": torch.tensor([math.nan])}, tmp_path / "a.pt")
    status, _, err = run("explain", "--slopes", tmp_path / "a.pt", "--plot", tmp_path / "a.png")
    assert status == 0 and err == "" and (tmp_path / "a.png").stat().st_size > 5_000


# Errors


def test_a_checkpoint_without_slopes(run, tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(), tmp_path / "relu.pt")
    line = error_line(run("explain", "--slopes", tmp_path / "relu.pt"))
    assert "--slopes: expected a checkpoint of a network with PReLU, but" in line and "relu.pt has no slopes" in line


def test_files_that_are_no_checkpoint(run, tmp_path):
    (tmp_path / "text.pt").write_text("slopes")
    torch.save(nn.PReLU(), tmp_path / "module.pt")  # not loaded: it would run code
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    for name, message in (
        ("text.pt", "weights_only=True"), ("module.pt", "weights_only=True"), ("list.pt", "expected a state_dict"),
        ("absent.pt", "where there is none"), (".", "where there is none"),
    ):  # fmt: skip
        line = error_line(run("explain", "--slopes", tmp_path / name))
        assert line.startswith("atrous explain: --slopes: expected") and message in line


def test_slopes_stand_alone(run, checkpoint, tmp_path, monkeypatch):
    for given, named in (
        (("resnet34",), "MODEL resnet34"), (("--batch", "2"), "--batch"), (("--act", "prelu"), "--act"),
        (("--output-stride", "8"), "--output-stride"), (("--backend", "library"), "--backend"),
    ):  # fmt: skip
        assert f"expected neither MODEL nor an option of a model, got {named}" in error_line(
            run("explain", "--slopes", checkpoint, *given)
        )
    assert "got --plot without --slopes" in error_line(run("explain", "resnet34", "--plot", tmp_path / "a.png"))
    assert "expected a MODEL, or --slopes CHECKPOINT" in error_line(run("explain"))
    message = "--plot: expected a file that can be written"
    assert message in error_line(run("explain", "--slopes", checkpoint, "--plot", tmp_path / "absent" / "a.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "--plot needs matplotlib" in error_line(run("explain", "--slopes", checkpoint, "--plot", tmp_path / "a.png"))

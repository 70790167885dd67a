"""fusion_report: every convolution, fused or with the reason why not, graph breaks, and calls that ran plain."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from outcomes import equal_models
from pairs import Pair, image, written
from torch import nn
from zoo import ZOO

import atrous


def fused_after_a_call(forward, *inputs, **options):
    fused = atrous.fuse(equal_models(written(forward))[0], **options)
    with torch.no_grad():
        fused(*(inputs or (image(),)))
    return fused


def site(fused, path):
    [entry] = [entry for entry in fused.fusion_report.sites if entry.path == path]
    return entry


def test_it_is_filled_by_the_first_call_or_by_example_inputs():
    model = equal_models(Pair)[0]
    fused = atrous.fuse(model)
    assert fused.fusion_report.counts == (0, 0) and not fused.fusion_report.sites
    with torch.no_grad():
        fused(image())
    given = atrous.fuse(model, (image(),)).fusion_report
    assert given.counts == fused.fusion_report.counts == (2, 2)
    sites = [(entry.path, entry.pattern, entry.fused) for entry in given.sites]
    assert sites == [("conv1", "conv+bn+relu", True), ("conv2", "conv+bn+add+prelu", True)]
    with pytest.raises((AttributeError, TypeError)):
        model.fusion_report  # noqa: B018  # the model itself has none


def unfused(s, x):
    z = s.conv1(x)
    y = s.relu(s.bn1(z)) + z
    return s.conv2(y).sigmoid()


def test_every_convolution_has_its_reason():
    fused = fused_after_a_call(unfused)
    assert fused.fusion_report.counts == (1, 3)  # bn1+relu+add without its convolution, and two convolutions
    assert not site(fused, "conv1").fused and "2" in site(fused, "conv1").reason
    assert not site(fused, "conv2").fused and "sigmoid" in site(fused, "conv2").reason
    assert site(fused, "bn1").fused and site(fused, "bn1").pattern == "bn+relu+add"
    text = str(fused.fusion_report)
    assert all(word in text for word in ("1/3", "conv1", "conv2", "sigmoid"))


@pytest.mark.parametrize("forward, path, word", [
    (lambda s, x: s.relu(s.bn1(s.conv1(x)[:, :4])), "conv1", "getitem|slice"),
    (lambda s, x: s.relu(s.bn1(s.conv1(x).clone())), "conv1", "clone"),
    (lambda s, x: F.conv2d(x, s.conv1.weight), "", "conv|output"),
    (lambda s, x: s.relu(s.bn1(s.conv1(x).mul_(2))), "conv1", "mul_"),
], ids=["slice", "clone", "output", "mul_"])  # fmt: skip
def test_reasons_name_what_follows(forward, path, word):
    import re

    report = fused_after_a_call(forward).fusion_report
    left = [f for f in report.sites if f.pattern.startswith("conv") and not f.fused]
    assert len(left) == 1 and re.search(word, left[0].reason), report
    if path:
        assert left[0].path == path


def test_an_addition_names_the_layer_that_it_is_fused_into():
    def forward(s, x):
        shortcut = s.conv1(x)
        shortcut += s.bn2(s.conv2(x))
        return s.relu(shortcut)

    report = fused_after_a_call(forward).fusion_report
    assert {f.path: f.fused for f in report.sites} == {"conv1": False, "conv2": True}, report
    assert [f.reason for f in report.sites if not f.fused] == ["its addition is fused into conv2"]
    plain = fused_after_a_call(lambda s, x: s.relu(s.conv2(s.conv1(x)))).fusion_report
    assert [f.reason for f in plain.sites if not f.fused] == ["followed by conv2d"]


def test_a_write_in_place_is_named():
    def forward(s, x):
        z = s.conv1(x)
        x.mul_(2)
        return s.relu(s.bn1(z)) + x

    assert "mul_" in site(fused_after_a_call(forward), "conv1").reason


def test_paths_are_names_of_modules():
    for name in ("TorchvisionBasic", "HighResolution", "Dense", "UNet", "ResidualUnit"):
        zoo = ZOO[name]
        model = equal_models(zoo.build)[0]
        report = atrous.fuse(model, (zoo.inputs(),)).fusion_report
        names = dict(model.named_modules())
        for entry in report.sites:
            if entry.pattern.startswith("conv"):
                assert isinstance(names[entry.path], nn.Conv2d), entry
            elif entry.pattern.startswith("bn"):
                assert isinstance(names[entry.path], nn.BatchNorm2d), entry
        paths = [entry.path for entry in report.sites if entry.pattern.startswith("conv")]
        assert sorted(paths) == sorted(n for n, m in names.items() if isinstance(m, nn.Conv2d))


def test_modes():
    """A layer that one mode alone has names the mode; one that both have appears once."""

    def forward(s, x):
        y = s.first(x)
        return s.second(y, x) if s.training else s.conv2(y)

    fused = fused_after_a_call(forward)
    assert {entry.mode for entry in fused.fusion_report.sites} <= {"eval", "both"}
    fused.train()
    fused(image())
    modes = {(entry.path, entry.pattern, entry.fused): entry.mode for entry in fused.fusion_report.sites}
    assert modes == {
        ("conv1", "conv+bn+relu", True): "both",
        ("conv2", "conv", False): "eval",
        ("conv2", "conv+bn+add+prelu", True): "train",
    }
    assert len(str(fused.fusion_report).splitlines()) >= 4


def test_a_graph_that_depends_on_no_mode():
    """It counts in every mode: here the one behind the break, in a model that trains."""

    def forward(s, x):
        y = s.first(x)
        torch._dynamo.graph_break()
        return s.conv2(y)

    fused = atrous.fuse(equal_models(written(forward))[0].train())
    fused(image())
    assert fused.fusion_report.counts == (1, 2)
    assert {entry.mode for entry in fused.fusion_report.sites} == {"both"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = 2 * x
        torch._dynamo.graph_break()
        return F.relu(self.bn(self.conv(y)))


def test_modules_of_one_class_that_share_a_graph():
    model, plain = equal_models(lambda: nn.Sequential(Block(), Block(), Block()))
    fused, x = atrous.fuse(model), image()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
    assert fused.fusion_report.counts == (1, 1) and len(fused.fusion_report.sites) == 1


def test_breaks():
    def forward(s, x):
        y = s.first(x)
        if y.sum() > 1e9:
            y = y * 2
        return s.second(y, x)

    report = fused_after_a_call(forward).fusion_report
    assert report.counts == (2, 2) and len(report.breaks) >= 1
    assert all("data" in str(reason).lower() or "branch" in str(reason).lower() for reason in list(report.breaks)[:1])
    assert not fused_after_a_call(lambda s, x: s.second(s.first(x), x)).fusion_report.breaks


def test_plain_calls():
    fused = atrous.fuse(equal_models(Pair)[0], (image(),))
    assert not fused.fusion_report.plain_calls
    torch.func.vmap(fused)(torch.stack([image(), image()]))
    assert len(fused.fusion_report.plain_calls) == 1
    assert "func" in str(fused.fusion_report.plain_calls) or "transform" in str(fused.fusion_report.plain_calls)


def test_dict_file_and_text(tmp_path):
    fused = fused_after_a_call(unfused)
    report = fused.fusion_report
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["fused"], data["total"]) == report.counts == (1, 3)
    assert [entry["path"] for entry in data["sites"]] == [entry.path for entry in report.sites]
    assert {"path", "pattern", "fused", "reason", "mode"} <= set(data["sites"][0])
    report.save(tmp_path / "report")
    files = [path for path in (tmp_path / "report").rglob("*") if path.is_file()]
    assert files and any("conv1" in path.read_text() for path in files)
    assert all(len(line) <= 120 for line in str(report).splitlines())
    empty = atrous.fuse(nn.Linear(2, 2)).fusion_report
    assert empty.counts == (0, 0) and str(empty)


@pytest.mark.parametrize("freeze", [False, True], ids=["fused", "frozen"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_program_of_a_site(tmp_path, freeze, training, capsys):
    """Each site's program has the site's shapes, parts and mode, and finds it fused as in the model."""
    if freeze and training:
        pytest.skip("a frozen model does not train")
    fused = atrous.fuse(equal_models(Pair, training)[0], freeze=freeze)
    fused(image())
    fused.fusion_report.save(tmp_path)
    sites = fused.fusion_report.sites
    assert len(sites) == len(list(tmp_path.glob("site_*.py"))) == 2
    for number, site in enumerate(sites):
        text = (tmp_path / f"site_{number:03d}.py").read_text()
        ran: dict = {}
        exec(text.partition("for name, one in")[0], ran)  # the rest takes seconds: it times
        assert ran["model"].training is training and ran["inputs"][0].shape == image().shape
        assert ran["fused"].fusion_report.sites[0].pattern == site.pattern and ran["fused"].fusion_report.counts == (
            1,
            1,
        )
        torch.testing.assert_close(ran["ours"], ran["plain"], rtol=1e-9, atol=1e-9)
    assert "largest difference" in capsys.readouterr().out


def test_frozen_report():
    frozen = atrous.fuse(equal_models(Pair)[0], (image(),), freeze=True)
    assert frozen.fusion_report.counts == (2, 2) and "2/2" in str(frozen.fusion_report)

"""The demo on small images: its numbers, text and plot, and how it ends when something is wrong."""

import contextlib
import io
import json

import pytest
import torch

from atrous import models
from atrous.core.checks import UsageError
from atrous.tools import cli
from atrous.tools.demo import command as demo
from atrous.tools.demo import images as demo_images
from atrous.tools.demo import report as demo_report
from atrous.tools.demo import run
from atrous.tools.demo import training as demo_training
from atrous.tools.demo import variants as demo_variants

Image = pytest.importorskip("PIL.Image")
VARIANTS = ("eager", "eager_channels_last", "atrous")
TRAINING = (*VARIANTS, "atrous_no_recompute")
QUICK = dict(size=48, batch_seconds=0.0, training_batch=2, training_variants=TRAINING, training_seconds=0.0)
SMALL = run.Plan(batches=(1, 2), variants=VARIANTS, **QUICK)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    return path


def arguments(*options):
    return cli._parser().parse_args(["demo", *map(str, options)])


@pytest.fixture(scope="module", params=[pytest.param("one run", marks=pytest.mark.gate)])  # its tests are gates
def finished(picture, tmp_path_factory):
    """One whole run: its exit status, JSON and plot."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    options = ("--image", picture, "--json", folder / "demo.json", "--plot", folder / "demo.png")
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = demo.main(arguments(*options), SMALL)
    assert not errors.getvalue()  # no bar without a terminal
    return status, json.loads((folder / "demo.json").read_text()), folder / "demo.png"


@pytest.fixture
def result(finished):
    return finished[1]


def test_it_succeeds_and_fills_every_key(finished):
    status, result, _ = finished
    assert status == 0
    assert {"device", "versions", "agreement", "inference", "launches", "fusion", "not_run"} <= result.keys()
    assert result["versions"]["torch"] == torch.__version__
    assert not result["not_run"]


def test_every_cell_is_measured_once(result):
    cells = [(row["dtype"], row["batch"], row["variant"]) for row in result["inference"]]
    assert cells == [(d, b, v) for d in ("float32", "bfloat16") for b in (1, 2) for v in VARIANTS]


def test_speedups_are_over_eager_float32_at_the_same_batch(result):
    eager = {
        row["batch"]: row["median_ms"]
        for row in result["inference"]
        if (row["variant"], row["dtype"]) == ("eager", "float32")
    }
    for row in result["inference"]:
        assert row["speedup_vs_eager"] == pytest.approx(eager[row["batch"]] / row["median_ms"])
        assert row["repeats"] >= 3 and row["median_ms"] > 0


def test_agreement_is_against_fp64_for_both(result):
    for dtype, row in result["agreement"].items():
        eps = torch.finfo(getattr(torch, dtype)).eps
        assert row["agrees"] and row["atrous"] <= row["allowed"] == run.BUDGET * row["eager"]
        assert 0 < row["eager"] < 100 * eps * row["largest_logit"]  # a rounding error, and not nothing


def test_training_is_timed_and_its_memory_counted(result):
    """Fused training saves less than half of eager's bytes, with recompute or without; gradients agree with fp64."""
    assert [row["variant"] for row in result["training"]] == [row["variant"] for row in result["memory"]] == [*TRAINING]
    saved = {row["variant"]: row["saved_bytes_per_image"] for row in result["memory"]}
    assert saved["eager"] == saved["eager_channels_last"] and saved["atrous"] < 0.5 * saved["eager"]
    assert saved["atrous"] < saved["atrous_no_recompute"] < saved["eager"]
    errors = result["agreement_of_gradients"]
    assert 0 < errors["float64"] <= demo_training.BUDGET and {"eager", "atrous"} < errors.keys()
    first, *others = result["training"]
    for row in others:
        assert row["speedup_vs_eager"] == pytest.approx(first["median_ms"] / row["median_ms"])


def test_fusion_launches_fewer_operators(result):
    assert result["fusion"]["fused"] == result["fusion"]["total"] == 36
    assert result["launches"]["atrous"] < result["launches"]["eager"] / 2


def test_launches_counts_work_and_not_views():
    x = torch.ones(2, 3)
    assert demo_variants.launches(lambda: torch.relu(x.t().view(3, 2) + torch.empty(3, 2))) == 2


def test_the_plot_is_a_png(finished):
    with Image.open(finished[2]) as plot:
        assert plot.format == "PNG" and min(plot.size) > 400


def test_the_text_fits_60_columns(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    parts = (demo_report.header, demo_report.agreement, demo_report.fusion, demo_report.times, demo_report.training)
    lines = "\n".join(part(result) for part in parts).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum("atrous" in line and "x " in f"{line} " for line in lines) >= 1


def test_random_weights_are_seeded_and_not_trivial(picture):
    images = demo_images.photographs([picture], 32)
    a, b = (demo_images.random_model(images).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for kind in ("layer3.2.bn1.weight", "layer3.2.bn1.bias", "layer3.2.bn1.running_mean", "layer3.2.act1.weight"):
        assert a[kind].std() > 0.01


@pytest.mark.gate
def test_a_wrong_fused_model_is_rejected_before_anything_is_timed(picture, tmp_path, monkeypatch, capsys):
    def wrong(model, **options):
        fused = fuse(model, **options)
        fused.fc.bias.data += 0.01
        return fused

    fuse = run.fuse
    monkeypatch.setattr(run, "fuse", wrong)
    small = run.Plan(batches=(1,), dtypes=(torch.float32,), variants=VARIANTS, **QUICK)
    assert demo.main(arguments("--image", picture, "--json", tmp_path / "demo.json"), small) == 1
    output = capsys.readouterr()
    assert "disagrees" in output.err and "float32" in output.err and "DISAGREES" in output.out
    result = json.loads((tmp_path / "demo.json").read_text())
    assert not result["agreement"]["float32"]["agrees"] and not result["inference"]


@pytest.mark.gate
def test_a_compiler_that_fails_is_reported_as_not_run(picture, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("no C++ compiler\nlong explanation")

    monkeypatch.setattr(torch, "compile", broken)
    variants = ("eager", "compile", "atrous")
    quick = QUICK | {"training_variants": ("eager", "atrous")}
    small = run.Plan(batches=(1,), dtypes=(torch.float32,), variants=variants, **quick)
    assert demo.main(arguments("--image", picture), small) == 0
    text = capsys.readouterr().out
    assert "RuntimeError: no C++ compiler" in " ".join(text.split()) and "not run" in text and "explanation" not in text


def test_weights_without_slopes_make_a_network_with_relu(picture, tmp_path):
    torch.save(models.resnet34(act="relu").state_dict(), tmp_path / "relu.pt")
    images = demo_images.photographs([picture], 32)
    model, text = demo_images.subject(tmp_path / "relu.pt", images)
    assert not any(isinstance(module, torch.nn.PReLU) for module in model.modules())
    assert "relu.pt" in text and not model.training


@pytest.mark.parametrize("option", ["--image", "--weights"])
@pytest.mark.parametrize("content", [None, b"", b"neither picture nor weights"])
def test_an_unreadable_file_is_one_line(option, content, picture, tmp_path, capsys):
    path = tmp_path / "broken.file"
    if content is not None:
        path.write_bytes(content)
    options = [option, path] if option == "--image" else ["--image", picture, option, path]
    with pytest.raises(UsageError) as error:
        demo.main(arguments(*options), SMALL)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and not capsys.readouterr().out


def test_a_plot_that_cannot_be_written_is_reported_first(picture, tmp_path):
    with pytest.raises(UsageError, match="--plot"):
        demo.main(arguments("--image", picture, "--plot", tmp_path / "absent" / "demo.png"), SMALL)


def test_without_the_packages_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(demo_images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install scikit-learn scikit-image, .* --image"):
        demo.main(arguments(), SMALL)


def test_the_shipped_photographs_are_the_four():
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    assert [path.name for path in demo_images.shipped()] == ["china.jpg", "flower.jpg", "astronaut.png", "retina.jpg"]


def test_batches_are_photographs_and_their_mirror_images(picture):
    images = demo_images.photographs([picture], 32)
    assert images.shape == (1, 3, 32, 32)
    expected = torch.cat([images, images.flip(3), images])
    assert torch.equal(demo_images.batch(images, 3), expected)

"""The demo on small images: its numbers, text and plot, and how it ends when something is wrong."""

import contextlib
import io
import json
import statistics

import pytest
import torch

from atrous import models
from atrous.core.checks import UsageError
from atrous.tools import cli, timing
from atrous.tools.demo import command as demo
from atrous.tools.demo import images as demo_images
from atrous.tools.demo import plot as demo_plot
from atrous.tools.demo import report as demo_report
from atrous.tools.demo import run
from atrous.tools.demo import training as demo_training
from atrous.tools.demo import variants as demo_variants

Image = pytest.importorskip("PIL.Image")
VARIANTS = ("eager", "eager_channels_last", "atrous_frozen")
TRAINING = ("eager", "eager_channels_last", "atrous", "atrous_no_recompute")
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
    """One whole run: its exit status, JSON, plot, and the times that were measured."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    options = ("--image", picture, "--json", folder / "demo.json", "--plot", folder / "demo.png")
    measured, interleaved = [], timing.interleaved
    with contextlib.redirect_stderr(io.StringIO()) as errors, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timing, "interleaved", lambda *args, **more: measured.append(interleaved(*args, **more)) or measured[-1]
        )
        status = demo.main(arguments(*options), SMALL)
    assert not errors.getvalue()  # no bar without a terminal
    return status, json.loads((folder / "demo.json").read_text()), folder / "demo.png", measured


@pytest.fixture
def result(finished):
    return finished[1]


def test_it_succeeds_and_fills_every_key(finished):
    status, result, *_ = finished
    assert status == 0
    assert {"device", "versions", "agreement", "inference", "launches", "fusion", "not_run"} <= result.keys()
    assert result["versions"]["torch"] == torch.__version__
    assert not result["not_run"]


def test_every_cell_is_measured_once(result):
    cells = [(row["dtype"], row["batch"], row["variant"]) for row in result["inference"]]
    assert cells == [(d, b, v) for d in ("float32", "bfloat16") for b in (1, 2) for v in VARIANTS]


def test_speedups_are_over_eager_float32_at_the_same_batch(finished):
    """They are those of the rounds, with their spread."""
    _, result, _, measured = finished
    for row in result["inference"]:
        cells = next(times for times in measured[:-1] if row["batch"] in {cell.batch for cell in times})
        times = {(str(cell.dtype).removeprefix("torch."), cell.variant): values for cell, values in cells.items()}
        mine = times[row["dtype"], row["variant"]]
        assert (row["speedup_vs_eager"], row["spread"]) == timing.ratio(times["float32", "eager"], mine)
        assert row["median_ms"] == statistics.median(mine) > 0 and row["repeats"] == len(mine) >= 3
        assert row["counted"] == (row["spread"] <= timing.LIMIT)
    assert {row["speedup_vs_eager"] for row in result["inference"][:1]} == {1.0}


def test_agreement_is_against_fp64_for_both(result):
    for dtype, row in result["agreement"].items():
        eps = torch.finfo(getattr(torch, dtype)).eps
        assert row["agrees"] and row["atrous_frozen"] <= row["allowed"] == run.BUDGET * row["eager"]
        assert 0 < row["eager"] < 100 * eps * row["largest_logit"]  # a rounding error, and not nothing


def test_training_is_timed_and_its_memory_counted(result, finished):
    """Fused training saves less than half of eager's bytes, with recompute or without; gradients agree with fp64."""
    assert [row["variant"] for row in result["training"]] == [row["variant"] for row in result["memory"]] == [*TRAINING]
    saved = {row["variant"]: row["saved_bytes_per_image"] for row in result["memory"]}
    assert saved["eager"] == saved["eager_channels_last"] and saved["atrous"] < 0.5 * saved["eager"]
    assert saved["atrous"] < saved["atrous_no_recompute"] < saved["eager"]
    errors = result["agreement_of_gradients"]
    assert 0 < errors["float64"] <= demo_training.BUDGET and {"eager", "atrous"} < errors.keys()
    times = finished[3][-1]
    for row in result["training"]:
        mine = times[row["variant"]]
        assert (row["speedup_vs_eager"], row["spread"]) == timing.ratio(times["eager"], mine)
        assert row["median_ms"] == statistics.median(mine)


def test_fusion_launches_fewer_operators(result):
    assert result["fusion"]["fused"] == result["fusion"]["total"] == 36
    assert result["launches"]["atrous_frozen"] < result["launches"]["eager"] / 2


def test_launches_counts_work_and_not_views():
    x = torch.ones(2, 3)
    assert demo_variants.launches(lambda: torch.relu(x.t().view(3, 2) + torch.empty(3, 2))) == 2


def test_the_plot_is_a_png(finished):
    with Image.open(finished[2]) as plot:
        assert plot.format == "PNG" and min(plot.size) > 400


def test_the_text_fits_60_columns(result, monkeypatch):
    """With noise too, whose speed-ups take the most columns."""
    monkeypatch.setenv("COLUMNS", "60")
    for row in (*result["inference"], *result["training"]):
        row |= {"speedup_vs_eager": 12.25, "spread": 0.125, "counted": False}
    parts = (demo_report.header, demo_report.agreement, demo_report.fusion, demo_report.times, demo_report.training)
    lines = "\n".join(part(result) for part in parts).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum("atrous frozen" in line and "(12.25 ±12)" in line for line in lines) == 2
    assert " ".join("\n".join(lines).split()).count("noisy machine: ") == 2


def row(variant, dtype="float32", batch=1, speedup=2.0, spread=0.01, counted=True):
    numbers = {"speedup_vs_eager": speedup, "spread": spread, "counted": counted, "median_ms": 20 / speedup}
    return {"batch": batch, "dtype": dtype, "variant": variant, **numbers, "repeats": 9}


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    cells = [(dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 8)]
    inference = [row(name, *cell) for cell in cells for name in demo_variants.LABELS]
    return {"inference": inference, "not_run": []}


def test_the_table_shows_spreads_and_noise(rows):
    text = demo_report.times(rows)
    assert "2.00 ±1" in text and "noisy" not in text and max(map(len, text.splitlines())) <= 60
    rows["inference"][0] |= {"spread": 0.11, "counted": False}
    text = " ".join(demo_report.times(rows).split())
    assert "(2.00 ±11)" in text and "noisy machine: 1 of 36 speed-ups spread by more than 5%" in text


def test_the_plot_says_what_is_noisy_and_its_numbers_are_right_of_the_line(rows):
    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    for position, (speedup, counted) in enumerate([(0.5, True), (0.99, True), (1.5, False)]):
        demo_plot._bar(axes, position, "atrous_frozen", row("", speedup=speedup, counted=counted), 0.1)
    places = [text.get_position()[0] for text in axes.texts]
    assert places == [1.1, 1.1, 1.6] and axes.texts[2].get_text() == "(1.50x ± 1 %)   13.3 ms"
    assert [bar.get_alpha() for bar in axes.patches] == [1.0, 1.0, 0.4]


@pytest.mark.parametrize("seconds, got", [("0", "0"), ("-3", "-3"), ("nan", "nan")])
def test_seconds_that_are_not_positive_are_refused(seconds, got):
    with pytest.raises(UsageError, match=f"--seconds: expected a positive number, got {got}$"):
        demo.main(arguments("--seconds", seconds))


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
    variants = ("eager", "compile", "atrous_frozen")
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
    message = str(error.value)
    assert message.startswith(f"{option}: ") and message.count(": ") <= 3 and "path: " not in message
    assert str(path) in message and "\n" not in message and not capsys.readouterr().out


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

"""Compose the report: the difference of data first, then figures, pictures, slopes, dead channels, costs, audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import atrous
from atrous.core import files
from atrous.tools.audit import pictures as audit_pictures
from atrous.tools.audit import report as audit_report
from atrous.tools.slopes.report import plot as plot_slopes

from .. import network
from ..config import show
from ..inference import Way
from ..metrics.published import Published
from . import charts, comparable, image_row, tables
from .gather import RunResult
from .layers import slope_sentence
from .page import Page


def compose(
    folder: Path, runs: Sequence[RunResult], baselines: Sequence[dict], published: Published, way: Way,
    pictures: int, loss: float | None,
) -> str:  # fmt: skip
    """Draws the pictures into `folder` and returns the page. baselines: Frangi's figures, one for each data set."""
    page = Page("Vessel segmentation: " + ", ".join(run.name for run in runs))
    first, *others = comparable.data_sentences(runs, published, way)
    page.text([first], warning=any(run.synthetic for run in runs))
    page.text(others)
    _figures(page, folder, runs, baselines, published)
    _images(page, folder, runs, pictures)
    _training(page, folder, runs, loss)
    _slopes(page, folder, runs)
    _audit(page, folder, runs)
    _options(page, runs)
    return page.render()


def _figures(page: Page, folder: Path, runs, baselines: Sequence[dict], published: Published) -> None:
    page.head("Figures beside the published ones")
    page.text(comparable.comparable_sentences(runs, published))
    bootstrap = runs[0].figures["bootstrap"]
    page.text([
        f"Field of view, all images together, threshold 0.5; intervals: {bootstrap['confidence']:.0%}, by the "
        f"bootstrap over images ({bootstrap['resamples']} resamples, seed {bootstrap['seed']}). Thin vessels are at "
        "most 3 pixels wide."
    ])  # fmt: skip
    page.table(tables.overview(runs, baselines[0] if len(baselines) == 1 else None, published))
    for run in runs:
        page.details(f"All figures of {run.name}", tables.details(run, published), run.figures["notes"])
    page.head("ROC and precision-recall curves of the test images")
    page.image(charts.areas(folder / "areas.png", runs, baselines, published), "ROC and precision-recall curves")


def _images(page: Page, folder: Path, runs: Sequence[RunResult], pictures: int) -> None:
    page.head("Test images")
    for index, run in enumerate(runs):
        page.head(run.name + (" (SYNTHETIC images)" if run.synthetic else ""), 3)
        name = image_row.draw(folder / f"images_{index + 1}.png", run, pictures)
        page.image(name, f"{run.name}: {', '.join(image_row.TITLES)}")


def _training(page: Page, folder: Path, runs: Sequence[RunResult], loss: float | None) -> None:
    page.head("Training")
    page.image(charts.losses(folder / "losses.png", runs), "Loss, validation loss and validation ROC area by epoch")
    page.head("Epochs to a fixed loss", 3)
    if loss is None:
        page.text(["The loss is the smallest one that every run reaches in some epoch; one seed shows no rule."])
    page.table(tables.convergence(runs, loss))
    page.head("Time and memory", 3)
    page.text(tables.fused_beside_plain(runs))
    page.text(["Saved: bytes that autograd keeps in one training step on the CPU, each storage once, weights aside."])
    page.table(tables.costs(runs))
    page.head("Dead channels")
    page.text([
        "A channel is dead if its pre-activation is positive at no pixel of the validation images. With ReLU its "
        "output is then 0 everywhere; with a slope it is linear there, and a gradient still passes."
    ])  # fmt: skip
    page.image(charts.dead(folder / "dead.png", runs), "Fraction of dead channels of each activation, by depth")
    page.table(tables.dead(runs))


def _slopes(page: Page, folder: Path, runs: Sequence[RunResult]) -> None:
    for index, run in enumerate(runs):
        tensors = [layer.slopes for layer in run.layers if layer.slopes is not None]
        if tensors:
            page.head(f"Learned slopes by depth: {run.name}")
            page.text([sentence] if (sentence := slope_sentence(run.layers)) else [])
            path = folder / f"slopes_{index + 1}.png"
            files.write(path, plot_slopes(tensors, charts.title(run.name, [run])))
            page.image(path.name, f"Slopes of {run.name} by depth: mean, least and largest of each layer")
            page.table(tables.slopes(run))


def _audit(page: Page, folder: Path, runs: Sequence[RunResult]) -> None:
    page.head("Audit of the head's rates")
    heads = {(run.config.rates, network.head_side(run.config)): run.config for run in runs}
    for index, ((rates, side), config) in enumerate(heads.items()):
        audit, title = atrous.audit_dilation(rates, side), f"rates {show(rates)}"
        path = folder / f"audit_{index + 1}.png"
        files.write(path, audit_pictures.draw(title, audit, [], None))
        page.image(path.name, f"Heat map of the positions that a head of {title} reads")
        taps = f"{network.padded_taps(config):.1%} of the taps, on the {side}x{side} map of a training patch"
        page.table([["", title], *([*fact] for fact in audit_report.facts(audit)), ["padding", taps]])


def _options(page: Page, runs: Sequence[RunResult]) -> None:
    page.head("Options of the runs")
    values = [run.config.as_dict() for run in runs]
    page.table([["option", *(run.name for run in runs)], *([n, *(show(v[n]) for v in values)] for n in values[0])])

"""The difference between a report's data and the published run's, and which published figures compare with it."""

from __future__ import annotations

from collections.abc import Sequence

from ..data import describe
from ..inference import Way
from ..metrics.published import Published
from .gather import RunResult

DRIVE_TEST = 20  # images
PREVALENT = "accuracy, precision, F1 and the precision-recall area also change with the fraction of vessel pixels"


def is_published_data(run: RunResult) -> bool:
    """True for DRIVE's whole test set with its own fields of view."""
    samples = run.test.samples
    ours = all(s.source == "DRIVE, test" and not s.field_estimated and not s.synthetic for s in samples)
    return ours and len(samples) == DRIVE_TEST


def data_sentences(runs: Sequence[RunResult], published: Published, way: Way) -> list[str]:
    """Returns what must be read before the figures: the data of each side, and the inference."""
    sentences = []
    if any(run.synthetic for run in runs):
        names = ", ".join(run.name for run in runs if run.synthetic)
        sentences.append(
            f"SYNTHETIC images: every number and picture of {names} is of generated images, not photographs. They were "
            "drawn by a program, their annotation is exact, and no number on them compares with a published one."
        )
    for text in dict.fromkeys(describe(run.test.samples) for run in runs):
        sentences.append("Test images of this report: " + "; ".join(text.splitlines()) + ".")
    sentences.append(f"The published run: {published.what}.")
    sentences.append(f"Inference here: {way}; published: the mean over overlapping patches of 48, stride 5.")
    return sentences


def comparable_sentences(runs: Sequence[RunResult], published: Published) -> list[str]:
    """Returns which published figures compare with those of each run."""
    total = int(published.counts.sum())
    sentences = []
    for run in runs:
        if is_published_data(run):
            sentences.append(
                f"{run.name}: the same images. The published column compares with the figures inside the field of "
                f"view, of all images together ({total:,} pixels), at threshold 0.5, and with no others."
            )
        else:
            sentences.append(
                f"{run.name}: other images, so no published figure is comparable; the column stands beside the "
                f"figures of its own kind (field of view, all images together, threshold 0.5) for the order of "
                f"magnitude alone: {PREVALENT}."
            )
    return [
        *sentences,
        published.jaccard_note,
        "The published precision-recall area joins points with straight lines (pr_auc_trapezoid), which is optimistic; "
        "average_precision is not, and has no published value. The published figures have no intervals.",
        "The PReLU run of the published series has no figures: the column is of LeakyReLU.",
    ]

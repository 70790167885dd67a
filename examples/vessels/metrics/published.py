"""The published run: a confusion matrix on DRIVE's test set and the figures that were printed with it.

published.json says what was trained and how it was evaluated. Beside figures of other data it is a reference for the
order of magnitude, no more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[1] / "published.json"
JACCARD = "jaccard_similarity_score_as_printed"
JACCARD_NOTE = (
    "The Jaccard that was printed with the published run, {printed}, is its accuracy: scikit-learn's former "
    "jaccard_similarity_score was the accuracy for labels of two classes. The Jaccard of its matrix is {jaccard}."
)


@dataclass(frozen=True)
class Published:
    """counts: (tn, fp, fn, tp); figures: those that were printed, by the names of `scores` and `areas`."""

    what: str
    counts: np.ndarray
    figures: dict[str, float]
    jaccard_note: str


def load(path: Path = PATH) -> Published:
    """Returns the published run. The printed Jaccard is not among the figures: `jaccard_note` says why."""
    run = json.loads(path.read_text())
    counts = np.array(run["confusion_matrix"], dtype=float).ravel()
    figures = {name: value for name, value in run["published"].items() if name != JACCARD}
    _, fp, fn, tp = counts
    note = JACCARD_NOTE.format(printed=run["published"][JACCARD], jaccard=float(tp / (tp + fp + fn)))
    return Published(run["what"], counts, figures, note)

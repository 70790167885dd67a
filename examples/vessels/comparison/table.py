"""The comparison as Markdown: a caption that says of what the figures are, the table, and a sentence for each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..config import Config
from ..data import Sample
from .arms import Arm
from .statistics import CONFIDENCE, LEVEL, METRICS, RESAMPLES, SEED, Values, averaged


def caption(
    base: Config, samples: Mapping[str, Sequence[Sample]], seeds: Sequence[int], stride: int
) -> str:  # fmt: skip
    """samples: the images of "train", "validation" and "test"."""
    parts = []
    if any(sample.synthetic for group in samples.values() for sample in group):
        parts.append(
            "SYNTHETIC images: generated, not photographs; no number here compares with a published one."
        )  # fmt: skip
    counts = ", ".join(f"{len(group)} for {name}" for name, group in samples.items())
    parts += [
        f"Images: {counts}" + (f" (image seed {base.image_seed})." if base.data is None else "."),
        f"{base.epochs} epochs of {base.steps} steps ({base.epochs * base.steps:,} steps) of {base.batch} patches of "
        f"{base.patch}x{base.patch}, width {base.width}, {base.backbone}; test images by overlapping patches, patch "
        f"stride {stride}; seeds {', '.join(map(str, seeds))}. A run's figures are those of its epoch with the largest "
        "validation ROC area.",
        "Each arm differs from the reference (PReLU, rates 1,2,5, dropout 0) in one factor. Figures are means over "
        "images and seeds, inside the field of view, at threshold 0.5; thin vessels are at most 3 pixels wide.",
        "In parentheses: the median over images, averaged over seeds, of the difference from the reference, its "
        f"{CONFIDENCE:.0%} bootstrap interval over images ({RESAMPLES:,} resamples, seed {SEED}), and the p of "
        "Wilcoxon's signed-rank test after Holm's correction over the arms, within each column.",
        f"A difference is shown where p < {LEVEL} and the interval excludes 0; where none is shown, equality is not "
        "shown either. Few seeds say little about the spread between trainings: the intervals are over images.",
    ]
    return "\n".join(parts)


def spread(reference: Mapping[str, Values]) -> str:
    """Returns how far the reference's trainings lie apart, beside which the differences have to be read."""
    ranges = []
    for metric, title in METRICS.items():
        means = [averaged([run]) for run in reference[metric]]
        means = [float(values[np.isfinite(values)].mean()) for values in means if np.isfinite(values).any()]
        if means:
            ranges.append(f"{title} {min(means):.4f} to {max(means):.4f}")
    return (
        f"Mean over images of each seed of the reference, lowest to highest: {', '.join(ranges)}. A difference that is "
        "smaller than this range is shown for these trainings, and may be another with other seeds."
    )


def table(arms: Sequence[Arm], results: Mapping[str, dict]) -> list[list[str]]:
    """The lines of cells, the head first; arms without a result are left out."""
    lines = [["arm", *METRICS.values()]]
    for arm in arms:
        if arm.name in results:
            lines.append([arm.title, *(_cell(results[arm.name][metric]) for metric in METRICS)])
    return lines


def _cell(line: Mapping) -> str:
    mean = "undefined" if line["mean"] is None else f"{line['mean']:.4f}"
    return mean if line.get("median") is None else f"{mean} ({difference(line)})"


def difference(line: Mapping) -> str:
    interval = "" if line["low"] is None else f" [{line['low']:+.4f}, {line['high']:+.4f}]"
    return f"{line['median']:+.4f}{interval}, p {line['p_holm']:.3g}"


def sentence(arm: Arm, result: Mapping[str, Mapping]) -> str:
    """Returns what the intervals allow to say of an arm beside the reference."""
    clear = [
        f"{METRICS[metric]} is {'higher' if line['median'] > 0 else 'lower'} ({difference(line)})"
        for metric, line in result.items() if line["shown"]
    ]  # fmt: skip
    rest = [METRICS[metric] for metric, line in result.items() if not line["shown"]]
    parts = [" and ".join(filter(None, [", ".join(clear[:-1]), clear[-1]]))] if clear else []
    if rest:
        parts.append(f"no difference is shown in {_listed(rest)}")
    return f"{arm.title}: {'; '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def markdown(text: str, lines: Sequence[Sequence[str]], sentences: Sequence[str], aside: Mapping[str, str]) -> str:
    """aside: arms without a result, and why."""
    head, *others = (f"| {' | '.join(cells)} |" for cells in lines)
    rule = "|---" + "|---:" * (len(lines[0]) - 1) + "|"
    parts = [text, "\n".join([head, rule, *others])]
    if sentences:
        parts.append("\n".join(f"- {line}" for line in sentences))
    if aside:
        parts.append("Not in the table:\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in aside.items()))
    return "\n\n".join(parts) + "\n"

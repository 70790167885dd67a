"""The report's tables, each a list of lines of cells of which the first is the head."""

from __future__ import annotations

from collections.abc import Sequence

from atrous.tools.slopes.report import number as slope

from ..metrics.notes import GROUPS, PLACES
from ..metrics.published import Published
from ..metrics.table import interval, number
from . import cost
from .gather import RunResult

Table = list[list[str]]


def overview(runs: Sequence[RunResult], baseline: dict | None, published: Published) -> Table:
    """The figures of the published kind, field of view, all images together, threshold 0.5: a column for each run."""
    head = ["figure", *(run.name for run in runs), *(["Frangi's filter"] if baseline else []), "published (DRIVE)"]
    lines = [head]
    regions = [run.figures["regions"]["field"] for run in runs]
    for group in ("areas", "half"):
        for name in regions[0][group]["pooled"]:
            ours = [interval(region[group]["pooled"][name]) for region in regions]
            filtered = [_baseline(baseline, group, name)] if baseline else []
            lines.append([name, *ours, *filtered, _published(published, name)])
    for part in ("thin", "thick"):
        ours = [interval(region["half"][part]["pooled"]["sensitivity"]) for region in regions]
        lines.append([f"sensitivity of {part} vessels", *ours, *(["-"] if baseline else []), "-"])
    return lines


def _baseline(baseline: dict, group: str, name: str) -> str:
    """Frangi's score is a rank, so that 0.5 means nothing on it."""
    return interval(baseline["regions"]["field"]["areas"]["pooled"][name]) if group == "areas" else "-"


def _published(published: Published, name: str) -> str:
    return number(published.figures[name]) if name in published.figures else "-"


def details(run: RunResult, published: Published) -> list[tuple[str, Table]]:
    """Every figure of a run: a title and a table for each region and group."""
    tables = []
    for region, place in PLACES.items():
        result, thresholds = run.figures["regions"][region], run.figures["thresholds"]
        counts = f"{result['pixels']:,} pixels, {result['vessels']:,} of vessels ({result['prevalence']:.2%})"
        tables.append((f"{place}: {counts}", _areas(result["areas"], published if region == "field" else None)))
        for name, threshold in thresholds.items():
            if threshold is not None:
                beside = published if (region, name) == ("field", "half") else None
                about = f"{place}, {GROUPS[name]}" + ("" if name == "half" else f" ({threshold:.4f})")
                tables.append((about, _scores(result, name, beside)))
    return tables


def _areas(group: dict, published: Published | None) -> Table:
    lines = [["area", "all images together", "mean over images", *(["published (DRIVE)"] if published else [])]]
    for name, figure in group["pooled"].items():
        beside = [_published(published, name)] if published else []
        lines.append([name, interval(figure), interval(group["mean"][name]), *beside])
    return lines


def _scores(result: dict, name: str, published: Published | None) -> Table:
    group, others = result[name], {"no vessel anywhere": result["background"], "second annotator": result["second"]}
    others = {title: other for title, other in others.items() if other is not None}
    lines = [
        ["score", "all images together", "mean over images", *others, *(["published (DRIVE)"] if published else [])]
    ]
    for score, figure in group["pooled"].items():
        beside = [number(other["pooled"][score]["value"]) for other in others.values()]
        beside += [_published(published, score)] if published else []
        lines.append([score, interval(figure), interval(group["mean"][score]), *beside])
    for part in ("thin", "thick"):
        pooled, mean = (group[part][kind]["sensitivity"] for kind in ("pooled", "mean"))
        empty = [""] * (len(lines[0]) - 3)
        lines.append([f"sensitivity of {part} vessels", interval(pooled), interval(mean), *empty])
    return lines


def slopes(run: RunResult) -> Table:
    """The learned slopes of each PReLU, by depth."""
    lines = [["layer, by depth", "channels", "min", "mean", "max"]]
    tensors = [(layer.name, layer.slopes) for layer in run.layers if layer.slopes is not None]
    return lines + [[name, str(t.channels), slope(t.min), slope(t.mean), slope(t.max)] for name, t in tensors]


def dead(runs: Sequence[RunResult]) -> Table:
    """Dead channels of each activation, by depth; networks of different depth have lines of their own."""
    names = list(dict.fromkeys(layer.name for run in runs for layer in run.layers))
    by_name = [{layer.name: layer for layer in run.layers} for run in runs]
    lines = [["layer, by depth", *(run.name for run in runs)]]
    for name in names:
        cells = [f"{at[name].dead} of {at[name].channels}" if name in at else "-" for at in by_name]
        lines.append([name, *cells])
    totals = [(sum(a.dead for a in run.layers), sum(a.channels for a in run.layers)) for run in runs]
    return [*lines, ["all", *(f"{count} of {total} ({count / total:.1%})" for count, total in totals)]]


def convergence(runs: Sequence[RunResult], loss: float | None = None) -> Table:
    """Epochs to a fixed loss, one of training and one of validation; without `loss`, those that every run reaches."""
    histories = [run.history for run in runs]
    fixed = {name: cost.common_loss(histories, name) if loss is None else loss for name in ("loss", "validation_loss")}
    titles = {"loss": "training loss", "validation_loss": "validation loss"}
    heads = [f"epochs to {titles[name]} {'-' if value is None else f'{value:.4f}'}" for name, value in fixed.items()]
    lines = [["run", "activation", *heads, "epochs trained", "best epoch: that of the figures"]]
    for run in runs:
        reached = [cost.epochs_to(run.history, name, value) for name, value in fixed.items()]
        cells = ["not reached" if epoch is None else str(epoch) for epoch in reached]
        lines.append([run.name, activation(run), *cells, str(run.saved_run.epochs), str(run.saved_run.best_epoch)])
    return lines


def activation(run: RunResult) -> str:
    return run.config.act + (f" {run.config.slope:.4g}" if run.config.act == "leaky_relu" else "")


def costs(runs: Sequence[RunResult]) -> Table:
    """Seconds an epoch, and the bytes that a step saves for its backward, of each run."""
    lines = [["run", "kind", "seconds an epoch (median)", "saved, fused", "saved, plain", "fused / plain"]]
    for run in runs:
        time, fused, plain = cost.seconds(run.history), run.saved["fused"], run.saved["plain"]
        lines.append([
            run.name, "plain" if run.config.plain else "fused", "-" if time is None else f"{time:.1f}",
            f"{fused / 2**20:.1f} MiB", f"{plain / 2**20:.1f} MiB", f"{fused / plain:.2f}",
        ])  # fmt: skip
    return lines


def fused_beside_plain(runs: Sequence[RunResult]) -> list[str]:
    """A sentence for each pair of runs that differ in fusing alone."""
    sentences = []
    for i, j in cost.pairs([run.config for run in runs]):
        fused, plain = cost.seconds(runs[i].history), cost.seconds(runs[j].history)
        part = runs[i].saved["fused"] / runs[i].saved["plain"]
        if fused and plain:
            sentences.append(
                f"{runs[i].name} (fused) beside {runs[j].name} (plain): {fused:.1f} s and {plain:.1f} s an epoch, "
                f"{plain / fused:.2f} times as fast; a step saves {part:.2f} of the bytes."
            )
    return sentences or [
        "No two of these runs differ in fusing alone, so their times are not compared; the saved bytes are measured "
        "for both kinds of each network."
    ]

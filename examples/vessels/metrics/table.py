"""A result of `evaluate` as text for a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from atrous.tools.text_table import align, wrap

from .notes import GROUPS, PLACES

WIDTH = 100


def render(result: dict) -> str:
    """Returns the tables of both regions at each threshold: pooled and mean figures with intervals, beside the trivial
    prediction of no vessel and the second annotator, both pooled; then the notes."""
    bootstrap, images = result["bootstrap"], len(result["images"])
    head = (
        f"{images} images; intervals: {bootstrap['confidence']:.0%}, {bootstrap['resamples']} resamples of images, "
        f"seed {bootstrap['seed']}; mean: over images; background and second annotator: all images together"
    )
    lines = [wrap(head, WIDTH)]
    for name, place in PLACES.items():
        lines += ["", *_region(result["regions"][name], place, result["thresholds"])]
    lines += ["", *(wrap(f"note: {note}", WIDTH) for note in result["notes"])] if result["notes"] else []
    return "\n".join(lines)


def _region(region: dict, place: str, thresholds: dict) -> Iterator[str]:
    yield f"{place}: {region['pixels']:,} pixels, {region['vessels']:,} of vessels ({region['prevalence']:.2%})"
    yield from align([("area", "all images together", "mean"), *_rows(region["areas"])])
    others = {"background": region["background"], "second": region["second"]}
    for name, threshold in thresholds.items():
        if threshold is not None:
            yield ""
            yield f"{place}, {GROUPS[name]}" + ("" if name == "half" else f" ({threshold:.4f})")
            yield from align(list(_scores(region[name], {k: v for k, v in others.items() if v is not None})))


def _scores(group: dict, others: dict[str, dict]) -> Iterator[tuple[str, ...]]:
    yield ("score", "all images together", "mean", *others)
    for name, *figures in _rows(group):
        yield (name, *figures, *(number(other["pooled"][name]["value"]) for other in others.values()))
    for part in ("thin", "thick"):
        for name, *figures in _rows(group[part]):
            yield (f"{part}: {name}", *figures, *("" for _ in others))


def _rows(group: dict) -> Iterator[tuple[str, ...]]:
    for name, pooled in group["pooled"].items():
        yield name, interval(pooled), interval(group["mean"][name])


def interval(figure: dict) -> str:
    """The text of a figure: "0.9557 [0.9531, 0.9584]", without the brackets where there is no interval."""
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

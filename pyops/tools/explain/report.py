"""Render an explained model: the target, the table of layers, the totals and what the columns mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .explain import Explanation
from .layer_table import gmac, table
from .target import Target, short_name


def render(explanation: Explanation, width: int = 80) -> str:
    """The explanation as text for a terminal of this width."""
    return f"{_title(explanation.target)}\n\n{table(explanation.summary, width, _notes(explanation))}"


def _title(target: Target) -> str:
    if target.gpu is None:
        return f"for {short_name(target.dtype)} on this CPU"
    absent = "" if target.present else " (not in this machine)"
    return f"for {short_name(target.dtype)}, {short_name(target.layout)}, on {target.gpu.chip}{absent}"


def _notes(explanation: Explanation) -> Iterator[str]:
    choices, totals = explanation.choices, explanation.totals
    if not choices:
        return
    for backend, count in sorted(Counter(choice.backend for choice in choices).items()):
        yield f"backend {backend}: {count} of {len(choices)} convolutions"
    macs = sum(choice.layer.macs for choice in choices)
    line = f"convolutions: {gmac(macs)} GMAC, {totals['bytes'] / 1e6:,.2f} MB"
    if totals["lower_bound_us"]:
        bound, images = totals["lower_bound_us"], totals["images_per_second"]
        line += f", lower bound {bound:,.2f} us (at most {images:,.0f} img/s)"
    if totals["measured_us"]:
        line += f", measured {totals['measured_us']:,.2f} us"
    yield line
    configs = [choice.tuned for choice in choices if choice.config]
    if not all(configs):
        yield f"{configs.count(False)} configs come from the heuristic (see atrous tune)"
    if configs:
        yield "config: channels x pixels x depth, warps (w), stages (s)"
    if any(choice.measured_us and choice.lower_bound_us for choice in choices):
        yield "attained: lower bound / measured time"
    yield "MB: input, weight, output and residual, each once"
    yield _bound(explanation.target)


def _bound(target: Target) -> str:
    """The source of the lower bounds."""
    if target.ceilings is None:
        return "no lower bound: it needs two peaks, --ceilings TFLOPS,GBS"
    tflops, gbs, source = target.ceilings
    return f"bound: lower bound in us, for {tflops:g} TFLOP/s and {gbs:g} GB/s, {source}"

"""Render the tuner's results for a terminal of 60 columns: one line per layer, times in milliseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ...backends import selection
from ..explain.conv_layers import ConvLayer
from ..text_table import align, wrap
from .measure import Result

WIDTH = 60
CELL = 8


def table(results: Sequence[Result]) -> str:
    """The measured layers, those of a frozen model below the others; then what was not measured, and why."""
    measured = [result for result in results if result.entry]
    backends = [name for name in selection.backends() if any(name in r.entry.milliseconds for r in measured if r.entry)]
    widths = [WIDTH - CELL * (len(backends) + 2), *[CELL] * (len(backends) + 2)]
    lines: list[str] = []
    for frozen in (False, True):
        rows = [_cells(result, backends) for result in measured if result.form.frozen == frozen]
        if rows:
            title = "ms, frozen" if frozen else "ms"
            head, *body = align([[title, *backends, "choice", "gain"], *rows], widths, gap="", cut="end")
            lines += [head, "-" * WIDTH, *body, ""]
    chosen = Counter(result.entry.backend for result in measured if result.entry)
    counts = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
    lines.append(f"chosen: {counts}" if counts else "nothing was measured")
    return "\n".join([*lines, *(wrap(note, WIDTH) for note in _notes(results))])


def _cells(result: Result, backends: Sequence[str]) -> list[str]:
    assert result.entry
    times, backend = result.entry.milliseconds, result.entry.backend
    gain = _gain(times["library"] / times[backend]) if "library" in times else "-"
    return [describe(result.layer), *(_number(times.get(name)) for name in backends), backend, gain]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _gain(value: float) -> str:
    return f"{value:.2f}x" if value < 1000 else f"{value:.2g}x"


def describe(layer: ConvLayer) -> str:
    """ "32x64x56x56>128 3x3 s2 d2 g4 +": input > output channels, kernel, stride, dilation, groups, residual."""
    spec, kernel = layer.spec, layer.weight[2:]
    parts = [f"{_times(layer.input)}>{layer.weight[0]}", _times(kernel)]
    for letter, pair in (("s", spec.stride), ("d", spec.dilation)):
        if pair != (1, 1):
            parts.append(letter + (str(pair[0]) if pair[0] == pair[1] else _times(pair)))
    parts += [f"g{spec.groups}"] * (spec.groups > 1) + ["+"] * (layer.residual != "none")
    return " ".join(parts)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _notes(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        for kind, left_out in (("WRONG", result.wrong), ("failed", result.failed)):
            for name, reason in left_out.items():
                yield f"{kind}, left out: {name} for {describe(result.layer)}: {reason}"
    for reason, count in Counter(result.reason for result in results if result.reason).items():
        yield f"not measured: {count} of {len(results)}: {reason}"
    if configs := sum(len(result.not_measured) for result in results):
        yield f"not measured: {configs} configs that did not fit into the time"
    if configs := sum(len(result.unlikely) for result in results):
        yield f"left out: {configs} configs that cannot win, by prediction and the times of others"
    yield f"first calls, which compile: {sum(result.compiling for result in results):.1f} s"

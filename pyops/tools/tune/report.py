"""What the tuner found, as text for a terminal of 60 columns: a line a site, the times in milliseconds."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from ...tuning.format import BACKENDS
from ..explain.conv_sites import Site
from .measure import Result

WIDTH = 60
CELL = 8


def table(results: Sequence[Result]) -> str:
    """The measured sites, those of a frozen model below the others; then what is missing, and why."""
    measured = [result for result in results if result.entry]
    rows = [name for name in BACKENDS if any(name in r.entry.milliseconds for r in measured if r.entry)]
    lines: list[str] = []
    for frozen in (False, True):
        found = [result for result in measured if result.form.frozen == frozen]
        if found:
            title = "ms, frozen" if frozen else "ms"
            lines += [_line(title, [*rows, "choice", "gain"]), "-" * WIDTH, *(_cells(r, rows) for r in found), ""]
    chosen = Counter(result.entry.backend for result in measured if result.entry)
    told = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
    lines.append(f"chosen: {told}" if told else "nothing was measured")
    lines += [part for note in _notes(results) for part in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    return "\n".join(lines)


def _cells(result: Result, rows: Sequence[str]) -> str:
    assert result.entry
    times, backend = result.entry.milliseconds, result.entry.backend
    gain = _gain(times["library"] / times[backend]) if "library" in times else "-"
    return _line(describe(result.site), [*(_number(times.get(row)) for row in rows), backend, gain])


def _line(name: str, cells: Sequence[str]) -> str:
    space = WIDTH - CELL * len(cells)
    name = name if len(name) <= space else f"{name[: space - 2]}.."
    return name.ljust(space) + "".join(cell.rjust(CELL) for cell in cells)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _gain(value: float) -> str:
    return f"{value:.2f}x" if value < 1000 else f"{value:.2g}x"


def describe(site: Site) -> str:
    """ "32x64x56x56>128 3x3 s2 d2 g4 +": input > output channels, kernel, stride, dilation, groups, a residual."""
    spec, kernel = site.spec, site.weight[2:]
    parts = [f"{_times(site.input)}>{site.weight[0]}", _times(kernel)]
    for letter, pair in (("s", spec.stride), ("d", spec.dilation)):
        if pair != (1, 1):
            parts.append(letter + (str(pair[0]) if pair[0] == pair[1] else _times(pair)))
    parts += [f"g{spec.groups}"] * (spec.groups > 1) + ["+"] * (site.residual != "none")
    return " ".join(parts)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _notes(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        for kind, left_out in (("WRONG", result.wrong), ("failed", result.failed)):
            for name, why in left_out.items():
                yield f"{kind}, left out: {name} for {describe(result.site)}: {why}"
    for reason, count in Counter(result.reason for result in results if result.reason).items():
        yield f"not measured: {count} of {len(results)}: {reason}"
    if configs := sum(len(result.not_measured) for result in results):
        yield f"not measured: {configs} configs, for which the time was over"
    if configs := sum(len(result.unlikely) for result in results):
        yield f"left out: {configs} configs that cannot win, by prediction and the times of others"
    yield f"first calls, which compile: {sum(result.compiling for result in results):.1f} s"

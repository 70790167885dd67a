"""Write an audit as one HTML page, with nothing from other addresses."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from ...audit import Audit
from . import report

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right }
img { max-width: 100%; height: auto }
.big { font-size: 2.2rem; font-weight: 600 }
.scroll { overflow-x: auto }
"""


def page(title: str, audit: Audit, suggested: Sequence[Audit], png: bytes) -> str:
    """The page: one sentence, the numbers, the picture, and the layers."""
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in report.facts(audit))
    picture = base64.b64encode(png).decode()
    texts = ", ".join(f"rates {report.rates(other)}" for other in suggested)
    described = f"Heat map of the field of {title}" + (f", beside {texts}" if texts else "")
    holes = f"with {report.holes(audit)}" if audit.holes else "without holes"
    parts = [
        f"<h1>Dilation audit: {escape(title)}</h1>",
        f"<p><span class=big>{report.percent(audit.coverage)}</span> of the field is read, {holes}.</p>",
        f'<img alt="{escape(described)}" src="data:image/png;base64,{picture}">',
        f"<table>{facts}</table>",
    ]
    if audit.input_size:
        parts += ["<h2>Layers</h2>", "<p>Padding is the fraction of a layer's taps that read padding.</p>",
                  table([report.COLUMNS, *report.layer_cells(audit.layers)])]  # fmt: skip
    return document(title, "".join(parts))


def document(title: str, body: str, style: str = STYLE) -> str:
    """A whole page around a body in HTML."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    return f"<!doctype html>\n<html lang=en><head>{head}<style>{style}</style></head>\n<body>{body}</body></html>\n"


def table(lines: Iterable[Sequence[str]]) -> str:
    """A table whose first line is its head; all columns but the first have numbers."""
    text = ""
    for number, cells in enumerate(lines):
        tag = "td" if number else "th"
        parts = (f"<{tag}{' class=number' if i else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        text += f"<tr>{''.join(parts)}</tr>"
    return f"<div class=scroll><table>{text}</table></div>"

"""The report's page: HTML beside its PNGs, with nothing from other addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from atrous.tools.audit.page import STYLE, document
from atrous.tools.audit.page import table as html_table

from .tables import Table

WARNING = ".warning { border-left: .4rem solid #d55e00; padding: .2rem 1rem; background: #fdf3ec; font-weight: 600 }"


@dataclass
class Page:
    """Collects the parts of a page in their order; every method escapes its texts."""

    title: str
    parts: list[str] = field(default_factory=list)

    def head(self, text: str, level: int = 2) -> None:
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, sentences: Sequence[str], warning: bool = False) -> None:
        kind = " class=warning" if warning else ""
        self.parts += [f"<p{kind}>{escape(sentence)}</p>" for sentence in sentences]

    def image(self, name: str, description: str) -> None:
        self.parts.append(f'<p><img src="{escape(name)}" alt="{escape(description)}"></p>')

    def table(self, table: Table) -> None:
        self.parts.append(html_table(table))

    def details(self, summary: str, tables: Sequence[tuple[str, Table]], notes: Sequence[str]) -> None:
        """Tables that are closed at first."""
        self.parts.append(f"<details><summary>{escape(summary)}</summary>")
        for title, table in tables:
            self.head(title, 4)
            self.table(table)
        self.text([f"Note: {note}" for note in notes])
        self.parts.append("</details>")

    def render(self) -> str:
        return document(self.title, "\n".join([f"<h1>{escape(self.title)}</h1>", *self.parts]), STYLE + WARNING)

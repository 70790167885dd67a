"""Writes docs/api.md from the docstrings: python tests/support/pages/api_page.py docs/api.md (`make docs`).

Signatures are copied from the sources: inspect spells them differently from one Python to the next.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import atrous

ROOT = Path(__file__).resolve().parents[3]
MODULES = (atrous, atrous.nn, atrous.models, atrous.models.heads, atrous.fusion)
HEAD = """# API

`make docs` writes this page from the docstrings. [differences.md](differences.md) lists where results or errors differ
from plain torch.
"""
SECTION = re.compile(r"(?:Args|Returns and Raises|Returns|Raises|Source)\b")
LABEL = re.compile(r'("?[\w.]+"?(?:, [\w.]+)*): ')
EQUATION = re.compile(r"\w+(?:\(\w+\))? = .+?(?=\.$|\. )")


def documented() -> dict[str, dict[str, Any]]:
    """Module -> dotted name -> class or function, of each module's __all__; each one under its first name."""
    groups: dict[str, dict[str, Any]] = {}
    for module in MODULES:
        names = {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
        earlier = [value for group in groups.values() for value in group.values()]
        groups[module.__name__] = {n: v for n, v in names.items() if not inspect.ismodule(v) and v not in earlier}
    return groups


def definition(value: Any) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """The file that defines a class or function, and its syntax tree."""
    path = "/".join(["pyops", *value.__module__.split(".")[1:]]) + ".py"
    body = ast.parse((ROOT / path).read_text()).body
    (node,) = (n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == value.__name__)
    return path, node


def signature(name: str, path: str, node: ast.ClassDef | ast.FunctionDef) -> str:
    """The source from `def` to its colon; of a class that of __init__, or its fields if it has none."""
    source = (ROOT / path).read_text().splitlines()
    function = next((n for n in node.body if getattr(n, "name", "") == "__init__"), node)
    if isinstance(function, ast.ClassDef):
        fields = [source[n.lineno - 1] for n in node.body if isinstance(n, ast.AnnAssign)]
        return "\n".join([f"class {name}:", *fields])
    lines = source[function.lineno - 1 : function.body[0].lineno - 1]
    text = textwrap.dedent("\n".join(lines)).removesuffix(":")
    return re.sub(r"def \w+\((\s*)(self,\s*)?", rf"{name}(\1", text, count=1)


def escaped(text: str) -> str:
    """Text in which Markdown finds neither emphasis nor tags; `code` stays."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"[*<]|(?<!\w)_|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


def block(lines: list[str]) -> list[str]:
    """Markdown of lines without a blank one: an indented equation, or entries that start with a label, or text."""
    if lines[0].startswith(" "):
        return ["```text", *textwrap.dedent("\n".join(lines)).splitlines(), "```"]
    entries: list[list[str]] = []
    for line in lines:
        if entries and not SECTION.match(line) and not LABEL.match(line):
            entries[-1].append(line)
        else:
            entries.append([line])
    return [line for first, *rest in entries for line in entry(first, rest)]


def entry(first: str, rest: list[str]) -> list[str]:
    """Markdown of a section, of arguments, or of text. Indented lines with labels are a list of their own."""
    starts = (i for i, line in enumerate(rest) if line.startswith(" ") and LABEL.match(line.strip()))
    inner = next(starts, len(rest))
    text = " ".join([first, *(line.strip() for line in rest[:inner])])
    nested = block(textwrap.dedent("\n".join(rest[inner:])).splitlines()) if rest[inner:] else []
    if section := SECTION.match(text):
        return ["", f"**{section[0]}**{escaped(text[section.end() :])}", "", *nested, ""]
    if LABEL.match(text):  # a sentence inside may begin with the next label
        items = [LABEL.split(item, maxsplit=1)[1:] for item in re.split(r"(?<=\.) (?=[a-z]\w*: )", text)]
        return [*(f"- **{name}**: {escaped(rest)}" for name, rest in items), *(f"  {line}" for line in nested)]
    return [escaped(text)]


def markdown(docstring: str) -> str:
    """Markdown of a docstring, whose first paragraph is a sentence, or an equation and more sentences."""
    summary, *paragraphs = re.split(r"\n{2,}", docstring)
    summary = " ".join(summary.split())
    equation = EQUATION.match(summary)
    first = [f"```text\n{equation[0]}\n```", escaped(summary[equation.end() + 2 :])] if equation else [escaped(summary)]
    parts = [*first, *("\n".join(block(lines.splitlines())) for lines in paragraphs)]
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).strip()


def section(name: str, value: Any) -> str:
    path, node = definition(value)
    parts = [f"### {name}", f"```python\n{signature(name, path, node)}\n```", markdown(ast.get_docstring(node) or "")]
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and method.name[0] != "_" and ast.get_docstring(method):
            parts.append(f"- **{method.name}**: {escaped(' '.join((ast.get_docstring(method) or '').split()))}")
    return "\n\n".join([*parts, f"Defined in [{path}](../{path})."])


def page() -> str:
    """The text of docs/api.md: for each module its names with links, then each name."""
    parts = [HEAD]
    for module, values in documented().items():
        links = ", ".join(f"[{name.rpartition('.')[2]}](#{name.lower().replace('.', '')})" for name in values)
        parts.append(f"- `{module}`: {links}")
    for module, values in documented().items():
        about = inspect.getdoc(sys.modules[module]) or ""
        parts += [f"\n## {module}\n", markdown(about), *(f"\n{section(name, value)}" for name, value in values.items())]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())

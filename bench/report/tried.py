"""Write the versions that this release was tried with into CHANGELOG.md, between two markers, from bench/results.

python -m bench.report.tried [CHANGELOG] [RESULTS_DIR]
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from bench.report import cpu
from bench.report.report import ROOT, folder_results

BLOCK = re.compile(r"(<!-- tried: begin -->\n).*?(<!-- tried: end -->)", re.DOTALL)
OWN = ("atrous", "python", "torch", "triton", "cuda", "cudnn", "onednn")  # all other versions are of libraries
Result = dict[str, Any]


def combinations(result: Result) -> str:
    """Versions of torch and Python without a failed test."""
    pythons: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row.get("failed") == 0:
            pythons.setdefault(row["torch"], []).append(row["python"])
    return "; ".join(f"torch {torch} with Python {', '.join(names)}" for torch, names in sorted(pythons.items()))


def libraries(versions: Result) -> str:
    named = {name: version for name, version in versions.items() if name not in OWN and version}
    return ", ".join(f"{name} {named[name]}" for name in sorted(named, key=str.lower))


def lines(folder: Path) -> list[str]:
    """A list item for each kind of results that the folder has: what was run with which versions."""
    items, results = [], folder_results(folder)
    if name := max((name for name in results if name.startswith("versions-")), default=None):
        passed = combinations(results[name]) or "No version without a failed test"
        items.append(f"{passed}: the operators and `fuse()` ({_link(name)}).")
    if name := max((name for name in results if name.startswith("public-models-")), default=None):
        versions = results[name]["versions"]
        own = f"{libraries(versions)}, with torch {versions['torch']}"
        items.append(f"{own}: `fuse()` on their models ({_link(name)}).")
    if name := cpu.newest(results):
        items.append(f"{libraries(results[name]['peers'])}: beside them in `make bench PEERS=1` ({_link(name)}).")
    wrapped = (textwrap.wrap(f"- {item}", 120, subsequent_indent="  ", break_on_hyphens=False) for item in items)
    return [line for item in wrapped for line in item]


def _link(name: str) -> str:
    return f"[{name}](bench/results/{name})"


def changelog(text: str, folder: Path) -> str:
    """The change log with that list anew. Raises ValueError if the markers are missing."""
    if not BLOCK.search(text):
        raise ValueError("expected the lines <!-- tried: begin --> and <!-- tried: end -->, got none")
    middle = "".join(f"{line}\n" for line in lines(folder))
    return BLOCK.sub(lambda markers: markers[1] + middle + markers[2], text)


def main(argv: list[str]) -> int:
    path = Path(argv[0]) if argv else ROOT / "CHANGELOG.md"
    folder = Path(argv[1]) if len(argv) > 1 else ROOT / "bench" / "results"
    path.write_text(changelog(path.read_text(), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

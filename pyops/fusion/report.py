"""The report of fuse(): every site, fused or the reason why not."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Site:
    """A site: operations that one fused call replaces, or could replace.

    path: that of its first module.
    pattern: the operations of the call, such as "conv+bn+relu".
    reason: why it is not fused, or why the call does not cover more.
    mode: "both", or the only mode ("train" | "eval") with this site.
    folded: see fuse(freeze=True).
    """

    path: str
    pattern: str
    fused: bool
    reason: str = ""
    mode: str = "both"
    folded: bool = False


@dataclass
class Report:
    """The report of fuse(), which its copy of a model has as `fusion_report`; str() of it is a table.

    sites: all sites, fused or not.
    untraced: (path, class, reason) of the modules that were left as they were.
    """

    frozen: bool = False
    sites: list[Site] = field(default_factory=list)
    untraced: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int]:
        """Returns the numbers of fused sites and of all sites. A site that differs between modes counts as in eval."""
        sites = [site for site in self.sites if site.mode != "train"]
        return sum(site.fused for site in sites), len(sites)

    def to_dict(self) -> dict:
        fused, total = self.counts
        untraced = [dict(zip(("path", "class", "reason"), entry)) for entry in self.untraced]
        return {
            "frozen": self.frozen, "fused": fused, "total": total,
            "sites": [asdict(site) for site in self.sites], "untraced": untraced,
        }  # fmt: skip

    def __str__(self) -> str:
        fused, total = self.counts
        folded = f", {sum(site.folded for site in self.sites)} folded" if self.frozen else ""
        lines = [f"sites fused {fused}/{total}{folded}"]
        width = max((len(site.path) for site in self.sites), default=0)
        for site in self.sites:
            state = ("folded" if site.folded else "fused") if site.fused else "not fused"
            mode = "" if site.mode == "both" else f" (in {site.mode})"
            lines.append(f"  {site.path:<{width}}  {site.pattern:<18} {state}{mode}".rstrip())
            lines += _reason(site.reason)
        for path, kind, reason in self.untraced:
            lines.append(f"  {path or 'the model'} ({kind}) was left as it was")
            lines += _reason(reason)
        return "\n".join(lines)


def _reason(text: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent="      ", subsequent_indent="      ") if text else []

"""The report of fuse(): for each convolution, whether it is fused and why its site ends where it does."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import fx

from ..core import files
from ..core.graph_compat import source_name
from .sites import spellings
from .sites.chains import Chain

AFTER_ACTIVATION = tuple(f"{name}+" for name in spellings.ACTIVATIONS)


@dataclass(frozen=True)
class Site:
    """A site: operations that one fused call replaces, or could replace.

    path: that of its first module, or the name of its first operation.
    pattern: the operations of the call, such as "conv+bn+relu".
    reason: why it is not fused, or, without an activation, why the call does not cover more.
    mode: "both", or the only mode ("train" | "eval") in which it is so.
    script: a program that compares the site alone with torch's operators, and times both.
    """

    path: str
    pattern: str
    fused: bool
    reason: str = ""
    mode: str = "both"
    script: str = field(default="", compare=False, repr=False)

    @property
    def residual(self) -> str:
        """Where a residual is added: "none" | "before" | "after" the activation."""
        head, _, tail = self.pattern.partition("add")
        return "none" if "add" not in self.pattern else "after" if head.endswith(AFTER_ACTIVATION) else "before"


@dataclass
class Graph:
    """One compiled graph: its sites, and the compilers that refused it, with their reasons.

    mode: "train" | "eval", or "both" if the graph has nothing that depends on it.
    """

    mode: str = "both"
    sites: list[Site] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The work of fuse(), filled as the model is called. str() of it is a table.

    graphs: the compiled graphs. breaks: reason -> count of graph breaks. recompiled: why a graph did not fit a call,
    and another was compiled. plain_calls: reason -> count of the calls that ran the plain model.
    """

    frozen: bool = False
    graphs: list[Graph] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)
    recompiled: list[str] = field(default_factory=list)
    plain_calls: dict[str, int] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """The sites of all graphs, each once."""
        modes: dict[Site, set[str]] = {}
        every = {graph.mode for graph in self.graphs} - {"both"} or {"both"}
        for graph in self.graphs:
            for site in graph.sites:
                modes.setdefault(site, set()).update(every if graph.mode == "both" else {graph.mode})
        return [replace(site, mode="both" if seen == every else min(seen)) for site, seen in modes.items()]

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of fused sites and of all sites. A site that differs between modes counts as in eval."""
        sites = self.sites
        modes = {site.mode for site in sites}
        sites = [site for site in sites if site.mode != "train" or "eval" not in modes]
        return sum(site.fused for site in sites), len(sites)

    def to_dict(self) -> dict:
        fused, total = self.counts
        return {
            "frozen": self.frozen, "fused": fused, "total": total, "sites": [_fields(site) for site in self.sites],
            "graphs": len(self.graphs), "fallbacks": [reason for graph in self.graphs for reason in graph.fallbacks],
            "breaks": self.breaks, "recompiled": self.recompiled, "plain_calls": self.plain_calls,
        }  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Writes report.txt, report.json, and for each site a program site_000.py that reproduces and times it."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for number, site in enumerate(self.sites):
            files.write(target / f"site_{number:03d}.py", site.script)
        files.write(target / "report.txt", f"{self}\n")
        files.write(target / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self) -> str:
        if not self.graphs and not self.plain_calls:
            return "sites: unknown until the first call"
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        fused, total = self.counts
        sites = self.sites
        yield f"sites fused {fused}/{total}"
        width = max((len(site.path) for site in sites), default=0)
        for site in sites:
            state = ("folded" if self.frozen and site.pattern.startswith("conv+bn") else "fused") if site.fused else ""
            mode = "" if site.mode == "both" else f" (in {site.mode})"
            yield f"  {site.path:<{width}}  {site.pattern:<18} {state or 'not fused'}{mode}".rstrip()
            yield from _wrapped(site.reason)
        for title, counted in (("graph break", self.breaks), ("plain call", self.plain_calls)):
            for reason, count in counted.items():
                yield f"{title}, {count} times:"
                yield from _wrapped(reason)
        for graph in self.graphs:
            for reason in graph.fallbacks:
                mode = "" if graph.mode == "both" else f" in {graph.mode}"
                yield f"a graph{mode} was compiled by another route:"
                yield from _wrapped(reason)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent="      ", subsequent_indent="      ") if text else []


def _fields(site: Site) -> dict[str, Any]:
    return {name: part for name, part in asdict(site).items() if name != "script"}


def site_of(chain: Chain, path: str, script: str, owners: dict[fx.Node, str]) -> Site:
    """owners: the path of the fused site of each node."""
    reason = "" if chain.fusible and "act" in chain.steps and not chain.refusal else chain.refusal or chain.reason
    if chain.other in owners:  # only then is that site's path known
        reason = reason.replace("another layer", owners[chain.other])
    return Site(path, chain.pattern, chain.fusible and not chain.refusal, reason, script=script)


def path_of(node: fx.Node, names: dict[str, str]) -> str:
    """The path of the module whose weight or statistics the node uses, else of the module that contains the node.

    names: input of the graph -> the name of the model's tensor that it is.
    """
    role = spellings.role(node)
    a = spellings.arguments(node)
    for owned in (a.weight, getattr(a, "running_mean", None)) if role in ("conv", "bn") else ():
        name = names.get(str(owned)) or _name_in_source(owned)
        if name:
            return name.removesuffix("weight").removesuffix("running_mean").removesuffix(".") or name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = re.sub(r"^L\[[^\]]*\]\.?|^L__self___?", "", stack[-1][0]).replace("_modules.", "") if stack else ""
    if role == "conv" and inside:
        return inside
    return f"{inside}.{node.name}" if inside else node.name


def _name_in_source(node: object) -> str:
    """layer1.0.conv1.weight for L['model']._modules['layer1']._modules['0']._modules['conv1']._parameters['weight']."""
    if not isinstance(node, fx.Node):
        return ""
    return ".".join(re.findall(r"(?:_modules|_parameters|_buffers)\['(\w+)'\]", source_name(node)))

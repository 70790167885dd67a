"""Builds the report of fuse() from the visited modules."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..core.torch_compat import children
from .nodes import name_of
from .report import Report, Site
from .sites import Chain
from .visit import Visit

MODES = {True: "train", False: "eval"}


def describe(visits: list[Visit], frozen: bool = False) -> Report:
    report = Report(frozen)
    for visited in visits:
        sites_by_mode = {mode: _sites(visited, mode) for mode in sorted(visited.plans)}  # eval first
        for mode, sites in sites_by_mode.items():
            for site in sites:
                everywhere = all(site in others for others in sites_by_mode.values())
                site = site if everywhere else replace(site, mode=MODES[mode])
                if site not in report.sites:  # two forwards may name the same modules
                    report.sites.append(site)
        for reason in dict.fromkeys(visited.reasons.values()):
            modes = [MODES[mode] for mode, text in visited.reasons.items() if text == reason]
            where = "" if len(modes) == len(visited.plans) else f" (in {modes[0]})"
            report.untraced.append((visited.path, type(visited.module).__name__, reason + where))
    return report


def _sites(visited: Visit, mode: bool) -> list[Site]:
    plan = visited.plans[mode]
    if plan.reason:
        convolutions = [name for name, child in children(visited.module).items() if isinstance(child, nn.Conv2d)]
        return [Site(visited.name(name), "conv", False, plan.reason) for name in convolutions]
    return [_site(visited, chain) for chain in plan.chains]


def _site(visited: Visit, chain: Chain) -> Site:
    path, pattern = visited.name(name_of(chain.head)), "+".join(chain.names)
    return Site(path, pattern, len(chain.roles) > 1, chain.reason, folded=chain.folded)

"""From what was found to the report."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .nodes import name_of
from .report import Report, Site
from .sites import Chain
from .visit import Visit

MODES = {True: "train", False: "eval"}


def describe(visits: list[Visit], frozen: bool = False) -> Report:
    report = Report(frozen)
    for found in visits:
        rows = {mode: _rows(found, mode) for mode in sorted(found.plans)}  # eval first
        for mode, sites in rows.items():
            for site in sites:
                everywhere = all(site in others for others in rows.values())
                site = site if everywhere else replace(site, mode=MODES[mode])
                if site not in report.sites:  # two forwards may name the same modules
                    report.sites.append(site)
        for reason in dict.fromkeys(found.reasons.values()):
            modes = [MODES[mode] for mode, text in found.reasons.items() if text == reason]
            where = "" if len(modes) == len(found.plans) else f" (in {modes[0]})"
            report.untraced.append((found.path, type(found.module).__name__, reason + where))
    return report


def _rows(found: Visit, mode: bool) -> list[Site]:
    plan = found.plans[mode]
    if plan.reason:
        convolutions = [name for name, child in found.module._modules.items() if isinstance(child, nn.Conv2d)]
        return [Site(found.name(name), "conv", False, plan.reason) for name in convolutions]
    return [_site(found, chain) for chain in plan.chains]


def _site(found: Visit, chain: Chain) -> Site:
    path, pattern = found.name(name_of(chain.head)), "+".join(chain.names)
    return Site(path, pattern, len(chain.roles) > 1, chain.reason, folded=chain.folded)

"""Describe this machine's processor and memory, as Linux does, for the results files of the CPU benchmarks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

PROC = Path("/proc")
Hardware = dict[str, Any]


def describe(proc: Path = PROC) -> Hardware:
    """Vendor, family and model of the processor, its clock now, the cache that Linux names, CPUs that this process may
    use, memory, and whether this is a virtual machine. A value that the machine does not tell is None."""
    processor, memory = _fields(proc / "cpuinfo"), _fields(proc / "meminfo")
    flags = processor.get("flags", "").split()
    return {
        "vendor": processor.get("vendor_id"),
        "family": _number(processor.get("cpu family")),
        "model": _number(processor.get("model")),
        "mhz": _number(processor.get("cpu MHz")),
        "cache": processor.get("cache size"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round((_number(memory.get("MemTotal")) or 0) / 2**20, 1) or None,
        "virtual": "hypervisor" in flags if flags else None,
    }


def text(hardware: Hardware) -> str:
    """One line with all that is known."""
    model = f"family {hardware['family']} model {hardware['model']}" if hardware["family"] else ""
    clock = f" at {hardware['mhz'] / 1e3:.1f} GHz" if hardware["mhz"] else ""
    memory = f"{hardware['memory_gib']:g} GiB" if hardware["memory_gib"] else ""
    kind = {True: "virtual machine", False: "no virtual machine"}.get(hardware["virtual"], "")
    return ", ".join(part for part in (model, f"{hardware['cpus']} CPUs{clock}", memory, kind) if part)


def _fields(path: Path) -> dict[str, str]:
    """The first value of each name."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = [[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]
    return {name: value for name, value in reversed(pairs)}


def _number(value: str | None) -> int | None:
    """The leading number, rounded to an integer."""
    number = re.match(r"\d+(\.\d+)?", value or "")
    return round(float(number[0])) if number else None

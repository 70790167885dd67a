"""What is here: versions, how csrc was built, the machine, and each row's state with its reasons.

`python -m atrous info` prints render(collect()); --json FILE keeps collect() as it is. Nothing here fails because
something is absent: what is absent is said, with its reason.
"""

from __future__ import annotations

import importlib
import platform
import re
import textwrap
from collections.abc import Iterable

import torch

from .. import ops
from ..backends import selection
from ..ops import device_support
from ..tuning.device_id import distribution, processor

WIDTH = 60


def versions() -> dict[str, str | None]:
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "atrous": distribution("atrous"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": distribution("triton"),
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn) if cudnn else None,
        "onednn": onednn[1] if onednn else None,
    }


def library() -> dict:
    """libatrous.so: whether it is loaded, else why not, and what atrous._C says of the build."""
    build, reason = None, None
    try:
        build = importlib.import_module("..._C", __name__).build()
    except ImportError as error:
        reason = str(error)
    return {"loaded": ops.library_loaded, "reason": ops.library_error, "build": build, "build_reason": reason}


def machine() -> dict:
    """The processor as torch uses it, and the cards that torch sees; native: why the library has no kernels for one."""
    devices = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability, memory = f"sm_{card.major}{card.minor}", round(card.total_memory / 2**30, 1)
        native = list(device_support.lacks(torch.device("cuda", index)))
        devices.append({"name": card.name, "capability": capability, "memory_gib": memory, "native": native})
    return {
        "cpu": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def collect() -> dict:
    """What `info` tells, ready for JSON: versions, library, machine, rows (name -> why not here; [] = it runs)."""
    rows = {name: selection.available(name) for name in selection.rows()}
    return {"versions": versions(), "library": library(), "machine": machine(), "rows": rows}


def missing(info: dict, names: Iterable[str]) -> list[str]:
    """Which of these rows do not run here, on the cards where there are any, and why."""
    reasons = {name: list(info["rows"][name]) for name in names}
    if reasons.get("native") == []:
        reasons["native"] = [reason for card in info["machine"]["devices"] for reason in card["native"]]
    return [f"{name} does not run here: {', '.join(found)}" for name, found in reasons.items() if found]


def _line(name: str, value) -> str:
    """'  name          value', the value wrapped under itself."""
    text = "-" if value in (None, "", []) else ", ".join(value) if isinstance(value, list) else str(value)
    start = f"  {name.replace('_', ' '):<13} "
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * 16, break_on_hyphens=False)


def render(info: dict) -> str:
    """collect() as text for a terminal of 60 columns."""
    built, host = info["library"], info["machine"]
    lines = ["versions", *(_line(name, value) for name, value in info["versions"].items()), "", "C++ library"]
    lines.append(_line("state", "loaded" if built["loaded"] else f"not loaded: {built['reason']}"))
    if built["build"] is None:
        lines.append(_line("build", f"unknown: {built['build_reason']}"))
    else:
        lines += [_line(name, value) for name, value in built["build"].items()]
    lines += ["", "machine", *(_line(name, host[name]) for name in ("cpu", "capability", "threads"))]
    for card in host["devices"]:
        lacks = "".join(f"; row native not there: {reason}" for reason in card["native"])
        lines.append(_line("cuda", f"{card['name']}, {card['capability']}, {card['memory_gib']} GiB{lacks}"))
    if not host["devices"]:
        lines.append(_line("cuda", "no card that torch sees"))
    lines += ["", "rows (who convolves)"]
    for name, reasons in info["rows"].items():
        lines.append(_line(name, "not here: " + "; ".join(reasons) if reasons else "ready"))
    return "\n".join(lines)

"""Collect and render what is installed: versions, the build of csrc, the machine, and the state of each backend.

`python -m atrous info` prints render(collect()); --json FILE saves collect(). A missing part is no error: it is
reported with its reason.
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
    """State of libatrous.so: loaded or why not, and how it was built, as atrous._C reports."""
    build, reason = None, None
    try:
        build = importlib.import_module("..._C", __name__).build()
    except ImportError as error:
        reason = str(error)
    return {"loaded": ops.library_loaded, "reason": ops.library_error, "build": build, "build_reason": reason}


def machine() -> dict:
    """The CPU as torch uses it, and the GPUs that torch sees. native: why the library has no kernels for a GPU."""
    devices = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability, memory = f"sm_{gpu.major}{gpu.minor}", round(gpu.total_memory / 2**30, 1)
        native = list(device_support.native_reasons(torch.device("cuda", index)))
        devices.append({"name": gpu.name, "capability": capability, "memory_gib": memory, "native": native})
    return {
        "cpu": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def collect() -> dict:
    """The report for JSON: versions, library, machine, backends (name -> reasons why it cannot run; [] = it runs)."""
    backends = {name: selection.available(name) for name in selection.backends()}
    return {"versions": versions(), "library": library(), "machine": machine(), "backends": backends}


def missing(info: dict, names: Iterable[str]) -> list[str]:
    """The backends among `names` that do not run on this machine, or on its GPUs if it has any, with the reasons."""
    reasons = {name: list(info["backends"][name]) for name in names}
    if reasons.get("native") == []:
        reasons["native"] = [reason for gpu in info["machine"]["devices"] for reason in gpu["native"]]
    return [f"{name} does not run here: {', '.join(why)}" for name, why in reasons.items() if why]


def _line(name: str, value) -> str:
    """'  name          value'; long values wrap below themselves."""
    text = "-" if value in (None, "", []) else ", ".join(value) if isinstance(value, list) else str(value)
    start = f"  {name.replace('_', ' '):<13} "
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * 16, break_on_hyphens=False)


def render(info: dict) -> str:
    """The result of collect() as text for a terminal of 60 columns."""
    lib, host = info["library"], info["machine"]
    lines = ["versions", *(_line(name, value) for name, value in info["versions"].items()), "", "C++ library"]
    lines.append(_line("state", "loaded" if lib["loaded"] else f"not loaded: {lib['reason']}"))
    if lib["build"] is None:
        lines.append(_line("build", f"unknown: {lib['build_reason']}"))
    else:
        lines += [_line(name, value) for name, value in lib["build"].items()]
    lines += ["", "machine", *(_line(name, host[name]) for name in ("cpu", "capability", "threads"))]
    for gpu in host["devices"]:
        note = "".join(f"; backend native cannot run: {reason}" for reason in gpu["native"])
        lines.append(_line("cuda", f"{gpu['name']}, {gpu['capability']}, {gpu['memory_gib']} GiB{note}"))
    if not host["devices"]:
        lines.append(_line("cuda", "torch sees no GPU"))
    lines += ["", "backends"]
    for name, reasons in info["backends"].items():
        lines.append(_line(name, "cannot run: " + "; ".join(reasons) if reasons else "ready"))
    return "\n".join(lines)

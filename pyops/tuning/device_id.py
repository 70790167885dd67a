"""The device and the versions that a table of measured choices belongs to."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """Of the card; or of the processor, with the threads that torch runs on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def versions(device: torch.device) -> dict[str, str | None]:
    """Of what a time depends on."""
    cudnn: Any = torch.backends.cudnn
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    library = {"cudnn": str(cudnn.version())} if device.type == "cuda" else {"onednn": onednn and onednn[1]}
    return {
        "atrous": distribution("atrous"),
        "torch": str(torch.__version__),
        "triton": distribution("triton"),
    } | library


def distribution(name: str) -> str | None:
    """The installed version; a folder that is on the path without its metadata is asked itself."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return importlib.import_module(name).__version__
    except (ImportError, AttributeError):
        return None


def file_name(device: torch.device) -> str:
    """Of a device's table: those for several versions of torch lie side by side."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{device_name(device)} torch {torch.__version__}".lower()).strip("-") + ".json"

"""The device name and the versions that identify a tuning table."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """The name of the GPU; or of the processor, with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    try:
        match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def versions(device: torch.device) -> dict[str, str | None]:
    """The versions of everything that a measured time depends on."""
    cudnn: Any = torch.backends.cudnn
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    library = {"cudnn": str(cudnn.version())} if device.type == "cuda" else {"onednn": onednn and onednn[1]}
    return {
        "atrous": distribution("atrous"),
        "torch": str(torch.__version__),
        "triton": distribution("triton"),
    } | library


def distribution(name: str) -> str | None:
    """The installed version, or __version__ of a folder on the path that has no metadata; None if there is neither."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return importlib.import_module(name).__version__
    except (ImportError, AttributeError):
        return None


def file_name(device: torch.device) -> str:
    """The name of a device's table, which differs between versions of torch."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{device_name(device)} torch {torch.__version__}".lower()).strip("-") + ".json"

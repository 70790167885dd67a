"""The results file of one GPU and one day, <gpu>-<yyyy-mm-dd>.json, which .ci/gpu and every table fill together.

    python -m bench.record            print device, driver, commit, date and versions as JSON; exits 3 without a GPU
    python -m bench.record --arch     print the value of TORCH_CUDA_ARCH_LIST for this GPU alone

The top level of the file holds that same description; "phases" holds the steps of .ci/gpu, "tables" the rows of each
table. The file is replaced atomically after every step and row, so an interrupted run leaves valid JSON.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IDENTITY = ("device", "driver", "commit", "versions")  # two runs share a file only if these are equal
UNKNOWN = "unknown"  # the driver while nvidia-smi does not answer; a later call may fill it in
RESULTS = ("bench/results", "pyops/tuning/tables")  # written by a run; not counted as source changes
SENSORS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "celsius": "temperature.gpu",
    "watt": "power.draw",
    "driver": "driver_version",
}
Record = dict[str, Any]


def describe(device: Any = None) -> Record:
    """Origin of a measurement: GPU, driver, commit, date, versions. device: a torch.device, by default the GPU."""
    import torch

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": distribution("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }
    cuda = device is None or device.type == "cuda"
    return about(torch.cuda.get_device_name(device) if cuda else "cpu", versions)


def write_rows(path: Path, rows: list[Record], **more: Any) -> None:
    """Writes the rows of a benchmark on this CPU, and their origin. more: fields beside the rows."""
    from atrous.tools import info
    from bench import hardware

    host = {name: info.machine()[name] for name in ("capability", "threads")}
    machine = {**host, "hardware": hardware.describe()}
    result = {**about(info.processor(), info.versions()), **machine, **more, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def cpu_file(folder: Path) -> Path:
    """cpu-<instructions>-<yyyy-mm-dd>.json, the results of `make bench` on this CPU."""
    from atrous.tools import info

    return folder / f"cpu-{info.machine()['capability'].lower()}-{datetime.date.today().isoformat()}.json"


def about(device: str, versions: Record) -> Record:
    """describe() for a given device name and versions. ATROUS_DATE is the day on which a phase began, so that its steps
    fill one file even past midnight."""
    driver = sensors().get("driver", UNKNOWN)
    date = os.environ.get("ATROUS_DATE") or datetime.date.today().isoformat()
    return {"device": device, "driver": driver, "commit": commit(), "date": date, "versions": versions}


def distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit: ATROUS_COMMIT, else git's HEAD ("-dirty" if sources changed), else the bundle's (no .git there)."""
    if os.environ.get("ATROUS_COMMIT"):
        return os.environ["ATROUS_COMMIT"]
    git = ("git", "-C", str(ROOT))
    head = _answer(*git, "rev-parse", "HEAD") if (ROOT / ".git").exists() else ""
    if head:
        changes = _answer(*git, "diff", "--name-only", "HEAD", "--", ".", *(f":!{folder}" for folder in RESULTS))
        return head + "-dirty" * bool(changes)
    try:
        with tarfile.open(bundle()) as archive:  # bundle.json comes first
            return str(json.load(archive.extractfile(archive.next()))["commit"])
    except Exception:  # no bundle, or a broken one, which its installation reports
        return "unknown"


def bundle() -> Path | None:
    """The archive that .ci/gpu installs: ATROUS_BUNDLE, or the newest in out/."""
    if os.environ.get("ATROUS_BUNDLE"):
        return Path(os.environ["ATROUS_BUNDLE"]).absolute()
    archives = (ROOT / "out").glob("gpu-bundle-*.tar.xz")
    return max(archives, key=lambda path: path.stat().st_mtime, default=None)


def sensors() -> dict[str, str]:
    """The GPU's current clocks, temperature and power, and its driver; empty if nvidia-smi does not answer."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    query = f"--query-gpu={','.join(SENSORS.values())}"
    values = _answer("nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits").split(", ")
    return dict(zip(SENSORS, values)) if len(values) == len(SENSORS) else {}


def _answer(*command: str) -> str:
    """The first line that a command prints; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.split("\n")[0].strip()


def open_record(folder: Path, about: Record) -> tuple[Path, Record]:
    """Path and contents of today's file of this GPU. An existing file of another commit, driver or torch is renamed."""
    gpu = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = folder / f"{gpu}-{about['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = read(path)
    if before and same(before, about):
        return path, before if before["driver"] != UNKNOWN else before | {"driver": about["driver"]}
    if before:
        stem = f"{path.stem}-{str(before.get('commit', 'unknown'))[:8]}"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        path.rename(next(free for name in names if not (free := path.with_name(f"{name}.json")).exists()))
    return path, {**about, "phases": {}, "tables": {}}


def same(before: Record, about: Record) -> bool:
    """True if two runs may share a file."""
    driver = UNKNOWN in (before.get("driver"), about["driver"])
    return all(before.get(name) == about[name] or (name == "driver" and driver) for name in IDENTITY)


def read(path: Path) -> Record:
    """The contents of a file; empty if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, record: Record) -> None:
    """Replaces the file atomically: the run may be killed at any time."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def arch_list(capability: tuple[int, int]) -> str:
    """The architecture's name in TORCH_CUDA_ARCH_LIST; 9.0a includes the arch-specific instructions of 9.0 (wgmma)."""
    return {(9, 0): "9.0a"}.get(capability, "{}.{}".format(*capability))


def main(argv: list[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        return 3
    print(arch_list(torch.cuda.get_device_capability()) if argv == ["--arch"] else json.dumps(describe()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

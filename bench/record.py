"""The file of one GPU and one day, <gpu>-<yyyy-mm-dd>.json, which .ci/gpu and every table fill together.

    python -m bench.record            where this is measured, as JSON; exit status 3 where torch has no GPU
    python -m bench.record --arch     what TORCH_CUDA_ARCH_LIST is for this GPU alone

At its top the file says where its numbers come from; under "phases" .ci/gpu keeps each step, under "tables" each
table its rows. It is written whole after every step and row: a run that is cut off leaves a valid file.
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
SAME = ("device", "driver", "commit", "versions")  # of two runs that may share a file
UNKNOWN = "unknown"  # the driver where nvidia-smi does not answer, which it may do later
RESULTS = ("bench/results", "pyops/tuning/tables")  # what a run writes: it does not change the sources
SENSORS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "celsius": "temperature.gpu",
    "watt": "power.draw",
    "driver": "driver_version",
}
Record = dict[str, Any]


def described(device: Any = None) -> Record:
    """Where a number comes from: GPU, driver, commit, day and versions. device: a torch.device, by default the GPU."""
    import torch

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _distribution("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }
    cuda = device is None or device.type == "cuda"
    return about(torch.cuda.get_device_name(device) if cuda else "cpu", versions)


def about(device: str, versions: Record) -> Record:
    """ATROUS_DATE is the day on which a phase began: its steps fill one file, past midnight too."""
    driver = sensors().get("driver", UNKNOWN)
    date = os.environ.get("ATROUS_DATE") or datetime.date.today().isoformat()
    return {"device": device, "driver": driver, "commit": commit(), "date": date, "versions": versions}


def _distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """ATROUS_COMMIT, git's HEAD ("-dirty" with changes), or a bundle's: a GPU machine may have no .git."""
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
    except Exception:  # without a bundle; a broken one is told of by its installation
        return "unknown"


def bundle() -> Path | None:
    """The archive that .ci/gpu installs: ATROUS_BUNDLE, or the newest in out/."""
    if os.environ.get("ATROUS_BUNDLE"):
        return Path(os.environ["ATROUS_BUNDLE"]).absolute()
    found = (ROOT / "out").glob("gpu-bundle-*.tar.xz")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def sensors() -> dict[str, str]:
    """Clocks, temperature, power and driver of the GPU now; empty where nvidia-smi does not answer."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    query = f"--query-gpu={','.join(SENSORS.values())}"
    values = _answer("nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits").split(", ")
    return dict(zip(SENSORS, values)) if len(values) == len(SENSORS) else {}


def _answer(*command: str) -> str:
    """The first line that a command prints; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.split("\n")[0].strip()


def opened(folder: Path, about: Record) -> tuple[Path, Record]:
    """Today's file of this GPU and what it holds. One of another commit, driver or torch is kept, under a free name."""
    gpu = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = folder / f"{gpu}-{about['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = read(path)
    if before and same(before, about):
        return path, before if before["driver"] != UNKNOWN else before | {"driver": about["driver"]}
    if before:
        stem = f"{path.stem}-{str(before.get('commit', 'unknown'))[:8]}"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        path.rename(next(kept for name in names if not (kept := path.with_name(f"{name}.json")).exists()))
    return path, {**about, "phases": {}, "tables": {}}


def same(before: Record, about: Record) -> bool:
    """Whether two runs may share a file."""
    driver = UNKNOWN in (before.get("driver"), about["driver"])
    return all(before.get(name) == about[name] or (name == "driver" and driver) for name in SAME)


def read(path: Path) -> Record:
    """What a file holds; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, record: Record) -> None:
    """Whole or not at all: the run may be cut off."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def arch_list(capability: tuple[int, int]) -> str:
    """As TORCH_CUDA_ARCH_LIST has it: compute capability 9.0 whole is 9.0a."""
    return {(9, 0): "9.0a"}.get(capability, "{}.{}".format(*capability))


def main(argv: list[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        return 3
    print(arch_list(torch.cuda.get_device_capability()) if argv == ["--arch"] else json.dumps(described()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

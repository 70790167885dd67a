"""Installs a bundle where it is to run; all is compared first, so that a bundle for something else changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from bench import record
from bench.gpu.bundle import archive as bundle_archive
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import Mistake

MARK = "atrous-bundle.json"  # in Triton's cache: what was installed, and where


def cache() -> Path:
    """Triton's folder: TRITON_CACHE_DIR, or .triton/cache at home."""
    from triton import knobs

    return Path(knobs.cache.dir).resolve()


def compare(manifest: dict[str, Any]) -> None:
    """Raises Mistake unless the bundle is for this Python, torch, Triton, GPU and checkout."""
    import torch

    if not torch.cuda.is_available():
        raise Mistake(f"GPU: expected one of compute capability {manifest['arch']}, found none that torch can use")
    major, minor = torch.cuda.get_device_capability()
    found = bundle_facts.here(10 * major + minor) | {"chip": f"{major}.{minor}"}
    wanted = manifest | {"chip": manifest["arch"].rstrip("af")}
    for name in ("chip", "python", "torch", "triton", "cuda", "compiler"):
        if wanted[name] != found[name]:
            told = "compiler (Triton's files, ptxas and TRITON_ variables)" if name == "compiler" else name
            raise Mistake(f"{told}: the bundle is for {wanted[name]}, here is {found[name]}")
    if manifest["source"] != (sources := bundle_facts.source()):
        raise Mistake(
            f"commit: the bundle is of {manifest['commit']} (sources {manifest['source']}), here is "
            f"{record.commit()} (sources {sources})"
        )


def pip(content: tarfile.TarFile, wheel: str) -> None:
    """Installs the wheel into this Python, without an index. Raises Mistake."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
    # A distribution's own Python refuses pip otherwise; the wheel replaces nothing of the distribution's.
    alone = {"PIP_NO_INDEX": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as folder:
        content.extract(wheel, folder, filter="data")
        run = subprocess.run([*command, str(Path(folder, wheel))], env=os.environ | alone)
    if run.returncode:
        raise Mistake(f"wheel: expected pip to install {wheel}, got exit status {run.returncode}")


def install(archive: Path) -> int:
    """The kernels into Triton's cache, then the wheel. The cache comes first: where it cannot be written, the Python
    is left as it is; and entries without the wheel are never asked for."""
    content, manifest = bundle_archive.opened(archive)
    compare(manifest)
    there = cache()
    mark = there / MARK
    try:
        mark.unlink(missing_ok=True)
        entries = bundle_archive.place(content, there)
    except OSError as error:
        raise Mistake(f"cache: expected a folder that can be written, got {str(there)!r}: {error.strerror}") from None
    pip(content, manifest["wheel"])
    mark.write_text(json.dumps({"folder": str(there), "key": manifest["key"], "entries": entries}))
    print(f"installed {manifest['key']}: {manifest['kernels']} kernels in {there}")
    return installed()


def installed() -> int:
    """Raises Mistake if the cache is not where it was installed: its entries hold absolute paths, and Triton would
    compile everything again without a word."""
    there = cache()
    if not (there / MARK).exists():
        raise Mistake(f"cache: expected an installed bundle in {there}, found none")
    mark = json.loads((there / MARK).read_text())
    if mark["folder"] != str(there):
        raise Mistake(f"cache: expected it in {mark['folder']}, where it was installed, got {there}: install again")
    lost = [name for name in mark["entries"] if not (there / name).is_dir()]
    if lost:
        raise Mistake(f"cache: expected {len(mark['entries'])} entries of the bundle in {there}, {len(lost)} are lost")
    return 0

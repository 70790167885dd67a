"""Installs a bundle where it is to run; all is compared first, so that a bundle for something else changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundle_archive
import bundle_facts
from bundle_facts import Mistake

MARK = "atrous-bundle.json"  # in Triton's cache: what was installed, and where


def cache() -> Path:
    """Triton's folder: TRITON_CACHE_DIR, or .triton/cache at home."""
    from triton import knobs

    return Path(knobs.cache.dir).resolve()


def compare(manifest: dict[str, Any]) -> None:
    """Raises Mistake unless the bundle is for this Python, torch, Triton, GPU and checkout."""
    import torch

    found = bundle_facts.probe(sys.executable)
    if not torch.cuda.is_available():
        raise Mistake(f"GPU: expected one of compute capability {manifest['arch']}, found none that torch can use")
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    pairs = {
        "chip": (manifest["arch"].rstrip("af"), capability),
        **{name: (manifest[name], found[name]) for name in ("python", "torch", "triton", "cuda")},
    }
    for name, (wanted, got) in pairs.items():
        if wanted != got:
            raise Mistake(f"{name}: the bundle is for {wanted}, here is {got}")
    if manifest["source"] != (here := bundle_facts.source()):
        raise Mistake(
            f"commit: the bundle is of {manifest['commit']} (sources {manifest['source']}), here is "
            f"{bundle_facts.commit()} (sources {here})"
        )


def install(archive: Path) -> int:
    """The wheel into this Python, without an index; then the kernels into Triton's cache."""
    with bundle_archive.unpacked(archive) as (folder, manifest):
        compare(manifest)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
        # A distribution's own Python refuses pip otherwise; the wheel replaces nothing of the distribution's.
        alone = {"PIP_NO_INDEX": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        run = subprocess.run([*command, str(folder / manifest["wheel"])], env=os.environ | alone)
        if run.returncode:
            raise Mistake(f"wheel: expected pip to install {manifest['wheel']}, got exit status {run.returncode}")
        there = cache()
        bundle_archive.place(folder / "triton", there)
        entries = sorted(path.name for path in (folder / "triton").iterdir())
    (there / MARK).write_text(json.dumps({"folder": str(there), "key": manifest["key"], "entries": entries}))
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

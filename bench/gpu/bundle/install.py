"""Install a bundle on the GPU machine, after checking that it fits; a bundle that does not fit changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.bundle import archive as bundle_archive
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle.facts import BundleError

MARK = "atrous-bundle.json"  # a file in Triton's cache: the installed bundle's key, entries and folder


def cache() -> Path:
    """Triton's cache folder: TRITON_CACHE_DIR, or ~/.triton/cache."""
    from triton import knobs

    return Path(knobs.cache.dir).resolve()


def compare(manifest: dict[str, Any]) -> str:
    """Raises BundleError unless the bundle is for this Python, torch, Triton, GPU and checkout.

    Returns a warning if its kernels are of another compiler: Triton ignores such entries of its cache.
    """
    import torch

    if not torch.cuda.is_available():
        raise BundleError(f"GPU: expected one of compute capability {manifest['arch']}, got none that torch can use")
    major, minor = torch.cuda.get_device_capability()
    facts = bundle_facts.here(10 * major + minor) | {"chip": f"{major}.{minor}"}
    wanted = manifest | {"chip": manifest["arch"].rstrip("af")}
    differ = {
        name: f"the bundle is for {wanted[name]}, here is {facts[name]}"
        for name in ("chip", "python", "torch", "triton", "cuda", "compiler") if wanted[name] != facts[name]
    }  # fmt: skip
    compiler = differ.pop("compiler", "")
    if differ:
        raise BundleError(": ".join(next(iter(differ.items()))))
    bundle_facts.require_source(manifest)
    return compiler and f"compiler (Triton's files, ptxas and TRITON_ variables): {compiler}"


def pip(content: tarfile.TarFile, wheel: str) -> None:
    """Installs the wheel into this Python, without an index. Raises BundleError."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
    # Allows pip in a distribution's own Python; the wheel replaces none of the distribution's packages.
    alone = {"PIP_NO_INDEX": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as folder:
        content.extract(wheel, folder, filter="data")
        run = subprocess.run([*command, str(Path(folder, wheel))], env=os.environ | alone)
    if run.returncode:
        raise BundleError(f"wheel: expected pip to install {wheel}, got exit status {run.returncode}")


def install(archive: Path) -> int:
    """Installs the kernels into Triton's cache, then the wheel. In this order an unwritable cache leaves the Python
    unchanged, and cache entries without the wheel are harmless. Kernels of another compiler are left out."""
    content, manifest = bundle_archive.open_archive(archive)
    if warning := compare(manifest):
        print(f"bundle: {warning}; its kernels are left out, and Triton compiles them", file=sys.stderr)
    there = cache()
    mark = there / MARK
    try:
        mark.unlink(missing_ok=True)
        there.mkdir(parents=True, exist_ok=True)
        entries = [] if warning else bundle_archive.restore_entries(content, there)
    except OSError as error:
        message = f"cache: expected a folder that can be written, got {str(there)!r}: {error.strerror}"
        raise BundleError(message) from None
    pip(content, manifest["wheel"])
    mark.write_text(json.dumps({"folder": str(there), "key": manifest["key"], "entries": entries}))
    print(f"installed {manifest['key']}: {0 if warning else manifest['kernels']} kernels in {there}")
    return installed()


def installed() -> int:
    """Returns 0 if an installed bundle is intact. Raises BundleError if its cache was moved: the entries have absolute
    paths, so that Triton would silently compile everything again."""
    there = cache()
    if not (there / MARK).exists():
        raise BundleError(f"cache: expected an installed bundle in {there}, got none")
    mark = json.loads((there / MARK).read_text())
    if mark["folder"] != str(there):
        raise BundleError(f"cache: expected it in {mark['folder']}, where it was installed, got {there}: install again")
    missing = [name for name in mark["entries"] if not (there / name).is_dir()]
    if missing:
        count = len(mark["entries"])
        raise BundleError(f"cache: expected {count} entries of the bundle in {there}, {len(missing)} are missing")
    return 0

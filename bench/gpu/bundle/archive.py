"""Pack and unpack the bundle's archive, including the files of Triton's cache that Triton reads again."""

from __future__ import annotations

import base64
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gpu.bundle.facts import BundleError

MAX_BYTES = 40 << 20  # size limit of an archive
ENTRIES = "triton"  # the archive's folder with the cache entries
GROUP = "__grp__"  # Triton's list of an entry's files: absolute paths in a cache, names in the archive


def entry_name(key: str) -> str:
    """The folder of a cache entry, named as in triton.runtime.cache."""
    return base64.b32encode(bytes.fromhex(key)).decode().rstrip("=")


def copy_entries(cache: Path, keys: Iterable[str], folder: Path) -> int:
    """Copies these cache entries: code, metadata and group files of a kernel, the library of a module. Returns their
    number."""
    count = 0
    for name in map(entry_name, sorted(keys)):
        (folder / name).mkdir(parents=True)
        count += 1
        for path in (cache / name).iterdir():
            if path.name.startswith(GROUP):
                names = json.loads(path.read_text())["child_paths"]
                children = {name: name for name in names if name.endswith((".cubin", ".json"))}
                (folder / name / path.name).write_text(json.dumps({"child_paths": children}))
            elif path.suffix in (".cubin", ".json", ".so"):
                shutil.copyfile(path, folder / name / path.name)
    return count


def restore_entries(content: tarfile.TarFile, cache: Path) -> list[str]:
    """Writes the entries of an archive into a cache, group files with absolute paths. Returns the entries' names."""
    entries = set()
    for member in content:
        if not member.name.startswith(f"{ENTRIES}/"):
            continue
        path, file = cache / member.name.removeprefix(f"{ENTRIES}/"), content.extractfile(member)
        if path.parent.name not in entries:
            path.parent.mkdir(parents=True, exist_ok=True)
            entries.add(path.parent.name)
        data = file.read() if file else b""
        if path.name.startswith(GROUP):
            names = json.loads(data)["child_paths"]
            data = json.dumps({"child_paths": {name: str(path.with_name(name)) for name in names}}).encode()
        path.write_bytes(data)
    return sorted(entries)


def pack(folder: Path, archive: Path) -> int:
    """Writes the folder as a .tar.xz, bundle.json first. Times and owners are left out, so that the same folder gives
    the same archive; a kernel's variants are neighbours, which nearly halves it. Returns its size. Raises BundleError
    if it exceeds MAX_BYTES."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.suffix, path.name, path.stat().st_size, path))
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w:xz", preset=6) as tar:
        for path in [folder / "bundle.json", *(path for path in files if path != folder / "bundle.json")]:
            about = tarfile.TarInfo(str(path.relative_to(folder)))
            about.size, about.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(about, content)
    if (size := part.stat().st_size) > MAX_BYTES:
        part.unlink()
        raise BundleError(f"archive: expected at most {MAX_BYTES} bytes, got {size}")
    part.replace(archive)
    return size


def manifest(archive: Path) -> dict[str, Any]:
    """bundle.json alone, which comes first, without reading the rest. Raises BundleError."""
    try:
        with tarfile.open(archive, "r:xz") as content:
            return json.load(content.extractfile(content.next()))  # type: ignore[arg-type]
    except (OSError, EOFError, AttributeError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise BundleError(f"archive: expected a whole bundle, got {str(archive)!r}: {error}") from None


def open_archive(archive: Path) -> tuple[tarfile.TarFile, dict[str, Any]]:
    """The archive in memory and its manifest. Raises BundleError if it is truncated or damaged."""
    try:
        whole = lzma.decompress(archive.read_bytes())  # tarfile does not notice a missing end
        content = tarfile.open(fileobj=io.BytesIO(whole), mode="r:")
        return content, json.loads(content.extractfile("bundle.json").read())  # type: ignore[union-attr]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise BundleError(f"archive: expected a whole bundle, got {str(archive)!r}: {error}") from None

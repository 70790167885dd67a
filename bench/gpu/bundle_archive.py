"""The archive, and Triton's cache in it: the few files of each entry that are read again, at no place yet."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bundle_facts import Mistake

MOST = 40 << 20  # bytes of an archive
GROUP = "__grp__"  # Triton's list of the files of an entry: absolute paths, here names


def entry_name(key: str) -> str:
    """The folder of an entry, as triton.runtime.cache names it."""
    return base64.b32encode(bytes.fromhex(key)).decode().rstrip("=")


def take(cache: Path, keys: Iterable[str], folder: Path) -> int:
    """Copies these entries: code, metadata and groups of a kernel, or the library of a module. Returns how many."""
    taken = 0
    for name in map(entry_name, sorted(keys)):
        (folder / name).mkdir(parents=True)
        taken += 1
        for path in (cache / name).iterdir():
            if path.name.startswith(GROUP):
                names = json.loads(path.read_text())["child_paths"]
                kept = {name: name for name in names if name.endswith((".cubin", ".json"))}
                (folder / name / path.name).write_text(json.dumps({"child_paths": kept}))
            elif path.suffix in (".cubin", ".json", ".so"):
                shutil.copyfile(path, folder / name / path.name)
    return taken


def place(folder: Path, cache: Path) -> None:
    """Copies the entries into a cache; a group then says where its files are."""
    for path in folder.glob("*/*"):
        there = cache / path.parent.name / path.name
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith(GROUP):
            names = json.loads(path.read_text())["child_paths"]
            there.write_text(json.dumps({"child_paths": {name: str(there.with_name(name)) for name in names}}))
        else:
            shutil.copyfile(path, there)


def pack(folder: Path, archive: Path) -> int:
    """The folder as a .tar.xz; bundle.json comes first, and times and owners are left out: the same folder gives the
    same archive. Returns its size."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.suffix, path))
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w:xz", preset=6) as tar:
        for path in [folder / "bundle.json", *(path for path in files if path != folder / "bundle.json")]:
            about = tarfile.TarInfo(str(path.relative_to(folder)))
            about.size, about.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(about, content)
    if (size := part.stat().st_size) > MOST:
        part.unlink()
        raise Mistake(f"archive: expected at most {MOST} bytes, got {size}")
    part.replace(archive)
    return size


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The content of an archive in a temporary folder, and its manifest. Raises Mistake unless it is whole."""
    with tempfile.TemporaryDirectory(prefix="gpu-bundle-") as name:
        try:
            whole = lzma.decompress(archive.read_bytes())  # tarfile would not miss the end of it
            with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
                tar.extractall(name, filter="data")
            manifest = json.loads(Path(name, "bundle.json").read_text())
        except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
            raise Mistake(f"archive: expected a whole bundle, got {str(archive)!r}: {error}") from None
        yield Path(name), manifest

"""The archive, and Triton's cache in it: of each entry the few files that Triton reads again, without their folder."""

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

from bundle_facts import Mistake

MOST = 40 << 20  # bytes of an archive
ENTRIES = "triton"  # the folder of the archive that holds them
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


def place(content: tarfile.TarFile, cache: Path) -> list[str]:
    """Writes the entries of an archive into a cache; a group then says where its files are. Returns their names."""
    entries = set()
    for member in content:
        if not member.name.startswith(f"{ENTRIES}/"):
            continue
        path, file = cache / member.name.removeprefix(f"{ENTRIES}/"), content.extractfile(member)
        if path.parent.name not in entries:
            path.parent.mkdir(parents=True, exist_ok=True)
            entries.add(path.parent.name)
        held = file.read() if file else b""
        if path.name.startswith(GROUP):
            names = json.loads(held)["child_paths"]
            held = json.dumps({"child_paths": {name: str(path.with_name(name)) for name in names}}).encode()
        path.write_bytes(held)
    return sorted(entries)


def pack(folder: Path, archive: Path) -> int:
    """The folder as a .tar.xz; bundle.json comes first, and times and owners are left out: the same folder gives the
    same archive. Variants of a kernel lie side by side, where they compress best. Returns its size."""
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
    if (size := part.stat().st_size) > MOST:
        part.unlink()
        raise Mistake(f"archive: expected at most {MOST} bytes, got {size}")
    part.replace(archive)
    return size


def opened(archive: Path) -> tuple[tarfile.TarFile, dict[str, Any]]:
    """The content of an archive, in memory, and its manifest. Raises Mistake unless it is whole."""
    try:
        whole = lzma.decompress(archive.read_bytes())  # tarfile would not miss the end of it
        content = tarfile.open(fileobj=io.BytesIO(whole), mode="r:")
        return content, json.loads(content.extractfile("bundle.json").read())  # type: ignore[union-attr]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise Mistake(f"archive: expected a whole bundle, got {str(archive)!r}: {error}") from None

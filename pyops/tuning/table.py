"""The table of measured choices: which row, in which config, was the fastest for a convolution on this device.

`python -m atrous tune` fills the user's tables, $XDG_CACHE_HOME/atrous/tuning/*.json (~/.cache where that is not set);
those that atrous ships are in tables/. The user's come first. A table counts on the device and with the versions that
it was measured with; a file that is no table is told of once and left alone. To undo a choice, delete its file.
"""

from __future__ import annotations

import os
import stat
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..core.layout import memory_format
from ..core.spec import Spec
from ..triton_kernels.conv.configs import Conv, precision
from .device_id import device_name, versions
from .format import MOST_BYTES, Entry, Key, Table, dump, parse

SHIPPED = Path(__file__).parent / "tables"
T = TypeVar("T")


def bucket(batch: int) -> int:
    """The power of two at or above a batch: what was measured for one holds for its neighbours."""
    return 1 << max(batch - 1, 0).bit_length()


def key(
    input: Tensor,
    weight: Tensor,
    spec: Spec,
    *,
    layout: str,
    residual: bool,
    training: bool = False,
    frozen: bool = False,
) -> Key:
    """What the choice for a call depends on. frozen: the weight may be packed, which only a CPU's rows do."""
    batch, in_channels, height, width = input.shape
    dtype, cuda = str(input.dtype).removeprefix("torch."), input.device.type == "cuda"
    return Key(
        in_channels, weight.shape[0], (height, width), (weight.shape[2], weight.shape[3]), spec.stride, spec.padding,
        spec.dilation, spec.groups, bucket(batch), dtype, layout, residual, training, frozen and not cuda,
        cuda and dtype == "float32" and tf32(),
    )  # fmt: skip


def measured(input: Tensor, weight: Tensor, spec: Spec, residual: bool, frozen: bool = False) -> Entry | None:
    """The entry for a call in inference; None where nothing was measured for it, and where a size is symbolic."""
    found = _key_of(input, weight, spec, residual, frozen)
    return None if found is None else lookup(input.device, found)


def measured_config(input: Tensor, weight: Tensor, spec: Spec, residual: bool) -> Conv | None:
    """The config of row triton for a call in inference: what was measured for it, else for its shape (shape_of)."""
    found = _key_of(input, weight, spec, residual, False)
    return None if found is None else lookup_config(input.device, found)


def _key_of(input: Tensor, weight: Tensor, spec: Spec, residual: bool, frozen: bool) -> tuple | None:
    """As a plain tuple: torch 2.13 hands a NamedTuple on to a constant function as another one."""
    if not tuned(input.device) or not _plain((*input.shape, *weight.shape)):
        return None
    layout = "channels_last" if memory_format(input, weight) == torch.channels_last else "NCHW"
    return tuple(key(input, weight, spec, layout=layout, residual=residual, frozen=frozen))


def _plain(sizes: tuple) -> bool:
    """Whether all are plain numbers; under torch.compile with dynamic shapes they are not."""
    if not torch.compiler.is_compiling():
        return all(type(size) is int for size in sizes)
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


def constant(function: T) -> T:
    """In a graph its result is one: torch.compiler.assume_constant_result without its import, which takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def tf32() -> bool:
    """Whether torch allows it in cuDNN's convolutions."""
    return precision(torch.float32) == "tf32"


@constant
def tuned(device: torch.device) -> bool:
    """Whether anything was measured on this device."""
    return bool(_entries(device))


@constant
def lookup(device: torch.device, key: tuple) -> Entry | None:
    """The entry for a Key on a device, or None."""
    return _entries(device).get(key)  # type: ignore[call-overload]


@constant
def lookup_config(device: torch.device, key: tuple) -> Conv | None:
    """The config of row triton for a Key on a device, or None."""
    entry = _entries(device).get(key)  # type: ignore[call-overload]
    return entry.config if entry else _config(device, key)


@lru_cache(maxsize=4096)  # a call of an eager model asks each time
def _config(device: torch.device, key: tuple) -> Conv | None:
    return _configs(device).get(shape_of(Key(*key)))


def shape_of(key: Key) -> tuple:
    """A key without its dilation: of the padding it leaves what that makes of the size of the output.

    A dilation moves the taps of a Triton kernel and changes neither its tiles nor their number: the config that was the
    fastest for a shape is so at any dilation. A library has other algorithms for a dilated convolution, so that times
    and the choice between rows are told apart by it.
    """
    reach = (d * (k - 1) for d, k in zip(key.dilation, key.kernel))
    parts = zip(key.size, key.padding, reach, key.stride)
    out_size = tuple((size + 2 * padding - reach - 1) // stride + 1 for size, padding, reach, stride in parts)
    return out_size, *key._replace(padding=(0, 0), dilation=(1, 1))


@lru_cache
def _configs(device: torch.device) -> dict[tuple, Conv]:
    """shape_of(key) -> config; of several dilations that of the smallest."""
    found = sorted(_entries(device).items(), key=lambda item: item[0], reverse=True)
    return {shape_of(key): entry.config for key, entry in found if entry.config}


@lru_cache
def _entries(device: torch.device) -> dict[Key, Entry]:
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        return {}
    return {key: entry for table in _matching(device) for key, entry in table.entries.items()}


def ceilings(device: torch.device) -> dict[str, float] | None:
    """What a matrix product and a copy reached on this device in the run that measured its table; None: nothing did."""
    return next((table.ceilings for table in reversed(_matching(device)) if table.ceilings), None)


def _matching(device: torch.device) -> list[Table]:
    tables = [*_tables(SHIPPED), *_tables(user_folder())]
    here = (device_name(device), versions(device)) if tables else None
    return [table for table in tables if (table.device, table.versions) == here]


def reload() -> None:
    """Forgets what was read: the next call reads the files again."""
    _entries.cache_clear()
    _configs.cache_clear()
    _config.cache_clear()
    _tables.cache_clear()


@lru_cache
def _tables(folder: Path | None) -> tuple[Table, ...]:
    """The tables of a folder, in the order of their names."""
    try:
        names = sorted(os.listdir(folder)) if folder else []
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        names = []
        warnings.warn(f"atrous: the tuning tables of {folder} are not used: {error}", stacklevel=2)
    found = []
    for path in (Path(folder or "", name) for name in names if name.endswith(".json")):
        try:
            found.append(read(path))
        except (OSError, ValueError) as error:
            warnings.warn(f"atrous: the tuning table {path} is not used: {error}", stacklevel=2)
    return tuple(found)


def read(path: Path) -> Table:
    """The table of a file. Raises OSError where it cannot be read, ValueError where it is no table."""
    return parse(contents(path))


def contents(path: Path) -> bytes:
    """Of a regular file, but no more than a table may have. Raises OSError, and ValueError for another kind of file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("expected a regular file, got a folder or a device")
    with open(path, "rb") as file:
        return file.read(MOST_BYTES + 1)


def save(path: Path, table: Table) -> None:
    """Writes the table, and the entries that the file has for the same device and versions, whole or not at all.

    Raises OSError where it cannot be written, ValueError where what is there is no table: it is left alone.
    """
    before = read(path) if os.path.lexists(path) else table
    if (before.device, before.versions) == (table.device, table.versions):
        table = table._replace(entries=before.entries | table.entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(dump(table), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    reload()


def user_folder() -> Path | None:
    """Where the user's tables are; None where there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(cache if os.path.isabs(cache) else Path.home() / ".cache", "atrous", "tuning")
    except RuntimeError:
        return None

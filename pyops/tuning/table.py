"""Looks up, reads and writes the tuning tables: the backend and config measured fastest for a convolution on a device.

`python -m atrous tune` writes the user's tables, $XDG_CACHE_HOME/atrous/tuning/*.json (default: ~/.cache); those that
atrous ships are in tables/. The user's take precedence. A table is used only on the device and with the versions that
it was measured with. A file that is not a valid table causes one warning and is ignored. To undo a measurement, delete
its file.
"""

from __future__ import annotations

import os
import stat
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..core import files
from ..core.layout import memory_format
from ..core.spec import Spec
from ..core.torch_compat import constant, is_compiling
from ..triton_kernels.conv.configs import Conv, precision
from .device_id import device_name, versions
from .format import MAX_BYTES, Entry, Key, Table, dump, parse

SHIPPED = Path(__file__).parent / "tables"


def bucket(batch: int) -> int:
    """The smallest power of two >= batch: a measurement is used for every batch in its bucket."""
    return 1 << max(batch - 1, 0).bit_length()


def key(
    input: Tensor,
    weight: Tensor,
    spec: Spec,
    *,
    residual: bool,
    training: bool = False,
    frozen: bool = False,
) -> Key:
    """The table's key for a call. frozen: the weight may be packed, which changes times on a CPU only."""
    batch, in_channels, height, width = input.shape
    dtype, cuda = str(input.dtype).removeprefix("torch."), input.device.type == "cuda"
    layout = "channels_last" if memory_format(input, weight) == torch.channels_last else "NCHW"
    return Key(
        in_channels, weight.shape[0], (height, width), (weight.shape[2], weight.shape[3]), spec.stride, spec.padding,
        spec.dilation, spec.groups, bucket(batch), dtype, layout, residual, training, frozen and not cuda,
        cuda and dtype == "float32" and tf32(),
    )  # fmt: skip


def measured(input: Tensor, weight: Tensor, spec: Spec, residual: bool, frozen: bool = False) -> Entry | None:
    """The entry for an inference call; None if there is none, or a size is symbolic."""
    call_key = _key_of(input, weight, spec, residual, frozen)
    return None if call_key is None else lookup(input.device, call_key)


def measured_config(input: Tensor, weight: Tensor, spec: Spec, residual: bool) -> Conv | None:
    """The triton config for an inference call: measured for it, else for its shape at another dilation (shape_of)."""
    call_key = _key_of(input, weight, spec, residual, False)
    return None if call_key is None else lookup_config(input.device, call_key)


def _key_of(input: Tensor, weight: Tensor, spec: Spec, residual: bool, frozen: bool) -> tuple | None:
    """The key as a plain tuple: torch 2.13 passes a NamedTuple to a constant function as another type."""
    if not tuned(input.device) or not all_ints((*input.shape, *weight.shape)):
        return None
    return tuple(key(input, weight, spec, residual=residual, frozen=frozen))


def all_ints(sizes: tuple) -> bool:
    """True if no size is symbolic, as under torch.compile with dynamic shapes."""
    if not is_compiling():
        return all(type(size) is int for size in sizes)
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


@constant
def tf32() -> bool:
    """True if torch allows tf32 in cuDNN's convolutions."""
    return precision(torch.float32) == "tf32"


@constant
def tuned(device: torch.device) -> bool:
    """True if a table has entries for this device."""
    return bool(_entries(device))


@constant
def lookup(device: torch.device, key: tuple) -> Entry | None:
    """The entry for a Key on a device, or None."""
    return _entries(device).get(key)  # type: ignore[call-overload]


@constant
def lookup_config(device: torch.device, key: tuple) -> Conv | None:
    """The triton config for a Key on a device, or None."""
    entry = _entries(device).get(key)  # type: ignore[call-overload]
    return entry.config if entry else _config(device, key)


@lru_cache(maxsize=1024)  # an eager model looks it up in every call
def _config(device: torch.device, key: tuple) -> Conv | None:
    return _configs(device).get(shape_of(Key(*key)))


def shape_of(key: Key) -> tuple:
    """A key without padding and dilation, but with the size of the output.

    Dilation moves the taps of a Triton kernel, but changes neither its tiles nor their number: the fastest config for a
    shape is the same at any dilation. A library uses other algorithms for a dilated convolution, so times, and the
    choice between backends, do depend on it.
    """
    out_size = Spec(key.stride, key.padding, key.dilation).output_size(key.size, key.kernel)
    return out_size, *key._replace(padding=(0, 0), dilation=(1, 1))


@lru_cache
def _configs(device: torch.device) -> dict[tuple, Conv]:
    """shape_of(key) -> config; the config measured at the smallest dilation wins."""
    entries = sorted(_entries(device).items(), key=lambda item: item[0], reverse=True)
    return {shape_of(key): entry.config for key, entry in entries if entry.config}


@lru_cache
def _entries(device: torch.device) -> dict[Key, Entry]:
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        return {}
    return {key: entry for table in _matching(device) for key, entry in table.entries.items()}


def ceilings(device: torch.device) -> dict[str, float] | None:
    """TFLOP/s of a matrix product and GB/s of a copy, measured with the device's table; None if unknown."""
    return next((table.ceilings for table in reversed(_matching(device)) if table.ceilings), None)


def _matching(device: torch.device) -> list[Table]:
    tables = [*_tables(SHIPPED), *_tables(user_folder())]
    here = (device_name(device), versions(device)) if tables else None
    return [table for table in tables if (table.device, table.versions) == here]


def reload() -> None:
    """Clears the caches: the next call reads the files again."""
    _entries.cache_clear()
    _configs.cache_clear()
    _config.cache_clear()
    _tables.cache_clear()


@lru_cache
def _tables(folder: Path | None) -> tuple[Table, ...]:
    """The tables of a folder, in the order of their file names."""
    try:
        names = sorted(os.listdir(folder)) if folder else []
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        names = []
        warnings.warn(f"atrous: the tuning tables of {folder} are not used: {error}", stacklevel=2)
    tables = []
    for path in (Path(folder or "", name) for name in names if name.endswith(".json")):
        try:
            tables.append(read(path))
        except (OSError, ValueError) as error:
            warnings.warn(f"atrous: the tuning table {path} is not used: {error}", stacklevel=2)
    return tuple(tables)


def read(path: Path) -> Table:
    """Reads a table from a file. Raises OSError if it cannot be read, ValueError if it is not a valid table."""
    return parse(contents(path))


def contents(path: Path) -> bytes:
    """The first MAX_BYTES + 1 bytes of a regular file. Raises OSError, and ValueError for another kind of file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("expected a regular file, got a folder or a device")
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def save(path: Path, table: Table) -> None:
    """Writes the table atomically, merged with the file's entries if those have the same device and versions.

    Raises OSError if it cannot be written, ValueError if the existing file is not a valid table; it stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(path.parent):
        existing = read(path) if os.path.lexists(path) else table
        if (existing.device, existing.versions) == (table.device, table.versions):
            table = table._replace(entries=existing.entries | table.entries)
        files.write(path, dump(table))
    reload()


def user_folder() -> Path | None:
    """The folder of the user's tables; None if there is no home directory."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(cache if os.path.isabs(cache) else Path.home() / ".cache", "atrous", "tuning")
    except RuntimeError:
        return None

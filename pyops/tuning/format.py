"""What a table of measured choices is, and its JSON: read strictly, since a table may come from anybody.

    {"format": 1, "device": "...", "versions": {"torch": "...", ...}, "date": "2026-01-31", "commit": "..." or null,
     "ceilings": {"matmul_tflops": 600.0, "copy_gb_s": 2800.0} or null,
     "entries": [{a field for each of Key, "backend": "triton", "config": [a number for each of Conv] or null,
                  "milliseconds": {"library": 0.1, "triton": 0.08}}, ...]}

Nothing of a file is executed, and what is not as it says here is a ValueError that names the field.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ..core.spec import Pair
from ..triton_kernels.conv.configs import CONV, DEPTHWISE, SPLITS, WAVES, Conv

FORMAT = 1
MOST_BYTES = 2**24
BACKENDS = ("library", "native", "triton")
DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("NCHW", "channels_last")


class Key(NamedTuple):
    """What a choice depends on besides the device and the versions. size: (H, W) of the input; batch: tuning.bucket."""

    in_channels: int
    out_channels: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    batch: int
    dtype: str
    layout: str
    residual: bool
    training: bool
    frozen: bool
    tf32: bool


class Entry(NamedTuple):
    """The choice, and the median of each row that was measured; config: the fastest of row triton, where it was."""

    backend: str
    config: Conv | None
    milliseconds: dict[str, float]


class Table(NamedTuple):
    """What was measured on one device with one set of versions."""

    device: str
    versions: dict[str, str | None]
    date: str
    entries: dict[Key, Entry]
    ceilings: dict[str, float] | None = None
    commit: str | None = None


class Kind(NamedTuple):
    """What a field may hold, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def whole(least: int) -> Kind:
    return Kind(f"a whole number from {least} on", lambda value: type(value) is int and least <= value < 2**31)


def whole_list(count: int, least: int) -> Kind:
    one = whole(least)
    return Kind(
        f"{count} whole numbers from {least} on",
        lambda value: type(value) is list and len(value) == count and all(map(one.holds, value)),
    )


def one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: type(value) is str and value in names)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.expected}, or null", lambda value: value is None or kind.holds(value))


def _object_of(kind: Kind) -> Kind:
    return Kind(
        f"an object whose values are each {kind.expected}",
        lambda value: type(value) is dict and all(map(kind.holds, value.values())),
    )


def _listed(value: Any) -> bool:
    """A config of the lists, to the types: 64.0 and true are no sizes."""
    if type(value) is not list or [type(part) for part in value] != [int] * 7 + [bool]:
        return False
    config = Conv(*value)
    tiles = {*CONV, *chain.from_iterable(DEPTHWISE.values())}
    return config._replace(splits=1, waves=0) in tiles and config.splits in SPLITS and config.waves in WAVES


LIST = Kind("a list", lambda value: type(value) is list)
_TEXT = Kind("a text", lambda value: type(value) is str)
_FLAG = Kind("true or false", lambda value: type(value) is bool)
_POSITIVE = Kind("a number above 0 and below 1e9", lambda value: type(value) in (int, float) and 0 < value < 1e9)
_BATCH = Kind("a power of two", lambda value: whole(1).holds(value) and value & (value - 1) == 0)
_CONFIG = Kind("a config of triton_kernels/configs.py", _listed)

_TABLE = {
    "format": Kind(str(FORMAT), lambda value: type(value) is int and value == FORMAT),
    "device": _TEXT,
    "versions": _object_of(_or_null(_TEXT)),
    "date": _TEXT,
    "commit": _or_null(_TEXT),
    "ceilings": _or_null(_object_of(_POSITIVE)),
    "entries": LIST,
}
_KEY = {
    "in_channels": whole(1), "out_channels": whole(1), "size": whole_list(2, 1), "kernel": whole_list(2, 1),
    "stride": whole_list(2, 1), "padding": whole_list(2, 0), "dilation": whole_list(2, 1), "groups": whole(1),
    "batch": _BATCH, "dtype": one_of(*DTYPES), "layout": one_of(*LAYOUTS), "residual": _FLAG, "training": _FLAG,
    "frozen": _FLAG, "tf32": _FLAG,
}  # fmt: skip
_ENTRY = {
    **_KEY,
    "backend": one_of(*BACKENDS),
    "config": _or_null(_CONFIG),
    "milliseconds": _object_of(_POSITIVE),
}


def refuse(where: str, expected: str, got: object) -> None:
    """Raises ValueError; of what came, only as much as a line holds."""
    raise ValueError(f"{where}: expected {expected}, got {reprlib.repr(got)}")


def check(where: str, value: Any, fields: Mapping[str, Kind]) -> None:
    """An object with exactly these fields. Raises ValueError."""
    if type(value) is not dict:
        refuse(where, "an object", value)
    if value.keys() != fields.keys():
        lacks, unknown = [n for n in fields if n not in value], [n for n in value if n not in fields]
        refuse(where, f"the fields {', '.join(fields)}", {"lacks": lacks, "unknown": unknown})
    for name, kind in fields.items():
        if not kind.holds(value[name]):
            refuse(f"{where}.{name}", kind.expected, value[name])


def load(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError: also for NaN, infinities and a name that an object has twice."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got more")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got {error}") from None
    except RecursionError:
        raise ValueError("expected a few levels of brackets, got too many") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        refuse("an object", "each name once", [name for name, _ in pairs])
    return found


def _constant(name: str) -> None:
    refuse("a number", "a finite one", name)


def parse(data: bytes) -> Table:
    """The table that a file holds. Raises ValueError."""
    value = load(data)
    if type(value) is dict and value.get("format", FORMAT) != FORMAT:
        refuse("table.format", str(FORMAT), value["format"])
    check("table", value, _TABLE)
    entries: dict[Key, Entry] = {}
    for index, found in enumerate(value.pop("entries")):
        where = f"entries[{index}]"
        check(where, found, _ENTRY)
        key = Key._make(tuple(v) if type(v := found[name]) is list else v for name in Key._fields)
        if key in entries:
            refuse(where, "a key that no other entry has", tuple(key))
        entries[key] = _entry(where, found)
    del value["format"]
    return Table(**value, entries=entries)


def _entry(where: str, found: dict[str, Any]) -> Entry:
    backend, config, times = found["backend"], found["config"], found["milliseconds"]
    if backend not in times or not times.keys() <= set(BACKENDS):
        refuse(f"{where}.milliseconds", f"times of {backend} and of others of {', '.join(BACKENDS)}", times)
    if ("triton" in times) != (config is not None):
        refuse(f"{where}.config", "one beside a time of triton, else null", config)
    return Entry(backend, config and Conv(*config), {name: float(value) for name, value in times.items()})


def dump(table: Table) -> str:
    """The file of a table: an entry a line, in the order of their keys."""
    head = {"format": FORMAT, **table._asdict()}
    entries = sorted(head.pop("entries").items())
    lines = (json.dumps({**key._asdict(), **entry._asdict()}) for key, entry in entries)
    return f'{json.dumps(head)[:-1]}, "entries": [\n' + ",\n".join(lines) + "\n]}\n"

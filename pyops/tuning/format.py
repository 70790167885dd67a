"""Tuning tables and their JSON format, which is parsed strictly, since a table may come from an untrusted source.

    {"format": 1, "device": "...", "versions": {"torch": "...", ...}, "date": "2026-01-31", "commit": "..." or null,
     "ceilings": {"matmul_tflops": 600.0, "copy_gb_s": 2800.0} or null,
     "entries": [{each field of Key, "backend": "triton", "config": [each field of Conv] or null,
                  "milliseconds": {"library": 0.1, "triton": 0.08}}, ...]}

Nothing in a file is executed. Any deviation from this format raises a ValueError that names the field. A backend may
have any name: a table may come from another version, and backends.selection ignores a backend that it does not have.
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
MAX_BYTES = 2**24
DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("NCHW", "channels_last")


class Key(NamedTuple):
    """The properties of a call that its fastest backend depends on. size: (H, W) of the input; batch: tuning.bucket."""

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
    """The fastest backend, the median time of each backend measured, and triton's fastest config if it was measured."""

    backend: str
    config: Conv | None
    milliseconds: dict[str, float]


class Table(NamedTuple):
    """The measurements on one device with one set of versions."""

    device: str
    versions: dict[str, str | None]
    date: str
    entries: dict[Key, Entry]
    ceilings: dict[str, float] | None = None
    commit: str | None = None


class FieldType(NamedTuple):
    """The values that a field accepts: in words, and as a predicate."""

    expected: str
    accepts: Callable[[Any], bool]


def integer(minimum: int) -> FieldType:
    return FieldType(f"an integer >= {minimum}", lambda value: type(value) is int and minimum <= value < 2**31)


def integer_list(count: int, minimum: int) -> FieldType:
    element = integer(minimum)
    return FieldType(
        f"{count} integers >= {minimum}",
        lambda value: type(value) is list and len(value) == count and all(map(element.accepts, value)),
    )


def one_of(*names: str) -> FieldType:
    return FieldType(f"one of {', '.join(names)}", lambda value: type(value) is str and value in names)


def _or_null(field: FieldType) -> FieldType:
    return FieldType(f"{field.expected}, or null", lambda value: value is None or field.accepts(value))


def _object_of(field: FieldType) -> FieldType:
    return FieldType(
        f"an object whose values are each {field.expected}",
        lambda value: type(value) is dict and all(map(field.accepts, value.values())),
    )


def _is_known_config(value: Any) -> bool:
    """True for a config in the lists of triton_kernels/conv/configs.py, of exactly their types: not 64.0 or true."""
    if type(value) is not list or [type(part) for part in value] != [int] * 7 + [bool]:
        return False
    config = Conv(*value)
    tiles = {*CONV, *chain.from_iterable(DEPTHWISE.values())}
    return config._replace(splits=1, waves=0) in tiles and config.splits in SPLITS and config.waves in WAVES


LIST = FieldType("a list", lambda value: type(value) is list)
_STRING = FieldType("a string", lambda value: type(value) is str)
_FLAG = FieldType("true or false", lambda value: type(value) is bool)
_NAME = FieldType("a name", lambda value: type(value) is str and value.isidentifier())
_POSITIVE = FieldType("a number above 0 and below 1e9", lambda value: type(value) in (int, float) and 0 < value < 1e9)
_BATCH = FieldType("a power of two", lambda value: integer(1).accepts(value) and value & (value - 1) == 0)
_CONFIG = FieldType("a config of triton_kernels/conv/configs.py", _is_known_config)

_TABLE = {
    "format": FieldType(str(FORMAT), lambda value: type(value) is int and value == FORMAT),
    "device": _STRING,
    "versions": _object_of(_or_null(_STRING)),
    "date": _STRING,
    "commit": _or_null(_STRING),
    "ceilings": _or_null(_object_of(_POSITIVE)),
    "entries": LIST,
}
_KEY = {
    "in_channels": integer(1), "out_channels": integer(1), "size": integer_list(2, 1), "kernel": integer_list(2, 1),
    "stride": integer_list(2, 1), "padding": integer_list(2, 0), "dilation": integer_list(2, 1), "groups": integer(1),
    "batch": _BATCH, "dtype": one_of(*DTYPES), "layout": one_of(*LAYOUTS), "residual": _FLAG, "training": _FLAG,
    "frozen": _FLAG, "tf32": _FLAG,
}  # fmt: skip
_ENTRY = {
    **_KEY,
    "backend": _NAME,
    "config": _or_null(_CONFIG),
    "milliseconds": _object_of(_POSITIVE),
}


def refuse(where: str, expected: str, got: object) -> None:
    """Raises ValueError with an abbreviated `got`."""
    raise ValueError(f"{where}: expected {expected}, got {reprlib.repr(got)}")


def check(where: str, value: Any, fields: Mapping[str, FieldType]) -> None:
    """Raises ValueError unless value is an object with exactly these fields and types."""
    if type(value) is not dict:
        refuse(where, "an object", value)
    if value.keys() != fields.keys():
        missing, unknown = [n for n in fields if n not in value], [n for n in value if n not in fields]
        refuse(where, f"the fields {', '.join(fields)}", {"missing": missing, "unknown": unknown})
    for name, field in fields.items():
        if not field.accepts(value[name]):
            refuse(f"{where}.{name}", field.expected, value[name])


def load(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for NaN, infinities and duplicate names in an object."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes, got more")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got {error}") from None
    except RecursionError:
        raise ValueError("expected a few levels of nesting, got too many") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        refuse("an object", "each name once", [name for name, _ in pairs])
    return value


def _constant(name: str) -> None:
    refuse("a number", "a finite one", name)


def parse(data: bytes) -> Table:
    """The table in the contents of a file. Raises ValueError."""
    value = load(data)
    if type(value) is dict and value.get("format", FORMAT) != FORMAT:
        refuse("table.format", str(FORMAT), value["format"])
    check("table", value, _TABLE)
    entries: dict[Key, Entry] = {}
    for index, item in enumerate(value.pop("entries")):
        where = f"entries[{index}]"
        check(where, item, _ENTRY)
        key = Key._make(tuple(v) if type(v := item[name]) is list else v for name in Key._fields)
        if key in entries:
            refuse(where, "a key that no other entry has", tuple(key))
        entries[key] = _entry(where, item)
    del value["format"]
    return Table(**value, entries=entries)


def _entry(where: str, item: dict[str, Any]) -> Entry:
    backend, config, times = item["backend"], item["config"], item["milliseconds"]
    if backend not in times or not all(map(str.isidentifier, times)):
        refuse(f"{where}.milliseconds", f"the time of {backend}, and of other backends", times)
    if ("triton" in times) != (config is not None):
        refuse(f"{where}.config", "a config if triton has a time, else null", config)
    return Entry(backend, config and Conv(*config), {name: float(value) for name, value in times.items()})


def dump(table: Table) -> str:
    """The JSON of a table: one line per entry, in the order of the keys."""
    head = {"format": FORMAT, **table._asdict()}
    entries = sorted(head.pop("entries").items())
    lines = (json.dumps({**key._asdict(), **entry._asdict()}) for key, entry in entries)
    return f'{json.dumps(head)[:-1]}, "entries": [\n' + ",\n".join(lines) + "\n]}\n"

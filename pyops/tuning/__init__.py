"""Tuning tables: the measured fastest backend and kernel config for a convolution, in one JSON file per device."""

from .table import (
    all_ints,
    bucket,
    ceilings,
    contents,
    key,
    lookup,
    measured,
    measured_config,
    read,
    reload,
    save,
    shape_of,
    tf32,
    user_folder,
)

__all__ = [
    "all_ints",
    "bucket",
    "ceilings",
    "contents",
    "key",
    "lookup",
    "measured",
    "measured_config",
    "read",
    "reload",
    "save",
    "shape_of",
    "tf32",
    "user_folder",
]

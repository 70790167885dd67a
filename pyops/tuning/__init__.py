"""Tuning tables: the measured backend and kernel config for a convolution, kept in JSON files for each device."""

from .table import (
    bucket,
    constant,
    key,
    lookup,
    measured,
    measured_config,
    read,
    reload,
    save,
    shape_of,
    user_folder,
)

__all__ = [
    "bucket",
    "constant",
    "key",
    "lookup",
    "measured",
    "measured_config",
    "read",
    "reload",
    "save",
    "shape_of",
    "user_folder",
]

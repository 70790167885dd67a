"""Checks of the models' arguments: a ValueError names the argument, the expected value and the given one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def check(name: str, valid: bool, expected: str, got: object) -> None:
    if not valid:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def known(function: str, options: Mapping[str, object], names: Iterable[str]) -> None:
    """Raises TypeError if an option of a function that passes its options on is none of these names."""
    for name in options:
        if name not in names:
            more = "; atrous.models.load_weights loads a checkpoint" if name in ("pretrained", "weights") else ""
            raise TypeError(f"{function}: expected the options {', '.join(names)}, got {name!r}{more}")


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def are_counts(values: object) -> bool:
    """True for a tuple or list of positive ints, at least one."""
    return isinstance(values, (tuple, list)) and len(values) > 0 and all(map(is_count, values))


def counts(**values: object) -> None:
    """Raises ValueError unless each value is a positive int."""
    for name, value in values.items():
        check(name, is_count(value), "a positive int", value)


def probability(name: str, value: object) -> None:
    check(name, isinstance(value, (int, float)) and 0 <= value <= 1, "a number from 0 to 1", value)

"""Validators of what a caller gives: each message names the argument, the value and what would do."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any


def is_number(value: Any) -> bool:
    """Tell whether a value is an int or a float; True and False are not numbers.

    >>> is_number(1), is_number(0.5), is_number(True), is_number("1")
    (True, True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Tell whether a value is a real number of any make, such as numpy's or a fraction; True and False are not.

    >>> from fractions import Fraction
    >>> is_real(Fraction(1, 2)), is_real(0.5), is_real(True), is_real(1j)
    (True, True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Tell whether a value is an int; True and False are not, nor is 1.0."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_token(value: str) -> bool:
    """Tell whether a text can travel in a header as a token: printable ASCII without spaces.

    >>> is_token("s3cret"), is_token("two words"), is_token("")
    (True, False, False)
    """
    return bool(value) and value.isascii() and value.isprintable() and " " not in value


def check_number(name: str, value: Any, words: str, is_in: Callable[[Any], bool], remedy: str = "") -> None:
    """Raise TypeError for what is not a number, ValueError for one that is not finite or not in its range.

    >>> check_number("factor", 1.5, "in (0, 1)", lambda value: 0 < value < 1, "0.5 halves the learning rate")
    Traceback (most recent call last):
    ValueError: factor must be in (0, 1), got 1.5; 0.5 halves the learning rate
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (_is_finite(value) and is_in(value)):
        raise ValueError(f"{name} must be {words}, got {value!r}" + (f"; {remedy}" if remedy else ""))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def check_whole(name: str, value: Any, words: str, is_in: Callable[[Any], bool]) -> None:
    """Raise as ``check_number`` does, and TypeError for what is not an int."""
    if not is_whole(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not is_in(value):
        raise ValueError(f"{name} must be {words}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def require(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raise ValueError for the first field of ``settings`` that is not a finite number within its closed range.

    >>> from types import SimpleNamespace
    >>> require(SimpleNamespace(factor=0.5), factor=(0.0, 0.4))
    Traceback (most recent call last):
    ValueError: SimpleNamespace.factor must be within 0 and 0.4, got 0.5
    """
    _require(check_number, settings, ranges)


def require_whole(settings: Any, **ranges: tuple[int, int]) -> None:
    """Raise as ``require`` does, and TypeError for a value that is not an int."""
    _require(check_whole, settings, ranges)


def _require(check: Callable[..., None], settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    for name, (low, high) in ranges.items():
        words = f"within {low:g} and {high:g}"
        check(f"{type(settings).__name__}.{name}", getattr(settings, name), words, _within(low, high))


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: bool(low <= value <= high)

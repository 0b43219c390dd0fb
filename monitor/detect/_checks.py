"""Refusals of settings: each names the setting, the value and the range that would do."""

from __future__ import annotations

import math
from typing import Any


def require(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raise ValueError for the first field of ``settings`` that is not a finite number within its closed range.

    >>> from types import SimpleNamespace
    >>> require(SimpleNamespace(factor=0.5), factor=(0.0, 0.4))
    Traceback (most recent call last):
    ValueError: SimpleNamespace.factor must be within 0 and 0.4, got 0.5
    """
    owner = type(settings).__name__
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{owner}.{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{owner}.{name} must be within {low:g} and {high:g}, got {value!r}")


def require_whole(settings: Any, **ranges: tuple[int, int]) -> None:
    """Raise as ``require`` does, and for a value that is no int."""
    for name in ranges:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{type(settings).__name__}.{name} must be an int, got {value!r}")
    require(settings, **ranges)

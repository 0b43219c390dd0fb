"""Containment: a failure of ours is reported, and what called it continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def contained(
    on_error: Callable[[Exception], object], function: Callable[..., Any], *args: Any, default: Any = None
) -> Any:
    """Return what a function returns; hand what it raises to ``on_error``, Ctrl-C and the like apart, and
    return ``default``.

    >>> contained(print, lambda: 1 / 0, default=[])
    division by zero
    []
    """
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is: it is reported, and the caller continues
        on_error(error)
        return default

"""Reading a value as a number, whatever a record brought along."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 1e150
"""Values beyond this (and NaN, and infinities) enter no baseline: their squares and sums would overflow."""

SECOND_DIFFERENCE = 0.5117
"""Standard deviation over the mean absolute second difference, for independent normal noise: sqrt(pi / 12)."""


def tail(deviations: float) -> float:
    """Return the probability that normal noise exceeds this many standard deviations.

    >>> round(tail(1.645), 3)
    0.05
    """
    return 0.5 * math.erfc(deviations / math.sqrt(2.0))


def as_number(value: Any) -> float | None:
    """Return ``value`` as a float, or None where it is no real number.

    Ints, numpy scalars and one-element tensors (whatever has ``item()``) are taken; strings, complex numbers, bools,
    empty and larger arrays are not. NaN and infinities are numbers here. Never raises.

    >>> as_number(3), as_number("3"), as_number(1j), as_number(None)
    (3.0, None, None, None)
    """
    if type(value) is float:
        return value
    if value is None or isinstance(value, (bool, str, bytes, complex)):
        return None
    try:
        if hasattr(value, "item"):
            value = value.item()
        return None if isinstance(value, (bool, str, bytes, complex)) else float(value)
    except OverflowError:
        return math.inf
    except Exception:  # noqa: BLE001 - a stranger's object may raise anything; the training loop must not see it
        return None


def as_usable(value: Any) -> float | None:
    """Return ``value`` as a finite float of sane size, or None: what may enter a baseline."""
    number = value if type(value) is float else as_number(value)
    return number if number is not None and -LARGEST < number < LARGEST else None

"""The floor under the LR of a reduced group: what is below it, and the least factor that is not."""

from __future__ import annotations

import decimal
from typing import Any, NamedTuple

import torch

from monitor._errors import CommandRefusedError

_UP = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)


class Low(NamedTuple):
    """A group whose LR would come below the floor, and the least factor with which it does not."""

    where: str
    applied: float
    least: float


def floor_for(lr: Any, min_lr: float) -> float:
    """Return the floor by which an LR is judged: a little lower for a tensor, in which a tenth of 0.9 is below 0.09."""
    return min_lr * (1 - 2 * torch.finfo(lr.dtype).eps) if isinstance(lr, torch.Tensor) else min_lr


def is_below(scheduled: float, before: float, factor: float, floor: float) -> bool:
    """Tell whether ``factor``, on top of the one in force before, brings an LR below the floor.

    A schedule that is below it by itself does not count, nor does what is no reduction.
    """
    after = before * factor
    return bool(floor) and after < 1 and scheduled * after < floor <= scheduled


def least_factor(scheduled: float, before: float, floor: float) -> float:
    """Return the least factor of six digits that is not below the floor: rounded up, and held against the refusal.

    >>> least_factor(0.07, 1.0, 0.02)
    0.285715
    """
    least = _UP.create_decimal_from_float(floor / scheduled / before)
    while is_below(scheduled, before, float(least), floor):
        least = least.next_plus(_UP)
    return float(least)


def below_floor(factor: float, low: Low, min_lr: float) -> CommandRefusedError:
    """Name the cure. Of several groups ``low`` is the one that needs the largest factor, so it fits them all."""
    cure = f"use a factor of at least {low.least:g}"
    if low.least > 1:  # the schedule has fallen since the last reduction, and the floor holds already
        cure = f"{low.where} is as low as the floor lets it be; name other groups"
    return CommandRefusedError(
        f"factor {factor!r} would bring the LR of {low.where} to {low.applied:.6g}, below min_lr={min_lr:.6g}; {cure}",
        "factor",
    )

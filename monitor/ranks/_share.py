"""A rank's share of one step, and how it travels: a row of 59 bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from monitor._records import Step

_ROW = struct.Struct("<HQ6dB")
_SKIPPED = 1 << 6


class Share(NamedTuple):
    """What one rank has of a step.

    ``optimizer`` is its place in the order of ``attach``, ``number`` counts its steps of this session from 1. ``whole``
    is the L2 norm of the gradients that this rank holds whole, ``shards`` that of the shards of DTensors, each weighted
    by one over the number of ranks that hold it too, and ``flat`` that of its part of flattened parameters, which other
    ranks may hold too. ``duration`` is in seconds, ``own`` without
    the backward pass, in which a rank waits for the others. ``None`` is not known.
    """

    optimizer: int
    number: int
    loss: float | None = None
    whole: float | None = None
    shards: float | None = None
    flat: float | None = None
    duration: float | None = None
    own: float | None = None
    is_skipped: bool = False


def share_of(step: Step, optimizer: int) -> Share:
    """Return this rank's share of a step.

    >>> share_of(Step("SGD", 3, 3, 0.0, duration=0.5, loss=2.0, gradient_norm=1.5, phases={"backward": 0.2}), 0).own
    0.3
    """
    own = None if step.duration is None else max(0.0, step.duration - step.phases.get("backward", 0.0))
    whole, shards, flat = step.norm_parts or (step.gradient_norm, None, None)
    return Share(optimizer, step.number, step.loss, whole, shards, flat, step.duration, own, step.is_skipped)


def pack(shares: Iterable[Share]) -> bytes:
    """Return the rows of some shares.

    >>> unpack(pack([Share(0, 1, loss=2.0)])) == [Share(0, 1, loss=2.0)]
    True
    """
    return b"".join([_packed(share) for share in shares])


def _packed(share: Share) -> bytes:
    values = share[2:8]
    absent = sum(1 << i for i, value in enumerate(values) if value is None)
    numbers = [0.0 if value is None else value for value in values]
    return _ROW.pack(share.optimizer, share.number, *numbers, absent | share.is_skipped * _SKIPPED)


def unpack(rows: bytes) -> list[Share]:
    """Return the shares of some rows.

    Raises:
        ValueError: the last row is cut short.
    """
    if len(rows) % _ROW.size:
        raise ValueError(f"{len(rows)} bytes are no whole number of rows of {_ROW.size} bytes")
    return [_unpacked(*row) for row in _ROW.iter_unpack(rows)]


def _unpacked(optimizer: int, number: int, *rest: float) -> Share:
    *numbers, flags = rest
    values = [None if int(flags) >> i & 1 else value for i, value in enumerate(numbers)]
    return Share._make((optimizer, number, *values, bool(int(flags) & _SKIPPED)))

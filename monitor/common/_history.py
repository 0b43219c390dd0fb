"""A history of any length in bounded memory: the newest rows one by one, and the whole of it in buckets that double.

When the buckets are full, neighbours are merged and each holds twice as many rows from then on, so the resolution is
always at least ``1 / SIZE`` of the whole. What a merge keeps of its rows is the bucket's own business.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

SIZE = 1024


class Bucket:
    """Neighbouring rows of a history: ``count`` of them, the last one at ``cursor``, which grows from row to row.

    A subclass names all that it holds in its ``__slots__``.
    """

    __slots__ = ("count", "cursor")
    _names: tuple[str, ...] = __slots__

    def __init_subclass__(cls) -> None:
        cls._names = (*cls._names, *cls.__dict__["__slots__"])

    def __init__(self, cursor: float) -> None:
        self.cursor = cursor
        self.count = 1

    def merge(self, other: Any) -> None:
        """Take in the bucket that follows."""
        self.cursor = other.cursor
        self.count += other.count

    def copy(self) -> Any:
        """Return one that can be merged without harm to this. Three times as fast as the copy module."""
        twin = object.__new__(type(self))
        for name in self._names:
            setattr(twin, name, getattr(self, name))
        return twin


B = TypeVar("B", bound=Bucket)


class BoundedHistory(Generic[B]):
    """Keep the last ``size`` rows as they are, and all rows in ``2 * size`` buckets at most. Safe from any thread.

    >>> history = BoundedHistory[Bucket](size=2)
    >>> for cursor in range(1, 10):
    ...     history.append(Bucket(cursor))
    >>> [(bucket.cursor, bucket.count) for bucket in history.after(0, points=100)]
    [(4, 4), (8, 4), (9, 1)]
    >>> [(bucket.cursor, bucket.count) for bucket in history.after(8, points=100)]
    [(9, 1)]
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._newest: deque[B] = deque(maxlen=size)
        self._has_all = True  # of what is kept, the newest rows are all there is
        self._whole: list[B] = []
        self._stride = 1
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def append(self, row: B) -> None:
        """Add a row: a bucket of one, which must not be changed afterwards."""
        with self._lock:
            self._has_all = self._has_all and len(self._newest) < self._size
            self._newest.append(row)
            if self._is_full():
                self._whole = _merged(self._whole, 2)
                self._stride *= 2
            if self._has_room_in_last():
                self._whole[-1].merge(row)
            else:
                self._whole.append(row.copy())

    def begin_with(self, buckets: list[B]) -> None:
        """Take what came before the first row of this process, at any resolution; what was there is given up."""
        with self._lock:
            self._newest.clear()
            self._newest.extend(buckets)
            self._has_all = len(buckets) <= self._size
            self._whole = [bucket.copy() for bucket in buckets]
            self._stride = max((bucket.count for bucket in buckets), default=1)

    def cut(self, is_kept: Callable[[B], bool]) -> list[B]:
        """Take out the buckets that are not kept, which are the last ones, and return them, the finest there are. One
        that is in part to be kept has to be kept."""
        with self._lock:
            has_all = self._has_all or (bool(self._newest) and is_kept(self._newest[0]))
            rows = list(self._newest) if has_all else self._whole
            gone = [row.copy() for row in rows if not is_kept(row)]
            self._newest = deque((row for row in self._newest if is_kept(row)), maxlen=self._size)
            self._whole = [bucket for bucket in self._whole if is_kept(bucket)]
        return gone

    def _is_full(self) -> bool:
        return len(self._whole) >= 2 * self._size and not self._has_room_in_last()

    def _has_room_in_last(self) -> bool:
        return bool(self._whole) and self._whole[-1].count < self._stride

    def until(self, cursor: float) -> B | None:
        """Return the last bucket that ends at a cursor or before it, at the resolution there is; None before
        the first."""
        with self._lock:
            rows = self._newest if self._newest and cursor >= self._newest[0].cursor else self._whole
            return next((row.copy() for row in reversed(rows) if row.cursor <= cursor), None)

    def after(self, cursor: float, points: int) -> list[B]:
        """Return at most ``points`` buckets of the rows after a cursor, the finest there are for them. All but the
        first are of equally many rows, as far as those that are kept are."""
        with self._lock:
            newest = list(self._newest)
            if newest and (self._has_all or cursor >= newest[0].cursor):
                chosen = newest[bisect_right([row.cursor for row in newest], cursor) :]
            else:
                chosen = [bucket for bucket in self._whole if bucket.cursor > cursor]
            chosen = [bucket.copy() for bucket in chosen]
        return thinned(chosen, points)


def thinned(buckets: list[B], points: int) -> list[B]:
    """Return at most ``points`` buckets: neighbours are merged, in place."""
    share = -(-len(buckets) // points)
    return _merged(buckets, share) if share > 1 else buckets


def _merged(buckets: list[B], share: int) -> list[B]:
    """Merge neighbours, ``share`` at a time; the first ones are fewer where they do not come out even."""
    first = len(buckets) % share
    starts = [*([0] if first else []), *range(first, len(buckets), share)]
    merged = []
    for start, end in zip(starts, [*starts[1:], len(buckets)], strict=True):
        bucket = buckets[start]
        for other in buckets[start + 1 : end]:
            bucket.merge(other)
        merged.append(bucket)
    return merged

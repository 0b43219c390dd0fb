"""The bounded ring between the training thread and the recorder: one thread appends, another takes, nobody waits."""

from __future__ import annotations

import marshal
from collections import deque
from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import Any

from monitor.link import TIME, RawEntry, SampleEntry

CAPACITY = 16384
GIVE_UP_SECONDS = 60.0
"""How long a value may be on its way from a device before it counts as not known."""


class StepBuffer:
    """Carry entries from the training thread to the recorder, in order, each packed into bytes.

    An entry of plain numbers is packed as it is appended; one with values that are still on their way from a device is
    kept as it is until they have arrived. A full buffer drops its oldest entry: the reader of the entries sees the gap
    in their numbers.

    Args:
        num_groups: shrinks the ring so that memory stays bounded with very many param groups.
        on_error: takes the exception of an entry that cannot be packed; the entry is dropped.
        clock: that of the entries' times.

    Example:
        >>> buffer = StepBuffer()
        >>> buffer.append_sample("metric", "accuracy", 0.9, 3, "AdamW")
        >>> len(buffer.take())
        1
    """

    def __init__(
        self,
        num_groups: int = 1,
        on_error: Callable[[Exception], None] = lambda _: None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        capacity = max(512, CAPACITY * 16 // max(16, num_groups))
        self._ring: deque[bytes | RawEntry] = deque(maxlen=capacity)
        self._on_error = on_error
        self._clock = clock
        self.numbers = count(1)
        self.last_sequence = 0
        self.append = _appender(self._ring)

    @property
    def num_waiting(self) -> int:
        """How many entries have not been taken."""
        return len(self._ring)

    def next_sequence(self) -> int:
        """Number the next entry."""
        self.last_sequence = n = next(self.numbers)
        return n

    def append_sample(self, kind: str, name: str, value: Any, number: int, optimizer: str) -> None:
        """Append a value that the user logged after step ``number`` of an optimizer."""
        sequence, now = self.next_sequence(), self._clock()
        self.append(tuple(SampleEntry(sequence, kind, name, now, value, number, optimizer)))

    def take(self, limit: int = CAPACITY) -> list[bytes]:
        """Take the entries that are there now and whose values have arrived, oldest first, ``limit`` at most."""
        ring, taken = self._ring, list[bytes]()
        for _ in range(min(limit, len(ring))):
            head = ring[0]
            packed = head if isinstance(head, bytes) else self._packed(head)
            if packed is None:
                break
            entry = ring.popleft()
            if entry is not head:  # the ring has overflowed meanwhile
                packed = entry if isinstance(entry, bytes) else self._packed(entry, gives_up=True)
            if packed:
                taken.append(packed)
        return taken

    def _packed(self, entry: Any, *, gives_up: bool = False) -> bytes | None:
        """Return an entry as bytes; None while a value of it has not arrived. One that cannot be packed must not stand
        in the way of all that follow: it is empty."""
        try:
            reader = _Reader(gives_up or self._clock() - entry[TIME] > GIVE_UP_SECONDS)
            plain = reader.plain(entry)
            return marshal.dumps(plain) if reader.is_complete else None
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self._on_error(error)
            return b""


def _appender(ring: deque[bytes | RawEntry]) -> Callable[[RawEntry], None]:
    append, pack = ring.append, marshal.dumps

    def append_packed(entry: RawEntry) -> None:
        try:
            append(pack(entry))
        except ValueError:  # a value that is still on its way, or a number of another make
            append(entry)

    return append_packed


class _Reader:
    """Turn what an entry holds into plain values; remember what has not arrived."""

    def __init__(self, gives_up: bool) -> None:
        self.is_complete = True
        self._gives_up = gives_up

    def plain(self, value: Any) -> Any:
        if value is None or type(value) in (float, int, bool, str):
            return value
        if isinstance(value, tuple | list):
            return tuple([self.plain(one) for one in value])
        if isinstance(value, frozenset):
            return value
        poll = getattr(value, "poll", None)
        if poll is None:
            return str(value) if isinstance(value, str) else float(value)
        number: float | None = poll()
        if number is None and not self._gives_up:
            self.is_complete = False
        return number

"""The source of the recorder's records: packed entries, in order, with the gaps between them counted."""

from __future__ import annotations

import marshal
from collections import deque
from collections.abc import Callable, Iterator

from monitor._records import Sample, Step
from monitor.common import contained
from monitor.recorder._decoder import Decoder


class EntrySource:
    """Take entries as they arrive, decode them one at a time.

    A number that is missing belongs to an entry that the step buffer had no room for, or to a step that nobody could
    look at; one that came before is an entry that was sent again.

    Args:
        decoder: turns entries into records.
        on_error: takes the exception of an entry that cannot be decoded; it counts as dropped.
        fetch: returns what has arrived since; None: entries are handed to :meth:`receive`.
        first: number of the first entry.
    """

    def __init__(
        self,
        decoder: Decoder,
        on_error: Callable[[Exception], None],
        fetch: Callable[[], list[bytes]] | None = None,
        first: int = 1,
    ) -> None:
        self._decoder = decoder
        self._on_error = on_error
        self._fetch = fetch
        self._waiting: deque[bytes] = deque()
        self._expected = first
        self.num_dropped = 0

    def memory(self) -> tuple[Decoder, int, int]:
        """Return what another source of the same run must know."""
        return self._decoder, self._expected, self.num_dropped

    def remember(self, memory: tuple[Decoder, int, int]) -> None:
        """Take over from another source, before the first entry."""
        self._decoder, self._expected, self.num_dropped = memory

    @property
    def decoder(self) -> Decoder:
        """What makes records of the entries."""
        return self._decoder

    def receive(self, entries: list[bytes]) -> None:
        """Take packed entries, in the order of their numbers."""
        self._waiting.extend(entries)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def drained_sequence(self) -> int:
        """Number of the last entry that was drained."""
        return self._expected - 1

    def drain(self, wall_offset: float) -> Iterator[Step | Sample]:
        """Decode what is there, oldest first, one at a time. ``wall_offset`` turns the times into Unix time."""
        if self._fetch is not None:
            self._waiting.extend(self._fetch())
        for _ in range(len(self._waiting)):
            record = contained(self._lose, self._decoded, self._waiting.popleft(), wall_offset)
            if record is not None:
                yield record

    def _decoded(self, packed: bytes, wall_offset: float) -> Step | Sample | None:
        entry = marshal.loads(packed)
        sequence: int = entry[0]
        if sequence < self._expected:
            return None
        self.num_dropped += sequence - self._expected
        self._expected = sequence + 1
        return self._decoder.decode(entry, wall_offset)

    def _lose(self, error: Exception) -> None:
        """Count an entry that cannot be read: it must not stand in the way of the others."""
        self.num_dropped += 1
        self._on_error(error)

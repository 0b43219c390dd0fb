"""The bounded ring from the training thread to the recorder: one writer appends, one reader drains, nobody waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from monitor._records import Sample, Step
from monitor.probe._attribution import Pass
from monitor.probe._gradients import Norms, RawClip
from monitor.probe._notes import Note
from monitor.probe._values import Value

CAPACITY = 16384


class Details(NamedTuple):
    """What the recorder asks for now and then, since it seldom changes."""

    names: list[str | None]
    weight_decay: list[float | None]
    momentum: list[float | None]


class Opened(NamedTuple):
    """What was known when a step began: what had been noted until then, the note of the beginning itself (None for a
    step that was skipped), the backward passes that it applies, and the param groups."""

    notes: Sequence[Note]
    stepped: Note | None
    scheduled: Sequence[Any]
    applied: Sequence[Any] | None
    factors: Sequence[float] | None
    losses: Sequence[Pass]
    norms: Norms
    details: Details | None
    evaluation: object = None


class StepEntry(NamedTuple):
    """One optimizer step as the hooks saw it, its ``opened`` an :class:`Opened` as the training thread writes it. Times
    are ``perf_counter`` seconds: the last thing noted had ended at ``mark``, the step at ``done``. ``notes`` are those
    made during the step."""

    sequence: int
    optimizer: str
    number: int
    time: float
    notes: Sequence[Note]
    mark: float
    done: float
    clips: Sequence[RawClip]
    amp: tuple[Value | None, Value | None, Value | None] | None
    is_skipped: bool
    opened: tuple[Any, ...]


RawEntry = tuple[Any, ...]
"""A :class:`StepEntry` as the training thread writes it: to make a named tuple costs it a microsecond."""


class SampleEntry(NamedTuple):
    """One value that the user logged, after step ``number`` of an optimizer."""

    sequence: int
    kind: str
    name: str
    value: Value
    number: int
    time: float
    optimizer: str = ""


class _Broken:
    """What an entry that cannot be read is decoded to."""


_BROKEN = _Broken()


class Tape:
    """Carry entries from the training thread to the recorder, in order, each decoded as it is taken.

    A full buffer drops its oldest entry; :attr:`num_dropped` counts them.

    Args:
        decode: returns what an entry says, None while a value of it has not arrived; takes the entry and what turns its
            times into Unix time. See :class:`~._decoder.Decoder`.
        num_groups: shrinks the ring so that memory stays bounded with very many param groups.
        on_error: takes ``(component, exception)`` of an entry that cannot be decoded.
    """

    def __init__(
        self,
        decode: Callable[[RawEntry | SampleEntry, float], Step | Sample | None],
        num_groups: int = 1,
        on_error: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        capacity = max(512, CAPACITY * 16 // max(16, num_groups))
        self._ring: deque[RawEntry | SampleEntry] = deque(maxlen=capacity)
        self.numbers = count(1)
        self._expected = 1
        self._decode = decode
        self._on_error = on_error
        self.append = self._ring.append
        self.last_sequence = 0
        self.num_dropped = 0

    def next_sequence(self) -> int:
        """Number the next entry."""
        self.last_sequence = n = next(self.numbers)
        return n

    def drain(self, wall_offset: float) -> Iterator[Step | Sample]:
        """Take the entries that are there now and whose values have arrived, oldest first, one at a time.
        ``wall_offset`` turns the entries' times into Unix time."""
        for _ in range(len(self._ring)):
            entry = self._ring[0]
            record = self._attempt(entry, wall_offset)
            if record is None:
                break
            taken = self._take(entry)
            if taken is not entry:  # the ring overflowed between the look and the take
                record = self._attempt(taken, wall_offset)
            if isinstance(record, Step | Sample):
                yield record

    def _attempt(self, entry: RawEntry | SampleEntry, wall_offset: float) -> Step | Sample | _Broken | None:
        """Decode an entry. One that cannot be read must not stand in the way of all that follow: it is dropped."""
        try:
            return self._decode(entry, wall_offset)
        except Exception as error:  # noqa: BLE001
            self.num_dropped += 1
            self._on_error("tape", error)
            return _BROKEN

    def _take(self, seen: RawEntry | SampleEntry) -> RawEntry | SampleEntry:
        try:
            entry = self._ring.popleft()
        except IndexError:  # pragma: no cover - the ring was cleared meanwhile
            return seen
        sequence: int = entry[0]
        self.num_dropped += max(0, sequence - self._expected)
        self._expected = sequence + 1
        return entry

    @property
    def drained_sequence(self) -> int:
        """The number of the last entry that was drained."""
        return self._expected - 1

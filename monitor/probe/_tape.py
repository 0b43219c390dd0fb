"""The bounded ring from the training thread to the recorder: one writer appends, one reader drains, nobody waits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple

from monitor._records import Clip, ParamGroup, Sample, Step
from monitor.probe._attribution import Pass
from monitor.probe._gradients import ClipNote, Norms, RawClip
from monitor.probe._notes import Note, phases_of
from monitor.probe._values import Value

CAPACITY = 16384
GIVE_UP_SECONDS = 60.0


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
    """What an entry that cannot be read resolves to."""


_BROKEN = _Broken()


class Tape:
    """Carry entries from the training thread to the recorder, in order.

    A full tape drops its oldest entry; :attr:`num_dropped` counts them. ``num_groups`` shrinks the ring so that
    memory stays
    bounded with very many param groups. ``on_error`` takes ``(room, exception)`` of an entry that cannot be read.
    """

    def __init__(
        self,
        num_groups: int = 1,
        clock: Callable[[], float] = perf_counter,
        on_error: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        capacity = max(512, CAPACITY * 16 // max(16, num_groups))
        self._ring: deque[RawEntry | SampleEntry] = deque(maxlen=capacity)
        self.numbers = count(1)
        self._expected = 1
        self._clock = clock
        self._on_error = on_error
        self._details: dict[str, Details] = {}
        self._last_time: dict[str, float] = {}
        self._skipped: dict[str, int] = {}
        self.append = self._ring.append
        self.last_sequence = 0
        self.num_dropped = 0
        self.base_step = 0

    def next_sequence(self) -> int:
        """Number the next entry."""
        self.last_sequence = n = next(self.numbers)
        return n

    def num_skipped(self, optimizer: str) -> int:
        """Return how many steps of an optimizer were counted on the training thread and have turned out to be skipped:
        a fused optimizer makes the step and finds the overflow on its device."""
        return self._skipped.get(optimizer, 0)

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
        """Resolve an entry. One that cannot be read must not stand in the way of all that follow: it is dropped."""
        try:
            return self._resolve(entry if isinstance(entry, SampleEntry) else StepEntry._make(entry), wall_offset)
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

    def _resolve(self, entry: StepEntry | SampleEntry, wall_offset: float) -> Step | Sample | None:
        reader = _Reader(self._clock() - entry.time > GIVE_UP_SECONDS)
        if isinstance(entry, SampleEntry):
            value = reader.read(entry.value)
            if not reader.is_complete:
                return None
            return Sample(
                entry.kind,  # type: ignore[arg-type]
                entry.name,
                math.nan if value is None else value,
                entry.number - self.num_skipped(entry.optimizer) + self.base_step,
                entry.time + wall_offset,
            )
        return self._resolve_step(entry, reader, wall_offset)

    def _resolve_step(self, entry: StepEntry, reader: _Reader, wall_offset: float) -> Step | None:
        opened = Opened._make(entry.opened)
        loss = reader.total(opened.losses)
        found_inf, _, amp_scale = (reader.read(v) for v in entry.amp or (None, None, None))
        norm = reader.norm(opened.norms)
        clips = tuple(reader.clip(ClipNote._make(clip)) for clip in entry.clips)
        scheduled = [reader.read(v) for v in opened.scheduled]
        applied = scheduled if opened.applied is None else [reader.read(v) for v in opened.applied]
        if not reader.is_complete:
            return None
        if opened.details is not None:
            self._details[entry.optimizer] = opened.details
        if found_inf:
            self._skipped[entry.optimizer] = self.num_skipped(entry.optimizer) + 1
        number = entry.number - self.num_skipped(entry.optimizer)
        last = self._last_time.get(entry.optimizer)
        self._last_time[entry.optimizer] = entry.time
        began = () if opened.stepped is None else (opened.stepped,)
        phases = phases_of((*opened.notes, *began, *entry.notes), entry.mark, entry.done, entry.time, entry.clips)
        return Step(
            optimizer=entry.optimizer,
            number=number,
            global_step=number + self.base_step,
            time=entry.time + wall_offset,
            duration=None if last is None else entry.time - last,
            loss=loss,
            gradient_norm=norm,
            gradient_norm_reason=opened.norms if isinstance(opened.norms, str) else None,
            groups=_groups(scheduled, applied, opened.factors, self._details.get(entry.optimizer)),
            clips=clips,
            amp_scale=amp_scale,
            is_skipped=entry.is_skipped or bool(found_inf),
            phases=dict(zip(_PHASES, phases, strict=True)),
            hook_seconds=phases[4],
        )


_PHASES = ("data", "forward", "backward", "optimizer", "monitor", "other")


def _groups(
    scheduled: Sequence[float | None],
    applied: Sequence[float | None],
    factors: Sequence[float] | None,
    details: Details | None,
) -> tuple[ParamGroup, ...]:
    groups = []
    for i, lr in enumerate(scheduled):
        has_details = details is not None and i < len(details.names)
        groups.append(
            ParamGroup(
                i,
                details.names[i] if has_details and details else None,
                lr,
                applied[i],
                1.0 if factors is None else factors[i],
                details.weight_decay[i] if has_details and details else None,
                details.momentum[i] if has_details and details else None,
            )
        )
    return tuple(groups)


class _Reader:
    """Reads the values of one entry; remembers what has arrived until all has."""

    def __init__(self, gives_up: bool) -> None:
        self.is_complete = True
        self._gives_up = gives_up

    def read(self, value: Any) -> float | None:
        if value is None or isinstance(value, float):
            return value
        if isinstance(value, int):
            return float(value)
        poll = getattr(value, "poll", None)
        if poll is None:
            return float(value)
        number: float | None = poll()
        if number is None and not self._gives_up:
            self.is_complete = False
        return number

    def total(self, passes: Sequence[Pass]) -> float | None:
        """Return the sum of the losses of some backward passes; None if there is none, or one is not known."""
        values = [v for _, loss in passes for v in (loss if isinstance(loss, tuple) else (loss,))]
        numbers = [self.read(v) for v in values]
        return None if not numbers or None in numbers else sum(n for n in numbers if n is not None)

    def norm(self, values: Norms) -> float | None:
        numbers = [self.read(v) for v in values] if not isinstance(values, str) else []
        return None if None in numbers or not numbers else _hypot([n for n in numbers if n is not None])

    def clip(self, note: ClipNote) -> Clip:
        norm = self.norm(note.measure)
        if norm is None:
            return Clip(note.kind, note.threshold, None)
        if note.kind == "value":
            extremes = [self.read(v) for v in note.measure]
            return Clip("value", note.threshold, any(e is not None and e > note.threshold for e in extremes))
        factor = min(1.0, note.threshold / (norm + 1e-6)) if not math.isnan(norm) else math.nan
        return Clip("norm", note.threshold, factor < 1.0, factor)


def _hypot(numbers: Sequence[float]) -> float:
    if len(numbers) == 1:
        return numbers[0]
    return math.nan if any(math.isnan(n) for n in numbers) else math.sqrt(sum(n * n for n in numbers))

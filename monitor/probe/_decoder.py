"""The decoder of step-buffer entries: makes steps and samples of them once their values have arrived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from monitor._records import Clip, ParamGroup, Sample, Step
from monitor.probe._attribution import Pass
from monitor.probe._gradients import ClipNote, Norms
from monitor.probe._notes import phases_of
from monitor.probe._step_buffer import Details, Opened, RawEntry, SampleEntry, StepEntry

GIVE_UP_SECONDS = 60.0


class Decoder:
    """Decode the entries of a run in order; remember what seldom changes, and the steps that were skipped.

    ``base_step`` is the number of steps that earlier sessions have made.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._details: dict[str, Details] = {}
        self._last_time: dict[str, float] = {}
        self._skipped: dict[str, int] = {}
        self.base_step = 0

    def num_skipped(self, optimizer: str) -> int:
        """Return how many steps of an optimizer were counted on the training thread and have turned out to be skipped:
        a fused optimizer makes the step and finds the overflow on its device."""
        return self._skipped.get(optimizer, 0)

    def decode(self, entry: RawEntry | SampleEntry, wall_offset: float) -> Step | Sample | None:
        """Return what an entry says; None while a value of it has not arrived. ``wall_offset`` turns the entry's times
        into Unix time. After GIVE_UP_SECONDS a value is not known."""
        if not isinstance(entry, SampleEntry):
            return self._decode_step(StepEntry._make(entry), wall_offset)
        reader = self._reader_at(entry.time)
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

    def _reader_at(self, time: float) -> _Reader:
        return _Reader(self._clock() - time > GIVE_UP_SECONDS)

    def _decode_step(self, entry: StepEntry, wall_offset: float) -> Step | None:
        reader = self._reader_at(entry.time)
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

"""The decoder of step-buffer entries: makes steps and samples of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from monitor._records import PHASES, Clip, ParamGroup, Sample, Step
from monitor.link import (
    NUM_SAMPLE_FIELDS,
    ClipNote,
    Details,
    Norms,
    Opened,
    Pass,
    RawEntry,
    SampleEntry,
    SpreadNorms,
    StepEntry,
)
from monitor.recorder._phases import phases_of


class Decoder:
    """Decode the entries of a run in order; remember what seldom changes, and the steps that were skipped.

    ``base_step`` is the number of steps that earlier sessions have made.
    """

    def __init__(self, base_step: int = 0, skipped: Mapping[str, int] | None = None) -> None:
        self._details: dict[str, Details] = {}
        self._last_time: dict[str, float] = {}
        self._skipped: dict[str, int] = dict(skipped or {})
        self.base_step = base_step

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many steps of each optimizer were counted on the training thread and have turned out to be skipped: a
        fused optimizer makes the step and finds the overflow on its device."""
        return dict(self._skipped)

    def decode(self, entry: RawEntry, wall_offset: float) -> Step | Sample:
        """Return what an entry says. ``wall_offset`` turns the entry's times into Unix time."""
        if len(entry) != NUM_SAMPLE_FIELDS:
            return self._decode_step(StepEntry._make(entry), wall_offset)
        sample = SampleEntry._make(entry)
        return Sample(
            sample.kind,  # type: ignore[arg-type]
            sample.name,
            math.nan if sample.value is None else float(sample.value),
            sample.number - self._skipped.get(sample.optimizer, 0) + self.base_step,
            sample.time + wall_offset,
        )

    def _decode_step(self, entry: StepEntry, wall_offset: float) -> Step:
        opened = Opened._make(entry.opened)
        found_inf, _, amp_scale = entry.amp or (None, None, None)
        scheduled = [_number(v) for v in opened.scheduled]
        applied = scheduled if opened.applied is None else [_number(v) for v in opened.applied]
        clips = tuple(_clip(ClipNote._make(clip)) for clip in entry.clips)
        if opened.details is not None:
            self._details[entry.optimizer] = Details._make(opened.details)
        if found_inf:
            self._skipped[entry.optimizer] = self._skipped.get(entry.optimizer, 0) + 1
        number = entry.number - self._skipped.get(entry.optimizer, 0)
        last = self._last_time.get(entry.optimizer)
        self._last_time[entry.optimizer] = entry.time
        began = () if opened.stepped is None else (opened.stepped,)
        phases = phases_of((*opened.spans, *began, *entry.spans), entry.mark, entry.done, entry.time, entry.clips)
        return Step(
            optimizer=entry.optimizer,
            number=number,
            global_step=number + self.base_step,
            time=entry.time + wall_offset,
            duration=None if last is None else entry.time - last,
            loss=_total(opened.losses),
            gradient_norm=_norm(opened.norms),
            gradient_norm_reason=_reason(opened.norms),
            norm_parts=_parts(opened.norms),
            groups=_groups(scheduled, applied, opened.factors, self._details.get(entry.optimizer)),
            clips=clips,
            amp_scale=amp_scale,
            is_skipped=entry.is_skipped or bool(found_inf),
            phases=dict(zip(PHASES, phases, strict=True)),
            hook_seconds=phases[4],
        )


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


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _total(passes: Sequence[Pass]) -> float | None:
    """Return the sum of the losses of some backward passes; None if there is none, or one is not known."""
    numbers = [v for _, loss in passes for v in (loss if isinstance(loss, tuple | list) else (loss,))]
    return None if not numbers or None in numbers else float(sum(numbers))


def _reason(values: Norms) -> str | None:
    found = values[0] if _is_spread(values) else values
    return found if isinstance(found, str) else None


def _is_spread(values: Norms | None) -> bool:
    return isinstance(values, tuple) and bool(values) and isinstance(values[0], str)


def _parts(values: Norms) -> tuple[float, float, float] | None:
    """Return the norms of what this rank holds whole, of its shards, and of its part of flattened parameters."""
    if not _is_spread(values):
        return None
    _, whole, shards, flat = SpreadNorms._make(values)
    return None if None in (*whole, *shards, *flat) else (_hypot(whole), _hypot(shards), _hypot(flat))


def _norm(values: Norms | None) -> float | None:
    if values is None or isinstance(values, str) or _is_spread(values):
        return None
    return None if not values or None in values else _hypot(values)


def _clip(note: ClipNote) -> Clip:
    norm = _norm(note.measure)
    if norm is None:
        return Clip(note.kind, note.threshold, None)
    if note.kind == "value":
        return Clip("value", note.threshold, any(v > note.threshold for v in note.measure if not isinstance(v, str)))
    factor = min(1.0, note.threshold / (norm + 1e-6)) if not math.isnan(norm) else math.nan
    return Clip("norm", note.threshold, factor < 1.0, factor)


def _hypot(numbers: Sequence[float]) -> float:
    if len(numbers) == 1:
        return numbers[0]
    return math.nan if any(math.isnan(n) for n in numbers) else math.sqrt(sum(n * n for n in numbers))

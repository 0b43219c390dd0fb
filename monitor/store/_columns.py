"""The columns that are kept of a step: those of an optimizer's curve, and of a logged value's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

from monitor._records import MAX_GROUPS, PHASES, Step
from monitor.store._codec import FLOAT, SINGLE, Number
from monitor.store._curve import Rows

OPTIMIZER = "optimizer"
"""The kind of a curve that is made of steps. The others are the kinds of :class:`monitor._records.Sample`."""
READINGS = ("system", "host")
"""Kind and name of the curve of the machine's readings, which goes by time: no step and no attempt is its."""
LOGGED_COLUMNS = ("value",)
_STEP_COLUMNS = (
    "loss",
    "loss_ema",
    "gradient_norm",
    "clip_threshold",
    "clip_factor",
    "is_clipped",
    "amp_scale",
    "is_skipped",
    "step_seconds",
    "hook_seconds",
    *(f"phase_seconds/{phase}" for phase in PHASES),
)
_GROUP_COLUMNS = ("lr_scheduled", "lr_applied", "lr_factor", "weight_decay", "momentum")
Row = tuple[float | None, ...]
SKIPPED = 2 + _STEP_COLUMNS.index("is_skipped")
"""Where the row of an optimizer says that its step was skipped."""


@lru_cache(maxsize=256)
def step_columns(num_groups: int) -> tuple[str, ...]:
    """Return the names of the columns of an optimizer with so many param groups."""
    groups = (f"{name}/{index}" for index in range(min(num_groups, MAX_GROUPS)) for name in _GROUP_COLUMNS)
    return (*_STEP_COLUMNS, *groups)


@lru_cache(maxsize=256)
def kinds_of_columns(columns: tuple[str, ...]) -> str:
    """Return a letter for each column: durations are kept to seven digits, anything else as it is."""
    return "".join(SINGLE if "seconds" in column.partition("/")[0] else FLOAT for column in columns)


def row_of(step: Step, time: float, loss_ema: float | None) -> Row:
    """Return step number, time and values, in the order of :func:`step_columns`."""
    phases, clips = step.phases, step.clips
    threshold = factor = is_clipped = None
    if clips:
        threshold = clips[-1].threshold
        for clip in clips:
            if clip.factor is not None:
                factor = clip.factor if factor is None else factor * clip.factor
            if clip.is_clipped is not None:
                is_clipped = bool(is_clipped) or clip.is_clipped
    row = (
        step.global_step,
        time,
        step.loss,
        loss_ema,
        step.gradient_norm,
        threshold,
        factor,
        is_clipped,
        step.amp_scale,
        step.is_skipped,
        step.duration,
        step.hook_seconds,
        *map(phases.get, PHASES),
    )
    for group in step.groups[:MAX_GROUPS]:
        row += (group.scheduled, group.applied, group.factor, group.weight_decay, group.momentum)
    return row


def to_columns(rows: Sequence[Row]) -> tuple[Rows, int]:
    """Turn rows into columns of numbers, times in microseconds; count the values that are no numbers."""
    steps, times, *values = (list(column) for column in zip(*rows, strict=True))
    num_unfit = 0
    for i, column in enumerate(values):
        if not set(map(type, column)) <= _FLOAT_OR_NONE:
            values[i] = [_to_float(value) for value in column]
            num_unfit += sum(a is not None and b is None for a, b in zip(column, values[i], strict=True))
    return (steps, list(_to_microseconds(times)), *values), num_unfit


_FLOAT_OR_NONE = {float, type(None)}


def _to_float(value: object) -> float | None:
    if value is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)  # type: ignore[arg-type]
    return None


def _to_microseconds(times: Iterable[Number]) -> Iterator[int]:
    last = 0
    for value in times:
        if value is not None and math.isfinite(value) and abs(value) < 1e12:
            last = round(value * 1e6)
        yield last

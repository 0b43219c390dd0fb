"""The course of an optimizer, step by step and in buckets, and how it is laid out for the page.

A bucket keeps minimum, maximum and mean of its steps, and a loss that is not finite; nothing is smoothed away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from monitor._records import MAX_GROUPS, PHASES, Step
from monitor.common import Bucket

PART_COLUMNS = (
    "step",
    "time",
    "count",
    "loss",
    "loss_min",
    "loss_max",
    "loss_ema",
    "gradient_norm",
    "gradient_norm_max",
    "lr",
)


class SeriesBucket(Bucket):
    """Neighbouring steps of an optimizer.

    ``cursor`` numbers the steps of all optimizers of the run together; ``wall_time`` is shown as the time of the last.
    """

    __slots__ = (
        "clip",
        "ema",
        "first",
        "last",
        "loss_count",
        "loss_max",
        "loss_min",
        "loss_sum",
        "lrs",
        "nonfinite",
        "norm_count",
        "norm_max",
        "norm_sum",
        "phases",
        "seconds",
        "seconds_count",
        "time",
        "wall_time",
    )

    def __init__(self, step: Step, ema: float | None, cursor: int, wall_time: float) -> None:
        super().__init__(cursor)
        loss, norm = step.loss, step.gradient_norm
        self.first = self.last = step.global_step
        self.time = step.time
        self.wall_time = wall_time
        self.ema = ema
        self.nonfinite = loss if loss is not None and not math.isfinite(loss) else None
        is_loss = loss is not None and self.nonfinite is None
        self.loss_count = int(is_loss)
        self.loss_sum = self.loss_min = self.loss_max = loss if is_loss and loss is not None else 0.0
        self.norm_count = int(norm is not None)
        self.norm_sum = self.norm_max = 0.0 if norm is None else norm
        self.clip = step.clips[-1].threshold if step.clips else None
        self.seconds = step.duration or 0.0
        self.seconds_count = int(step.duration is not None)
        self.phases = [step.phases.get(p, 0.0) for p in PHASES]
        self.lrs = [(g.scheduled, g.applied) for g in step.groups[:MAX_GROUPS]]

    def merge(self, other: SeriesBucket) -> None:
        """Take in the bucket that follows."""
        super().merge(other)
        self.last, self.time, self.wall_time = other.last, other.time, other.wall_time
        self.ema, self.lrs = other.ema, other.lrs
        if other.nonfinite is not None:
            self.nonfinite = other.nonfinite
        if other.loss_count:
            self.loss_min = min(self.loss_min, other.loss_min) if self.loss_count else other.loss_min
            self.loss_max = max(self.loss_max, other.loss_max) if self.loss_count else other.loss_max
            self.loss_sum += other.loss_sum
            self.loss_count += other.loss_count
        if other.norm_count:
            self.norm_max = max(self.norm_max, other.norm_max) if self.norm_count else other.norm_max
            self.norm_sum += other.norm_sum
            self.norm_count += other.norm_count
        self.clip = other.clip if other.clip is not None else self.clip
        self.seconds += other.seconds
        self.seconds_count += other.seconds_count
        self.phases = [a + b for a, b in zip(self.phases, other.phases, strict=True)]

    def ends_before(self, step: int) -> bool:
        """Tell whether the bucket began before a step, at which training has gone on from an earlier one; what lies
        behind is then no longer said to be in it."""
        if self.first >= step:
            return False
        self.last = min(self.last, step - 1)
        return True

    @property
    def loss(self) -> float | None:
        """The mean; a non-finite loss anywhere in the bucket shows instead of it."""
        if self.nonfinite is not None:
            return self.nonfinite
        return self.loss_sum / self.loss_count if self.loss_count else None


def part_columns(buckets: list[SeriesBucket]) -> dict[str, Any]:
    """Lay out a part that was done over: of :func:`columns`, those that are drawn beside the curve."""
    found = columns(buckets)
    return {name: found[name] for name in PART_COLUMNS}


def buckets_of(columns: Mapping[str, Any], cursors: Iterable[int]) -> list[SeriesBucket]:
    """Return what :func:`columns` has laid out, each row with its cursor."""
    return [_bucket_of(columns, row, cursor) for row, cursor in enumerate(cursors)]


def _bucket_of(columns: Mapping[str, Any], row: int, cursor: int) -> SeriesBucket:
    found: SeriesBucket = object.__new__(SeriesBucket)
    steps, count = columns["step"], columns["count"][row]
    found.cursor, found.count = cursor, count
    found.first, found.last = steps[row - 1] + 1 if row and steps[row - 1] < steps[row] else steps[row], steps[row]
    found.time = found.wall_time = columns["time"][row]
    found.ema, found.clip = columns["loss_ema"][row], columns["clip_threshold"][row]
    loss, norm, seconds = (columns[name][row] for name in ("loss", "gradient_norm", "step_seconds"))
    low, high = columns["loss_min"][row], columns["loss_max"][row]
    found.nonfinite = loss if loss is not None and not math.isfinite(loss) else None
    mean = loss if found.nonfinite is None else low
    found.loss_count = 0 if low is None else count
    found.loss_min, found.loss_max, found.loss_sum = low or 0.0, high or 0.0, (mean or 0.0) * count
    found.norm_count = 0 if norm is None else count
    found.norm_sum, found.norm_max = (norm or 0.0) * count, columns["gradient_norm_max"][row] or 0.0
    found.seconds, found.seconds_count = (seconds or 0.0) * count, 0 if seconds is None else count
    found.phases = [columns["phases"][phase][row] * count for phase in PHASES]
    found.lrs = [(group["scheduled"][row], group["applied"][row]) for group in columns["lr"].values()]
    return found


def columns(buckets: list[SeriesBucket]) -> dict[str, Any]:
    """Lay buckets out as columns for the page: times in Unix seconds, durations in seconds, None where nothing
    is known."""
    num_groups = max((len(b.lrs) for b in buckets), default=0)

    def lr(index: int, which: int) -> list[float | None]:
        return [b.lrs[index][which] if index < len(b.lrs) else None for b in buckets]

    return {
        "step": [b.last for b in buckets],
        "time": [b.wall_time for b in buckets],
        "count": [b.count for b in buckets],
        "loss": [b.loss for b in buckets],
        "loss_min": [b.loss_min if b.loss_count else None for b in buckets],
        "loss_max": [b.loss_max if b.loss_count else None for b in buckets],
        "loss_ema": [b.ema for b in buckets],
        "gradient_norm": [b.norm_sum / b.norm_count if b.norm_count else None for b in buckets],
        "gradient_norm_max": [b.norm_max if b.norm_count else None for b in buckets],
        "lr": {str(i): {"scheduled": lr(i, 0), "applied": lr(i, 1)} for i in range(num_groups)},
        "clip_threshold": [b.clip for b in buckets],
        "step_seconds": [b.seconds / b.seconds_count if b.seconds_count else None for b in buckets],
        "phases": {p: [b.phases[i] / b.count for b in buckets] for i, p in enumerate(PHASES)},
    }

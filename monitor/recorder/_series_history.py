"""The course of a run in bounded memory: the newest steps one by one, and the whole run in buckets that double.

A series of any length fits in ``2 * SIZE`` buckets: when they are full, neighbours are merged and the stride doubles,
so the
resolution is always at least ``1 / SIZE`` of the run. A bucket keeps minimum, maximum and mean; nothing is smoothed
away.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import deque
from typing import Any

from monitor._records import PHASES, Step

SIZE = 1024
MAX_GROUPS = 64


class _Bucket:
    """A run of neighbouring steps."""

    __slots__ = (
        "clip",
        "count",
        "cursor",
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
        loss, norm = step.loss, step.gradient_norm
        self.first = self.last = step.global_step
        self.time = step.time
        self.wall_time = wall_time
        self.cursor = cursor
        self.count = 1
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

    def merge(self, other: _Bucket) -> None:
        """Take in the bucket that follows."""
        self.last, self.time, self.wall_time, self.cursor, self.ema, self.lrs = (
            other.last,
            other.time,
            other.wall_time,
            other.cursor,
            other.ema,
            other.lrs,
        )
        self.count += other.count
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

    def copy(self) -> _Bucket:
        """Return one that can be merged without harm to this."""
        twin = object.__new__(_Bucket)
        for name in _Bucket.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    @property
    def loss(self) -> float | None:
        """The mean; a non-finite loss anywhere in the bucket shows instead of it."""
        if self.nonfinite is not None:
            return self.nonfinite
        return self.loss_sum / self.loss_count if self.loss_count else None


class SeriesHistory:
    """The course of one optimizer. The recorder writes, servers read; the training thread does neither."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._raw: deque[_Bucket] = deque(maxlen=size)
        self._whole: list[_Bucket] = []
        self._stride = 1
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def add(self, step: Step, ema: float | None, cursor: int, wall_time: float) -> None:
        """Append one step; ``cursor`` numbers the steps of all optimizers of the run together, ``wall_time`` is what is
        shown as its time."""
        bucket = _Bucket(step, ema, cursor, wall_time)
        with self._lock:
            self._append(bucket)

    def _append(self, bucket: _Bucket) -> None:
        self._raw.append(bucket)
        whole = self._whole
        if whole and whole[-1].count < self._stride:
            whole[-1].merge(bucket)
            return
        if len(whole) >= 2 * self._size:
            whole = _halved(whole)
            self._stride *= 2
            self._whole = whole
            if whole[-1].count < self._stride:
                whole[-1].merge(bucket)
                return
        whole.append(bucket.copy())

    def time_of(self, cursor: int) -> float:
        """Return the ``Step.time`` of the last step up to a cursor, at the resolution there is; 0 if there is none."""
        with self._lock:
            buckets = self._raw if self._raw and cursor >= self._raw[0].cursor else self._whole
            return next((b.time for b in reversed(buckets) if b.cursor <= cursor), 0.0)

    def points(self, since: int, points: int) -> list[_Bucket]:
        """Return at most ``points`` buckets of the steps after a cursor, the finest there is for them."""
        with self._lock:
            raw = list(self._raw)
            is_whole = len(raw) < self._size  # the ring has dropped nothing yet
            if raw and (is_whole or since >= raw[0].cursor):
                chosen = raw[bisect_right([b.cursor for b in raw], since) :]
            else:
                chosen = [b.copy() for b in self._whole if b.cursor > since]
        while len(chosen) > points:
            chosen = _halved([b.copy() for b in chosen])
        return chosen


def _halved(buckets: list[_Bucket]) -> list[_Bucket]:
    """Merge neighbours two by two."""
    out = []
    for i in range(0, len(buckets), 2):
        bucket = buckets[i]
        if i + 1 < len(buckets):
            bucket.merge(buckets[i + 1])
        out.append(bucket)
    return out


def columns(buckets: list[_Bucket]) -> dict[str, Any]:
    """Lay buckets out as columns for the page: times in Unix seconds, durations in seconds, None where nothing is
    known."""
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
        "clip_threshold": [b.clip for b in buckets],
        "step_seconds": [b.seconds / b.seconds_count if b.seconds_count else None for b in buckets],
        "phases": {p: [b.phases[i] / b.count for b in buckets] for i, p in enumerate(PHASES)},
        "lr": {str(i): {"scheduled": lr(i, 0), "applied": lr(i, 1)} for i in range(num_groups)},
    }

"""Running figures over steps: windows, sums, histograms. Plain Python, constant memory, one writer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from monitor._records import PHASES, Histogram, OptimizerSnapshot, Step

STEP_SECONDS_BOUNDS = tuple(0.001 * 2**k for k in range(17))
GRADIENT_NORM_BOUNDS = tuple(10 ** (k / 2) for k in range(-8, 9))
EMA_STEPS = 50
"""Memory of the smoothed loss: weight 2 / (n + 1) for the newest value, bias-corrected (Kingma & Ba 2015,
section 3)."""


class Counts:
    """A histogram that is being filled. What is not finite is left out: it would poison the sum for good."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one finite value."""
        if math.isfinite(value):
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def view(self) -> Histogram:
        """Return an immutable copy."""
        return Histogram(self._bounds, tuple(self._counts), self._sum)


class OptimizerAggregate:
    """Everything that is kept about the steps of one optimizer."""

    def __init__(self, key: str, class_name: str, window: int) -> None:
        self.key = key
        self.class_name = class_name
        self.last: Step | None = None
        self.base_step = 0
        self.steps = 0
        self.loss: float | None = None
        self.best: float | None = None
        self.best_step: int | None = None
        self.ema: float | None = None
        self._ema_raw = 0.0
        self._ema_weight = 0.0
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)
        self._clipped: deque[bool] = deque(maxlen=window)
        self._norm: float | None = None
        self._norm_step: int | None = None
        self._norm_reason: str | None = None
        self._histogram = Counts(GRADIENT_NORM_BOUNDS)
        self._sums = {True: 0.0, False: 0.0}
        self._loss_counts = {True: 0, False: 0}
        self._checks = {"norm": 0, "value": 0}
        self._clips = {"norm": 0, "value": 0}
        self._clip_threshold: float | None = None
        self._clip_factor: float | None = None
        self._skipped = 0
        self._nonfinite = {"loss": 0, "gradient": 0}
        self._amp_scale: float | None = None

    def add(self, step: Step) -> None:
        """Digest one step."""
        self.last = step
        if step.amp_scale is not None:
            self._amp_scale = step.amp_scale
        if step.is_skipped:
            self._skipped += 1
            return
        self.steps += 1
        self.loss = step.loss
        if step.loss is not None:
            self._add_loss(step.loss, step.global_step)
        if step.gradient_norm is not None:
            self._add_norm(step.gradient_norm, step.global_step)
        elif self._norm is None and step.gradient_norm_reason is not None:
            self._norm_reason = step.gradient_norm_reason
        self._add_clips(step)

    def amend_loss(self, loss: float) -> None:
        """Replace the loss of the last step on display: it was logged after the step had been digested."""
        self.loss = loss

    def smoothing(self) -> dict[str, Any]:
        """Return the smoothed loss and its best, as plain values."""
        return {"ema": self._ema_raw, "weight": self._ema_weight, "best": self.best, "best_step": self.best_step}

    def load_smoothing(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier session's smoothed loss. Changes nothing if it raises."""
        raw, weight, best, step = float(state["ema"]), float(state["weight"]), state["best"], state["best_step"]
        best, step = None if best is None else float(best), None if step is None else int(step)
        self._ema_raw, self._ema_weight, self.best, self.best_step = raw, weight, best, step

    def _add_loss(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            self._nonfinite["loss"] += 1
            return
        self._losses.append(loss)
        self._sums[loss >= 0] += abs(loss)
        self._loss_counts[loss >= 0] += 1
        weight = 2 / (EMA_STEPS + 1)
        self._ema_raw += weight * (loss - self._ema_raw)
        self._ema_weight += weight * (1 - self._ema_weight)
        self.ema = self._ema_raw / self._ema_weight
        if self.best is None or self.ema < self.best:
            self.best, self.best_step = self.ema, step

    def _add_norm(self, norm: float, step: int) -> None:
        self._norm, self._norm_step, self._norm_reason = norm, step, None
        if math.isfinite(norm):
            self._norms.append(norm)
            self._histogram.observe(norm)
        else:
            self._nonfinite["gradient"] += 1

    def _add_clips(self, step: Step) -> None:
        known = [c for c in step.clips if c.is_clipped is not None]
        for kind in {c.kind for c in known}:
            self._checks[kind] += 1
            self._clips[kind] += any(c.is_clipped for c in known if c.kind == kind)
        if step.clips:
            self._clip_threshold = step.clips[-1].threshold
            factors = [c.factor for c in known if c.factor is not None]
            self._clip_factor = math.prod(factors) if factors else None
        if known:
            self._clipped.append(any(c.is_clipped for c in known))

    def view(self) -> OptimizerSnapshot:
        """Return an immutable copy; the window's figures are worked out here, not at every step."""
        losses, norms = self._losses, self._norms
        mean = math.fsum(losses) / len(losses) if losses else None
        return OptimizerSnapshot(
            key=self.key,
            class_name=self.class_name,
            steps=self.steps,
            global_step=self.last.global_step if self.last else self.base_step,
            groups=self.last.groups if self.last else (),
            loss=self.loss,
            loss_ema=self.ema,
            loss_window_mean=mean,
            loss_window_min=min(losses, default=None),
            loss_window_max=max(losses, default=None),
            loss_window_stddev=None if mean is None else _stddev(losses, mean),
            loss_best=self.best,
            loss_best_step=self.best_step,
            loss_positive_sum=self._sums[True],
            loss_positive_count=self._loss_counts[True],
            loss_negative_sum=self._sums[False],
            loss_negative_count=self._loss_counts[False],
            gradient_norm=self._norm,
            gradient_norm_step=self._norm_step,
            gradient_norm_reason=self._norm_reason,
            gradient_norm_window_max=max(norms, default=None),
            gradient_norm_window_median=median(norms) if norms else None,
            gradient_norm_histogram=self._histogram.view(),
            clip_threshold=self._clip_threshold,
            clip_factor=self._clip_factor,
            clip_checks=dict(self._checks),
            clips=dict(self._clips),
            clip_share=sum(self._clipped) / len(self._clipped) if self._clipped else None,
            amp_scale=self._amp_scale,
            skipped_steps={"amp_overflow": self._skipped},
            nonfinite=dict(self._nonfinite),
        )


class PaceAggregate:
    """How fast the run goes and where the time goes. Counts the steps of the run's first optimizer."""

    def __init__(self, window: int) -> None:
        self._durations: deque[float] = deque(maxlen=window)
        self._hooks: deque[float] = deque(maxlen=window)
        self._histogram = Counts(STEP_SECONDS_BOUNDS)
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._hooks_since = 0.0  # of all optimizers, since the last step of the first one
        self.hook_seconds = 0.0
        self.last_time: float | None = None

    def add(self, step: Step, is_first_optimizer: bool) -> None:
        """Digest one step."""
        self.last_time = step.time
        self.hook_seconds += step.hook_seconds
        for phase, seconds in step.phases.items():
            self._phases[phase] += max(0.0, seconds)
        self._hooks_since += step.hook_seconds
        if not is_first_optimizer:
            return
        if step.duration is not None and step.duration > 0:
            self._durations.append(step.duration)
            self._histogram.observe(step.duration)
            self._hooks.append(self._hooks_since)
        self._hooks_since = 0.0

    @property
    def steps_per_second(self) -> float | None:
        """Steps a second over the trailing window."""
        total = math.fsum(self._durations)
        return len(self._durations) / total if total > 0 else None

    @property
    def overhead_ratio(self) -> float | None:
        """Time in our hooks as a share of the step time, over the trailing window."""
        total = math.fsum(self._durations)
        return math.fsum(self._hooks) / total if total > 0 else None

    def histogram(self) -> Histogram:
        """Return the step durations."""
        return self._histogram.view()

    def phases(self) -> dict[str, float]:
        """Return the seconds spent in each phase so far."""
        return dict(self._phases)


class Throughput:
    """A counter with its rate over the trailing window of reports."""

    def __init__(self, window: int) -> None:
        self.total: float | None = None
        self._points: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, amount: float, time: float) -> None:
        """Count an amount; what is not finite or below zero is left out, a counter never falls."""
        if math.isfinite(amount) and amount >= 0:
            self.total = (self.total or 0.0) + amount
            self._points.append((time, self.total))

    @property
    def rate(self) -> float | None:
        """Amount a second over the window."""
        if len(self._points) < 2:
            return None
        (t0, first), (t1, last) = self._points[0], self._points[-1]
        return (last - first) / (t1 - t0) if t1 > t0 else None


def _stddev(values: Iterable[float], mean: float) -> float:
    squares = [(v - mean) ** 2 for v in values]
    return math.sqrt(math.fsum(squares) / len(squares))

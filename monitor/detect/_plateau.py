"""``plateau``: no progress per doubling of steps while the learning rate could still do something."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Step
from monitor.detect._bins import BinSettings, LogBins
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_usable, show


@dataclass(frozen=True, kw_only=True)
class PlateauSettings:
    """Set what counts as no progress. Not shift-free: progress is measured against the level's size.

    Measured on the labelled curves, chosen by leave-one-source-out (docs/detection.md). Healthy language models still
    fall by more than 1 % per doubling at their end.

    Attributes:
        drop: share of the level per doubling of records (Theil-Sen slope over the last doubling) below which there is
            no progress.
        trend: Mann-Kendall z at or below minus this is a fall, however small; 1.64 (5 %, one-sided).
        rise: share of the level per doubling above which it is no plateau either.
        patience: bins in a row without progress, and with progress that end it; 5 (4 to 6 score alike, 7 finds less).
        least: records before which nothing is said (warm-up; the flat start of very large models).
        lr_rise: learning rate over its value a doubling ago above which it is being warmed up, and bins do not count.
        lr_end: learning rate over its maximum at or below which the schedule is at its end, and a plateau is its
            purpose; 0.1, where cosine schedules of language models end by convention.
        bins: the bins.
    """

    drop: float = 0.01
    trend: float = 1.64
    rise: float = 0.2
    patience: int = 5
    least: int = 100
    lr_rise: float = 1.1
    lr_end: float = 0.1
    bins: BinSettings = field(default_factory=BinSettings)

    def __post_init__(self) -> None:
        require(self, drop=(0, 1), trend=(0, 100), rise=(0, 1e6), lr_rise=(1, 1e6), lr_end=(0, 1))
        require_whole(self, patience=(1, 1000), least=(1, 10**9))


class PlateauDetector(Detector):
    """Raise ``plateau`` when the loss has stopped falling on the scale of its own history; end it when it falls again.

    Costs an append a record; the statistics run when a bin closes, 12 times per doubling.

    Args:
        settings: see ``PlateauSettings``.
    """

    kind = "plateau"
    state_names = ("_history", "_flat", "_moving", "_flat_since", "_lr", "_top_lr")
    part_names = ("bins",)

    def __init__(self, settings: PlateauSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or PlateauSettings()
        self._bins = LogBins(self.settings.bins)
        self._history: list[list[Any]] = []
        self._flat = 0
        self._moving = 0
        self._flat_since: int | None = None
        self._lr: float | None = None
        self._top_lr = 0.0

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        loss = step.loss
        if type(loss) is not float or not -1e150 < loss < 1e150:
            loss = as_usable(loss)
        if loss is None:
            return None
        closed = self._bins.add(loss, step.global_step)
        if closed is None:
            return None
        self._follow_lr(step)
        self._history.append([closed.median, closed.first_step, self._lr])
        if len(self._history) > self.settings.bins.per_doubling + 1:
            del self._history[0]
        if len(self._history) <= self.settings.bins.per_doubling or closed.count < self.settings.least:
            return None
        return self._judge(step)

    def _follow_lr(self, step: Step) -> None:
        rates = [rate for group in step.groups if (rate := as_usable(group.applied)) is not None]
        if rates:
            self._lr = max(rates)
            self._top_lr = max(self._top_lr, self._lr)

    def _judge(self, step: Step) -> Event | None:
        medians = [entry[0] for entry in self._history]
        level = statistics.median(medians)
        fall = -theil_sen(medians) * self.settings.bins.per_doubling
        size = max(abs(level), 1e-300)
        trend = mann_kendall(medians)
        is_falling = fall >= self.settings.drop * size
        is_trend = trend <= -self.settings.trend
        is_elsewhere = fall <= -self.settings.rise * size or not self._is_lr_at_work()
        if self._open is not None:
            # Either alone, or both once, flicker with the noise; as long as it took to believe them is progress.
            self._moving = self._moving + 1 if is_elsewhere or (is_falling and is_trend) else 0
            if self._moving < self.settings.patience:
                return None
            self._flat, self._flat_since, self._moving = 0, None, 0
            return self._end(step.global_step, f"loss moves again at step {step.global_step}: {show(medians[-1])}")
        if is_elsewhere or is_falling or is_trend:
            self._flat, self._flat_since = 0, None
            return None
        if self._flat == 0:
            self._flat_since = self._history[0][1]
        self._flat += 1
        if self._flat < self.settings.patience:
            return None
        start = self._flat_since
        assert start is not None
        message = (
            f"no progress: loss stays near {show(level)} from step {start} to {step.global_step} "
            f"({100 * max(0.0, fall) / size:.2g} % less per doubling of steps)"
        )
        return self._start(step.optimizer, step.global_step, start, message, medians[-1], level=level)

    def _is_lr_at_work(self) -> bool:
        if self._lr is None:
            return True
        before = self._history[0][2]
        is_rising = before is not None and self._lr > before * self.settings.lr_rise
        return not is_rising and self._lr > self.settings.lr_end * self._top_lr


def theil_sen(values: Sequence[float]) -> float:
    """Return the median of all pairwise slopes, per place (Theil 1950, Sen 1968).

    >>> theil_sen([4.0, 3.5, 3.0, 100.0, 2.0])
    -0.5
    """
    slopes = [(b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values[i + 1 :], i + 1)]
    return statistics.median(slopes)


def mann_kendall(values: Sequence[float]) -> float:
    """Return the Mann-Kendall trend as a standard normal score, ties corrected; 0 where all are equal.

    >>> mann_kendall([3.0, 2.0, 1.0]) < 0 == mann_kendall([1.0, 1.0, 1.0])
    True
    """
    count = len(values)
    total = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    return total / math.sqrt(variance) if variance > 0 else 0.0

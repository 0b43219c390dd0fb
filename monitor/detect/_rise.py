"""Tell a lasting rise from isolated points: a clipped CUSUM over a level, with the onset kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor.detect._level import CusumSettings, Level, LevelSettings


@dataclass(frozen=True, kw_only=True)
class RiseSettings:
    """Set what counts as a lasting rise.

    Attributes:
        level: how the baseline follows.
        cusum: when rises add up to an alarm.
    """

    level: LevelSettings = field(default_factory=LevelSettings)
    cusum: CusumSettings = field(default_factory=CusumSettings)


@dataclass(frozen=True, slots=True)
class Onset:
    """Where a rise began: its first record, the last good one before, and the baseline there."""

    step: int
    last_good: int | None
    level: float
    scale: float
    count: int


class Rise:
    """Follow a series with a ``Level`` and add up what stands above it.

    Attributes:
        level: the baseline.
        score: of the last value, in scales; None before the level has started.
        sum: the CUSUM; 0 when the series is at its level.
        is_alarm: the sum is above the threshold.
        onset: where the sum left 0; None while it is 0.
        peak: largest value since the onset.
        length: values since the onset.
    """

    def __init__(self, settings: RiseSettings | None = None) -> None:
        self.settings = settings or RiseSettings()
        self.level = Level(self.settings.level)
        self.score: float | None = None
        self.sum = 0.0
        self.is_alarm = False
        self.onset: Onset | None = None
        self.peak = 0.0
        self.length = 0
        self._last_step: int | None = None
        cusum = self.settings.cusum
        self._options = (cusum.drift, cusum.threshold, cusum.ceiling, cusum.clip, cusum.warmup)

    def update(self, value: float, step: int) -> None:
        """Take one usable value of the record numbered ``step``."""
        level = self.level
        before = level.level
        self.score = score = level.update(value)
        drift, threshold, ceiling, clip, warmup = self._options
        if score is not None and before is not None and level.count > warmup:
            add = (score if score < clip else clip) if score > -clip else -clip
            total = self.sum + add - drift
            if total > 0.0:
                if self.onset is None:
                    self._begin(step, before)
                self.length += 1
                if value > self.peak or self.length == 1:
                    self.peak = value
                self.sum = total if total < ceiling else ceiling
            elif self.onset is not None:
                self.sum, self.onset = 0.0, None
            self.is_alarm = self.sum > threshold
        self._last_step = step

    def _begin(self, step: int, level: float) -> None:
        self.onset = Onset(step, self._last_step, level, self.level.scale, self.level.count)
        self.length = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        onset = self.onset
        return {
            "level": self.level.state_dict(),
            "score": self.score,
            "sum": self.sum,
            "is_alarm": self.is_alarm,
            "onset": None if onset is None else [onset.step, onset.last_good, onset.level, onset.scale, onset.count],
            "peak": self.peak,
            "length": self.length,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.level.load_state_dict(state["level"])
        self.score, self.sum, self.is_alarm = state["score"], state["sum"], state["is_alarm"]
        self.onset = None if state["onset"] is None else Onset(*state["onset"])
        self.peak, self.length = state["peak"], state["length"]
        self._last_step = state["last_step"]

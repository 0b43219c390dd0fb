"""Tell a lasting rise from isolated points: a clipped CUSUM over a level, with the onset kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Step
from monitor.detect._level import CusumSettings, Level, LevelSettings
from monitor.detect._numbers import as_usable


@dataclass(frozen=True, kw_only=True)
class RiseSettings:
    """Set what counts as a lasting rise.

    In a log that keeps one record for several steps, each record is an independent look at the loss: two in a row are
    as good as four neighbours. ``sparse_clip`` is then the score that one record may add, so that one record alone
    fills the sum and the next one has to confirm it. A log that has shown one isolated point is judged by the dense
    rule from there on.

    Attributes:
        level: how the baseline follows.
        cusum: when rises add up to an alarm.
        steps_per_record: optimizer steps that one record stands for; 1 in a live run, the logging interval of a file.
        sparse_from: steps per record from which a log is sparse; 4, the records that an alarm needs in a dense one.
        sparse_clip: clip of one record's score in a sparse log: drift + threshold.
        isolated: scales above the level from which a short rise is an isolated point.
        isolated_records: records below which a rise is short; 4, as an alarm needs that many.
    """

    level: LevelSettings = field(default_factory=LevelSettings)
    cusum: CusumSettings = field(default_factory=CusumSettings)
    steps_per_record: float = 1.0
    sparse_from: float = 4.0
    sparse_clip: float = 10.0
    isolated: float = 6.0
    isolated_records: int = 4

    def __post_init__(self) -> None:
        require(self, steps_per_record=(1e-9, 1e15), sparse_from=(1, 1e15), sparse_clip=(0.2, 1e6), isolated=(1, 1e6))
        require_whole(self, isolated_records=(2, 1000))


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
        isolated: (first step, last step, value, score, level) of an isolated point that the last value has ended, else
            None.
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
        self.isolated: tuple[int, int, float, float, float] | None = None
        self._is_sparse = self.settings.steps_per_record >= self.settings.sparse_from
        self._sparse_sum = 0.0
        self._has_isolated = False
        self._last_step: int | None = None
        self._run: list[Any] = []
        cusum = self.settings.cusum
        self._options = (cusum.drift, cusum.threshold, cusum.ceiling, cusum.clip, cusum.warmup)

    def update(self, value: float, step: int) -> None:
        """Take one usable value of the record numbered ``step``."""
        level = self.level
        before = level.level
        self.score = score = level.update(value)
        if self.isolated is not None:
            self.isolated = None
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
            if score * level.tail > drift or self._run:
                self._follow_run(value, step, score * level.tail, before)
            if self._is_sparse and not self._has_isolated:
                self._update_sparse(score)
        self._last_step = step

    def _begin(self, step: int, level: float) -> None:
        self.onset = Onset(step, self._last_step, level, self.level.scale * self.level.tail, self.level.count)
        self.length = 0

    def _update_sparse(self, score: float) -> None:
        drift, threshold, ceiling, clip, _ = self._options
        add = max(-clip, min(self.settings.sparse_clip, score))
        self._sparse_sum = min(ceiling, max(0.0, self._sparse_sum + add - drift))
        if self._sparse_sum > threshold and len(self._run) > 0 and self._run[0] >= 2:
            self.is_alarm = True

    def _follow_run(self, value: float, step: int, height: float, level: float) -> None:
        """Keep [length, first step, last step, peak, its score, level] of values in a row above the drift."""
        run = self._run
        if height > self._options[0]:
            if not run:
                self._run = [1, step, step, value, height, level]
                return
            run[0] += 1
            run[2] = step
            if height > run[4]:
                run[3], run[4] = value, height
            return
        if run[0] < self.settings.isolated_records and run[4] > self.settings.isolated and not self.is_alarm:
            self._has_isolated = True
            self.isolated = (run[1], run[2], run[3], run[4], run[5])
        self._run = []

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
            "isolated": None if self.isolated is None else list(self.isolated),
            "sparse_sum": self._sparse_sum,
            "has_isolated": self._has_isolated,
            "last_step": self._last_step,
            "run": list(self._run),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.level.load_state_dict(state["level"])
        self.score, self.sum, self.is_alarm = state["score"], state["sum"], state["is_alarm"]
        self.onset = None if state["onset"] is None else Onset(*state["onset"])
        self.peak, self.length = state["peak"], state["length"]
        self.isolated = None if state["isolated"] is None else tuple(state["isolated"])
        self._sparse_sum, self._has_isolated = state["sparse_sum"], state["has_isolated"]
        self._last_step, self._run = state["last_step"], list(state["run"])


class LossRise(Rise):
    """The rise of the loss, which several detectors share: a record is digested once, whoever asks first."""

    def __init__(self, settings: RiseSettings | None = None) -> None:
        super().__init__(settings)
        self._record: Step | None = None
        self._value: float | None = None

    def take(self, step: Step) -> float | None:
        """Digest ``step`` unless that has been done; return its loss, or None where it has no usable one."""
        if step is self._record:
            return self._value
        self._record = step
        self._value = value = as_usable(step.loss)
        if value is not None:
            self.update(value, step.global_step)
        elif self.isolated is not None:
            self.isolated = None
        return value

"""``slowdown``: the step time has risen and stays up."""

from __future__ import annotations

from dataclasses import dataclass

from monitor._checks import require, require_whole
from monitor._records import Step
from monitor.detect._lasting import LastingRiseDetector, positive
from monitor.detect._level import LevelSettings
from monitor.detect._rise import RiseSettings


@dataclass(frozen=True, kw_only=True)
class SlowdownSettings:
    """Set when the step time has risen for good. Validations and checkpoints are single slow steps and do not count.

    Attributes:
        ratio: median step time over its level before; 1.3: clocks that throttle, a dying disk, a neighbour on the
            machine.
        back_ratio: the same, below which it is over.
        records: records that the median must stand above; 32.
        least_seconds: time that it must stand as well; 30: a neighbour's compile job is over by then, and steps of a
            millisecond would else report every hiccup of the machine.
        median: records whose median is compared.
        least_scale: smallest deviation of the step time, as a ratio; 0.05, as steps of one GPU are equal within 1 %.
    """

    ratio: float = 1.3
    back_ratio: float = 1.15
    records: int = 32
    least_seconds: float = 30.0
    median: int = 15
    least_scale: float = 0.05

    def __post_init__(self) -> None:
        require(self, ratio=(1.01, 1e6), back_ratio=(1, 1e6), least_scale=(1e-6, 1), least_seconds=(0, 1e9))
        require_whole(self, records=(1, 10**6), median=(1, 101))
        if self.back_ratio > self.ratio:
            raise ValueError(
                f"SlowdownSettings.back_ratio must be at most ratio {self.ratio:g}, got {self.back_ratio!r}"
            )


class SlowdownDetector(LastingRiseDetector):
    """Raise ``slowdown`` when the median step time has stood above its level for some records; end it when it is
    back."""

    kind = "slowdown"
    state_names = (*LastingRiseDetector.state_names, "_seconds")
    quantity = "step time"
    unit = " s"
    remedy = (
        "The phases of a step say where to look: data is the DataLoader, forward and backward the device or another "
        "program on it"
    )

    def __init__(self, settings: SlowdownSettings | None = None) -> None:
        self.settings = settings or SlowdownSettings()
        level = LevelSettings(least_scale=self.settings.least_scale)
        super().__init__(
            self.settings.ratio,
            self.settings.back_ratio,
            self.settings.records,
            self.settings.median,
            RiseSettings(level=level),
        )
        self._seconds = 0.0

    def _has_lasted(self, step: Step) -> bool:
        """Add up the time above: pauses and breaks between sessions do not count, steps do."""
        self._seconds = self._seconds + (positive(step.duration) or 0.0) if self._above else 0.0
        return self._seconds >= self.settings.least_seconds

    def _value(self, step: Step) -> float | None:
        return positive(step.duration)

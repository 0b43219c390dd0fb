"""A positive quantity that has risen by a ratio and stays up: what gradient norms and step times have in common."""

from __future__ import annotations

import math
import statistics
from typing import Any, ClassVar

from monitor._records import Event, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_usable
from monitor.detect._rise import Rise, RiseSettings
from monitor.detect._wording import last_good, show


class LastingRiseDetector(Detector):
    """Raise an event when the median of the last records has stood ``ratio`` times above the level for ``patience``
    records.

    Works on the logarithm, so that the unit does not matter. Subclasses name the value and what to do.
    """

    state_names: ClassVar[tuple[str, ...]] = ("_recent", "_candidate", "_above", "_is_announced")
    part_names = ("rise",)
    quantity: ClassVar[str]
    """What rises, for the message."""
    unit: ClassVar[str] = ""
    """Of the quantity, with the space before it."""
    remedy: ClassVar[str]
    """What to do, as a sentence."""

    def __init__(self, ratio: float, back_ratio: float, patience: int, median: int, rise: RiseSettings) -> None:
        super().__init__()
        self._rise = Rise(rise)
        self._ratio = math.log(ratio)
        self._back = math.log(back_ratio)
        self._patience = patience
        self._median = median
        self._recent: list[float] = []
        self._candidate: list[Any] | None = None
        self._above = 0
        self._is_announced = False

    @property
    def rise(self) -> Rise:
        """The rise of the logarithm, for those who look at it beside something else."""
        return self._rise

    def _value(self, step: Step) -> float | None:
        raise NotImplementedError

    def _has_lasted(self, step: Step) -> bool:  # noqa: ARG002
        """Tell whether the rise, which has stood for enough records, has also stood for long enough."""
        return True

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        is_muted = self._muted > 0 and self._is_muted()
        value = self._value(step)
        if value is None or value <= 0.0:
            return None
        value = math.log(value)
        rise = self._rise
        rise.update(value, step.global_step)
        recent = self._recent
        recent.append(value)
        if len(recent) > self._median:
            del recent[0]
        if self._candidate is None:
            onset = rise.onset
            if not rise.is_alarm or onset is None:
                return None
            self._candidate, self._above, self._is_announced = [onset.step, onset.last_good, onset.level], 0, False
        if is_muted and self._open is None:
            self._is_announced = True
        return self._judge(step)

    def _judge(self, step: Step) -> Event | None:
        assert self._candidate is not None
        start, good, level = self._candidate
        median = statistics.median(self._recent)
        self._above = self._above + 1 if median > level + self._ratio else 0
        if self._rise.sum <= 0.0 and (self._is_announced or median < level + self._back):
            self._candidate = None
            if self._open is None:
                return None
            was = f"it had risen {self._span(self._open.details['level'], self._open.value or 0.0)}"
            back = f"{self.quantity} is back at {show(math.exp(median))}{self.unit}"
            return self._end(step.global_step, f"{back}; {was} since step {self._open.start_step}")
        has_lasted = self._has_lasted(step)
        if self._open is not None or self._is_announced or self._above < self._patience or not has_lasted:
            return None
        before, now = math.exp(level), math.exp(median)
        cause = f"{self.quantity} rose {self._span(before, now)} since step {start} and stays there"
        message = f"{cause}{last_good(good)}. {self.remedy}"
        return self._start(step.optimizer, step.global_step, start, message, now, level=before, last_good_step=good)

    def _span(self, before: float, now: float) -> str:
        return f"from {show(before)}{self.unit} to {show(now)}{self.unit}"

    def mute(self, records: int) -> None:
        """Raise no event for a rise that begins within the next ``records`` records."""
        self._muted = max(self._muted, records)


def positive(value: Any) -> float | None:
    """Return a usable number above 0, or None."""
    number = as_usable(value)
    return number if number is not None and number > 0.0 else None

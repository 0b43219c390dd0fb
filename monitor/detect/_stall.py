"""``stall``: no step for much longer than a step takes. Needs the time, which is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from monitor._checks import require
from monitor._records import Event, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_usable


@dataclass(frozen=True, kw_only=True)
class StallSettings:
    """Set when a run has stalled: after max(least, factor x usual step time) seconds, but after ``most`` at the latest.

    Attributes:
        least: seconds; 60, the design's.
        factor: times the usual step time; 10.
        most: seconds; 600, the ``stall_timeout`` of ``attach``.
        memory: steps over which the step time is averaged, each counted as 3 times the average at most.
    """

    least: float = 60.0
    factor: float = 10.0
    most: float = 600.0
    memory: float = 32.0

    def __post_init__(self) -> None:
        require(self, least=(0, 1e9), factor=(1, 1e9), most=(1e-3, 1e9), memory=(1, 1e6))


class StallDetector(Detector):
    """Raise ``stall`` from ``tick`` when no record has come for too long; end it with the next record. Never muted.

    Before the first record there is no stall: compiling and loading take what they take.

    Args:
        settings: see ``StallSettings``.

    >>> detector = StallDetector()
    >>> ended = [event for step in steps if (event := detector.update(step))]
    >>> detector.tick(steps[-1].time + 61).message
    'no step for 61 s since step 125. `py-spy dump --pid PID` shows what the training waits for'
    """

    kind = "stall"
    severity = "critical"
    state_names = ("_usual", "_step", "_optimizer")

    def __init__(self, settings: StallSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or StallSettings()
        self._usual: float | None = None
        self._time: float | None = None  # not part of the state: a resumed run has not stalled while it was away
        self._step: int | None = None
        self._optimizer: str | None = None

    @property
    def timeout(self) -> float:
        """Seconds without a step after which the run counts as stalled."""
        usual = self._usual or 0.0
        return min(self.settings.most, max(self.settings.least, self.settings.factor * usual))

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        before, self._time = self._time, step.time
        self._step, self._optimizer = step.global_step, step.optimizer
        duration = step.duration
        if type(duration) is not float or not 0.0 <= duration < 1e150:
            duration = as_usable(duration)
        if self._open is not None:
            waited = "" if before is None else f" after {step.time - before:.0f} s"
            was = f"there was none since step {self._open.step}"
            return self._end(step.global_step, f"steps continue at step {step.global_step}{waited}; {was}")
        if duration is not None and duration >= 0.0:
            usual = self._usual
            if usual is None:
                self._usual = duration
            else:
                self._usual = usual + (min(duration, 3.0 * usual + 1e-3) - usual) / self.settings.memory
        return None

    def is_near(self, now: float) -> bool:
        """Tell whether half of the time has passed after which the run counts as stalled."""
        return self._time is not None and self._open is None and now - self._time > self.timeout / 2

    def tick(self, now: float, *, is_excused: bool = False) -> Event | None:
        """Take the time in the unit of ``Step.time``. ``is_excused``: a validation, checkpoint or pause is on."""
        if self._time is None or self._step is None:
            return None
        if is_excused:
            self._time = now
            return None
        waited = now - self._time
        if self._open is not None or waited <= self.timeout:
            return None
        usual = "" if self._usual is None else f"; a step usually takes {self._usual:.3g} s"
        message = (
            f"no step for {waited:.0f} s since step {self._step}{usual}. "
            "`py-spy dump --pid PID` shows what the training waits for"
        )
        return self._start(self._optimizer, self._step, self._step, message, waited, timeout=self.timeout)

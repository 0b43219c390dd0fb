"""``stuck``: the loss is bit-identical record after record. Frozen weights, a constant output, a batch that never
changes."""

from __future__ import annotations

from dataclasses import dataclass

from monitor._checks import require_whole
from monitor._records import Event, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import LARGEST, as_usable
from monitor.detect._wording import show


@dataclass(frozen=True, kw_only=True)
class StuckSettings:
    """Set when the loss is stuck.

    Attributes:
        records: equal losses in a row; 50, the design's.
    """

    records: int = 50

    def __post_init__(self) -> None:
        require_whole(self, records=(2, 10**9))


class StuckDetector(Detector):
    """Raise ``stuck`` when the loss has been bit-identical for 50 records; end it when it moves."""

    kind = "stuck"
    state_names = ("_value", "_equal", "_since")

    def __init__(self, settings: StuckSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or StuckSettings()
        self._value: float | None = None
        self._equal = 0
        self._since: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        loss = step.loss
        if type(loss) is not float or not -LARGEST < loss < LARGEST:
            loss = as_usable(loss)
        if loss is None:
            return None
        if loss != self._value:
            self._value, self._equal, self._since = loss, 1, step.global_step
            if self._open is None:
                return None
            was = f"it was exactly {self._open.value!r} since step {self._open.start_step}"
            return self._end(step.global_step, f"loss moves again at step {step.global_step}: {show(loss)}; {was}")
        self._equal += 1
        if self._equal < self.settings.records or self._open is not None or self._since is None:
            return None
        message = (
            f"loss is exactly {loss!r} for {self._equal} records since step {self._since}. It learns nothing: look for "
            "frozen weights, a detached or clamped loss, or a batch that is read over and over"
        )
        return self._start(step.optimizer, step.global_step, self._since, message, loss)

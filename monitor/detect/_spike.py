"""``spike``: the loss stands above its level for several records, and comes back."""

from __future__ import annotations

from monitor._records import Event, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import show
from monitor.detect._rise import LossRise, RiseSettings


class SpikeDetector(Detector):
    """Raise ``spike`` when the loss has risen and stays up for some records; end it when the loss is back at its level.

    Persistence, not height, tells a spike from noise: four records of 5 scales, or more of less, are one; a single
    record of 30 is not. The baseline is the level before the rise. About 2 us a record.

    Args:
        settings: see ``RiseSettings``; default: as measured (docs/detection.md).
        rise: the loss's rise, when it is shared with other detectors; ``settings`` is not used then.

    >>> detector = SpikeDetector()
    >>> [event.start_step for step in steps if (event := detector.update(step))]
    [101, 101]
    """

    kind = "spike"
    state_names = ("_top", "_announced")
    part_names = ("rise",)

    def __init__(self, settings: RiseSettings | None = None, *, rise: LossRise | None = None) -> None:
        super().__init__()
        self._rise = rise if rise is not None else LossRise(settings)
        self._top = 0.0
        self._announced: int | None = None  # the onset, by its count of records, of a rise that began while muted

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        rise = self._rise
        loss = rise.take(step)
        is_muted = self._muted > 0 and self._is_muted()
        if loss is None:
            return None
        onset = rise.onset
        if is_muted and onset is not None:
            self._announced = onset.count
        if self._open is not None:
            if loss > self._top:
                self._top = loss
            if rise.sum <= 0.0:
                return self._finish(step, loss)
        elif rise.is_alarm and onset is not None and onset.count != self._announced:
            return self._raise(step, loss)
        return None

    def _raise(self, step: Step, loss: float) -> Event:
        rise = self._rise
        onset = rise.onset
        assert onset is not None
        self._top = max(rise.peak, loss)
        good = "" if onset.last_good is None else f"; last good step {onset.last_good}"
        message = (
            f"loss rose from {show(onset.level)} to {show(self._top)} within {rise.length} records "
            f"from step {onset.step}{good}"
        )
        return self._start(
            step.optimizer,
            step.global_step,
            onset.step,
            message,
            loss,
            level=onset.level,
            scale=onset.scale,
            peak=self._top,
            last_good_step=onset.last_good,
        )

    def _finish(self, step: Step, loss: float) -> Event | None:
        assert self._open is not None
        start = self._open.start_step
        level = self._open.details["level"]
        return self._end(
            step.global_step,
            f"loss is back at {show(loss)} at step {step.global_step}; it had risen from {show(level)} to "
            f"{show(self._top)} from step {start}",
        )

    def mute(self, records: int) -> None:
        """Raise no spike for a rise that begins within the next ``records`` records."""
        self._muted = max(self._muted, records)

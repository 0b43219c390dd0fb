"""``spike``: the loss stands above its level for several records, and comes back."""

from __future__ import annotations

from monitor._records import Event, Sample, Step
from monitor.detect._detector import Detector
from monitor.detect._loss import LossRise, LossSettings
from monitor.detect._wording import REDUCE, last_good, show


class SpikeDetector(Detector):
    """Raise ``spike`` when the loss has risen and stays up for some records; end it when the loss is back at its level.

    Persistence, not height, tells a spike from noise: four records in a row above what the run's own noise reaches at
    the asked rate are one; a single record of any height is not. The baseline is the level before the rise.
    ``details["alarms_per_100k_steps"]`` of the event says how often this run's noise reaches as high. Where the
    gradient norm has risen before the loss, the event starts with the norm and is rarer by the share of records in
    which the norm had risen. The message names it, as it does a learning rate that was raised.

    Args:
        settings: see ``LossSettings``; default: as measured (docs/detection.md).
        rise: the loss's rise, when it is shared with other detectors; ``settings`` is not used then.

    >>> detector = SpikeDetector()
    >>> [event.start_step for step in steps if (event := detector.update(step))]
    [101, 101]
    """

    kind = "spike"
    state_names = ("_top", "_announced")
    part_names = ("rise",)

    def __init__(self, settings: LossSettings | None = None, *, rise: LossRise | None = None) -> None:
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
            self._top = max(self._top, loss)
            return None if rise.is_up else self._finish(step, loss)
        if rise.is_new and onset is not None and onset.count != self._announced:
            return self._raise(step, loss)
        return None

    def observe(self, sample: Sample) -> None:
        """Take a validation loss, to be named beside a rise; no event comes of it."""
        self._rise.context.observe(sample)

    def _raise(self, step: Step, loss: float) -> Event:
        rise = self._rise
        onset = rise.onset
        assert onset is not None
        self._top = max(rise.peak, loss)
        level = rise.signal.raw(onset.level)
        start, good = rise.context.norm_rise(onset.step) or (onset.step, onset.last_good)
        beside, details = rise.context.describe(step, onset.step)
        message = (
            f"loss rose from {show(level)} to {show(self._top)} since step {onset.step}{beside}{last_good(good)}. "
            f"{REDUCE} if this happens again and again; one that comes back needs nothing"
        )
        return self._start(
            step.optimizer,
            step.global_step,
            start,
            message,
            loss,
            level=level,
            scale=onset.scale,
            peak=self._top,
            last_good_step=good,
            alarms_per_100k_steps=rise.alarms_per_100k_steps(rise.height) * rise.context.coincidence(onset.step),
            **details,
        )

    def _finish(self, step: Step, loss: float) -> Event | None:
        assert self._open is not None
        start = self._open.start_step
        level = self._open.details["level"]
        return self._end(
            step.global_step,
            f"loss is back at {show(loss)} at step {step.global_step}; it had risen from {show(level)} to "
            f"{show(self._top)} since step {start}",
        )

    def mute(self, records: int) -> None:
        """Raise no spike for a rise that begins within the next ``records`` records."""
        self._muted = max(self._muted, records)

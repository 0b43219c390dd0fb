"""``outlier``: one isolated point far above the level. Data, not the model: information only."""

from __future__ import annotations

from monitor._records import Event, Step
from monitor.detect._detector import Detector
from monitor.detect._loss import LossRise, LossSettings
from monitor.detect._wording import show


class OutlierDetector(Detector):
    """Report up to three records in a row that stood more than 6 scales above the level and came back by themselves.

    Healthy runs whose loss is per rank or per small batch show dozens of them. The event comes with the record after
    them and has its ``end_step`` already.

    Args:
        settings: see ``LossSettings`` (``isolated``).
        rise: the loss's rise, when it is shared with other detectors; ``settings`` is not used then.
    """

    kind = "outlier"
    severity = "info"
    part_names = ("rise",)

    def __init__(self, settings: LossSettings | None = None, *, rise: LossRise | None = None) -> None:
        super().__init__()
        self._rise = rise if rise is not None else LossRise(settings)

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        self._rise.take(step)
        is_muted = self._muted > 0 and self._is_muted()
        point = self._rise.isolated
        if point is None or is_muted:
            return None
        first, last, value, height, level = point
        level = self._rise.signal.raw(level)
        where = f"at step {first}" if first == last else f"in steps {first} to {last}"
        message = (
            f"loss was {show(value)} {where} instead of {show(level)}, and came back. One batch of data, as a rule"
        )
        self._start(step.optimizer, step.global_step, first, message, value, level=level, height=height)
        return self._end(last, message)

    def mute(self, records: int) -> None:
        """Report nothing within the next ``records`` records."""
        self._muted = max(self._muted, records)

"""All detectors of one optimizer: records in, events out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monitor._records import Event, Sample, Step
from monitor.detect._clipping import ClippingDetector
from monitor.detect._context import Context
from monitor.detect._detector import Detector
from monitor.detect._divergence import DivergenceDetector
from monitor.detect._gradients import GradientExplosionDetector, GradientVanishingDetector
from monitor.detect._loss import LossRise, LossSettings
from monitor.detect._nonfinite import NonfiniteDetector, NonfiniteMetricDetector
from monitor.detect._numbers import as_usable
from monitor.detect._outlier import OutlierDetector
from monitor.detect._overfit import OverfitDetector
from monitor.detect._plateau import PlateauDetector, PlateauSettings
from monitor.detect._slowdown import SlowdownDetector
from monitor.detect._spike import SpikeDetector
from monitor.detect._stall import StallDetector, StallSettings
from monitor.detect._stuck import StuckDetector

LR_RAISED = 1.5
"""A learning rate above this times the one of the record before is an announced change."""
_VERSION = 3
"""Of the saved state."""
YOUNG_RECORDS = 16
"""Records before which no change of the learning rate mutes."""
MUTE_RECORDS = 64
"""Records for which an announced change mutes; the memory of the level's scale."""


def default_detectors(
    *,
    steps_per_record: float = 1.0,
    stall_timeout: float = 600.0,
    false_alarms_per_100k_steps: float = 1.0,
    expected_initial_loss: float | None = None,
) -> tuple[Detector, ...]:
    """Make one detector of every kind, for one optimizer, as measured on real curves.

    Args:
        steps_per_record: optimizer steps that one record stands for; 1 in a live run, the logging interval of a file.
        stall_timeout: seconds without a step that are a stall at the latest.
        false_alarms_per_100k_steps: the rate at which the noise of the run itself may raise a spike, see
            ``LossSettings``.
        expected_initial_loss: loss of a model that has learned nothing, see ``PlateauSettings``; None: not known.

    >>> [detector.kind for detector in default_detectors()][:3]
    ['nonfinite', 'spike', 'outlier']
    """
    explosion = GradientExplosionDetector()
    rise = LossRise(
        LossSettings(steps_per_record=steps_per_record, false_alarms_per_100k_steps=false_alarms_per_100k_steps),
        context=Context(explosion.rise),
    )
    return (
        NonfiniteDetector(),
        SpikeDetector(rise=rise),
        OutlierDetector(rise=rise),
        DivergenceDetector(rise=rise),
        PlateauDetector(PlateauSettings(expected_initial_loss=expected_initial_loss), rise=rise),
        OverfitDetector(),
        explosion,
        GradientVanishingDetector(),
        ClippingDetector(),
        StuckDetector(),
        StallDetector(_stall_settings(stall_timeout)),
        SlowdownDetector(),
        NonfiniteMetricDetector(),
    )


def rl_detectors(*, stall_timeout: float = 600.0) -> tuple[Detector, ...]:
    """Make the detectors that mean something where the loss is no sign of health: nonfinite, nonfinite_metric, stuck,
    stall and slowdown.

    RL losses rise and fall with the returns; so do those of adversarial training.

    >>> with monitor.attach(optimizer, detectors=monitor.rl_detectors()):
    ...     train()
    """
    return (
        NonfiniteDetector(),
        NonfiniteMetricDetector(),
        StuckDetector(),
        StallDetector(_stall_settings(stall_timeout)),
        SlowdownDetector(),
    )


def _stall_settings(stall_timeout: float) -> StallSettings:
    return StallSettings(most=stall_timeout)


class DetectorSet:
    """Run detectors over the records of one optimizer.

    A detector never raises for what a record holds: a missing loss is passed over; ints, numpy scalars and one-element
    tensors are read; strings and complex numbers count as missing. Step numbers only name records (see ``Detector``).

    Args:
        detectors: of one optimizer; their state belongs to this set from here on. Default: ``default_detectors()``.

    Example:
        >>> detectors = DetectorSet()
        >>> for step in steps:
        ...     for event in detectors.update(step):
        ...         print(event.kind, event.start_step, event.end_step)
        spike 101 None
        spike 101 110
    """

    def __init__(self, detectors: Iterable[Detector] | None = None) -> None:
        self._detectors = tuple(default_detectors() if detectors is None else detectors)
        for detector in self._detectors:
            if not isinstance(detector, Detector):
                raise TypeError(
                    f"detectors must be Detector objects, got {detector!r}; see monitor.detect.default_detectors()"
                )
        kinds = [detector.kind for detector in self._detectors]
        doubled = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if doubled:
            raise ValueError(f"detectors must be of different kinds, got {', '.join(doubled)} more than once")
        self._lr: list[float | None] = []
        self._count = 0

    @property
    def detectors(self) -> Sequence[Detector]:
        """The detectors, in the order in which they are asked."""
        return self._detectors

    @property
    def active(self) -> tuple[Event, ...]:
        """The events of the conditions that hold now."""
        return tuple(event for detector in self._detectors if (event := detector.active) is not None)

    def update(self, step: Step) -> list[Event]:
        """Take the next record; return the events that start or end with it, in the detectors' order."""
        if step.groups:
            self._follow_lr(step)
        return [event for detector in self._detectors if (event := detector.update(step)) is not None]

    def observe(self, sample: Sample) -> list[Event]:
        """Take a logged value, such as ``Sample(kind="val_loss")``; return the events that start or end with it."""
        return [event for detector in self._detectors if (event := detector.observe(sample)) is not None]

    def is_stall_near(self, now: float) -> bool:
        """Tell whether a stall starts soon if nothing excuses it: then it is worth looking for an excuse."""
        return any(detector.is_near(now) for detector in self._detectors if isinstance(detector, StallDetector))

    def tick(self, now: float, *, is_excused: bool = False) -> list[Event]:
        """Take the time (the clock of ``Step.time``), a few times a minute; return a stall that starts.

        ``is_excused``: a validation, a checkpoint or a pause continues.
        """
        return [e for detector in self._detectors if (e := detector.tick(now, is_excused=is_excused)) is not None]

    def expect(self, initial_loss: float) -> None:
        """Say what the loss of a model that has learned nothing is; ``PlateauSettings`` that say so stand."""
        for detector in self._detectors:
            if isinstance(detector, PlateauDetector):
                detector.expect(initial_loss)

    def announce(self, records: int = MUTE_RECORDS) -> None:
        """Say that something was changed on purpose (batch size, raised LR): rises in the next records start no event.

        A divergence that begins then is still raised when it gives back a good part of what the run had learned.
        nonfinite, plateau, overfit, stuck, stall and clipping are not muted.

        Raises:
            ValueError: a negative number of records.
        """
        if records < 0:
            raise ValueError(f"records must be at least 0, got {records!r}")
        for detector in self._detectors:
            detector.mute(records)

    def _follow_lr(self, step: Step) -> None:
        """Announce a learning rate raised more than 1.5 times from one record to the next. Falls need nothing.

        The first steps of a linear warm-up multiply it so, too; a run that young has no level that could rise.
        """
        self._count += 1
        rates = [lr if type(lr := group.applied) is float else as_usable(lr) for group in step.groups]
        if rates == self._lr:
            return
        for before, now in zip(self._lr, rates, strict=False):
            if self._count > YOUNG_RECORDS and before and now and LR_RAISED * before < now:
                self.announce()
                break
        self._lr = rates

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all detectors, as plain values that JSON can hold."""
        return {
            "detectors": {detector.kind: detector.state_dict() for detector in self._detectors},
            "version": _VERSION,
            "lr": [as_usable(rate) for rate in self._lr],
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. A kind that only one side has keeps what it has.

        The state of another version of the detectors says nothing to these: they warm up instead.
        """
        states = state["detectors"]
        if state.get("version") != _VERSION:
            return
        for detector in self._detectors:
            known = states.get(detector.kind)
            if known is not None:
                detector.load_state_dict(known)
        self._lr = list(state["lr"])
        self._count = state["count"]

"""``nonfinite``: the loss or the gradient norm is NaN or infinite; ``nonfinite_metric``: a logged value is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Sample, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_number
from monitor.detect._wording import REDUCE, checkpoint, last_good

_NAMES = {"loss": "loss", "gradient": "gradient norm"}
_SCALER = (
    "The GradScaler skips these steps and the weights are unharmed: use bfloat16, clip after `scaler.unscale_`, or "
    "look for what overflows"
)
_METRIC = "Look at the evaluation, for a ratio over nothing or the logarithm of 0; the training itself goes on"


@dataclass(frozen=True, kw_only=True)
class NonfiniteSettings:
    """Set when infinite gradients are trouble, and when trouble is over.

    GradScaler finds its scale by overflowing now and then (torch halves it and skips the step): that is health, unless
    it continues. So is a single infinite norm without one: in fp16 a sum of squares overflows while every gradient is
    finite, and where one is not, the very next loss says so. A NaN norm is no overflow: the update has spoilt the
    weights, and that is trouble at once.

    Attributes:
        infinities: infinite gradient norms in a row, without a GradScaler, that are trouble.
        skips: overflows in a row under a GradScaler that are trouble; 8 halvings take 65536 to 256.
        scale_floor: a scale at or below which an overflow is trouble at once; 1: there is nothing left to halve.
        recovery: finite records in a row after which the condition is over, so that a flickering loss is one event.
    """

    infinities: int = 3
    skips: int = 8
    scale_floor: float = 1.0
    recovery: int = 8

    def __post_init__(self) -> None:
        require_whole(self, infinities=(1, 10**6), skips=(1, 10**6), recovery=(1, 10**6))
        require(self, scale_floor=(0, 1e30))


class NonfiniteDetector(Detector):
    """Raise ``nonfinite`` at the very record whose loss is not finite, or whose gradient norm is NaN. Infinite norms
    must last, see ``NonfiniteSettings``, or be followed by such a loss. Never muted."""

    kind = "nonfinite"
    severity = "critical"
    state_names = ("_skips", "_first_skip", "_finite", "_finite_since", "_last_good")

    def __init__(self, settings: NonfiniteSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or NonfiniteSettings()
        self._skips = 0
        self._first_skip: int | None = None
        self._finite = 0
        self._finite_since: int | None = None
        self._last_good: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        loss = step.loss
        norm = step.gradient_norm
        if type(loss) is not float:
            loss = as_number(loss)
        if norm is not None and type(norm) is not float:
            norm = as_number(norm)
        # x - x is 0 for every finite x and NaN for all others.
        is_bad_loss = loss is not None and loss - loss != 0.0
        is_bad_norm = norm is not None and norm - norm != 0.0
        if not (is_bad_loss or is_bad_norm or step.is_skipped):
            if self._skips:
                if norm is None and step.amp_scale is None and self._open is None:
                    return None  # nobody has looked at the gradients: it is not known whether they are finite again
                self._skips, self._first_skip = 0, None
            if self._open is not None:
                return self._recover(step) if loss is not None or norm is not None else None
            self._last_good = step.global_step
            return None
        if not is_bad_loss and not self._is_lasting(step, norm):
            return None
        start = step.global_step
        if self._first_skip is not None and not (is_bad_loss and step.amp_scale is not None):
            start = self._first_skip
        self._finite = 0
        return None if self._open is not None else self._raise(step, start, is_bad_loss, loss if is_bad_loss else norm)

    def _is_lasting(self, step: Step, norm: float | None) -> bool:
        """Count an overflow; say whether it is one too many, or none."""
        if self._skips == 0:
            self._first_skip = step.global_step
        self._skips += 1
        scale = as_number(step.amp_scale)
        if scale is None:
            if norm is None or math.isfinite(norm):
                return False
            return math.isnan(norm) or self._skips >= self.settings.infinities
        return self._skips >= self.settings.skips or scale <= self.settings.scale_floor

    def _raise(self, step: Step, start: int, is_loss: bool, value: float | None) -> Event:
        of, good = "loss" if is_loss else "gradient", self._last_good
        skips = "" if is_loss or self._skips < 2 else f" for {self._skips} steps in a row"
        return self._start(
            step.optimizer,
            step.global_step,
            start,
            f"{_NAMES[of]} is {_not_finite(value)} at step {step.global_step}{skips}{last_good(good)}. "
            + (
                _SCALER
                if step.is_skipped and not is_loss
                else f"Restore {checkpoint(start, good)} and {REDUCE[0].lower()}{REDUCE[1:]}"
            ),
            value,
            of=of,
            last_good_step=good,
        )

    def _recover(self, step: Step) -> Event | None:
        if self._finite == 0:
            self._finite_since = step.global_step
        self._finite += 1
        if self._finite < self.settings.recovery or self._finite_since is None:
            return None
        since, self._finite = self._finite_since, 0
        self._last_good = step.global_step
        assert self._open is not None
        was = f"it was {_not_finite(self._open.value)} since step {self._open.start_step}"
        return self._end(since, f"{_NAMES[self._open.details['of']]} is finite again from step {since}; {was}")


class NonfiniteMetricDetector(Detector):
    """Raise ``nonfinite_metric`` when a validation loss or a metric that was logged is NaN or infinite: one event a
    name, over when the value is finite again.

    A warning, not ``nonfinite``: a metric may be undefined for a while (a ratio over nothing) in a run that learns, and
    no alert or policy on the training loss must act on it. The n-th event of a name asks for n finite values in a row
    to be over, 64 at most, so that one that flickers is few events. The first ``most_names`` names are followed.
    """

    kind = "nonfinite_metric"
    state_names = ("_names",)
    most_names = 128
    most_patience = 64

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, dict[str, Any]] = {}

    def observe(self, sample: Sample) -> Event | None:
        """Take a logged value; see ``Detector.observe``."""
        value = as_number(sample.value)
        if value is None or sample.kind not in ("val_loss", "metric"):
            return None
        known = self._names.get(f"{sample.kind} {sample.name}")
        if known is None:
            if math.isfinite(value) or len(self._names) >= self.most_names:
                return None
            known = {"times": 0, "finite": 0, "since": None, "event": None}
            self._names[f"{sample.kind} {sample.name}"] = known
        return self._recover_value(known, sample) if math.isfinite(value) else self._raise_value(known, sample, value)

    def _raise_value(self, known: dict[str, Any], sample: Sample, value: float) -> Event | None:
        known["finite"] = 0
        if known["event"] is not None:
            return None
        known["times"] = min(self.most_patience, known["times"] + 1)
        message = f"{_named(sample)} is {_not_finite(value)} at step {sample.step}. {_METRIC}"
        details = {"of": sample.kind, "name": sample.name}
        event = Event(self.kind, self.severity, sample.step, sample.step, message, None, value, details=details)
        known["event"] = asdict(event)
        return event

    def _recover_value(self, known: dict[str, Any], sample: Sample) -> Event | None:
        if known["event"] is None:
            return None
        if known["finite"] == 0:
            known["since"] = sample.step
        known["finite"] += 1
        if known["finite"] < known["times"]:
            return None
        event, known["event"] = Event(**known["event"]), None
        since = known["since"]
        was = f"it was {_not_finite(event.value)} since step {event.start_step}"
        return replace(event, end_step=since, message=f"{_named(sample)} is finite again from step {since}; {was}")


def _not_finite(value: float | None) -> str:
    return "NaN" if value is not None and math.isnan(value) else "infinite"


def _named(sample: Sample) -> str:
    if sample.kind == "metric":
        return f"the metric {sample.name!r}"
    return "the validation loss" if sample.name == "validation" else f"the validation loss {sample.name!r}"

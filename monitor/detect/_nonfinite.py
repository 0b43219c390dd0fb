"""``nonfinite``: the loss or the gradient norm is NaN or infinite."""

from __future__ import annotations

import math
from dataclasses import dataclass

from monitor._records import Event, Step
from monitor.detect._checks import require, require_whole
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_number


@dataclass(frozen=True, kw_only=True)
class NonfiniteSettings:
    """Set when infinite gradients under a GradScaler are trouble, and when trouble is over.

    GradScaler finds its scale by overflowing now and then (torch halves it and skips the step): that is health, unless
    it goes on.

    Attributes:
        skips: overflows in a row under a GradScaler that are trouble; 8 halvings take 65536 to 256.
        scale_floor: a scale at or below which an overflow is trouble at once; 1: there is nothing left to halve.
        recovery: finite records in a row after which the condition is over, so that a flickering loss is one event.
    """

    skips: int = 8
    scale_floor: float = 1.0
    recovery: int = 8

    def __post_init__(self) -> None:
        require_whole(self, skips=(1, 10**6), recovery=(1, 10**6))
        require(self, scale_floor=(0, 1e30))


class NonfiniteDetector(Detector):
    """Raise ``nonfinite`` at the very record whose loss or gradient norm is not finite. Never muted."""

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
                self._skips, self._first_skip = 0, None
            if self._open is not None:
                return self._recover(step) if loss is not None or norm is not None else None
            self._last_good = step.global_step
            return None
        start = step.global_step
        if not is_bad_loss:
            if not self._is_lasting(step, is_bad_norm):
                return None
            start = self._first_skip if self._first_skip is not None else start
        self._finite = 0
        return None if self._open is not None else self._raise(step, start, is_bad_loss, loss if is_bad_loss else norm)

    def _is_lasting(self, step: Step, is_bad_norm: bool) -> bool:
        """Count an overflow; say whether it is one too many, or one that no scaler has asked for."""
        if self._skips == 0:
            self._first_skip = step.global_step
        self._skips += 1
        scale = as_number(step.amp_scale)
        if scale is None:
            return is_bad_norm
        return self._skips >= self.settings.skips or scale <= self.settings.scale_floor

    def _raise(self, step: Step, start: int, is_loss: bool, value: float | None) -> Event:
        what = "loss" if is_loss else "gradient norm"
        shown = "infinite" if value is None else "NaN" if math.isnan(value) else "infinite"
        good = "" if self._last_good is None else f"; last good step {self._last_good}"
        skips = "" if is_loss or self._skips < 2 else f" for {self._skips} steps in a row"
        return self._start(
            step.optimizer,
            step.global_step,
            start,
            f"{what} is {shown} at step {step.global_step}{skips}{good}",
            value,
            of="loss" if is_loss else "gradient",
            last_good_step=self._last_good,
        )

    def _recover(self, step: Step) -> Event | None:
        if self._finite == 0:
            self._finite_since = step.global_step
        self._finite += 1
        if self._finite < self.settings.recovery or self._finite_since is None:
            return None
        since, self._finite = self._finite_since, 0
        self._last_good = step.global_step
        return self._end(since, f"finite again from step {since}")

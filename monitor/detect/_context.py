"""The circumstances of a rise of the loss: a learning rate that was raised, a gradient norm that rose first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor._records import Step
from monitor.detect._numbers import as_usable
from monitor.detect._rise import Rise
from monitor.detect._wording import show

_SPACING = 8
_KEPT = 8
"""Learning rates kept, one of every ``_SPACING`` records: the last 64."""
_RAISED = 1.1


class Context:
    """Follow the largest learning rate and the gradient norm, to say with a rise of the loss what went before.

    Args:
        norm: the rise of the logarithm of the gradient norm, where somebody follows it.
    """

    def __init__(self, norm: Rise | None = None) -> None:
        self._norm = norm
        self._rates: list[list[Any]] = []  # [step, learning rate], oldest first
        self._count = 0

    def follow(self, step: Step) -> None:
        """Take the next record."""
        if self._count % _SPACING == 0 and step.groups:
            self._rates = [*self._rates[-_KEPT:], [step.global_step, _largest_lr(step)]]
        self._count += 1

    def norm_rise(self, step: int) -> tuple[int, int | None] | None:
        """Return since when the gradient norm has risen and its last good step, if that was before ``step``."""
        if self._norm is None or (onset := self._norm.onset) is None:
            return None
        is_recent = self._norm.level.count - onset.count < _SPACING * _KEPT
        return (onset.step, onset.last_good) if is_recent and onset.step <= step else None

    def lr_rise(self, step: Step) -> tuple[float, float, int] | None:
        """Return from where to where the learning rate has risen by a tenth or more, and since which step."""
        now = _largest_lr(step)
        earlier = [(rate, at) for at, rate in self._rates if rate is not None and at < step.global_step]
        if now is None or not earlier:
            return None
        least, at = min(earlier)
        return (least, now, at) if now > _RAISED * least > 0.0 else None

    def describe(self, step: Step, onset: int) -> tuple[str, dict[str, Any]]:
        """Return what went before as the end of a message, and as details of an event."""
        text = ""
        details: dict[str, Any] = {}
        if (norm := self.norm_rise(onset)) is not None:
            text += f"; the gradient norm has risen since step {norm[0]}"
            details["gradient_norm_since"] = norm[0]
        if (lr := self.lr_rise(step)) is not None:
            text += f"; the learning rate rose from {show(lr[0])} to {show(lr[1])} since step {lr[2]}"
            details["lr_before"], details["lr_now"] = lr[0], lr[1]
        return text, details

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        return {"rates": [list(each) for each in self._rates], "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._rates, self._count = [list(each) for each in state["rates"]], state["count"]


def _largest_lr(step: Step) -> float | None:
    return max((rate for group in step.groups if (rate := as_usable(group.applied)) is not None), default=None)

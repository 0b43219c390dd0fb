"""The circumstances of a trouble of the loss: learning rate, gradient norm and validation loss beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor._records import Sample, Step
from monitor.detect._numbers import as_usable
from monitor.detect._rise import Rise
from monitor.detect._wording import show

_SPACING = 8
_KEPT = 8
"""Learning rates kept, one of every ``_SPACING`` records: the last 64."""
_RAISED = 1.1
_VALIDATIONS = 32
"""Validation losses kept; beyond, every other one of the older half goes."""


class Context:
    """Follow the largest learning rate, the gradient norm and the first validation loss, to say beside a trouble of the
    loss what they did.

    Args:
        norm: the rise of the logarithm of the gradient norm, where somebody follows it.
    """

    def __init__(self, norm: Rise | None = None) -> None:
        self._norm = norm
        self._rates: list[list[Any]] = []  # [step, learning rate], oldest first
        self._count = 0
        self._risen = 0  # records in which the gradient norm had risen
        self._dataset: str | None = None
        self._validations: list[list[Any]] = []  # [step, loss], oldest first
        self._sample: Sample | None = None

    def follow(self, step: Step) -> None:
        """Take the next record."""
        if self._count % _SPACING == 0 and step.groups:
            self._rates = [*self._rates[-_KEPT:], [step.global_step, _largest_lr(step)]]
        self._count += 1
        if self._norm is not None and self._norm.is_alarm:
            self._risen += 1

    def observe(self, sample: Sample) -> None:
        """Take a validation loss unless that has been done; the dataset that comes first is followed."""
        if sample is self._sample or sample.kind != "val_loss":
            return
        self._sample = sample
        self._dataset = self._dataset or sample.name
        if sample.name == self._dataset and (value := as_usable(sample.value)) is not None:
            self._validations.append([sample.step, value])
            if len(self._validations) > _VALIDATIONS:
                half = _VALIDATIONS // 2
                self._validations = [*self._validations[:half:2], *self._validations[half:]]

    def norm_rise(self, step: int) -> tuple[int, int | None] | None:
        """Return since when the gradient norm has risen and its last good step, if that was before ``step``."""
        if self._norm is None or not self._norm.is_alarm or (onset := self._norm.onset) is None:
            return None
        is_recent = self._norm.level.count - onset.count < _SPACING * _KEPT
        return (onset.step, onset.last_good) if is_recent and onset.step <= step else None

    def coincidence(self, step: int) -> float:
        """Return the probability that the gradient norm has risen by chance before ``step``: the share of records in
        which it had; 1 where it has not.

        The noise of the loss reaches a height that much more rarely together with a risen norm, where the two are
        independent.
        """
        return 1.0 if self.norm_rise(step) is None else (self._risen + 1) / (self._count + 1)

    def describe_validation(self, since: int) -> tuple[str, dict[str, float]]:
        """Return the last validation loss before ``since`` and the newest, where there is one on either side."""
        before = [value for at, value in self._validations if at < since]
        after = [value for at, value in self._validations if at >= since]
        if not before or not after:
            return "", {}
        text = f"; the validation loss went from {show(before[-1])} to {show(after[-1])}"
        return text, {"validation_before": before[-1], "validation_now": after[-1]}

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
        beside, validations = self.describe_validation(onset)
        return text + beside, {**details, **validations}

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        return {
            "rates": [list(each) for each in self._rates],
            "count": self._count,
            "risen": self._risen,
            "dataset": self._dataset,
            "validations": [list(each) for each in self._validations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._rates, self._count = [list(each) for each in state["rates"]], state["count"]
        self._risen, self._dataset = state["risen"], state["dataset"]
        self._validations = [list(each) for each in state["validations"]]


def _largest_lr(step: Step) -> float | None:
    return max((rate for group in step.groups if (rate := as_usable(group.applied)) is not None), default=None)

"""``capture``: no loss is known any more."""

from __future__ import annotations

from dataclasses import replace

from monitor._records import Event, Step

PATIENCE_STEPS = 10


class LossSight:
    """Say once that the steps of an optimizer come without a loss, and that they have one again.

    Ten steps in a row are it: a single one may be a warm-up, or its loss is logged with the next. What a GradScaler
    skips is no step here.
    """

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._since: int | None = None
        self._num_steps = 0
        self._event: Event | None = None

    def add(self, step: Step) -> Event | None:
        """Take the next step; return the event that begins or ends with it."""
        if step.is_skipped:
            return None
        if step.loss is not None:
            return self._end(step.global_step)
        if self._num_steps == 0:
            self._since = step.global_step
        self._num_steps += 1
        if self._num_steps != PATIENCE_STEPS or self._event is not None or self._since is None:
            return None
        self._event = Event(
            "capture", "warning", step.global_step, self._since, self._message(self._since), self._optimizer
        )
        return self._event

    def amend(self, step: int) -> Event | None:
        """Take note of a loss that was logged for the last step; return the event that ends with it."""
        return self._end(step)

    def _message(self, since: int) -> str:
        return (
            f"no loss is known for {self._optimizer} since step {since}: its gradients did not come from backward() of "
            "a scalar (torch.autograd.grad, an explicit gradient, torch.func, or gradients set by hand, as with fp32 "
            "master copies); report it with run.log(loss=...)"
        )

    def _end(self, step: int) -> Event | None:
        self._num_steps = 0
        event = self._event
        if event is None or event.end_step is not None:
            return None
        self._event = replace(event, end_step=step, message=f"the loss is known again from step {step}")
        return self._event

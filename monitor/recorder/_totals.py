"""What is known of a run as a whole, from its steps and logged values: what a snapshot shows beside its state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from monitor._records import MAX_NAMES, OptimizerSnapshot, Sample, Step
from monitor.common import MAX_NAME, is_shortened
from monitor.recorder._aggregates import OptimizerAggregate, PaceAggregate, Throughput

_LOG = logging.getLogger("monitor")


class RunTotals:
    """Add up steps and logged values.

    Args:
        optimizers: name -> class name; the first one paces the run.
        window: steps in the trailing windows.
    """

    def __init__(self, optimizers: Mapping[str, str], window: int) -> None:
        self._aggregates = {key: OptimizerAggregate(key, name, window) for key, name in optimizers.items()}
        self._first = next(iter(optimizers))
        self._pace = PaceAggregate(window)
        self._samples = Throughput(window)
        self._tokens = Throughput(window)
        self._validation: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        self._num_refused_names = 0

    def add_step(self, step: Step) -> float | None:
        """Add a step; return the smoothed loss after it."""
        aggregate = self._aggregates[step.optimizer]
        aggregate.add(step)
        self._pace.add(step, step.optimizer == self._first)
        return aggregate.ema

    def amend_loss(self, optimizer: str, loss: float) -> None:
        """Give the last step of an optimizer another loss."""
        self._aggregates[optimizer].amend_loss(loss)

    def add_sample(self, sample: Sample) -> None:
        """Add a value that was logged, not the loss of a step."""
        if sample.kind == "samples":
            self._samples.add(sample.value, sample.time)
        elif sample.kind == "tokens":
            self._tokens.add(sample.value, sample.time)
        else:
            self._keep(self._validation if sample.kind == "val_loss" else self._metrics, sample)

    def _keep(self, where: dict[str, float], sample: Sample) -> None:
        if sample.name in where or len(where) < MAX_NAMES:
            if sample.name not in where and is_shortened(sample.name):
                _LOG.warning("a name of more than %d characters is shown as %r", MAX_NAME, sample.name)
            where[sample.name] = sample.value
        else:
            self._num_refused_names += 1
            if self._num_refused_names == 1:
                _LOG.warning("more than %d names logged; %r and other new ones are left out", MAX_NAMES, sample.name)

    def begin_at(self, base_step: int) -> int:
        """Show a step until the first one is made; return the one that was shown before."""
        before = self._aggregates[self._first].base_step
        for aggregate in self._aggregates.values():
            aggregate.base_step = base_step
        return before

    def keep_best(self, best: Callable[[str], tuple[float | None, int | None]]) -> None:
        """Take over the best smoothed loss of each optimizer that has none yet, and its step."""
        for key, aggregate in self._aggregates.items():
            if aggregate.best is None:
                aggregate.best, aggregate.best_step = best(key)

    @property
    def last_time(self) -> float | None:
        """Time of the last step, on the clock of ``Step.time``; None before the first."""
        return self._pace.last_time

    def optimizers(self) -> tuple[OptimizerSnapshot, ...]:
        """Return the state of each optimizer, in the order of ``attach``."""
        return tuple(aggregate.view() for aggregate in self._aggregates.values())

    def view(self) -> dict[str, Any]:
        """Return the fields of a snapshot that are known from here, by name; those of the optimizers apart."""
        pace = self._pace
        return {
            "samples_total": self._samples.total,
            "tokens_total": self._tokens.total,
            "steps_per_second": pace.steps_per_second,
            "samples_per_second": self._samples.rate,
            "tokens_per_second": self._tokens.rate,
            "validation_losses": dict(self._validation),
            "metrics": dict(self._metrics),
            "step_duration": pace.histogram(),
            "phase_seconds": pace.phases(),
            "hook_seconds": pace.hook_seconds,
            "overhead_ratio": pace.overhead_ratio,
        }

    def smoothing(self) -> dict[str, dict[str, Any]]:
        """Return the smoothed loss of each optimizer and its best, as plain values."""
        return {key: aggregate.smoothing() for key, aggregate in self._aggregates.items()}

    def load_smoothing(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from the smoothed losses of an earlier session."""
        for key, aggregate in self._aggregates.items():
            if key in state:
                aggregate.load_smoothing(state[key])

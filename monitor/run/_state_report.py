"""The report of the training process about itself, for its watcher."""

from __future__ import annotations

import time
from dataclasses import replace

from monitor.link import FailureReporter, TrainingState
from monitor.run._training_side import TrainingSide


class StateReport:
    """Put together what the watcher has to know of the training process, when it has changed.

    Args:
        training: what stands on the training thread.
        failures: counts those of the training process.
        device_seconds: seconds between two looks at the devices; None: they are not looked at.
    """

    def __init__(self, training: TrainingSide, failures: FailureReporter, device_seconds: float | None) -> None:
        self.is_stall_near = False
        self._training = training
        self._failures = failures
        self._device_seconds = device_seconds
        self._next_devices = 0.0
        self._last = TrainingState()

    def changed(self) -> TrainingState | None:
        """Look at everything; None if nothing has changed since the last report."""
        activity = self._training.look(is_stall_near=self.is_stall_near)
        state = replace(self._present(), activity=activity)
        now = time.monotonic()
        if self._device_seconds is not None and now >= self._next_devices:
            self._next_devices = now + self._device_seconds
            devices = self._training.devices()
            allocator = {i: self._training.allocator(i) for i in range(len(devices or ()))}
            state = replace(state, devices=devices, allocator=allocator)
        if state == self._last:
            return None
        self._last = state
        return state

    def present(self) -> TrainingState:
        """Report what costs nothing to look at, changed or not."""
        self._last = self._present()
        return self._last

    def _present(self) -> TrainingState:
        boundary = self._training.boundary
        return replace(
            self._last,
            is_busy=boundary.is_busy,
            is_paused=boundary.is_paused,
            in_force=self._training.in_force(),
            guesses=self._training.guesses(),
            are_several=self._training.ranks.are_several,
            ranks=self._training.ranks.readings,
            failures=dict(self._failures.counts),
        )

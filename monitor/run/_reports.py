"""Read a run while it runs: snapshots, curves, events. Every method may be called from any thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from monitor._records import Event, Snapshot
from monitor.control import Boundary, Commands, in_force
from monitor.recorder import Recorder
from monitor.run._log import Failures
from monitor.system import SystemSampler


class Reports:
    """Put together what the recorder, the sampler, the queue of commands and the count of failures know."""

    def __init__(
        self,
        recorder: Recorder,
        sampler: SystemSampler,
        commands: Commands,
        boundary: Boundary,
        failures: Failures,
        *,
        optimizers: Mapping[str, Optimizer],
        min_lr: float,
    ) -> None:
        self._recorder = recorder
        self._sampler = sampler
        self._commands = commands
        self._boundary = boundary
        self._failures = failures
        self._optimizers = optimizers
        self._min_lr = min_lr

    def snapshot(self) -> Snapshot:
        """Return the latest published state: immutable, at most one round of the recorder old."""
        commands, system = self._commands, self._sampler.latest()
        return replace(
            self._recorder.snapshot,
            commands_total=commands.totals,
            commands_last_applied=commands.last_applied,
            commands_pending=len(commands.waiting()),
            errors=self._failures.counts,
            host=system.host,
            gpus=system.gpus,
            collections=system.collections,
        )

    def snapshot_in_force(self) -> Snapshot:
        """Return the latest published state with the commands that were applied since: factors, and a pause."""
        snapshot = self.snapshot()
        state, is_paused = snapshot.state, self._boundary.is_paused
        if is_paused and state in ("starting", "running"):
            state = "paused"
        elif state == "paused" and not is_paused:
            state = "running"
        shown = in_force(snapshot.optimizers, self._optimizers, self._min_lr)
        return replace(snapshot, state=state, optimizers=shown)

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor, the system's readings beside them."""
        document = self._recorder.history(since, points)
        document["system"] = self._sampler.history(self._recorder.time_of(since), points)
        return document

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        return self._recorder.log.since(since)

    def flush(self, timeout: float) -> bool:
        """Wait until what was recorded so far is in the snapshot."""
        return self._recorder.flush(timeout)

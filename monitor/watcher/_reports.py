"""Read a run while it runs: snapshots, curves, events. Every method may be called from any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from monitor._records import Event, RankReading, Snapshot
from monitor.link import FailureReporter, shown_in_force
from monitor.recorder import Recorder
from monitor.system import SystemSampler
from monitor.watcher._training import Training


class Reports:
    """Put together what the recorder, the sampler, the training process and the count of failures know."""

    def __init__(
        self,
        recorder: Recorder,
        sampler: SystemSampler,
        training: Training,
        failures: FailureReporter,
        own_times: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        self._own_times = own_times
        self._recorder = recorder
        self._sampler = sampler
        self._training = training
        self._failures = failures

    def snapshot(self) -> Snapshot:
        """Return the latest published state: immutable, at most one round of the recorder old."""
        training, system = self._training, self._sampler.latest()
        return replace(
            self._recorder.snapshot,
            commands_total=training.totals,
            commands_last_applied=training.last_applied,
            commands_pending=len(training.waiting()),
            errors=dict(Counter(self._failures.counts) + Counter(training.failures)),
            host=system.host,
            gpus=system.gpus,
            collections=system.collections,
            ranks=self._ranks(),
        )

    def _ranks(self) -> tuple[RankReading, ...]:
        own_times = self._own_times()
        return tuple(replace(one, own_time=own_times.get(one.rank)) for one in self._training.ranks)

    def snapshot_in_force(self) -> Snapshot:
        """Return the latest published state with the commands that were applied since: factors, and a pause."""
        snapshot = self.snapshot()
        state, is_paused = snapshot.state, self._training.is_paused
        if is_paused and state in ("starting", "running"):
            state = "paused"
        elif state == "paused" and not is_paused:
            state = "running"
        shown = shown_in_force(snapshot.optimizers, self._training.in_force)
        return replace(snapshot, state=state, optimizers=shown)

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor, the system's readings beside them."""
        document = self._recorder.history(since, points)
        document["system"] = self._sampler.history(self._recorder.time_of(since), points)
        return document

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        return self._recorder.log.since(since)

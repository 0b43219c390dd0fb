"""The detectors of a run: one set an optimizer, fed by the recorder with every record, in order."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from monitor._records import Event, RankReading, Sample, Step
from monitor._settings import Settings
from monitor.common import contained
from monitor.detect import Detector, DetectorSet, LostRanks, Stragglers, default_detectors

BATCH_SIZE = "batch_size"
"""A metric of this name is an announcement: when it changes, rises are muted for a while."""


class Detection:
    """Run detectors on the recorder's thread; a detector that fails is reported and the others continue.

    Args:
        keys: names of the optimizers.
        detectors: for the first optimizer, copied for the others; None: the default set; empty: none.
        settings: of the run, for the default set.
        on_error: takes the exception of a detector.
    """

    def __init__(
        self,
        keys: Sequence[str],
        detectors: Iterable[Detector] | None,
        *,
        settings: Settings,
        on_error: Callable[[Exception], None],
    ) -> None:
        if detectors is None:
            detectors = default_detectors(
                stall_timeout=settings.stall_timeout,
                false_alarms_per_100k_steps=settings.false_alarms_per_100k_steps,
                expected_initial_loss=settings.expected_initial_loss,
            )
        given = tuple(detectors)
        self._sets = {key: DetectorSet(copy.deepcopy(given)) for key in keys}
        self._first = keys[0]
        self._on_error = on_error
        self._batch_size: float | None = None
        self._lost_ranks, self._stragglers = LostRanks(), Stragglers()
        self._lock = threading.Lock()

    def digest(self, record: Step | Sample) -> list[Event]:
        """Take one record; return the events that start or end with it."""
        with self._lock:
            if isinstance(record, Step):
                return self._contained(lambda: self._sets[record.optimizer].update(record))
            if record.kind == "metric" and record.name == BATCH_SIZE:
                self._follow_batch_size(record.value)
            return self._contained(lambda: self._sets[self._first].observe(record))

    def expect(self, initial_losses: Mapping[str, float]) -> None:
        """Take the loss of a model that has learned nothing, by optimizer; what the user has said stands."""
        for key, loss in initial_losses.items():
            self._sets[key].expect(loss)

    def is_stall_near(self, now: float) -> bool:
        """Tell whether a stall comes soon if nothing excuses it."""
        return bool(contained(self._on_error, self._sets[self._first].is_stall_near, now))

    def tick(self, now: float, *, is_excused: bool) -> list[Event]:
        """Take the time; return a stall that starts. Only the first optimizer paces the run."""
        with self._lock:
            return self._contained(lambda: self._sets[self._first].tick(now, is_excused=is_excused))

    def look_at_ranks(self, ranks: Iterable[RankReading], step: int) -> list[Event]:
        """Take how far each rank is; return the events of ranks that are lost or back."""
        return self._contained(lambda: self._lost_ranks.look(ranks, step))

    def look_at_own_times(self, by_rank: Mapping[int, float], step_time: float, step: int) -> list[Event]:
        """Take how long each rank takes for itself; return the event of a rank that the others wait for."""
        return self._contained(lambda: self._stragglers.look(by_rank, step_time, step))

    def _follow_batch_size(self, size: float) -> None:
        if self._batch_size is not None and size != self._batch_size:
            for one in self._sets.values():
                one.announce()
        self._batch_size = size

    def _contained(self, ask: Callable[[], list[Event]]) -> list[Event]:
        events: list[Event] = contained(self._on_error, ask, default=[])
        return events

    def memory(self) -> tuple[Any, ...]:
        """Return all that the detectors have learnt, for another watcher of the same run."""
        return self._sets, self._batch_size, self._lost_ranks, self._stragglers

    def remember(self, memory: tuple[Any, ...]) -> None:
        """Take over what another watcher's detectors have learnt."""
        with self._lock:
            self._sets, self._batch_size, self._lost_ranks, self._stragglers = memory

    def state_dict(self) -> dict[str, Any]:
        """Return what the detectors know, as plain values."""
        with self._lock:
            return {key: one.state_dict() for key, one in self._sets.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; an optimizer that it does not know warms up.

        Raises:
            ValueError, KeyError: for what state_dict did not make.
        """
        with self._lock:
            for key, one in self._sets.items():
                if key in state:
                    one.load_state_dict(state[key])

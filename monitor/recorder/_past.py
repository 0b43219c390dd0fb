"""What earlier sessions of a run have recorded, as a recorder that continues the run takes it over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor._records import Event, OptimizerSnapshot, Snapshot
from monitor.recorder._series import SeriesBucket, buckets_of

Columns = Mapping[str, Any]
"""Curves as ``GET /api/v1/history`` has them of one optimizer."""


@dataclass(frozen=True)
class Past:
    """Earlier sessions of a run.

    ``curves`` are those of each optimizer, ``abandoned`` the parts of them that a later attempt did over, ``attempt``
    the number of the last attempt, ``events`` the newest ones, ``snapshot`` the last state; None: there is none.
    """

    curves: Mapping[str, Columns] = field(default_factory=dict)
    abandoned: Mapping[str, Sequence[Columns]] = field(default_factory=dict)
    attempt: int = 0
    events: Sequence[Event] = ()
    snapshot: Snapshot | None = None

    @property
    def last_step(self) -> int:
        """The step up to which the first optimizer was recorded."""
        first = next(iter(self._optimizers), None)
        known = [] if first is None else [first.global_step, *_last(self.curves.get(first.key))]
        return max(known or [step for columns in self.curves.values() for step in _last(columns)], default=0)

    @property
    def _optimizers(self) -> Sequence[OptimizerSnapshot]:
        return () if self.snapshot is None else self.snapshot.optimizers

    @property
    def last_seq(self) -> int:
        """The number of the last event."""
        known = [event.seq for event in self.events]
        return max([*known, 0 if self.snapshot is None else self.snapshot.last_event_seq])

    @property
    def elapsed_seconds(self) -> float:
        """How long the earlier sessions took together."""
        return 0.0 if self.snapshot is None else self.snapshot.elapsed_seconds

    @property
    def events_total(self) -> Mapping[str, int]:
        """How many events of each kind there were."""
        return {} if self.snapshot is None else self.snapshot.events_total

    def best(self, optimizer: str, step: int) -> tuple[float | None, int | None]:
        """Return the best smoothed loss up to a step, and where it was."""
        for one in self._optimizers:
            if one.key == optimizer and one.loss_best_step is not None and one.loss_best_step <= step:
                return one.loss_best, one.loss_best_step
        columns = self.curves.get(optimizer, {"loss_ema": (), "step": ()})
        known = [
            (loss, at)
            for loss, at in zip(columns["loss_ema"], columns["step"], strict=True)
            if loss is not None and math.isfinite(loss)
        ]
        return min((one for one in known if one[1] <= step), default=(None, None))

    @property
    def num_rows(self) -> int:
        """How many steps the curves stand for."""
        return sum(sum(columns["count"]) for columns in self.curves.values())

    def rows(self) -> dict[str, list[SeriesBucket]]:
        """Return the curves, their rows numbered in the order of their times over all optimizers."""
        order = sorted(
            (time, key, row) for key, columns in self.curves.items() for row, time in enumerate(columns["time"])
        )
        cursors: dict[str, list[int]] = {key: [] for key in self.curves}
        cursor = 0
        for _, key, row in order:
            cursor += self.curves[key]["count"][row]
            cursors[key].append(cursor)
        return {key: buckets_of(columns, cursors[key]) for key, columns in self.curves.items()}


def resumption(run_id: str, step: int, recorded_step: int) -> Event:
    """Return the event that says where a run continues that was recorded up to a step."""
    message = f"run {run_id} resumed at step {step}"
    if recorded_step > step:
        message += f" (recorded up to step {recorded_step}: steps {step + 1} to {recorded_step} are done over)"
    elif 0 < recorded_step < step:
        message += (
            f" (the last session was recorded up to step {recorded_step}: the curve lacks steps {recorded_step + 1} to "
            f"{step}, which an earlier session made or which were lost with it)"
        )
    details = {"state": "resumed", "recorded_step": recorded_step}
    return Event("state", "info", step, step, message, end_step=step, details=details)


def _last(columns: Columns | None) -> list[int]:
    return [] if columns is None else list(columns["step"][-1:])

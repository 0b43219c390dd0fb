"""The training process as the watcher needs it, and nothing more: it is handed in, never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from monitor._records import CommandRecord, Event, RankReading, Step
from monitor.link import InForce


class Training(Protocol):
    """The training process as the watcher sees it. Every method may be called from several threads."""

    @property
    def is_paused(self) -> bool:
        """Tell whether the training waits at a step boundary."""

    @property
    def in_force(self) -> InForce:
        """The LR factors that are in force now."""

    @property
    def guesses(self) -> Mapping[str, float]:
        """The loss of a model that only guesses, by optimizer, where its loss function tells."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Failures that were counted in the training process, by component."""

    @property
    def totals(self) -> Mapping[tuple[str, str, str], int]:
        """How many commands have had which outcome: (action, source, outcome) -> number."""

    @property
    def last_applied(self) -> Mapping[str, float]:
        """When each action was last applied, as Unix time."""

    def submit(self, action: str, **fields: Any) -> CommandRecord:
        """Queue a command. Raises as :meth:`monitor.server._access.RunAccess.submit`."""

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""

    def waiting(self) -> Sequence[CommandRecord]:
        """Return the commands that wait for the next step."""

    def is_excused(self, *, is_stall_near: bool) -> bool:
        """Tell whether something explains the lack of steps since the last call."""

    @property
    def are_several(self) -> bool:
        """Tell whether other ranks train along."""

    @property
    def ranks(self) -> tuple[RankReading, ...]:
        """How far each rank is, where this is rank 0."""

    def note_pace(self, step_time: float, loss: float | None) -> None:
        """Take the median step time of the last second or so, and the last loss."""

    def note_stall(self) -> None:
        """Have it found out where the training threads stand: an event says it. Wait for nothing."""

    def devices(self) -> Sequence[str] | None:
        """Return the UUIDs of torch's devices; None while CUDA is not initialised."""

    def allocator(self, index: int) -> Mapping[str, float]:
        """Return what torch's allocator says of a device, by the field names of ``GpuReading``."""

    def on_step(self, step: Step) -> None:
        """Take a step before the detectors see it. Called only if somebody wants steps."""

    def on_event(self, event: Event) -> None:
        """Take an event that has been recorded."""

    def end_round(self, skipped: Mapping[str, int]) -> None:
        """Note the end of a round: how many steps of each optimizer have turned out to be skipped."""

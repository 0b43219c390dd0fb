"""The interface of a run to the server: the run is handed in, never imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from monitor._records import CommandRecord, Event, Snapshot


class RunAccess(Protocol):
    """A run as the HTTP server sees it. Every method may be called from several threads at once."""

    def snapshot(self) -> Snapshot:
        """Return the latest published state."""
        ...

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after cursor ``since`` in at most ``points`` points each; floats may be NaN."""
        ...

    def events(self, since: int, before: int, limit: int) -> Sequence[Event]:
        """Return the newest ``limit`` events whose ``seq`` is between ``since`` and ``before``, both apart, oldest
        first."""
        ...

    def submit(
        self,
        action: str,
        *,
        source: str,
        actor: str,
        reason: str,
        factor: float | None,
        groups: tuple[int | str, ...] | None,
        over_steps: int,
    ) -> CommandRecord:
        """Queue a command for the next step boundary.

        Raises CommandRefusedError (422 with its field, 409 without one), QueueFullError (429) and
        ClosedRunError (409).
        """
        ...

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return the command of this id, or None where there is none."""
        ...

    def commands(self) -> Sequence[CommandRecord]:
        """Return the commands that wait for the next step."""
        ...

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Return the exposition and its content type, as the ``Accept`` header asks for it."""
        ...

    def scraped(self, begun: float) -> None:
        """Note that an answer of ``/metrics`` has been sent, and when it was begun (``time.monotonic()``): the linger
        at the end of a run waits for one."""
        ...

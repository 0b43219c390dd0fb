"""Run events: the states of a run, the outcomes of commands, failures of our own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from monitor._records import STALLED, CommandRecord, Event, State
from monitor.control import Stacks, audit, describe
from monitor.link import Refusals

_LOG = logging.getLogger("monitor")


class RunEvents:
    """Post events from any thread: ``step`` returns the run's step, ``post`` takes each event."""

    def __init__(self, step: Callable[[], int], post: Callable[[Event], None]) -> None:
        self._step = step
        self._cause = ""
        self._post = post
        self._refusals = Refusals()

    def blame(self, kind: type[BaseException], error: BaseException | None) -> None:
        """Remember the exception that a run fails of, for the event of its end."""
        self._cause = f": {kind.__name__}" + (f": {error}" if error is not None and str(error) else "")[:300]

    def note_state(self, state: State, message: str) -> None:
        """Note that the run starts, pauses, continues or ends."""
        self._note_refused()
        message += self._cause if state == "failed" else ""
        step = self._step()
        severity = "critical" if state == "failed" else "info"
        self._post(Event("state", severity, step, step, message, end_step=step, details={"state": state}))  # type: ignore[arg-type]

    def note_outcome(self, record: CommandRecord) -> None:
        """Note what became of a command: its audit entry, and a line in the log. Of a flood that is refused,
        most are counted only; how many, the next entry says."""
        if self._refusals.is_counted_only(record):
            return
        self._note_refused()
        severity = "info" if record.status == "applied" else "warning"
        step = record.step if record.step is not None else self._step()
        self._post(Event("control", severity, step, step, describe(record), end_step=step, details=audit(record)))  # type: ignore[arg-type]
        (_LOG.info if severity == "info" else _LOG.warning)("%s", describe(record))

    def _note_refused(self) -> None:
        """Say how many refused commands have left no entry."""
        if num_refused := self._refusals.forget_counted():
            step, message = self._step(), f"{num_refused} more commands were refused and are counted only"
            details = {"status": "rejected", "count": num_refused}
            self._post(Event("control", "warning", step, step, message, end_step=step, details=details))
            _LOG.warning("%s", message)

    def note_other_factors(self, message: str, rows: list[Any]) -> None:
        """Note the LR factors that a checkpoint has changed: optimizer, param group, recorded and loaded factor."""
        step = self._step()
        self._post(
            Event("state", "warning", step, step, message, end_step=step, details={"state": "resumed", "factors": rows})
        )

    def note_failure(self, component: str, message: str) -> None:
        """Note a failure of our own that was contained."""
        step = self._step()
        self._post(Event("internal", "warning", step, step, message, end_step=step, details={"component": component}))

    def note_capture(self, message: str, optimizer: str | None = None) -> None:
        """Note that something of the training cannot be seen, with what to do about it: an event, and a line in
        the log."""
        step = self._step()
        self._post(Event("capture", "warning", step, step, message, optimizer))

    def note_stacks(self, stacks: Stacks, debug_page: str | None) -> None:
        """Note where the training threads stand in a stall."""
        step, message = self._step(), stacks.message
        details = {"state": STALLED, **stacks.details}
        if debug_page is not None:
            message += f"; torch's debug page: {debug_page}"
            details["debug_page"] = debug_page
        self._post(Event("state", "warning", step, step, message, end_step=step, details=details))

"""The training process as a watcher in another process sees it: what it has sent last."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor._errors import ClosedRunError, UnreachableError
from monitor._records import CommandRecord, Event, RankReading, Step
from monitor.link import InForce, TrainingState
from monitor.watcher._commands import CommandBook

SUBMIT_SECONDS = 5.0
"""How long a request waits for the training process to take its command."""
TAKE_SECONDS = 4.0
"""How long the training process may take it: later it is withdrawn, as whoever asked is about to hear that it was not
taken, and may ask again."""
MAX_DIGESTED = 512
"""Steps and events that are sent in one message."""


class RemoteTraining:
    """Know what the training process has sent, and send it what has been digested.

    Args:
        send: takes kind and content of a message; must not raise.
        patience: seconds to wait for the answer to a command.
    """

    def __init__(self, send: Callable[[str, Any], None], patience: float = SUBMIT_SECONDS) -> None:
        self._send = send
        self._patience = patience
        self._state = TrainingState()
        self._numbers = itertools.count(1)
        self._requests: dict[int, queue.SimpleQueue[Any]] = {}
        self._digested: list[Step | Event] = []
        self._last_activity = 0.0
        self._was_near = False
        self._skipped: Mapping[str, int] = {}
        self.is_gone = False
        self.book = CommandBook()

    # --------------------------------------------------------------------------------- what it has sent

    def take_state(self, state: TrainingState) -> None:
        """Take what the training process knows about itself."""
        self._state = state

    def take_submitted(self, number: int, outcome: Any) -> None:
        """Take the answer to a command."""
        if isinstance(outcome, CommandRecord):
            self.book.put(outcome)
        request = self._requests.get(number)
        if request is not None:
            request.put(outcome)

    @property
    def is_paused(self) -> bool:
        """Tell whether the training waits at a step boundary."""
        return self._state.is_paused and not self.is_gone

    @property
    def in_force(self) -> InForce:
        """The LR factors that were in force when it last wrote."""
        return self._state.in_force

    @property
    def failures(self) -> Mapping[str, int]:
        """Failures that were counted there."""
        return self._state.failures

    @property
    def totals(self) -> Mapping[tuple[str, str, str], int]:
        """How many commands have had which outcome."""
        return self.book.totals

    @property
    def last_applied(self) -> Mapping[str, float]:
        """When each action was last applied, as Unix time."""
        return self.book.last_applied

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        return self.book.get(id)

    def waiting(self) -> Sequence[CommandRecord]:
        """Return the commands that wait for the next step."""
        return () if self.is_gone else self.book.waiting()

    def is_excused(self, *, is_stall_near: bool) -> bool:
        """Tell whether something explains the lack of steps since the last call."""
        if is_stall_near != self._was_near:
            self._was_near = is_stall_near
            self._send("near", is_stall_near)
        state = self._state
        before, self._last_activity = self._last_activity, max(state.activity, self._last_activity)
        return self._last_activity > before or state.is_busy

    @property
    def guesses(self) -> Mapping[str, float]:
        """The loss of a model that only guesses, by optimizer."""
        return self._state.guesses

    @property
    def are_several(self) -> bool:
        """Tell whether other ranks train along."""
        return self._state.are_several

    @property
    def ranks(self) -> tuple[RankReading, ...]:
        """How far each rank is, where this is rank 0."""
        return self._state.ranks

    def note_pace(self, step_time: float, loss: float | None) -> None:
        """Send the median step time of the last second or so, and the last loss."""
        self._send("pace", (step_time, loss))

    def note_stall(self) -> None:
        """Ask where the training threads stand."""
        self._send("stall", None)

    def devices(self) -> Sequence[str] | None:
        """Return the UUIDs of torch's devices."""
        return self._state.devices

    def allocator(self, index: int) -> Mapping[str, float]:
        """Return what torch's allocator says of a device."""
        return self._state.allocator.get(index, {})

    # ------------------------------------------------------------------------------ what it is asked for

    def submit(self, action: str, **fields: Any) -> CommandRecord:
        """Have a command queued there.

        Raises:
            CommandRefusedError, QueueFullError: as there.
            ClosedRunError: the run has ended, or its process is gone.
            UnreachableError: the training process does not answer.
        """
        if self.is_gone:
            raise ClosedRunError(f"the run has ended and takes no more commands; {action} was not applied")
        number = next(self._numbers)
        request = self._requests[number] = queue.SimpleQueue()
        try:
            until = time.monotonic() + self._patience * TAKE_SECONDS / SUBMIT_SECONDS  # one clock for both processes
            self._send("submit", (number, action, fields, until))
            outcome = request.get(timeout=self._patience)
        except queue.Empty:
            raise UnreachableError(
                f"the training process has not answered for {self._patience:g} s; {action} was not applied: try again"
            ) from None
        finally:
            del self._requests[number]
        if isinstance(outcome, CommandRecord):
            return outcome
        raise outcome

    def on_step(self, step: Step) -> None:
        """Send a step."""
        self._collect(step)

    def on_event(self, event: Event) -> None:
        """Send an event."""
        self._collect(event)

    def _collect(self, record: Step | Event) -> None:
        self._digested.append(record)
        if len(self._digested) >= MAX_DIGESTED:
            self._flush()

    def _flush(self) -> None:
        digested, self._digested = self._digested, []
        if digested:
            self._send("digested", digested)

    def end_round(self, skipped: Mapping[str, int]) -> None:
        """Send what this round has brought."""
        if skipped != self._skipped:
            self._skipped = dict(skipped)
            self._send("skipped", self._skipped)
        self._flush()

"""Commands: accepted on any thread, taken by the training thread at a step boundary, each with one outcome."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from monitor._checks import is_real
from monitor._errors import ClosedRunError, CommandRefusedError, MonitorError, QueueFullError
from monitor._records import ACTIONS, MAX_COMMANDS_KEPT, MAX_MESSAGE, MAX_REASON, CommandRecord, GroupChange

MAX_WAITING = 64


class Command:
    """A command that was accepted.

    Example:
        >>> command = run.reduce_lr(0.5)
        >>> train()
        >>> command.wait(10).status
        'applied'
    """

    def __init__(
        self,
        record: CommandRecord,
        is_training_thread: Callable[[], bool],
        *,
        deadline: float,
        begin_at: float | None = None,
    ) -> None:
        self.deadline = deadline
        self.begin_at = begin_at
        self._record = record
        self._done = threading.Event()
        self._is_training_thread = is_training_thread

    def __repr__(self) -> str:
        r = self._record
        return f"<Command {r.id} {r.action} {r.status}>"

    @property
    def id(self) -> str:
        """Identity of the command, as in ``/api/v1/commands/{id}``."""
        return self._record.id

    @property
    def record(self) -> CommandRecord:
        """What is known of it now."""
        return self._record

    @property
    def status(self) -> str:
        """``pending``, ``applied``, ``rejected`` or ``expired``."""
        return self._record.status

    def wait(self, timeout: float | None = None) -> CommandRecord:
        """Wait for the outcome and return it; after ``timeout`` seconds return what is known by then.

        Raises:
            MonitorError: on the training thread, where the outcome could never come: the command is applied at the next
                step, which this very thread makes.
        """
        if not self._done.is_set() and self._is_training_thread():
            raise MonitorError(
                f"command {self.id} is applied at the next optimizer step, which this thread makes; "
                "waiting for it here would never end. Wait on another thread, or look at .status after the step"
            )
        self._done.wait(timeout)
        return self._record

    def finish(self, record: CommandRecord) -> None:
        """Store the outcome and wake who waits."""
        self._record = record
        self._done.set()


class Commands:
    """The queue of a run. ``submit`` from any thread; ``take`` from the training thread; ``expire`` from the recorder.

    Args:
        check: refuses a command before it is queued: ``check(record)`` raises CommandRefusedError.
        on_waiting: called after a command was queued, to have the training thread come by.
        on_accepted: called with every command that was queued, perhaps after its outcome.
        on_finished: called with every outcome, from the thread that made it.
        timeout: seconds until a command that no step has taken expires.
        is_training_thread: says whether the caller is the thread that makes the steps.
        clock: Unix time, for what is shown.
        counter: a monotonic clock in seconds, for the timeout.
    """

    def __init__(
        self,
        check: Callable[[CommandRecord], None],
        *,
        on_waiting: Callable[[], None],
        on_accepted: Callable[[CommandRecord], None] = lambda _: None,
        on_finished: Callable[[CommandRecord], None],
        timeout: float = 600.0,
        is_training_thread: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
        counter: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._on_waiting = on_waiting
        self._on_accepted = on_accepted
        self._on_finished = on_finished
        self._timeout = timeout
        self._is_training_thread = is_training_thread
        self._clock = clock
        self._counter = counter
        self._lock = threading.Lock()  # among those who submit; the training thread takes from the deque without it
        self._waiting: deque[Command] = deque()
        self._kept: dict[str, Command] = {}
        self._is_closed = False
        self._outcomes: deque[CommandRecord] = deque()
        self._fold = threading.Lock()  # among those who read the totals; who adds an outcome takes no lock
        self._totals: dict[tuple[str, str, str], int] = {}
        self._last_applied: dict[str, float] = {}

    def submit(
        self,
        action: str,
        *,
        source: str,
        factor: float | None = None,
        groups: tuple[int | str, ...] | None = None,
        over_steps: int = 0,
        actor: str = "",
        reason: str = "",
        begin_at: float | None = None,
    ) -> Command:
        """Accept a command. ``begin_at``: the factor that a ramp begins at; rejected where the run has begun before.

        Raises:
            CommandRefusedError: it cannot be; also counted and audited as rejected.
            QueueFullError: too many are waiting.
            ClosedRunError: the run has ended.
        """
        self._refuse_after_the_end(action)
        record = CommandRecord(
            secrets.token_hex(8),
            action,
            source,
            self._clock(),
            _plain(factor),
            groups,
            over_steps,
            actor,
            _text(reason),
        )
        try:
            self._refuse(record)
        except CommandRefusedError as error:
            self._note(replace(_presentable(record), status="rejected", finished=self._clock(), message=str(error)))
            raise
        deadline = self._counter() + self._timeout
        command = Command(record, self._is_training_thread, deadline=deadline, begin_at=begin_at)
        with self._lock:
            self._refuse_after_the_end(action)
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFullError(
                    f"{MAX_WAITING} commands are waiting for the next optimizer step already; wait for it and try again"
                )
            self._waiting.append(command)
            self._keep(command)
        self._on_accepted(record)
        self._on_waiting()
        return command

    def adopt(self, record: CommandRecord, begin_at: float | None) -> Command:
        """Take over a command that another rank has accepted; its outcome is due."""
        command = Command(record, self._is_training_thread, deadline=math.inf, begin_at=begin_at)
        self._keep(command)
        self._on_accepted(record)
        return command

    def decline(self, action: str, message: str) -> Command:
        """Return a command that ends as rejected and leaves no trace: another rank has given the same one."""
        now = self._clock()
        record = CommandRecord(secrets.token_hex(8), action, "code", now, status="rejected", finished=now)
        command = Command(record, self._is_training_thread, deadline=math.inf)
        command.finish(replace(record, message=message))
        return command

    def _keep(self, command: Command) -> None:
        self._kept[command.id] = command
        while len(self._kept) > MAX_COMMANDS_KEPT:
            self._kept.pop(next(iter(self._kept)))

    def _refuse_after_the_end(self, action: str) -> None:
        if self._is_closed:
            raise ClosedRunError(f"the run has ended and takes no more commands; {action} was not applied")

    def _refuse(self, record: CommandRecord) -> None:
        if record.action not in ACTIONS:
            raise CommandRefusedError(f"unknown action {record.action!r}; there are {', '.join(ACTIONS)}", "action")
        if not isinstance(record.reason, str):
            raise CommandRefusedError(f"reason must be a string, got {record.reason!r}", "reason")
        if len(record.reason) > MAX_REASON:
            raise CommandRefusedError(
                f"reason must have {MAX_REASON} characters or fewer, got {len(record.reason)}", "reason"
            )
        self._check(record)

    def take(self) -> Command | None:
        """Take the oldest waiting command, or None. Its outcome is due then: :meth:`finish`."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def finish(
        self,
        command: Command,
        status: Any,
        *,
        step: int | None = None,
        message: str = "",
        changes: tuple[GroupChange, ...] = (),
    ) -> None:
        """Record the outcome of a command that was taken."""
        told = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
        record = replace(
            command.record, status=status, step=step, finished=self._clock(), message=told, changes=changes
        )
        self._note(record)
        command.finish(record)  # last: who waits for the outcome finds it counted and audited

    def _note(self, record: CommandRecord) -> None:
        self._outcomes.append(record)
        if len(self._outcomes) > MAX_COMMANDS_KEPT:
            self._count()
        self._on_finished(record)

    def _count(self) -> None:
        with self._fold:
            totals, last = dict(self._totals), dict(self._last_applied)
            while self._outcomes:
                record = self._outcomes.popleft()
                key = (record.action, record.source, record.status)
                totals[key] = totals.get(key, 0) + 1
                if record.status == "applied" and record.finished is not None:
                    last[record.action] = record.finished
            self._totals, self._last_applied = totals, last

    @property
    def totals(self) -> Mapping[tuple[str, str, str], int]:
        """How many commands have had which outcome: (action, source, outcome) -> number."""
        self._count()
        return self._totals

    @property
    def last_applied(self) -> Mapping[str, float]:
        """When each action was last applied, as Unix time."""
        self._count()
        return self._last_applied

    def expire(self) -> None:
        """Expire what has waited too long for a step."""
        now = self._counter()
        for command in list(self._waiting):
            if now >= command.deadline:
                self._drop(command, f"no optimizer step within {self._timeout:g} s")

    def _drop(self, command: Command, message: str) -> None:
        try:
            self._waiting.remove(command)
        except ValueError:
            return  # the training thread was quicker
        self.finish(command, "expired", message=message)

    def close(self) -> None:
        """Refuse what comes from now on and expire what still waits."""
        with self._lock:
            self._is_closed = True
        for command in list(self._waiting):
            self._drop(command, "the run ended before its next optimizer step")

    def get(self, command_id: str) -> CommandRecord | None:
        """Return a command by its id; the newest 1024 are kept."""
        command = self._kept.get(command_id)
        return None if command is None else command.record

    def kept(self) -> list[CommandRecord]:
        """Return the newest commands, oldest first."""
        return [command.record for command in list(self._kept.values())]

    def waiting(self) -> tuple[CommandRecord, ...]:
        """Return the commands that are accepted and not yet applied, oldest first."""
        return tuple(c.record for c in list(self._waiting))


def _presentable(record: CommandRecord) -> CommandRecord:
    """Leave out what is not of its type: the refusal names it, and the audit trail holds plain values only."""
    return replace(
        record,
        factor=record.factor if isinstance(record.factor, float) and math.isfinite(record.factor) else None,
        groups=None,
        over_steps=record.over_steps if isinstance(record.over_steps, int) else 0,
        reason=record.reason if isinstance(record.reason, str) and len(record.reason) <= MAX_REASON else "",
    )


def _text(reason: Any) -> Any:
    """Return text of a class of the program's own as plain text: the watcher cannot load that class."""
    return str.__str__(reason) if isinstance(reason, str) else reason


def _plain(factor: Any) -> Any:
    """Return a number of any make (numpy's, a fraction) as a float; what is not a number as it is, to be refused."""
    if not is_real(factor):
        return factor
    try:
        return float(factor)
    except OverflowError:
        return math.inf

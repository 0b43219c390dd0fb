"""The step boundary: where the training thread comes by to carry out commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from monitor._errors import CommandRefusedError, StopTraining
from monitor._records import CommandRecord
from monitor.control._commands import Command, Commands
from monitor.control._lr import LearningRates

LR_ACTIONS = ("reduce", "set", "restore", "undo")
_PAUSE_SECONDS = 0.2
"""How long a paused training thread sleeps at most before it looks for a command again."""


class Boundary:
    """Carry out what waits, on the training thread, between two steps.

    Args:
        rates: the learning rates.
        next_step: returns the global step that is about to be made.
        on_checkpoint: called for ``checkpoint``; None: that action is refused.
        on_paused: called with True when training pauses and False when it continues.
        stop_raises: raise StopTraining after a stop.
        on_error: takes the exception of a command that could not be carried out.
        on_checkpoint_error: takes what ``on_checkpoint`` has raised.
        objection: returns why this run takes no such command now, or None.
    """

    def __init__(
        self,
        rates: LearningRates,
        *,
        next_step: Callable[[], int],
        on_checkpoint: Callable[[], Any] | None,
        on_paused: Callable[[bool], None],
        stop_raises: bool,
        on_error: Callable[[Exception], None],
        on_checkpoint_error: Callable[[Exception], None],
        objection: Callable[[CommandRecord], str | None] = lambda _: None,
    ) -> None:
        self.should_stop = False
        self._is_closed = False
        self.is_paused = False
        self.is_busy = False
        self._rates = rates
        self._next_step = next_step
        self._on_checkpoint = on_checkpoint
        self._on_paused = on_paused
        self._stop_raises = stop_raises
        self._on_error = on_error
        self._on_checkpoint_error = on_checkpoint_error
        self._objection = objection
        self._came = threading.Event()

    def check(self, record: CommandRecord) -> None:
        """Refuse a command that cannot be carried out, before it is queued. Raises CommandRefusedError."""
        if (why := self._objection(record)) is not None:
            raise CommandRefusedError(why)
        self.check_effect(record)

    def check_effect(self, record: CommandRecord) -> None:
        """Refuse a command that another rank has accepted, if it cannot be carried out here. Raises as check."""
        if record.action in LR_ACTIONS:
            self._rates.check(record.action, record.factor, record.groups, record.over_steps)
            return
        for field in ("factor", "groups", "over_steps"):
            if value := getattr(record, field):
                raise CommandRefusedError(f"{record.action} takes no {field}, got {value!r}; leave it out", field)
        if record.action == "checkpoint" and self._on_checkpoint is None:
            raise CommandRefusedError("this run has no checkpoint function; attach(on_checkpoint=...) gives it one")

    def let_go(self) -> None:
        """Keep no function of the user's."""
        self._on_checkpoint = None

    def close(self) -> None:
        """Let a paused thread continue, and pause none from now on: the run ends."""
        self._is_closed = True
        self.wake()

    def wake(self) -> None:
        """Have a paused training thread look at once."""
        self._came.set()

    def pass_through(self, commands: Commands, take: Callable[[], Command | None] | None = None) -> None:
        """Carry out all that waits; stay while paused. Raises StopTraining if that was asked for; nothing else.

        ``take`` returns the next command that is due, None: there is no more; default: that of ``commands``.
        """
        self.is_busy = True
        try:
            self._pass_through(commands, commands.take if take is None else take)
        finally:
            self.is_busy = False

    def _pass_through(self, commands: Commands, take: Callable[[], Command | None]) -> None:
        is_announced = False
        while True:
            while (command := take()) is not None:
                self._carry_out(commands, command)
            if not self.is_paused or self.should_stop or self._is_closed:
                break
            if not is_announced:
                self._on_paused(is_announced := True)
            self._came.wait(_PAUSE_SECONDS)
            self._came.clear()
        self.is_paused = False
        if is_announced:
            self._on_paused(False)
        if self.should_stop and self._stop_raises and not self._is_closed:
            raise StopTraining("a stop was asked for; attach(stop_raises=False) only sets run.should_stop")

    def _carry_out(self, commands: Commands, command: Command) -> None:
        step = self._next_step()
        try:
            if command.begin_at is not None and (why := self._begun(step)) is not None:
                raise CommandRefusedError(why)
            changes, message = self._effect(command.record, command.begin_at)
        except CommandRefusedError as error:
            commands.finish(command, "rejected", step=step, message=str(error))
        except Exception as error:  # noqa: BLE001 - a failure of ours, or of a checkpoint, must not reach the training loop
            (self._on_checkpoint_error if command.record.action == "checkpoint" else self._on_error)(error)
            commands.finish(command, "rejected", step=step, message=f"{type(error).__name__}: {error}")
        except (
            BaseException
        ) as error:  # Ctrl-C in a checkpoint is for the loop; the command has its outcome all the same
            commands.finish(command, "rejected", step=step, message=f"{type(error).__name__}: {error}")
            raise
        else:
            commands.finish(command, "applied", step=step, message=message, changes=changes)

    def _begun(self, step: int) -> str | None:
        """Return what shows that the run has begun before this step, or None. Known only here: state may be loaded
        until the first step."""
        if step > 1:
            return f"the run continues at step {step}; this is for its first step"
        return self._rates.trace()

    def _effect(self, record: CommandRecord, begin_at: float | None) -> tuple[Any, str]:
        if record.action in LR_ACTIONS:
            return self._rates.apply(record.action, record.factor, record.groups, record.over_steps, begin_at), ""
        if record.action == "pause":
            self.is_paused = True
            return (), "training waits at the step boundary"
        if record.action == "resume":
            was_paused, self.is_paused = self.is_paused, False
            return (), "training continues" if was_paused else "training was not paused"
        if record.action == "stop":
            self.should_stop = True
            return (), "run.should_stop is true" + ("; StopTraining is raised" if self._stop_raises else "")
        if self._on_checkpoint is None:
            raise CommandRefusedError("this run has no checkpoint function; attach(on_checkpoint=...) gives it one")
        result = self._on_checkpoint()
        return (), "" if result is None else f"checkpoint: {result}"


def describe(record: CommandRecord) -> str:
    """Say in one sentence what became of a command: the audit entry."""
    who = record.source + (f" ({record.actor})" if record.actor else "")
    what = record.action if record.factor is None else f"{record.action} {record.factor:g}"
    # In quotes, with what is inside them escaped: what somebody typed is told apart from what the run says.
    why = f": {json.dumps(record.reason, ensure_ascii=False)}" if record.reason else ""
    if record.status != "applied":
        return f"{what} by {who} {record.status}: {record.message}{why}"
    changes = "; ".join(
        f"{c.optimizer} group {c.param_group}: factor {c.factor_before:.6g} to {c.factor_after:.6g}, "
        f"LR {_shown(c.lr_before)} to {_shown(c.lr_after)}"
        for c in record.changes[:4]
    )
    more = f"; and {len(record.changes) - 4} more groups" if len(record.changes) > 4 else ""
    ramp = f" over {record.over_steps} steps" if record.over_steps else ""
    return f"{what}{ramp} by {who} at step {record.step}{why}. {changes}{more}{record.message}".strip()


def _shown(lr: float | None) -> str:
    return "unknown" if lr is None else f"{lr:.6g}"


def audit(record: CommandRecord) -> Mapping[str, Any]:
    """Return the audit entry of an outcome as plain values."""
    return {
        "command_id": record.id,
        "action": record.action,
        "source": record.source,
        "actor": record.actor,
        "reason": record.reason,
        "status": record.status,
        "factor": record.factor,
        "over_steps": record.over_steps,
        "before": [[c.optimizer, c.param_group, c.factor_before, c.lr_before] for c in record.changes],
        "after": [[c.optimizer, c.param_group, c.factor_after, c.lr_after] for c in record.changes],
    }

"""Policies: what a run does by itself about its own events, through the same queue as every other command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, Protocol

from monitor._checks import check_number, check_whole, is_whole
from monitor._errors import ClosedRunError, CommandRefusedError, QueueFullError
from monitor._records import DETECTOR_KINDS, MAX_REASON, Event, Step
from monitor.control._commands import Command

Groups = tuple[int | str, ...] | None
_LOG = logging.getLogger("monitor")


class Request(NamedTuple):
    """A command that a policy wants: ``submit(Request("reduce", 0.5, reason="the loss rose"))``.

    Args:
        action: ``reduce``, ``set``, ``restore``, ``undo``, ``pause``, ``stop`` or ``checkpoint``.
        factor: of ``reduce`` and ``set``, as in :meth:`monitor.Run.reduce_lr`.
        groups: param groups by index or name, an optimizer's name for all of its, ``"critic/1"`` for one; None: all.
        reason: kept in the audit entry; cut after 500 characters.
        over_steps: reach the new factor geometrically over so many steps; 0: at once.
        begin_at: the factor that the ramp begins at. Only in a fresh run: rejected where the optimizer has state or a
            factor, or has made a step.
    """

    action: str
    factor: float | None = None
    groups: Groups = None
    reason: str = ""
    over_steps: int = 0
    begin_at: float | None = None


Submit = Callable[[Request], "str | None"]
"""Put a command in the queue and return its id; None: it was refused, and the audit entry says why. The event of its
outcome has the id as ``event.details["command_id"]``."""


class Reaction(Protocol):
    """A policy at work in one run. Both methods are called on one thread of the monitor's own, in the order of the
    steps; what they raise is counted and logged, and the run continues."""

    def on_event(self, event: Event) -> None:
        """Take an event that starts, or ends (``end_step``), the audit entries of commands included."""
        ...

    def on_step(self, step: Step) -> None:
        """Take a step of one of the optimizers."""
        ...


class Policy(Protocol):
    """The settings of a reaction, fit for any number of runs. Any object with a method ``start`` is one.

    Example:
        >>> class StopOnStall:
        ...     def start(self, submit):
        ...         self.submit = submit
        ...         return self
        ...
        ...     def on_event(self, event):
        ...         if event.kind == "stall" and event.end_step is None:
        ...             self.submit(monitor.Request("stop", reason=event.message))
        ...
        ...     def on_step(self, step):
        ...         pass
        >>> with monitor.attach(optimizer, policies=[StopOnStall()]):
        ...     train()
    """

    def start(self, submit: Submit) -> Reaction:
        """Return the reaction of one run, which gives its commands through ``submit``."""
        ...


class OwnCommands:
    """Submit the requests of one reaction, and tell the commands made of them by their ids from all others."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._pending: set[str] = set()

    def submit(self, request: Request) -> str | None:
        """Submit a request; return the id of its command, None if it was refused."""
        command_id = self._submit(request)
        if command_id is not None:
            self._pending.add(command_id)
        return command_id

    def changed_by_others(self, event: Event) -> dict[str, list[int]]:
        """Return the param groups, by optimizer, whose factor somebody else has changed. Takes every event once."""
        command_id = event.details.get("command_id") if event.kind == "control" else None
        if command_id in self._pending:  # a command has one outcome
            self._pending.discard(command_id)
            return {}
        return changed_groups(event)


class Policies:
    """Run the policies of a run, on one thread. What a policy raises is contained, and the others continue.

    Args:
        policies: as given to ``attach``.
        submit: takes a command (``Commands.submit``).
        on_error: takes what a policy has raised.
        is_idle: tells that steps and events are for another rank's policies.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        submit: Callable[..., Command],
        on_error: Callable[[BaseException], None],
        is_idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self._policies = tuple(policies)
        self._submit, self._on_error, self._is_idle = submit, on_error, is_idle
        self._reactions: list[Reaction] = []

    def start(self) -> None:
        """Start the policies: from here on they hear of steps and events."""
        for policy in self._policies:
            submit_one = partial(self._submit_for, type(policy).__name__)
            self._contain(lambda p=policy, s=submit_one: self._reactions.append(p.start(s)))  # type: ignore[misc]

    def on_event(self, event: Event) -> None:
        """Hand an event to every policy."""
        for reaction in () if self._is_idle() else self._reactions:
            self._contain(partial(reaction.on_event, event))

    def on_step(self, step: Step) -> None:
        """Hand a step to every policy."""
        for reaction in () if self._is_idle() else self._reactions:
            self._contain(partial(reaction.on_step, step))

    def clear(self) -> None:
        """Let go of the policies: the run has ended."""
        self._policies = ()
        self._reactions.clear()

    def _submit_for(self, name: str, request: Request) -> str | None:
        reason = request.reason if len(request.reason) <= MAX_REASON else f"{request.reason[: MAX_REASON - 3]}..."
        words = request._asdict() | {"reason": reason}
        try:
            command = self._submit(words.pop("action"), source="policy", actor=name, **words)
        except (CommandRefusedError, ClosedRunError) as error:  # audited already; or the run is ending
            _LOG.info("%s by %s was refused: %s", request.action, name, error)
            return None
        except QueueFullError as error:  # in no audit, and no failure of the policy either
            _LOG.warning("%s by %s was refused: %s", request.action, name, error)
            return None
        return command.id

    def _contain(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - the user's own; a sys.exit() in there would end the thread
            self._on_error(error)


def check_policies(policies: Iterable[Any]) -> tuple[Policy, ...]:
    """Return the policies as a tuple.

    Raises:
        TypeError: for what is no policy, with what would be one.
    """
    if not isinstance(policies, Iterable) or isinstance(policies, str):
        raise TypeError(f"policies must be a list such as [monitor.ReduceLROn('divergence')], got {policies!r}")
    policies = tuple(policies)
    for policy in policies:
        if isinstance(policy, type) or not callable(getattr(policy, "start", None)):
            raise TypeError(f"policies must be objects such as monitor.ReduceLROn('divergence'), got {policy!r}")
    return policies


@dataclass(frozen=True)
class ReduceLROn:
    """Lower the learning rate when a detector raises an event of one kind, and again while its condition holds.

    Args:
        kind: of the event: ``divergence``, ``spike``, ``plateau``, ... (docs/detection.md).
        factor: what the LR factor in force is multiplied by, in (0, 1).
        cooldown_steps: optimizer steps after a reduction before the next one; what a person, an alert or another
            policy has changed counts as one.
        max_times: reductions in the whole run.
        groups: param groups by index or name; default: all of the optimizer whose event it is.

    Raises:
        ValueError, TypeError: for a value that cannot be, with the cure.

    Example:
        >>> policy = ReduceLROn("divergence", 0.5, cooldown_steps=500, max_times=4)
        >>> with monitor.attach(optimizer, policies=[policy]):
        ...     train()
    """

    kind: str
    factor: float = 0.5
    cooldown_steps: int = field(default=500, kw_only=True)
    max_times: int = field(default=4, kw_only=True)
    groups: Groups = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.kind not in DETECTOR_KINDS:
            close = get_close_matches(str(self.kind), DETECTOR_KINDS, 1)
            cure = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(DETECTOR_KINDS)}"
            raise ValueError(f"kind must be that of a detector, got {self.kind!r}; {cure}")
        check_share("factor", self.factor)
        check_least("cooldown_steps", self.cooldown_steps, 0)
        check_least("max_times", self.max_times, 1)
        object.__setattr__(self, "groups", checked_groups(self.groups))

    def start(self, submit: Submit) -> Reaction:
        """Return the reaction of one run."""
        return _Reducing(self, OwnCommands(submit))


class _Reducing:
    """``ReduceLROn`` at work."""

    def __init__(self, settings: ReduceLROn, commands: OwnCommands) -> None:
        self._settings, self._commands = settings, commands
        self._holding: dict[str | None, Event] = {}
        self._last: dict[str | None, int] = {}
        self._now: dict[str | None, int] = {}
        self._last_id = 0
        self._times = 0

    def on_event(self, event: Event) -> None:
        for optimizer in self._commands.changed_by_others(event):
            for key in (optimizer, None):
                self._last[key] = self._now.get(key, event.step)
        if event.kind != self._settings.kind:
            return
        is_new = event.id > self._last_id  # the end of an event comes under the id of its start
        self._last_id = max(self._last_id, event.id)
        if event.end_step is None:
            self._holding[event.optimizer] = event
        else:
            self._holding.pop(event.optimizer, None)
        if is_new:
            self._reduce(event, event.step, f"{event.kind} at step {event.step}: {event.message}")

    def on_step(self, step: Step) -> None:
        self._now[step.optimizer] = self._now[None] = step.global_step
        event = self._holding.get(step.optimizer)
        if event is not None and step.global_step > event.step:
            self._reduce(event, step.global_step, f"{event.kind} of step {event.step} still holds")

    def _reduce(self, event: Event, step: int, reason: str) -> None:
        settings, last = self._settings, self._last.get(event.optimizer)
        is_cooling = last is not None and step - last < settings.cooldown_steps
        if is_cooling or self._times >= settings.max_times:
            return
        self._last[event.optimizer] = step  # a refusal cools down too: each leaves an audit entry
        request = Request("reduce", settings.factor, groups_of(settings.groups, event.optimizer), reason)
        if self._commands.submit(request) is not None:
            self._times += 1


def changed_groups(event: Event) -> dict[str, list[int]]:
    """Return the param groups, by optimizer, that the command of an audit entry has changed."""
    changed: dict[str, list[int]] = {}
    if event.kind == "control" and event.details.get("status") == "applied":
        for optimizer, index, *_ in event.details.get("after", ()):
            changed.setdefault(optimizer, []).append(index)
    return changed


def groups_of(groups: Groups, optimizer: str | None) -> Groups:
    """Return what a command names: the groups that were asked for, else all of an optimizer, else all."""
    return groups if groups is not None or optimizer is None else (optimizer,)


def check_share(name: str, value: Any) -> None:
    """Raise TypeError or ValueError for what is not a number between 0 and 1."""
    check_number(name, value, "in (0, 1)", lambda share: 0 < share < 1, "0.5 halves the learning rate")


def check_least(name: str, value: Any, least: int) -> None:
    """Raise TypeError or ValueError for what is not an int from ``least`` on."""
    check_whole(name, value, f"{least} or more", lambda number: number >= least)


def checked_groups(groups: Any) -> Groups:
    """Return param groups as a tuple. Whether there are such groups is known when a command names them."""
    if groups is None:
        return None
    if isinstance(groups, int | str):
        groups = (groups,)
    chosen: tuple[int | str, ...] = tuple(groups)
    if not chosen or not all(isinstance(group, str) or is_whole(group) for group in chosen):
        raise ValueError(f"groups must be indices or names of param groups, such as [0, 'head'], got {list(chosen)!r}")
    return chosen

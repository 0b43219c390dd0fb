"""``AdaptiveLR``: a schedule on top of the schedule, made of the run's own events."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from monitor._checks import check_flag
from monitor._records import Event, Step
from monitor.control._policy import (
    Groups,
    OwnCommands,
    Reaction,
    Request,
    Submit,
    changed_groups,
    check_least,
    check_share,
    checked_groups,
    groups_of,
)
from monitor.control._search import START, Move, Search

TROUBLE = ("divergence", "spike")
ABOVE_START = 0.2
"""Share of the first loss by which the loss must stand above it: worse than untrained, whatever the model."""
ABOVE_STEPS = 4
"""Steps in a row for which it must."""
MEDIAN_STEPS = 8
MAX_PATIENCE = 16


@dataclass(frozen=True, kw_only=True)
class AdaptiveLR:
    """Lower the learning rate in trouble, and raise it again to the schedule once the run is calm.

    Trouble is a ``divergence`` or a ``spike`` that a detector has raised, or a loss that stands a fifth above where the
    run began. It lowers the LR at once, and again every ``cooldown_steps`` while it lasts and the loss does not fall. A
    ``plateau`` lowers it too, for good. With ``allow_increase``, the LR is doubled, over ``recover_steps``, after as
    many calm steps; trouble after a raise doubles that time, 16-fold at most. It is never raised above what the
    schedule asks for, nor above what a person, an alert or another policy has set meanwhile.

    A fresh run is warmed up: it begins at a thousandth of the schedule and reaches it geometrically over
    ``warmup_steps``, more slowly once the loss falls. Where the gradient norm and the loss rise together on the way, it
    steps down and climbs again from there; three such signs near each other, or one that is clear, are a ceiling that
    is kept. For ten times ``warmup_steps`` such signs are heeded in two steps of three; from then on it is the events.

    It cannot bring back weights that are NaN already: that is why an LR that is far too high is looked for from below.
    docs/adaptive-lr.md has what was measured, and what is lost all the same.

    Args:
        factor: what the LR factor in force is multiplied by in trouble, in (0, 1).
        plateau_factor: the same on a plateau; None: plateaus are left alone.
        cooldown_steps: optimizer steps between two reductions; what a person, an alert or another policy has changed
            counts as one.
        recover_steps: calm steps before the LR is raised, and over which it is.
        min_factor: the factor is not lowered below this.
        warmup_steps: optimizer steps from a thousandth of the schedule to the schedule where nothing happens; 0: none.
            Give eight times the steps of 0.25 s where a step takes less than 50 ms, as trouble is seen that late. Only
            a fresh run is warmed up: where the optimizer holds the state of earlier steps or a factor before the first
            step, or ``run.load_state_dict`` has reported earlier steps, the audit says so and the LR is left alone.
        allow_increase: raise again what events have lowered. The warm-up climbs in any case.
        groups: param groups by index or name; default: all of the optimizer whose trouble it is.

    Raises:
        ValueError, TypeError: for a value that cannot be, with the cure.

    Example:
        >>> policy = AdaptiveLR(allow_increase=True)
        >>> with monitor.attach(optimizer, scheduler, policies=[policy]):
        ...     train()
    """

    factor: float = 0.3
    plateau_factor: float | None = 0.3
    cooldown_steps: int = 20
    recover_steps: int = 200
    min_factor: float = 1e-4
    warmup_steps: int = 40
    allow_increase: bool = False
    groups: Groups = field(default=None)

    def __post_init__(self) -> None:
        check_share("factor", self.factor)
        check_share("min_factor", self.min_factor)
        if self.plateau_factor is not None:
            check_share("plateau_factor", self.plateau_factor)
        check_least("cooldown_steps", self.cooldown_steps, 1)
        check_least("recover_steps", self.recover_steps, 1)
        check_least("warmup_steps", self.warmup_steps, 0)
        check_flag("allow_increase", self.allow_increase)
        object.__setattr__(self, "groups", checked_groups(self.groups))

    def start(self, submit: Submit) -> Reaction:
        """Return the reaction of one run."""
        return _Adapting(self, OwnCommands(submit))


class _Adapting:
    """``AdaptiveLR`` at work: a course for each optimizer."""

    def __init__(self, settings: AdaptiveLR, commands: OwnCommands) -> None:
        self._settings, self._commands = settings, commands
        self._courses: dict[str, _Course] = {}
        self._warm_up: str | None = None
        if settings.warmup_steps:
            request = Request("set", 1.0, settings.groups, "warm-up from a thousandth", settings.warmup_steps, START)
            self._warm_up = commands.submit(request)

    def on_event(self, event: Event) -> None:
        if event.kind == "control":
            for optimizer in self._commands.changed_by_others(event):
                self._course(optimizer).let_go()
            if self._warm_up is not None and event.details.get("command_id") == self._warm_up:
                for optimizer, indices in changed_groups(event).items():
                    self._course(optimizer).warm_up(indices)
        elif event.optimizer is not None:
            self._course(event.optimizer).on_event(event)

    def on_step(self, step: Step) -> None:
        self._course(step.optimizer).on_step(step)

    def _course(self, optimizer: str) -> _Course:
        if optimizer not in self._courses:
            self._courses[optimizer] = _Course(optimizer, self._settings, self._commands)
        return self._courses[optimizer]


class _Course:
    """What one optimizer has been through. Steps are global steps."""

    def __init__(self, optimizer: str, settings: AdaptiveLR, commands: OwnCommands) -> None:
        self._settings, self._commands = settings, commands
        self._optimizer = optimizer
        self._groups = groups_of(settings.groups, optimizer)
        self._troubles: dict[str, str] = {}
        self._factors: Mapping[int, float] = {}
        self._ceilings: dict[int, float] = {}
        self._first_loss: float | None = None
        self._num_losses = 0
        self._losses: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._loss_before = math.inf
        self._last: int | None = None
        self._calm_since = 0
        self._is_raised = False
        self._patience = 1
        self._now: int | None = None
        self._search: Search | None = None
        self._searched: Groups = None

    def warm_up(self, indices: list[int]) -> None:
        """Begin the search: these groups climb now."""
        own = self._settings.groups is None
        self._searched = (self._optimizer,) if own else tuple(f"{self._optimizer}/{i}" for i in indices)
        self._search = Search(self._settings.warmup_steps, self._settings.min_factor)

    def let_go(self) -> None:
        """Take the factors in force as given, and the time of it as that of a reduction: somebody else has set them."""
        self._ceilings.clear()
        self._last, self._loss_before = self._now, self._level()
        if self._search is not None:
            self._search.stop()

    def on_event(self, event: Event) -> None:
        settings = self._settings
        if event.kind == "plateau" and event.end_step is None and settings.plateau_factor is not None:
            self._lower(event.step, settings.plateau_factor, _reason(event), is_for_good=True)
        if event.kind not in TROUBLE:
            return
        if event.end_step is not None:
            self._troubles.pop(event.kind, None)
            self._calm_since = max(self._calm_since, event.step)
            return
        self._troubles[event.kind] = f"{event.kind} of step {event.step} still holds"
        self._lower(event.step, settings.factor, _reason(event))

    def on_step(self, step: Step) -> None:
        self._now = now = step.global_step
        selected = {group.index: group.factor for group in step.groups if self._is_meant(group.index, group.name)}
        if selected:
            self._factors = selected
        self._follow_loss(step.loss, now)
        if self._search is not None and self._factors and not step.is_skipped:
            move = self._search.step(step.loss, step.gradient_norm, min(self._factors.values()))
            if move is not None:
                self._move(move)
        if self._is_searching():
            return
        if self._troubles:
            if self._is_due(now) and not self._is_falling():
                self._lower(now, self._settings.factor, next(iter(self._troubles.values())))
        elif self._settings.allow_increase and self._ceilings:
            self._raise(now)

    def _is_meant(self, index: int, name: str | None) -> bool:
        groups = self._settings.groups
        names = {index, name, str(index), f"{self._optimizer}/{index}", self._optimizer}
        return groups is None or not names.isdisjoint(groups)

    def _follow_loss(self, loss: float | None, now: int) -> None:
        if loss is None or not math.isfinite(loss):
            return
        self._losses.append(loss)
        self._num_losses += 1
        if self._first_loss is None or (self._settings.warmup_steps and self._num_losses <= MEDIAN_STEPS):
            self._first_loss = max(loss, loss if self._first_loss is None else self._first_loss)
        limit = self._first_loss + ABOVE_START * abs(self._first_loss)
        is_above = self._num_losses > ABOVE_STEPS and min(list(self._losses)[-ABOVE_STEPS:]) > limit
        if is_above and "start" not in self._troubles and (self._search is None or self._search.is_over):
            reason = f"loss {self._level():.4g} stands above the first one, {self._first_loss:.4g}"
            self._troubles["start"] = f"{reason}, still"
            self._lower(now, self._settings.factor, f"{reason}, at step {now}")
        elif not is_above and self._troubles.pop("start", None) is not None:
            self._calm_since = now

    def _is_falling(self) -> bool:
        """Tell whether the last reduction has helped: enough where the loss is worse than untrained, else at all."""
        level, before, first = self._level(), self._loss_before, self._first_loss
        if before == math.inf:
            return False
        if "start" in self._troubles and first is not None:
            return level - first < 0.5 * (before - first)
        return level < before

    def _is_searching(self) -> bool:
        return self._search is not None and self._search.is_moving

    def _move(self, move: Move) -> None:
        self._last, self._loss_before = self._now, self._level()
        self._commands.submit(Request("set", move.factor, self._searched, move.reason, move.over_steps))

    def _level(self) -> float:
        return statistics.median(self._losses) if self._losses else math.inf

    def _is_due(self, now: int) -> bool:
        return self._last is None or now - self._last >= self._settings.cooldown_steps

    def _lower(self, now: int, factor: float, reason: str, *, is_for_good: bool = False) -> None:
        lowest = min(self._factors.values(), default=1.0)
        factor = max(factor, self._settings.min_factor / lowest)
        if factor >= 1 or not self._is_due(now) or self._is_searching():
            return
        for index, present in self._factors.items():
            self._ceilings.setdefault(index, present)
        self._last, self._loss_before = now, self._level()
        if self._commands.submit(Request("reduce", factor, self._groups, reason)) is None:
            return
        if is_for_good:
            self._ceilings = {index: ceiling * factor for index, ceiling in self._ceilings.items()}
        elif self._is_raised:
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        self._is_raised = False

    def _raise(self, now: int) -> None:
        """Double each factor, up to where it was before the trouble: one command for those that come out alike."""
        wait = self._settings.recover_steps * self._patience
        calm = now - max(self._calm_since, self._last or 0)
        if calm < wait:
            return
        aims: dict[float, list[int | str]] = {}
        for index, factor in self._factors.items():
            if factor < (ceiling := self._ceilings.get(index, factor)):
                aims.setdefault(min(2 * factor, ceiling), []).append(f"{self._optimizer}/{index}")
        if not aims:
            self._ceilings.clear()
            return
        self._last, self._is_raised = now, True
        for aim, groups in aims.items():
            over_steps = self._settings.recover_steps
            self._commands.submit(Request("set", aim, tuple(groups), f"{calm} calm steps", over_steps))


def _reason(event: Event) -> str:
    return f"{event.kind} at step {event.step}: {event.message}"

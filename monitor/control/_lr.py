"""Learning-rate factors: kept in the param groups, applied at the door of ``optimizer.step`` and only there.

The factor of a param group lives under ``monitor_lr_factor`` in the group itself, so that it travels in
``optimizer.state_dict()``. A
group without the key has factor 1 and is never touched. A ramp under way lives beside it under ``monitor_lr_ramp``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from monitor._errors import CommandRefusedError
from monitor._records import GroupChange

FACTOR = "monitor_lr_factor"
RAMP = "monitor_lr_ramp"
"""``[first factor, last factor, steps in all, steps made]``: plain numbers, so that ``torch.load(weights_only=True)``
reads them."""

Selection = Sequence[int | str] | None
State = list[tuple[str, int, float, list[float] | None]]


class Door:
    """Multiply the LRs of one optimizer on the way into ``step`` and put them back on the way out."""

    def __init__(self, min_lr: float = 0.0) -> None:
        self._min_lr = min_lr
        self._saved: list[tuple[dict[str, Any], Any]] = []

    @property
    def is_entered(self) -> bool:
        """Tell whether LRs are multiplied at this moment."""
        return bool(self._saved)

    def enter(self, optimizer: Optimizer) -> Sequence[float]:
        """Apply every group's factor; return the factors (1.0 where nothing was touched)."""
        factors = []
        for group in optimizer.param_groups:
            factor = _advance(group)
            factors.append(factor)
            if factor != 1.0:
                self._apply(group, factor)
        return factors

    def _apply(self, group: dict[str, Any], factor: float) -> None:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            scheduled = lr.detach().clone()
            self._saved.append((group, scheduled))
            lr.mul_(factor)
            if self._min_lr and factor < 1.0:
                lr.clamp_(min=scheduled.clamp(max=self._min_lr))
        else:
            self._saved.append((group, lr))
            applied = lr * factor
            group["lr"] = max(applied, min(lr, self._min_lr)) if factor < 1.0 else applied

    def scheduled(self, group: dict[str, Any]) -> Any:
        """Return the LR that the schedule asks for, also while another thread is inside the step."""
        return next((lr for g, lr in list(self._saved) if g is group), group["lr"])

    def leave(self) -> None:
        """Put the scheduled LRs back, exactly. Safe to call when nothing was applied."""
        while self._saved:
            group, lr = self._saved.pop()
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            else:
                group["lr"] = lr


def _advance(group: dict[str, Any]) -> float:
    """Make one step of a ramp, if one is under way, and return the factor in force."""
    ramp = group.get(RAMP)
    if ramp is not None:
        first, last, steps, made = ramp
        made += 1
        factor = last if made >= steps else first * (last / first) ** (made / steps)
        if made >= steps:
            del group[RAMP]
        else:
            group[RAMP] = [first, last, steps, made]
        _set_factor(group, factor, is_ramping=made < steps)
    return float(group.get(FACTOR, 1.0))


def _set_factor(group: dict[str, Any], factor: float, *, is_ramping: bool = False) -> None:
    if factor == 1.0 and not is_ramping:
        group.pop(FACTOR, None)
    else:
        group[FACTOR] = float(factor)


class LearningRates:
    """Know the factors of all optimizers of a run and change them. Changes are made by the training thread at a step
    boundary.

    Args:
        optimizers: name -> optimizer.
        doors: name -> the door of that optimizer.
        min_lr: floor on the applied LR of a reduced group.
        allow_increase: accept factors above 1.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        doors: Mapping[str, Door],
        *,
        min_lr: float = 0.0,
        allow_increase: bool = False,
    ) -> None:
        self._optimizers = dict(optimizers)
        self._doors = dict(doors)
        self._min_lr = min_lr
        self._allow_increase = allow_increase
        self._undo: list[State] = []

    def table(self) -> list[tuple[str, int, str | None, float, float, float]]:
        """Return (optimizer, param group, name, scheduled, factor, applied) for every group; syncs for an LR tensor
        on a device."""
        rows = []
        for key, optimizer in self._optimizers.items():
            for i, group in enumerate(optimizer.param_groups):
                lr, factor = float(self._doors[key].scheduled(group)), float(group.get(FACTOR, 1.0))
                rows.append((key, i, _name_of(group), lr, factor, self._applied(lr, factor)))
        return rows

    def _applied(self, lr: float, factor: float) -> float:
        return max(lr * factor, min(lr, self._min_lr)) if factor < 1.0 else lr * factor

    # ------------------------------------------------------------------------------------------------ refusal

    def check(self, action: str, factor: float | None, groups: Selection, over_steps: int) -> None:
        """Refuse what cannot be, before it is queued. Reads nothing but param groups.

        Raises:
            CommandRefusedError: with the value, the cure and the field.
        """
        selected = self._select(groups)
        if action in ("reduce", "set"):
            self._check_factor(action, factor, selected)
        elif factor is not None:
            raise CommandRefusedError(f"{action} takes no factor, got {factor!r}; leave it out", "factor")
        if isinstance(over_steps, bool) or not isinstance(over_steps, int) or not 0 <= over_steps <= 10**9:
            raise CommandRefusedError(
                f"over_steps must be a whole number of steps from 0 to 10**9, got {over_steps!r}", "over_steps"
            )
        if over_steps and action == "undo":
            raise CommandRefusedError(
                f"undo takes effect at once, got over_steps={over_steps}; leave it out", "over_steps"
            )
        if groups is not None and action == "undo":
            raise CommandRefusedError(
                f"undo takes back the last change as a whole, got groups={list(groups)!r}; leave groups out", "groups"
            )

    def _check_factor(self, action: str, factor: Any, selected: list[tuple[str, int, dict[str, Any]]]) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise CommandRefusedError(f"factor must be a number in (0, 1], got {factor!r}", "factor")
        if not math.isfinite(factor) or factor <= 0:
            raise CommandRefusedError(f"factor must be in (0, 1], got {factor!r}; to end a run use stop", "factor")
        if factor > 1 and not self._allow_increase:
            raise CommandRefusedError(
                f"factor must be in (0, 1], got {factor!r}; attach(allow_increase=True) lifts the upper bound", "factor"
            )
        for key, index, group in selected:
            lr = self._doors[key].scheduled(group)
            if not self._min_lr or isinstance(lr, Tensor):
                continue  # a tensor's floor is held at the door, where reading it costs no sync
            before = float(group.get(FACTOR, 1.0))
            after = before * factor if action == "reduce" else factor
            if after < 1 and lr * after < self._min_lr <= lr:
                raise CommandRefusedError(
                    f"factor {factor!r} would bring the LR of {key} group {index} to {lr * after:.6g}, below "
                    f"min_lr={self._min_lr:.6g}; use a factor of at least {self._least(action, lr, before):.6g}",
                    "factor",
                )

    def _least(self, action: str, lr: float, before: float) -> float:
        return self._min_lr / (lr * before if action == "reduce" else lr) if lr else 1.0

    def _select(self, groups: Selection) -> list[tuple[str, int, dict[str, Any]]]:
        everything = [
            (key, i, g) for key, optimizer in self._optimizers.items() for i, g in enumerate(optimizer.param_groups)
        ]
        if groups is None:
            return everything
        chosen: list[tuple[str, int, dict[str, Any]]] = []
        for wanted in groups:
            found = [row for row in everything if _is_meant(wanted, row)]
            if not found:
                known = ", ".join(sorted({str(i) for _, i, _ in everything} | _names(everything)))
                raise CommandRefusedError(f"no param group {wanted!r}; there are {known}", "groups")
            chosen += [row for row in found if not any(row[2] is have[2] for have in chosen)]
        if not chosen:
            raise CommandRefusedError(
                "groups must name at least one param group, got []; leave it out for all", "groups"
            )
        return chosen

    # ------------------------------------------------------------------------------------------------- change

    def apply(self, action: str, factor: float | None, groups: Selection, over_steps: int) -> tuple[GroupChange, ...]:
        """Carry out a command on the training thread; returns what changed, per group.

        Raises:
            CommandRefusedError: if it cannot be any more (the groups have changed, nothing to undo).
        """
        self.check(action, factor, groups, over_steps)
        if action == "undo":
            return self._take_back()
        selected = self._select(groups)
        before = [(k, i, float(g.get(FACTOR, 1.0)), _copied(g.get(RAMP))) for k, i, g in selected]
        changes = []
        for (key, index, group), (_, _, old, _) in zip(selected, before, strict=True):
            target = (
                1.0 if action == "restore" else old * float(factor or 0) if action == "reduce" else float(factor or 0)
            )
            self._aim(group, old, target, over_steps)
            changes.append(self._change(key, index, group, old, target))
        self._undo = [*self._undo[-63:], before]
        return tuple(changes)

    def _aim(self, group: dict[str, Any], old: float, target: float, over_steps: int) -> None:
        group.pop(RAMP, None)
        if over_steps > 1 and target != old:
            group[RAMP] = [old, target, over_steps, 0]
            group[FACTOR] = old
        else:
            _set_factor(group, target)

    def _take_back(self) -> tuple[GroupChange, ...]:
        if not self._undo:
            raise CommandRefusedError("there is no change to undo")
        state = self._undo.pop()
        changes = []
        for key, index, factor, ramp in state:
            groups = self._optimizers[key].param_groups
            if index >= len(groups):
                continue
            group = groups[index]
            old = float(group.get(FACTOR, 1.0))
            group.pop(RAMP, None)
            _set_factor(group, factor, is_ramping=ramp is not None)
            if ramp is not None:
                group[RAMP] = list(ramp)
            changes.append(self._change(key, index, group, old, factor))
        return tuple(changes)

    def _change(self, key: str, index: int, group: dict[str, Any], old: float, new: float) -> GroupChange:
        lr = self._doors[key].scheduled(group)
        scheduled = math.nan if isinstance(lr, Tensor) and not lr.is_cpu else float(lr)
        return GroupChange(
            key, index, _name_of(group), old, new, self._applied(scheduled, old), self._applied(scheduled, new)
        )

    def reduced(self) -> list[tuple[str, int, float]]:
        """Return the groups whose factor is not 1."""
        return [(k, i, f) for k, i, _, _, f, _ in self.table() if f != 1.0]


def _copied(ramp: Any) -> list[float] | None:
    return None if ramp is None else list(ramp)


def _name_of(group: dict[str, Any]) -> str | None:
    name = group.get("name")
    return None if name is None else str(name)


def _names(rows: list[tuple[str, int, dict[str, Any]]]) -> set[str]:
    names = {f"{key}/{i}" for key, i, _ in rows} if len({key for key, _, _ in rows}) > 1 else set()
    return names | {name for _, _, g in rows if (name := _name_of(g)) is not None}


def _is_meant(wanted: int | str, row: tuple[str, int, dict[str, Any]]) -> bool:
    """A group is meant by its index, its name, ``optimizer/index``, or its optimizer's name (all of its groups)."""
    key, index, group = row
    if isinstance(wanted, int):
        return not isinstance(wanted, bool) and wanted == index
    return wanted in (_name_of(group), f"{key}/{index}", key) or (wanted.isdigit() and int(wanted) == index)

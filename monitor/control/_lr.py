"""The factors of a run's param groups: what may be asked of them, how they change, and how a change is taken back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from monitor._checks import is_number, is_real, is_whole
from monitor._errors import CommandRefusedError
from monitor._records import MAX_STEPS, GroupChange
from monitor.common import as_name, group_names
from monitor.control._factors import MAX_FACTOR, MIN_FACTOR, Factors, Group, OnError, Ramp, Rows, checked_row
from monitor.control._floor import Low, below_floor, floor_for, is_below, least_factor
from monitor.control._lr_scaling import LRScaling
from monitor.control._own_scale import is_shared, own_scale
from monitor.link import applied_lr

MAX_UNDO = 64

Selection = Sequence[int | str] | None


class _ParamGroupRow(NamedTuple):
    """One param group. ``group`` is the dictionary itself: ``load_state_dict`` puts another in its place."""

    optimizer: str
    param_group: int
    name: str | None
    group: Group
    factors: Factors

    @property
    def factor(self) -> float:
        return self.factors.get(self.group)[0]

    @property
    def number(self) -> int:
        return self.factors.number_of(self.group)


class _UndoEntry(NamedTuple):
    """What a group was before a change. The group goes by its number, so that it can go with its optimizer."""

    number: int
    factor: float
    ramp: Ramp | None


class LearningRates:
    """Know the factors of all optimizers of a run and change them. Changes are made by the training thread at a
    step boundary.

    Args:
        optimizers: name -> optimizer.
        scalings: name -> the scaling of that optimizer.
        min_lr: floor on the applied LR of a reduced group.
        allow_increase: accept factors above 1.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        scalings: Mapping[str, LRScaling],
        *,
        min_lr: float = 0.0,
        allow_increase: bool = False,
    ) -> None:
        self._optimizers = optimizers
        self._scalings = dict(scalings)
        self._min_lr = min_lr
        self._allow_increase = allow_increase
        self._undo: list[list[_UndoEntry]] = []
        self._factors = Factors.of

    # --------------------------------------------------------------------------------------- save and resume

    def open(self, on_error: OnError) -> None:
        """Take over the factors that the optimizers' states have brought, and have them travel in those states."""
        for key, optimizer in self._optimizers.items():
            self._factors(optimizer).open(key, optimizer, on_error)

    def close(self) -> None:
        """Leave the factors in the param groups and take the hooks out."""
        self._factors = Factors.seen
        for optimizer in self._optimizers.values():
            Factors.seen(optimizer).close(optimizer)

    def state_dict(self) -> dict[str, tuple[Any, ...]]:
        """Return the factor and the ramp of each group, by optimizer, as plain values. One value for each optimizer,
        always, and a tuple, which no checkpoint takes apart: its reader finds all the keys that it asks for."""
        return {
            key: tuple(self._factors(one).get(group) for group in list(one.param_groups))
            for key, one in self._optimizers.items()
        }

    @staticmethod
    def check_state_dict(state: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Rows]:
        """Return saved factors as rows. Raises ValueError, TypeError for what :meth:`state_dict` did not make."""
        return {key: [checked_row(*row) for row in rows] for key, rows in state.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Put saved factors in force. Raises ValueError, TypeError for what :meth:`state_dict` did not make."""
        saved = self.check_state_dict(state)
        for key, optimizer in self._optimizers.items():
            if key in saved:
                self._factors(optimizer).restore(optimizer.param_groups, saved[key])
        self._undo.clear()

    # ------------------------------------------------------------------------------------------------ reading

    def table(self) -> list[tuple[str, int, str | None, float | None, float, float | None]]:
        """Return (optimizer, param group, name, scheduled, factor, applied) for every group; syncs for an LR tensor
        on a device."""
        table = []
        for row in self._rows():
            lr, scale, factor = _number(self._scheduled(row)), _number(own_scale(row.group)), row.factor
            scheduled, applied = _product(lr, scale), _product(self._applied(lr, factor), scale)
            table.append((row.optimizer, row.param_group, row.name, scheduled, factor, applied))
        return table

    def let_go(self) -> None:
        """Keep no param group: there is nothing left to undo, and no optimizer to change."""
        self._undo = []
        self._optimizers = {}

    def reduced(self) -> list[tuple[str, int, float]]:
        """Return the groups whose factor is not 1."""
        return [(r.optimizer, r.param_group, f) for r in self._rows() if (f := r.factor) != 1.0]

    def trace(self) -> str | None:
        """Return what shows that an optimizer has made steps before, or None: state, or a factor that came with it."""
        for key, optimizer in self._optimizers.items():
            if any(_has_stepped(state) for state in list(optimizer.state.values())):
                return f"{key} holds the state of earlier steps; this is for a fresh run"
        for row in self._rows():
            if row.factors.get(row.group) != (1.0, None):
                return f"{row.optimizer} group {row.param_group} has a factor already; this is for a fresh run"
        return None

    def _rows(self) -> list[_ParamGroupRow]:
        return [
            _ParamGroupRow(key, i, name, group, self._factors(one))
            for key, one in self._optimizers.items()
            for groups in [list(one.param_groups)]
            for i, (group, name) in enumerate(zip(groups, group_names(groups), strict=True))
        ]

    def _scheduled(self, row: _ParamGroupRow) -> Any:
        return self._scalings[row.optimizer].scheduled(row.group)

    def _applied(self, lr: float | None, factor: float) -> float | None:
        return None if lr is None else applied_lr(lr, factor, self._min_lr)

    # ------------------------------------------------------------------------------------------------ refusal

    def check(self, action: str, factor: float | None, groups: Selection, over_steps: int) -> None:
        """Refuse what cannot be, before it is queued. Reads nothing but param groups.

        Raises:
            CommandRefusedError: with the value, the cure and the field.
        """
        if action == "undo":
            _refuse_what_undo_lacks(factor, groups, over_steps)
            return
        selected = self._select(groups)
        if action in ("reduce", "set"):
            self._check_factor(action, factor, selected)
        elif factor is not None:
            raise CommandRefusedError(f"{action} takes no factor, got {factor!r}; leave it out", "factor")
        self._check_shared(selected)
        if not (is_whole(over_steps) and 0 <= over_steps <= MAX_STEPS):
            raise CommandRefusedError(
                f"over_steps must be a whole number of steps from 0 to 10**9, got {over_steps!r}", "over_steps"
            )

    def _check_factor(self, action: str, factor: Any, selected: Sequence[_ParamGroupRow]) -> None:
        if not is_number(factor):
            raise CommandRefusedError(f"factor must be a number in (0, 1], got {factor!r}", "factor")
        if not math.isfinite(factor) or factor <= 0:
            raise CommandRefusedError(f"factor must be in (0, 1], got {factor!r}; to end a run use stop", "factor")
        if factor > 1 and not self._allow_increase:
            raise CommandRefusedError(
                f"factor must be in (0, 1], got {factor!r}; attach(allow_increase=True) lifts the upper bound", "factor"
            )
        low = [one for row in selected if (one := self._check_result(action, factor, row)) is not None]
        if low:
            raise below_floor(factor, max(low, key=lambda one: one.least), self._min_lr)

    def _check_shared(self, selected: Sequence[_ParamGroupRow]) -> None:
        """Some of the optimizers that use one LR for all groups raise in ``step`` when the groups differ in it."""
        chosen = [row.group for row in selected]
        touched = {row.optimizer for row in selected if is_shared(row.group)}
        if any(row.optimizer in touched and not any(row.group is g for g in chosen) for row in self._rows()):
            raise CommandRefusedError(
                f"{', '.join(sorted(touched))} uses one learning rate for all of its groups; name all of them", "groups"
            )

    def _check_result(self, action: str, factor: float, row: _ParamGroupRow) -> Low | None:
        """Refuse a factor that does not fit the group; return what the floor says to it, None for nothing."""
        before = row.factor if action == "reduce" else 1.0
        after = before * factor
        where = f"{row.optimizer} group {row.param_group}"
        if not MIN_FACTOR <= after <= MAX_FACTOR:
            raise CommandRefusedError(
                f"factor {factor!r} would bring the factor of {where} to {after:.6g}; "
                f"it must stay between {MIN_FACTOR:g} and {MAX_FACTOR:g}",
                "factor",
            )
        lr = self._scheduled(row)
        if isinstance(lr, Tensor):
            if not lr.is_floating_point():
                raise CommandRefusedError(
                    f"the LR of {where} is a tensor of {lr.dtype}, which no factor fits; make it a floating-point one"
                )
            if not lr.is_cpu:
                return None  # its floor is held at the scaling, where that costs no sync
        elif not is_real(lr):
            raise CommandRefusedError(f"{where} has no learning rate to change, got lr={lr!r}; name other groups")
        if own_scale(row.group) is None:
            raise CommandRefusedError(f"{where} derives its learning rate itself (relative_step); name other groups")
        scheduled, floor = _as_float(lr), floor_for(lr, self._min_lr)
        if not is_below(scheduled, before, factor, floor):
            return None
        return Low(where, scheduled * after, least_factor(scheduled, before, floor))

    def _select(self, groups: Selection) -> list[_ParamGroupRow]:
        rows = self._rows()
        if groups is None:
            return rows
        chosen: list[_ParamGroupRow] = []
        for wanted in groups:
            found = _meant(wanted, rows)
            if not found:
                raise CommandRefusedError(f"no param group {wanted!r}; there are {_known(rows)}", "groups")
            chosen += [row for row in found if not any(row.group is have.group for have in chosen)]
        if not chosen:
            raise CommandRefusedError(
                "groups must name at least one param group, got []; leave it out for all", "groups"
            )
        return chosen

    # ------------------------------------------------------------------------------------------------- change

    def apply(
        self, action: str, factor: float | None, groups: Selection, over_steps: int, begin_at: float | None = None
    ) -> tuple[GroupChange, ...]:
        """Carry out a command on the training thread; returns what changed, per group. All groups or none.

        ``begin_at``: the factor that a ramp begins at; default: the one in force.

        Raises:
            CommandRefusedError: if it cannot be any more (the groups have changed, nothing to undo).
        """
        self.check(action, factor, groups, over_steps)
        if action == "undo":
            return self._take_back()
        rows = self._select(groups)
        held = [_UndoEntry(row.number, *row.factors.get(row.group)) for row in rows]
        changes = []
        for row, (_, old, _) in zip(rows, held, strict=True):
            target = 1.0 if action == "restore" else float(factor or 0) * (old if action == "reduce" else 1.0)
            first = old if begin_at is None else begin_at
            _aim(row, first, target, over_steps)
            changes.append(self._change(row, first, target))
        self._undo = [*self._undo[1 - MAX_UNDO :], held]
        return tuple(changes)

    def _take_back(self) -> tuple[GroupChange, ...]:
        if not self._undo:
            raise CommandRefusedError("there is no change to undo")
        held = self._undo.pop()
        present = {row.number: row for row in self._rows()}
        kept = [(present[number], factor, ramp) for number, factor, ramp in held if number in present]
        if not kept:
            raise CommandRefusedError(
                "there is no change to undo: the optimizer's state was loaded since the last one; use set or restore"
            )
        changes = []
        for row, factor, ramp in kept:
            old = row.factor
            row.factors.put(row.group, factor, ramp)
            changes.append(self._change(row, old, factor))
        return tuple(changes)

    def _change(self, row: _ParamGroupRow, old: float, new: float) -> GroupChange:
        lr, scale = (_at_hand(value) for value in (self._scheduled(row), own_scale(row.group)))
        before, after = (_product(self._applied(lr, factor), scale) for factor in (old, new))
        return GroupChange(row.optimizer, row.param_group, row.name, old, new, before, after)


def _has_stepped(state: Any) -> bool:
    """Tell whether the state of a parameter is that of an earlier step: some optimizers make it at construction, with
    ``step`` at 0. A count on a device is not read, as that would wait for it."""
    step = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(step, Tensor):
        return not step.is_cpu or bool(step.any())
    return bool(state) if step is None else bool(step)


def _refuse_what_undo_lacks(factor: Any, groups: Selection, over_steps: int) -> None:
    for field, value, why in (
        ("factor", factor, "takes no factor"),
        ("groups", groups, "takes back the last change as a whole"),
        ("over_steps", over_steps or None, "takes effect at once"),
    ):
        if value is not None:
            raise CommandRefusedError(f"undo {why}, got {field}={value!r}; leave it out", field)


def _aim(row: _ParamGroupRow, old: float, target: float, over_steps: int) -> None:
    if over_steps > 1 and target != old:
        row.factors.put(row.group, old, [old, target, over_steps, 0])
    else:
        row.factors.put(row.group, target)


def _as_float(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _number(value: Any) -> float | None:
    """Return a value as a float, None for what is not a number."""
    try:
        return _as_float(value)
    except (TypeError, ValueError):
        return None


def _at_hand(value: Any) -> float | None:
    """Return a value as a float if no device has to be waited for."""
    return None if isinstance(value, Tensor) and not value.is_cpu else _number(value)


def _product(lr: float | None, scale: float | None) -> float | None:
    return None if lr is None or scale is None else lr * scale


def _known(rows: Sequence[_ParamGroupRow]) -> str:
    """Say what may be written: indices, names and, of several optimizers, these."""
    names = {str(r.param_group) for r in rows} | {name for r in rows if (name := r.name) is not None}
    optimizers = sorted({r.optimizer for r in rows}, key=_in_order)
    if len(optimizers) < 2:
        return ", ".join(sorted(names, key=_in_order))
    known = ", ".join(sorted(names.union(optimizers), key=_in_order))
    return f"{known}, and OPTIMIZER/INDEX, such as {optimizers[0]}/{rows[0].param_group}"


def _in_order(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort numbers within names by value: Adam-2 before Adam-10."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return tuple((not part[0].isdigit(), len(part) if part[0].isdigit() else 0, part) for part in parts)


def _meant(wanted: Any, rows: Sequence[_ParamGroupRow]) -> list[_ParamGroupRow]:
    """Return the groups that a text or a number means: all of an optimizer, ``optimizer/index``, an index in each
    optimizer, or a group's own name. What fits several of these means the first, and never their sum."""
    if is_whole(wanted):
        return [row for row in rows if wanted == row.param_group]
    if not isinstance(wanted, str):
        return []
    wanted = as_name(wanted)
    meanings: tuple[Callable[[_ParamGroupRow], str | None], ...] = (
        lambda row: row.optimizer,
        lambda row: f"{row.optimizer}/{row.param_group}",
        lambda row: str(row.param_group),
        lambda row: row.name,
    )
    return next((found for of in meanings if (found := [row for row in rows if of(row) == wanted])), [])

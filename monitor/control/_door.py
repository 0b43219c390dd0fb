"""The door of ``optimizer.step``: the one place where a learning rate is multiplied by its factor, and put back.

The factor of a param group lives under ``monitor_lr_factor`` in the group itself, so that it travels in
``optimizer.state_dict()``. A group without the key has factor 1 and is never touched. A ramp under way lives beside
it under ``monitor_lr_ramp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

FACTOR = "monitor_lr_factor"
RAMP = "monitor_lr_ramp"
"""``[first factor, last factor, steps in all, steps made]``: plain numbers, so that ``torch.load(weights_only=True)``
reads them."""
MIN_FACTOR, MAX_FACTOR = 1e-100, 1e100
"""What a factor in force may be; between them a ramp can neither overflow nor divide by zero."""

Group = dict[str, Any]


class Door:
    """Multiply the LRs of one optimizer on the way into ``step`` and put them back on the way out.

    Args:
        min_lr: floor on the applied LR of a reduced group; a schedule that is below it already is left alone.
    """

    def __init__(self, min_lr: float = 0.0) -> None:
        self._min_lr = min_lr
        self._saved: list[tuple[Group, Any, Tensor | None]] = []

    @property
    def is_entered(self) -> bool:
        """Tell whether LRs are multiplied at this moment."""
        return bool(self._saved)

    def enter(self, optimizer: Optimizer) -> Sequence[float]:
        """Apply every group's factor; return the factors (1.0 where nothing was touched). All of them or none.

        Raises:
            ValueError: a factor that was loaded with the optimizer's state cannot be one; it is dropped, so the next
                step goes on with the schedule's own LR.
        """
        groups = optimizer.param_groups
        try:
            factors = [_advance(group) for group in groups]
            if factors.count(1.0) < len(factors):
                self._apply(groups, factors, is_kept=isinstance(optimizer, LBFGS))
        except BaseException:
            self.leave()
            raise
        return factors

    def _apply(self, groups: Sequence[Group], factors: Sequence[float], *, is_kept: bool) -> None:
        """``is_kept``: the optimizer keeps the LR object of a step, as LBFGS does for the length of that step."""
        split = _split(groups, factors)
        multiplied = set()
        for group, factor in zip(groups, factors, strict=True):
            if factor == 1.0:
                continue
            lr = group["lr"]
            if not isinstance(lr, Tensor):
                self._saved.append((group, lr, None))
                group["lr"] = applied_lr(lr, factor, self._min_lr)
            elif is_kept or id(lr) in split:  # a tensor of its own for the length of the step
                self._saved.append((group, lr, None))
                group["lr"] = self._multiply(lr.detach().clone(), factor)
            elif id(lr) not in multiplied:
                multiplied.add(id(lr))
                self._saved.append((group, lr, lr.detach().clone()))
                self._multiply(lr, factor)

    def _multiply(self, lr: Tensor, factor: float) -> Tensor:
        """Multiply in place, without a sync: a compiled or captured ``step`` reads this very tensor."""
        with torch.no_grad():
            floor = lr.clamp(max=self._min_lr) if self._min_lr and factor < 1.0 else None
            lr.mul_(factor)
            if floor is not None:
                lr.copy_(torch.maximum(lr, floor))
        return lr

    def scheduled(self, group: Group) -> Any:
        """Return the LR that the schedule asks for, also while another thread is inside the step."""
        lr = group.get("lr")
        for held, object_, value in list(self._saved):
            if held is group or (value is not None and object_ is lr):
                return object_ if value is None else value
        return lr

    def leave(self) -> None:
        """Put the scheduled LRs back, exactly. Safe to call when nothing was applied."""
        while self._saved:
            group, lr, value = self._saved[-1]
            if value is not None:
                with torch.no_grad():
                    lr.copy_(value)
            group["lr"] = lr
            self._saved.pop()  # last: a reader on another thread finds either the note or the LR itself


def _split(groups: Sequence[Group], factors: Sequence[float]) -> set[int]:
    """Return the ids of the LR tensors whose groups (torch hands its default on to every group) differ in factor."""
    first: dict[int, float] = {}
    split = set()
    for group, factor in zip(groups, factors, strict=True):
        lr = group.get("lr")
        if isinstance(lr, Tensor) and first.setdefault(id(lr), factor) != factor:
            split.add(id(lr))
    return split


def _advance(group: Group) -> float:
    """Make one step of a ramp, if one is under way, and return the factor in force."""
    if FACTOR not in group and RAMP not in group:
        return 1.0
    try:
        if (ramp := group.get(RAMP)) is not None:
            return _climb(group, *ramp)
        return checked(group[FACTOR])
    except (TypeError, ValueError) as error:
        found = group.pop(FACTOR, None), group.pop(RAMP, None)
        raise ValueError(
            f"the optimizer's state holds {found!r} as LR factor and ramp, which cannot be; the schedule's LR is used"
        ) from error


def _climb(group: Group, first: float, last: float, steps: int, made: int) -> float:
    first, last, made = checked(first), checked(last), int(made) + 1
    if made >= steps:
        group.pop(RAMP)
        set_factor(group, last)
        return last
    factor: float = first * (last / first) ** (made / steps)
    group[RAMP] = [first, last, int(steps), made]
    set_factor(group, factor, is_ramping=True)
    return factor


def checked(factor: Any) -> float:
    """Return a factor as a float. Raises ValueError, TypeError for what cannot be one."""
    value = float(factor)
    if math.isnan(value) or not MIN_FACTOR <= value <= MAX_FACTOR:
        raise ValueError(f"factor must be in [{MIN_FACTOR:g}, {MAX_FACTOR:g}], got {factor!r}")
    return value


def factor_of(group: Group) -> float:
    """Return the factor in force; 1 for what cannot be one, as the next step drops it."""
    try:
        return checked(group.get(FACTOR, 1.0))
    except (TypeError, ValueError):
        return 1.0


def applied_lr(scheduled: float, factor: float, min_lr: float) -> float:
    """Return the LR that an update uses: ``min_lr`` is the floor of a reduced one, unless the schedule is below it.

    >>> applied_lr(0.1, 0.5, 0.0), applied_lr(0.1, 0.5, 0.08), applied_lr(0.1, 0.5, 0.2)
    (0.05, 0.08, 0.1)
    """
    applied = scheduled * factor
    return max(applied, min(scheduled, min_lr)) if factor < 1.0 else applied


def set_factor(group: Group, factor: float, *, is_ramping: bool = False) -> None:
    """Put a factor in force; a factor of 1 leaves no trace in the group."""
    if factor == 1.0 and not is_ramping:
        group.pop(FACTOR, None)
    else:
        group[FACTOR] = factor

"""The LR factors of one optimizer: kept beside its param groups, written into its ``state_dict``, read from a
loaded one.

A param group itself holds no key of ours: ``torch.distributed.checkpoint`` looks up each key of a live group in the
checkpoint that it loads, and stops at one that the checkpoint lacks. A state holds a factor other than 1 under
``monitor_lr_factor`` in the group, and a ramp under way under ``monitor_lr_ramp``. Found in a live group, where a
load has put them, they are in force at once and are taken out at the latest by the next step.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from itertools import count
from types import FrameType
from typing import Any

from torch.optim import Optimizer

from monitor._records import FACTOR_KEY
from monitor.common import contained

RAMP = "monitor_lr_ramp"
"""``[first factor, last factor, steps in all, steps made]``: plain numbers, so that ``torch.load(weights_only=True)``
reads them."""
MIN_FACTOR, MAX_FACTOR = 1e-100, 1e100
"""What a factor in force may be; between them a ramp can neither overflow nor divide by zero."""

Group = dict[str, Any]
Ramp = list[float]
Rows = Sequence[tuple[float, Ramp | None]]
OnError = Callable[[Exception], None]

_ATTRIBUTE = "_monitor_lr_factors"
_EXACT_READERS = ("torch.distributed.checkpoint", "torchsnapshot")
"""Packages that read from a checkpoint exactly the keys that ``state_dict`` returns now, and fail if one is missing."""
_LOADING = ("load", "restore", "rollback", "roll")
_NUMBERS = count(1)
_LOG = logging.getLogger("monitor")


class Held:
    """What is in force for one param group: the dictionary itself, as ``load_state_dict`` puts another in its place."""

    __slots__ = ("factor", "group", "ramp")

    def __init__(self, group: Group, factor: float, ramp: Ramp | None) -> None:
        self.group = group
        self.factor = factor
        self.ramp = ramp

    def write_into(self, group: Group) -> None:
        """Write the keys into a group of a state."""
        group[FACTOR_KEY] = self.factor
        if self.ramp is not None:
            group[RAMP] = list(self.ramp)


class Factors:
    """The factors of one optimizer. It hangs on the optimizer, so that it lives no longer and keeps nothing alive.

    ``held``, by the group's ``id``, stays the same dictionary, empty while every factor is 1: the hot path looks at it.
    ``restored`` is what ``run.load_state_dict`` has put in force, until a step uses it: the optimizer's own state,
    loaded after that, may lack the factors.
    """

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}
        self.restored: Rows = []
        self._numbers: dict[int, tuple[Group, int]] = {}
        self._handles: list[Any] = []
        self._has_warned = False

    @classmethod
    def of(cls, optimizer: Optimizer) -> Factors:
        """Return the factors of an optimizer that is watched, or is about to be."""
        factors: Factors = vars(optimizer).setdefault(_ATTRIBUTE, cls())
        return factors

    @classmethod
    def seen(cls, optimizer: Optimizer) -> Factors:
        """Return the factors of an optimizer without touching it: after the run they are in its groups."""
        return vars(optimizer).get(_ATTRIBUTE) or cls()

    # ------------------------------------------------------------------------------------------------ reading

    def get(self, group: Group) -> tuple[float, Ramp | None]:
        """Return the factor in force and the ramp under way; 1 for what cannot be a factor, as the next step drops it.
        Any thread may ask."""
        if FACTOR_KEY in group:  # a load has put it there
            try:
                return checked(group.get(FACTOR_KEY)), group.get(RAMP)
            except (TypeError, ValueError):
                return 1.0, None
        one = self.held.get(id(group))
        return (1.0, None) if one is None else (one.factor, one.ramp)

    def number_of(self, group: Group) -> int:
        """Return a number that no other param group has: a change that can be undone names its groups by it."""
        known = self._numbers.get(id(group))
        if known is None or known[0] is not group:
            known = self._numbers[id(group)] = group, next(_NUMBERS)
        return known[1]

    # ------------------------------------------------------------------------------------------------ changing

    def put(self, group: Group, factor: float, ramp: Ramp | None = None) -> None:
        """Put a factor in force."""
        self.restored = []
        if factor == 1.0 and ramp is None:
            self.held.pop(id(group), None)
        else:
            self.held[id(group)] = Held(group, factor, ramp)
        group.pop(FACTOR_KEY, None)
        group.pop(RAMP, None)

    def adopt(self, groups: Sequence[Group]) -> None:
        """Take the keys out of the groups, and let go of groups that are no longer the optimizer's.

        Raises:
            ValueError: a factor or a ramp is invalid; it is dropped, so the schedule's own LR is used.
        """
        present = {id(group) for group in groups}
        for key in self.held.keys() - present:
            del self.held[key]
        for key in self._numbers.keys() - present:
            del self._numbers[key]
        for group in groups:
            if FACTOR_KEY in group or RAMP in group:
                self._adopt(group)

    def _adopt(self, group: Group) -> None:
        factor, ramp = group.get(FACTOR_KEY), group.get(RAMP)
        try:
            self.put(group, checked(factor), None if ramp is None else _checked_ramp(*ramp))
        except (TypeError, ValueError) as error:
            self.put(group, 1.0)
            raise ValueError(
                f"the optimizer's state holds {(factor, ramp)!r} as LR factor and ramp, which is invalid; "
                "the schedule's LR is used"
            ) from error

    def advance(self, groups: Sequence[Group]) -> list[float]:
        """Make one step of each ramp and return the factors that this step uses. Raises as :meth:`adopt`."""
        self.restored = []
        self.adopt(groups)
        for one in list(self.held.values()):
            if one.ramp is not None:
                self.put(one.group, *_climbed(*one.ramp))
        return [self.get(group)[0] for group in groups]

    def restore(self, groups: Sequence[Group], rows: Rows) -> None:
        """Put saved factors in force, one for each group."""
        for group, row in zip(groups, rows, strict=False):
            self.put(group, *row)
        self.restored = rows

    # --------------------------------------------------------------------------------------- save and resume

    def open(self, name: str, optimizer: Optimizer, on_error: OnError) -> None:
        """Take over what a state has left in the groups, and hook into the saving and the loading of states."""

        def saved(optimizer: Optimizer, state: dict[str, Any]) -> None:
            try:
                if self.held:
                    self._write_into(name, optimizer, state)
            except Exception as error:  # noqa: BLE001 - here, not in `contained`: who has called is read off the stack
                on_error(error)

        def loaded(optimizer: Optimizer) -> None:
            contained(on_error, lambda: self._take_over(optimizer.param_groups))

        loaded(optimizer)
        self._handles = [
            optimizer.register_state_dict_post_hook(saved),
            optimizer.register_load_state_dict_post_hook(loaded),
        ]

    def close(self, optimizer: Optimizer) -> None:
        """Take the hooks out. The factors are left in the groups: a state that is saved later has them too."""
        for handle in self._handles:
            handle.remove()
        vars(optimizer).pop(_ATTRIBUTE, None)
        for one in self.held.values():
            one.write_into(one.group)
        self.held.clear()

    def _write_into(self, name: str, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if _is_read_exactly():
            self._warn(name, optimizer)
            return
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
            if (one := self.held.get(id(group))) is not None:
                one.write_into(saved)

    def _warn(self, name: str, optimizer: Optimizer) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        factors = [(i, self.get(group)[0]) for i, group in enumerate(optimizer.param_groups)]
        _LOG.warning(
            "the LR factors in force (%s) are left out of an optimizer state whose keys must all be in the "
            "checkpoint, as torch.distributed.checkpoint demands; to keep them, save run.state_dict() beside it",
            ", ".join([f"{name} group {i}: {factor:g}" for i, factor in factors if factor != 1.0][:8]),
        )

    def _take_over(self, groups: Sequence[Group]) -> None:
        self.adopt(groups)
        if not self.held:
            self.restore(groups, self.restored)


def checked(factor: Any) -> float:
    """Return a factor as a float. Raises ValueError, TypeError for what cannot be one."""
    value = float(factor)
    if math.isnan(value) or not MIN_FACTOR <= value <= MAX_FACTOR:
        raise ValueError(f"factor must be in [{MIN_FACTOR:g}, {MAX_FACTOR:g}], got {factor!r}")
    return value


def checked_row(factor: Any, ramp: Any) -> tuple[float, Ramp | None]:
    """Return a factor and its ramp as they were saved. Raises as :func:`checked`."""
    return checked(factor), None if ramp is None else _checked_ramp(*ramp)


def _checked_ramp(first: Any, last: Any, steps: Any, made: Any) -> Ramp:
    return [checked(first), checked(last), int(steps), int(made)]


def _climbed(first: float, last: float, steps: float, made: float) -> tuple[float, Ramp | None]:
    made += 1
    if made >= steps:
        return last, None
    return first * (last / first) ** (made / steps), [first, last, steps, made]


def _is_read_exactly() -> bool:
    """Tell whether the state is asked for by what may read exactly its keys from a checkpoint: a package known for
    that, or a function that is named for loading."""
    callers = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        callers.append((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        frame = frame.f_back
    if any(module.startswith(_EXACT_READERS) for module, _ in callers):
        return True
    asking = next((name for module, name in callers if not _passes_on(module, name)), "")
    return asking.strip("_").split("_")[0] in _LOADING


def _passes_on(module: str, name: str) -> bool:
    """Tell whether a caller hands the state of the optimizer on to its own caller: a wrapper, a comprehension."""
    is_ours_or_torchs = module == __name__ or module.startswith("torch.")
    return is_ours_or_torchs or name == "state_dict" or (name.startswith("<") and name != "<module>")

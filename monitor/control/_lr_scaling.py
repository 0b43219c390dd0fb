"""LR scaling: multiply learning rates by their factors for one ``optimizer.step``, then restore them.

The factors are kept in :mod:`monitor.control._factors`. A group without one has factor 1 and is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from monitor.control._factors import Factors, Group
from monitor.control._own_scale import own_scales
from monitor.link import applied_lr


class LRScaling:
    """Multiply the LRs of one optimizer for one ``step``, and put them back after it.

    Args:
        min_lr: floor on the applied LR of a reduced group; a schedule that is below it already is left alone.
    """

    def __init__(self, min_lr: float = 0.0) -> None:
        self._min_lr = min_lr
        self._saved: list[tuple[Group, Any, Tensor | None]] = []

    @property
    def is_applied(self) -> bool:
        """Tell whether LRs are multiplied at this moment."""
        return bool(self._saved)

    def held(self, optimizer: Optimizer) -> Mapping[int, Any]:
        """Return what is in force, empty while every factor is 1: the same object for as long as the run."""
        return Factors.of(optimizer).held

    def scales(self, optimizer: Optimizer) -> Sequence[Any] | None:
        """Return what the optimizer itself multiplies the LR of each group by in its next update; None: by nothing."""
        return own_scales(optimizer.param_groups)

    def apply(self, optimizer: Optimizer) -> Sequence[float]:
        """Apply every group's factor; return the factors (1.0 where nothing was touched). All of them or none.

        Raises:
            ValueError: a factor that was loaded with the optimizer's state is invalid; it is dropped, so the next
                step uses the schedule's own LR.
        """
        groups = optimizer.param_groups
        try:
            factors = Factors.of(optimizer).advance(groups)
            if factors.count(1.0) < len(factors):
                self._scale_groups(groups, factors, is_kept=isinstance(optimizer, LBFGS))
        except BaseException:
            self.restore()
            raise
        return factors

    def _scale_groups(self, groups: Sequence[Group], factors: Sequence[float], *, is_kept: bool) -> None:
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

    def restore(self) -> None:
        """Put the scheduled LRs back, exactly. Safe to call when nothing was applied."""
        while self._saved:
            group, lr, value = self._saved[-1]
            if value is not None:
                with torch.no_grad():
                    lr.copy_(value)
            group["lr"] = lr
            self._saved.pop()  # last: a reader on another thread finds either the saved LR or the LR itself


def _split(groups: Sequence[Group], factors: Sequence[float]) -> set[int]:
    """Return the ids of the LR tensors whose groups (torch hands its default on to every group) differ in factor."""
    first: dict[int, float] = {}
    split = set()
    for group, factor in zip(groups, factors, strict=True):
        lr = group.get("lr")
        if isinstance(lr, Tensor) and first.setdefault(id(lr), factor) != factor:
            split.add(id(lr))
    return split

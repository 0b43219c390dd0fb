"""Tell from a scheduler how many steps are planned, where it is stepped as often as its optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, PolynomialLR, SequentialLR


def horizon_of(scheduler: Any) -> int | None:
    """Return after how many of its own steps a schedule is at its end; None where it has none, or does not say.

    transformers' schedules are a LambdaLR of a ``partial``, which knows its ``num_training_steps``.

    >>> horizon_of(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=500))
    500
    """
    found: Any = None
    if isinstance(scheduler, OneCycleLR):
        found = scheduler.total_steps
    elif isinstance(scheduler, CosineAnnealingLR):
        found = scheduler.T_max
    elif isinstance(scheduler, PolynomialLR):
        found = scheduler.total_iters
    elif isinstance(scheduler, LambdaLR):
        function = scheduler.lr_lambdas[0]
        found = function.keywords.get("num_training_steps") if isinstance(function, partial) else None
    elif isinstance(scheduler, SequentialLR) and scheduler._milestones:
        last = horizon_of(scheduler._schedulers[-1])
        found = None if last is None else scheduler._milestones[-1] + last
    return found if isinstance(found, int) and found > 0 else None


class SchedulePace:
    """Compare how often the schedulers of an optimizer are stepped with how often the optimizer is.

    Args:
        schedulers: of one optimizer; those inside a SequentialLR are passed over, as that one steps them.
    """

    def __init__(self, schedulers: Sequence[weakref.ref[Any]]) -> None:
        alive = [one for reference in schedulers if (one := reference()) is not None]
        inner = {id(one) for outer in alive for one in getattr(outer, "_schedulers", ())}
        self._known = [weakref.ref(one) for one in alive if id(one) not in inner and horizon_of(one) is not None]
        self._last: dict[int, int] = {}
        self._num_steps = 0

    def total_steps(self, num_steps: int, step: int) -> int | None:
        """Return how many steps are planned, if a scheduler has been stepped as often as its optimizer since the last
        call; None where that cannot be told.

        Args:
            num_steps: steps that the optimizer has made.
            step: the run's own number of them.
        """
        made, self._num_steps = num_steps - self._num_steps, num_steps
        found = None
        for scheduler in filter(None, (reference() for reference in self._known)):
            epoch, before = int(scheduler.last_epoch), self._last.get(id(scheduler))
            self._last[id(scheduler)] = epoch
            horizon = horizon_of(scheduler)
            if before is not None and made > 0 and epoch - before == made and horizon is not None:
                found = step + max(0, horizon - epoch)
        return found

"""What is shown of learning rates between two rounds of the recorder: the factors of now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch.optim import Optimizer

from monitor._records import OptimizerSnapshot
from monitor.control._door import applied_lr, factor_of


def in_force(
    shown: Iterable[OptimizerSnapshot], optimizers: Mapping[str, Optimizer], min_lr: float
) -> tuple[OptimizerSnapshot, ...]:
    """Return what is shown of the optimizers, with the factors that their param groups hold now.

    A change shows from the moment it is made, not once a step that used it was digested. The scheduled LR stays that of
    the last digested step: reading a tensor's would wait for its device. ``min_lr`` is the floor of a reduced group.
    """
    there = dict(optimizers.items())
    return tuple(_with_factors(one, there[one.key], min_lr) if one.key in there else one for one in shown)


def _with_factors(one: OptimizerSnapshot, optimizer: Optimizer, min_lr: float) -> OptimizerSnapshot:
    groups = list(one.groups)
    is_changed = False
    for index, (group, held) in enumerate(zip(groups, list(optimizer.param_groups), strict=False)):
        factor = factor_of(held)
        if factor != group.factor:
            is_changed = True
            groups[index] = replace(group, factor=factor, applied=applied_lr(group.scheduled, factor, min_lr))
    return replace(one, groups=tuple(groups)) if is_changed else one

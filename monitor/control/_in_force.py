"""What is shown of learning rates between two rounds of the recorder: the factors of now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch.optim import Optimizer

from monitor._records import OptimizerSnapshot
from monitor.control._factors import Factors, Group
from monitor.control._lr_scaling import applied_lr
from monitor.control._own_scale import own_scale


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
    factors, groups = Factors.seen(optimizer), list(one.groups)
    for index, (shown, group) in enumerate(zip(one.groups, list(optimizer.param_groups), strict=False)):
        factor = factors.get(group)[0]
        if factor != shown.factor:
            applied = None if shown.scheduled is None else applied_lr(shown.scheduled, factor, _floor(group, min_lr))
            groups[index] = replace(shown, factor=factor, applied=applied)
    return replace(one, groups=tuple(groups)) if groups != list(one.groups) else one


def _floor(group: Group, min_lr: float) -> float:
    """Return the floor as an LR that is shown: what is shown includes the optimizer's own scale, and ``min_lr`` does
    not. A scale on a device is waited for by nobody: no floor is shown then."""
    scale = own_scale(group) if min_lr else None
    return min_lr * scale if isinstance(scale, float) else 0.0

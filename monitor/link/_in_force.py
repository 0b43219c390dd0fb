"""The learning rates that are shown between two rounds of the recorder: with the factors of now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from monitor._records import OptimizerSnapshot

InForce = Mapping[str, Sequence[tuple[float, float]]]
"""The factor in force and the floor on the LR of each param group, by optimizer."""


def shown_in_force(shown: Iterable[OptimizerSnapshot], in_force: InForce) -> tuple[OptimizerSnapshot, ...]:
    """Return what is shown of the optimizers, with the factors that their param groups hold now.

    A change shows from the moment it is made, not once a step that used it was digested. The scheduled LR stays that of
    the last digested step.
    """
    return tuple(_with_factors(one, in_force.get(one.key, ())) for one in shown)


def _with_factors(one: OptimizerSnapshot, rows: Sequence[tuple[float, float]]) -> OptimizerSnapshot:
    groups = list(one.groups)
    for index, (shown, (factor, floor)) in enumerate(zip(one.groups, rows, strict=False)):
        if factor != shown.factor:
            applied = None if shown.scheduled is None else applied_lr(shown.scheduled, factor, floor)
            groups[index] = replace(shown, factor=factor, applied=applied)
    return replace(one, groups=tuple(groups)) if groups != list(one.groups) else one


def applied_lr(scheduled: float, factor: float, min_lr: float) -> float:
    """Return the LR that an update uses: ``min_lr`` is the floor of a reduced one, unless the schedule is below it.

    >>> applied_lr(0.1, 0.5, 0.0), applied_lr(0.1, 0.5, 0.08), applied_lr(0.1, 0.5, 0.2)
    (0.05, 0.08, 0.1)
    """
    applied = scheduled * factor
    return max(applied, min(scheduled, min_lr)) if factor < 1.0 else applied

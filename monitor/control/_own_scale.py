"""The scale by which optimizers multiply their learning rate: one table, by the keys of their param groups.

``group["lr"]`` is not what such an optimizer uses, so what is shown as scheduled and as applied LR is multiplied by the
scale too. docs/control.md has the table for readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Group = dict[str, Any]
Scale = float | Tensor | None
"""None: the LR that is used cannot be derived from the group."""
_BESIDE_DISTANCE = frozenset({"growth_rate", "d0", "d_coef", "fixed_decay", "layer_scale", "numerator_weighted"})
"""Keys of which each optimizer that estimates a distance has one, in dadaptation, prodigyopt and pytorch_optimizer."""


def _distance(group: Group) -> Scale:
    """Prodigy and D-Adaptation estimate the distance to the solution; an update uses the estimate of the one before."""
    return group["d"] if is_shared(group) else 1.0


def _warm_up(group: Group) -> Scale:
    """Schedule-free optimizers warm up by themselves; ``k`` or ``step`` counts the updates made."""
    steps, made = group["warmup_steps"], group["k"] if "k" in group else group.get("step", 0)
    return min(1.0, (made + 1) / steps) if steps else 1.0


def _relative(group: Group) -> Scale:
    """Adafactor with a relative step derives its LR from the step and the weights, and ignores the one given."""
    return None if group["relative_step"] else 1.0


TABLE: tuple[tuple[frozenset[str], Callable[[Group], Scale]], ...] = (
    (frozenset({"d"}), _distance),
    (frozenset({"warmup_steps", "lr_max", "weight_sum"}), _warm_up),
    (frozenset({"relative_step"}), _relative),
)


def own_scale(group: Group) -> Scale:
    """Return what the next update multiplies the group's LR by, its factor aside.

    >>> prodigy = {"lr": 1.0, "d": 0.25, "d_coef": 1.0}
    >>> own_scale(prodigy), own_scale({"lr": 0.1}), own_scale({"lr": 0.1, "relative_step": True})
    (0.25, 1.0, None)
    """
    scale: float | Tensor = 1.0
    for keys, scale_of in TABLE:
        if keys <= group.keys():
            own = scale_of(group)
            if own is None:
                return None
            scale = scale * own
    return scale


def own_scales(groups: Sequence[Group]) -> list[Scale] | None:
    """Return the scale of each group, or None where no group has the keys of one."""
    if not any(keys <= group.keys() for group in groups for keys, _ in TABLE):
        return None
    return [own_scale(group) for group in groups]


def is_shared(group: Group) -> bool:
    """Tell whether the optimizer uses one LR for all its groups, as those do that estimate a distance.

    The distance is called ``d``, as is something else in torch's Adafactor: one of the keys beside it decides.
    """
    d = group.get("d")
    is_number = isinstance(d, float) or (isinstance(d, Tensor) and d.numel() == 1)
    return is_number and not _BESIDE_DISTANCE.isdisjoint(group)

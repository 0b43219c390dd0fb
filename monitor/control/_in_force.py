"""The factors that param groups hold at this moment, for what is shown between two rounds of the recorder."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from monitor.control._factors import Factors, Group
from monitor.control._own_scale import own_scale
from monitor.link import InForce


def in_force(optimizers: Mapping[str, Optimizer], min_lr: float) -> InForce:
    """Return factor and floor of every param group. ``min_lr`` is the floor of a reduced group.

    Reads no tensor: that of a schedule would wait for its device.
    """
    found = {}
    for key, optimizer in optimizers.items():
        factors = Factors.seen(optimizer)
        found[key] = [(factors.get(group)[0], _floor(group, min_lr)) for group in list(optimizer.param_groups)]
    return found


def _floor(group: Group, min_lr: float) -> float:
    """Return the floor as an LR that is shown: what is shown includes the optimizer's own scale, and ``min_lr`` does
    not. A scale on a device is waited for by nobody: no floor is shown then."""
    scale = own_scale(group) if min_lr else None
    return min_lr * scale if isinstance(scale, float) else 0.0

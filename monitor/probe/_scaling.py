"""The GradScalers that have scaled losses, and what an optimizer's gradients are multiplied by because of them."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor
from torch.amp.grad_scaler import OptState

from monitor.probe._attribution import USUAL


class ScaledBy(NamedTuple):
    """The GradScaler that made an optimizer's last step: both by id, the optimizer as the scaler was given it."""

    scaler: int
    optimizer: int
    number: int


MAX_SCALERS = 64
SCALING: dict[int, tuple[weakref.ref[Any], int]] = {}
"""The scalers that have scaled a loss, by id, each with the id of its states at that time: ``update`` makes
new ones."""


def remember_scaler(scaler: Any) -> None:
    """Remember that a scaler has scaled a loss."""
    if len(SCALING) >= MAX_SCALERS:
        SCALING.clear()
    USUAL[1] = None  # norms are to be unscaled
    SCALING.pop(id(scaler), None)  # the last one is the latest
    SCALING[id(scaler)] = weakref.ref(scaler), id(scaler._per_optimizer_states)


def scale_of(optimizer: Any, scaled_by: ScaledBy | None, number: int) -> Tensor | None:
    """Return what the gradients of an optimizer that has made ``number`` steps are multiplied by; None: by nothing."""
    of_step = getattr(optimizer, "grad_scale", None)  # a fused optimizer divides by it
    if isinstance(of_step, Tensor):
        return of_step
    if scaled_by is None:
        scaled_by = ScaledBy(next(reversed(SCALING), 0), id(optimizer), 0)
    reference, states = SCALING.get(scaled_by.scaler, (None, 0))
    scaler = reference() if reference is not None else None
    if scaler is None or scaled_by.number != number or id(scaler._per_optimizer_states) != states:
        return None
    state = scaler._per_optimizer_states.get(scaled_by.optimizer)
    scale: Tensor | None = scaler._scale
    return scale if state is None or state["stage"] is OptState.READY else None

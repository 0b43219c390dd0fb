"""``torch.amp.GradScaler``: its scale, the losses before it, and the steps it skips."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.amp.grad_scaler import OptState

from monitor.probe._attribution import USUAL
from monitor.probe._compilation import untraced
from monitor.probe._ledger import Ledger, current
from monitor.probe._values import Value, take
from monitor.probe._watched import SCALING, before_change, probe_of, report

if TYPE_CHECKING:
    from monitor.probe._steps import StepProbe

Amp = tuple[Value | None, Value | None, Value | None]
"""Found an overflow, None (norms are unscaled where they are measured), scale."""


class ScaledBy(NamedTuple):
    """The GradScaler that made an optimizer's last step: both by id, the optimizer as the scaler was given it."""

    scaler: int
    optimizer: int
    number: int


MAX_SCALERS = 64


def watch_scale(original: Any) -> Any:
    """Remember a loss as it was before it is scaled."""
    SCALING.clear()  # of an earlier run

    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if scaled is not outputs:
            note_scaler(self, outputs, scaled)
        return scaled

    return scale


def watch_unscale(original: Any) -> Any:
    """Notice that a scaler divides gradients."""

    def unscale_(self: Any, optimizer: Any) -> Any:
        look = before_change()
        result = original(self, optimizer)
        look()
        return result

    return unscale_


def watch_scaler_step(original: Any) -> Any:
    """Notice the steps that the scaler does not make."""

    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        inner = getattr(optimizer, "optimizer", optimizer)
        probe = watcher_of(inner)
        if probe is None or not self._enabled:
            return original(self, optimizer, *args, **kwargs)
        number = probe.number
        note_scaler(self)
        probe.norms.scaled_by = ScaledBy(id(self), id(optimizer), number)
        result = original(self, optimizer, *args, **kwargs)
        probe.norms.scaled_by = ScaledBy(id(self), id(optimizer), probe.number)
        if probe.number == number:
            probe.on_skipped(self, inner)
        return result

    return step


@untraced
def watcher_of(optimizer: Any) -> StepProbe | None:
    """Return the probe that watches an optimizer, if one does."""
    try:
        return probe_of(optimizer)
    except Exception as error:  # noqa: BLE001
        report(error)
        return None


@untraced
def note_scaler(scaler: Any, outputs: Any = None, scaled: Any = None) -> None:
    """Write the scaler that is in use, and a loss before scaling, into the ledger."""
    try:
        ledger = current()
        ledger.scaler = scaler
        if outputs is not None:
            _note_scaling(scaler)
        if isinstance(outputs, Tensor) and outputs.numel() == 1:
            ledger.note_unscaled(scaled, take(outputs))
    except Exception as error:  # noqa: BLE001
        report(error)


def _note_scaling(scaler: Any) -> None:
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


@untraced
def amp_values(ledger: Ledger, optimizer: Any) -> Amp:
    """Return what a fused optimizer's step was given by the scaler."""
    return taken(getattr(optimizer, "found_inf", None)), None, taken(ledger.scaler._scale)


def taken(value: Any) -> Value | None:
    """Take the value of a tensor; None for anything else."""
    return take(value.detach()) if isinstance(value, Tensor) else None

"""``torch.amp.GradScaler``: its scale, the losses before it, and the steps it skips."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monitor.probe._compilation import untraced
from monitor.probe._scaling import SCALING, ScaledBy, remember_scaler
from monitor.probe._trace import Trace, current
from monitor.probe._values import Value, take
from monitor.probe._watched import Probe, before_change, look_again, probe_of, report

Amp = tuple[Value | None, Value | None, Value | None]
"""Found an overflow, None (norms are unscaled where they are measured), scale."""


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
        look_again(look)
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
def watcher_of(optimizer: Any) -> Probe | None:
    """Return the probe that watches an optimizer, if one does."""
    try:
        return probe_of(optimizer)
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
        return None


@untraced
def note_scaler(scaler: Any, outputs: Any = None, scaled: Any = None) -> None:
    """Write the scaler that is in use, and a loss before scaling, into the trace."""
    try:
        trace = current()
        trace.scaler = scaler
        if outputs is not None:
            remember_scaler(scaler)
        if isinstance(outputs, Tensor) and outputs.numel() == 1:
            trace.note_unscaled(scaled, take(outputs))
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


@untraced
def amp_values(trace: Trace, optimizer: Any) -> Amp:
    """Return what a fused optimizer's step was given by the scaler."""
    return taken(getattr(optimizer, "found_inf", None)), None, taken(trace.scaler._scale)


def taken(value: Any) -> Value | None:
    """Take the value of a tensor; None for anything else."""
    return take(value.detach()) if isinstance(value, Tensor) else None

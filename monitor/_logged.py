"""What the user logs by hand: turned into tape entries without waiting for a device and without raising for a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch

from monitor.probe import SampleEntry, StepProbe, Tape, Value, take


class LoggedValues:
    """Put logged values on the tape. ``on_error`` takes ``(room, exception)`` of a value that is no number."""

    def __init__(self, tape: Tape, on_error: Callable[[str, Exception], None]) -> None:
        self._tape = tape
        self._on_error = on_error

    def note(
        self,
        probes: Sequence[StepProbe],
        *,
        loss: Any,
        val_loss: Any,
        samples: Any,
        tokens: Any,
        metrics: Mapping[str, Any],
    ) -> None:
        """Note everything that is not None."""
        latest = max(probes, key=lambda p: p.number)
        if loss is not None:
            self._contained("loss", loss, lambda v: self._note_loss(probes, v))
        named = val_loss if isinstance(val_loss, Mapping) else {"validation": val_loss}
        for kind, values in (
            ("val_loss", named),
            ("samples", {"samples": samples}),
            ("tokens", {"tokens": tokens}),
            ("metric", metrics),
        ):
            for name, value in values.items():
                if value is not None:
                    self._contained(name, value, partial(self._append, kind, str(name), latest))

    def _note_loss(self, probes: Sequence[StepProbe], value: Value) -> None:
        pending = [p for p in probes if p.attribution.is_pending]
        if pending or not any(p.number for p in probes):
            for probe in pending or probes:
                probe.attribution.log(value)
            return
        last = max(probes, key=lambda p: p.last_end)
        self._append("loss", last.key, last, value)

    def _append(self, kind: str, name: str, probe: StepProbe, value: Value) -> None:
        sequence, now = self._tape.next_sequence(), perf_counter()
        self._tape.append(SampleEntry(sequence, kind, name, value, probe.number, now, probe.key))

    def _contained(self, name: str, value: Any, note: Callable[[Value], None]) -> None:
        try:
            number = as_value(value)
            if number is None:
                return
            note(number)
        except Exception as error:  # noqa: BLE001
            self._on_error(
                "log", TypeError(f"{name} is not a number or a one-element tensor ({_shown(value)}: {error})")
            )


def _shown(value: Any) -> str:
    """Describe a value without looking into it: the repr of a tensor waits for its device, and any repr may raise."""
    kind = type(value).__name__
    return f"{kind} {value!r:.60}" if isinstance(value, str | bytes | int | float) else kind


def as_value(value: Any) -> Value | None:
    """Turn a number or a one-element tensor into a value for the tape; None where it cannot be had without a sync.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"it has {value.numel()} elements")
        return take(value.detach())
    if isinstance(value, str | bytes):
        raise TypeError("it is text")
    return float(value)

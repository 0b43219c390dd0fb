"""Values logged by hand: turn them into entries without waiting for a device and without raising for a value."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from monitor.common import as_name
from monitor.probe import StepBuffer, StepProbe, Value, take

_NAME_OF = type.__dict__["__name__"].__get__  # a class may have a __name__ of its own that raises


class LoggedValues:
    """Put logged values into the step buffer. ``on_error`` takes a TypeError or OverflowError for a value that is not
    a number.

    A value's own methods may raise what they like: it is contained and reported. Two things are not taken for a value's
    doing, since they are meant for the program: KeyboardInterrupt, as nothing tells the one that a method raises from
    the user's Ctrl-C; and SystemExit out of a signal handler, which the traceback tells from one that a method raises.
    """

    def __init__(self, buffer: StepBuffer, on_error: Callable[[Exception], None]) -> None:
        self._buffer = buffer
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
            self._contained("loss", loss, lambda _, v: self._note_loss(probes, v))
        for kind, named in (
            ("val_loss", self._named(val_loss)),
            ("samples", [("samples", samples)]),
            ("tokens", [("tokens", tokens)]),
            ("metric", metrics.items()),
        ):
            for name, value in named:
                if value is not None:
                    self._contained(name, value, partial(self._append, kind, latest))

    def _named(self, val_loss: Any) -> list[tuple[Any, Any]]:
        """Return the validation losses by name."""
        try:
            return list(val_loss.items()) if issubclass(type(val_loss), Mapping) else [("validation", val_loss)]
        except BaseException as error:  # noqa: BLE001 - a mapping of the user's own may raise anything
            self._report("val_loss", val_loss, error)
            return []

    def _note_loss(self, probes: Sequence[StepProbe], value: Value) -> None:
        pending = [p for p in probes if p.is_pending]
        if pending or not any(p.number for p in probes):
            for probe in pending or probes:
                probe.attribution.log(value)
            return
        last = max(probes, key=lambda p: p.last_end)
        self._append("loss", last, last.key, value)

    def _append(self, kind: str, probe: StepProbe, name: str, value: Value) -> None:
        self._buffer.append_sample(kind, name, value, probe.number, probe.key)

    def _contained(self, key: Any, value: Any, note: Callable[[str, Value], None]) -> None:
        name = f"what is logged under a key of type {_NAME_OF(type(key))}"
        try:
            name = as_name(key)
            number = as_value(value)
            if number is not None:
                note(name, number)
        except BaseException as error:  # noqa: BLE001 - what a value's methods raise must not reach the training loop
            self._report(name, value, error)

    def _report(self, name: str, value: Any, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _is_of_a_signal(error)):
            raise error
        kind = OverflowError if isinstance(error, OverflowError) else TypeError
        told = f"{name} is not a number or a one-element tensor ({_shown(value)}: {_told(error)})"
        self._on_error(kind(told))


def _is_of_a_signal(error: BaseException) -> bool:
    """Tell whether an exception has come out of a signal handler of the program."""
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {_code_of(handler) for handler in handlers if callable(handler)}
    return any(frame.f_code in codes for frame in _frames(error))


def _code_of(handler: Any) -> Any:
    function = getattr(handler, "func", handler)  # a functools.partial
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)


def _frames(error: BaseException) -> Iterator[Any]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _shown(value: Any) -> str:
    """Describe a value without running its code: its repr may raise, and that of a tensor waits for its device."""
    kind: str = _NAME_OF(type(value))
    if type(value) is str or type(value) is bytes:
        return f"{kind} {value[:40]!r}"
    return f"{kind} {value!r}" if type(value) is float else kind


def _told(error: BaseException) -> str:
    """Describe an exception without running code of the user's: its message may be made of objects that raise."""
    is_plain = all(type(argument) is str for argument in error.args)
    return ": ".join([_NAME_OF(type(error)), *error.args])[:200] if is_plain else _NAME_OF(type(error))


def as_value(value: Any) -> Value | None:
    """Turn a number or a one-element tensor or array into a value for the step buffer; None where it cannot be had
    without a sync.

    Raises:
        TypeError, ValueError, OverflowError: for anything else. Whatever a method of the value raises.
    """
    kind = type(value)  # isinstance would ask the value for its __class__, which may raise
    if issubclass(kind, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"it has {value.numel()} elements")
        return take(value.detach())
    if hasattr(kind, "item"):  # numpy's scalars and arrays, of which only float() of a 0-d one does not warn
        value = value.item()
    if issubclass(type(value), str | bytes | bytearray):
        raise TypeError("it is text")
    return float(value)

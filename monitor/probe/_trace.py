"""The trace of one thread since its last optimizer step: its spans. One trace a thread; no lock, no other writer."""

from __future__ import annotations

import os
import threading
import weakref
from threading import get_ident
from time import perf_counter
from typing import Any

from monitor.link import Kind, Pass, Span
from monitor.probe._attribution import USUAL
from monitor.probe._compilation import untraced
from monitor.probe._values import Value

MAX_SPANS = 65536
"""Spans that a step may have."""
MAX_UNSCALED = 256


class Trace:
    """The spans of one thread since its last step, and what is under way on it.

    ``spans`` are handed on when a step begins, and never written to from then on. ``last_backward`` is when the last
    back-propagation began; ``underway`` is the backward pass that has not ended, or None.
    """

    __slots__ = ("last_backward", "mark", "scaler", "spans", "underway", "unscaled")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.mark = perf_counter()
        self.last_backward = 0.0
        self.underway: Pass | None = None
        self.scaler: Any = None
        self.unscaled: dict[int, tuple[weakref.ref[Any], Value | None]] = {}

    def add(self, what: int, start: float, begin: float) -> Span:
        """Add the span of a thing that begins now; its end is the mark that is set later."""
        if len(self.spans) >= MAX_SPANS:  # nobody steps: what is kept must not grow without end
            self.spans = []
        span = (self.mark, start, begin, what)
        self.spans.append(span)
        self.mark = begin
        return span

    def add_waiting(self, start: float, end: float) -> None:
        """Add a wait for a batch. Waits without anything between them make one span: an evaluation may go through any
        number of batches."""
        if self.spans and self.spans[-1][3] == Kind.WAIT:
            before, first, _, _ = self.spans.pop()
            start, self.mark = start - self.mark + first, before
        self.add(Kind.WAIT, start, start)
        self.mark = end

    def take_back(self, spans: list[Span]) -> None:
        """Put spans that were handed on before those made since: the step that they were for has failed."""
        self.spans[:0] = spans

    def note_unscaled(self, scaled: Any, value: Value | None) -> None:
        """Remember a loss as it was before a GradScaler scaled it. Beside the tensor, not on it: what hangs on a tensor
        is saved with it."""
        if len(self.unscaled) >= MAX_UNSCALED:
            self.unscaled.clear()
        self.unscaled[id(scaled)] = (weakref.ref(scaled), value)

    def unscaled_of(self, scaled: Any) -> Value | None:
        """Return what was remembered of this tensor, or None."""
        reference, value = self.unscaled.get(id(scaled), (None, None))
        return value if reference is not None and reference() is scaled else None

    def release(self) -> None:
        """Let go of what belongs to the training: nobody watches any more."""
        self.spans, self.scaler = [], None
        self.unscaled.clear()


TRACES: dict[int, Trace] = {}
"""The trace of each thread by its ident: with cold caches a cheaper look than one into ``threading.local``."""


class _Tenure:
    """Lives as long as its thread, and takes the thread's trace away with it: the ident will be another's."""

    def __init__(self) -> None:
        self._ident = get_ident()

    def __del__(self, traces: dict[int, Trace] = TRACES) -> None:
        traces.pop(self._ident, None)


_LOCAL = threading.local()


@untraced
def open_trace() -> Trace:
    """Make the calling thread's trace."""
    _LOCAL.tenure = _Tenure()
    USUAL[:] = None, None, False  # of two threads each one's own passes are told apart
    trace = TRACES[get_ident()] = Trace()
    return trace


def current() -> Trace:
    """Return the trace of the calling thread."""
    return TRACES.get(get_ident()) or open_trace()


def is_alone(own: Trace | None) -> bool:
    """Tell whether no other thread back-propagates. Where one does, its gradients are not to be looked at: the autograd
    engine replaces them without the interpreter lock."""
    return not any(other.last_backward for other in list(TRACES.values()) if other is not own)


def underway() -> Pass | None:
    """Return the backward pass inside which the calling thread is: its own, or, on a thread that autograd runs for a
    device, the only one that is under way."""
    own = TRACES.get(get_ident())
    if own is not None and own.underway is not None:
        return own.underway
    passes = [one for trace in list(TRACES.values()) if (one := trace.underway) is not None]
    return passes[0] if len(passes) == 1 and (own is None or not own.last_backward) else None


def _after_fork_in_child() -> None:
    for ident in set(TRACES) - {get_ident()}:  # those threads have stayed behind
        del TRACES[ident]


os.register_at_fork(after_in_child=_after_fork_in_child)

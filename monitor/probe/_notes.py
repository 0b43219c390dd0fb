"""Spans of a training thread, and the phases of a step worked out from them by whoever reads the tape.

A note is ``(mark, start, begin, what)``, times in ``perf_counter`` seconds. ``mark`` is when the thing before it had
ended, the monitor's own work lasted from ``start`` to ``begin``, and from ``begin`` to the mark of the next note the
thread did ``what``, a :class:`Kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from monitor.probe._gradients import RawClip

Note = tuple[float, float, float, "Kind"]
Phases = tuple[float, float, float, float, float, float]
"""Seconds in the order of ``PHASES``."""


class Kind(Enum):
    """What a thread did in a span."""

    STEP = auto()
    """The optimizer made its step."""
    WAIT = auto()
    """The thread waited for a batch."""
    BACKWARD = auto()
    """Something was back-propagated."""
    OURS = auto()
    """The monitor noted something that is kept elsewhere."""


def phases_of(notes: Sequence[Note], mark: float, done: float, end: float, clips: Sequence[RawClip]) -> Phases:
    """Work out where the time of a step went. ``mark`` is when the last thing noted had ended, ``done`` when the step
    had, ``end`` when it was put on the tape."""
    data = forward = backward = optimizer = monitor = other = 0.0
    ends = [*(note[0] for note in notes[1:]), mark]
    for (before, start, begin, what), after in zip(notes, ends, strict=False):
        monitor += begin - start
        if what is Kind.WAIT:
            other += start - before
            data += after - begin
        elif what is Kind.STEP:
            other += start - before
            optimizer += after - begin
        elif what is Kind.OURS:
            other += (start - before) + (after - begin)
        else:
            forward += start - before
            backward += after - begin
    spent = sum(clip[6] - clip[5] for clip in clips)
    return data, forward, backward, optimizer + (done - mark), monitor + spent + (end - done), other - spent

"""What a ledger holds: one note for each thing that has happened since the last step. The training thread writes them;
what follows from them, the loss of a step and where its time went, is worked out by whoever reads the tape.

A note is ``(mark, start, begin, what)``, times in ``perf_counter`` seconds. ``mark`` is when the thing before it had
ended, the monitor's own work lasted from ``start`` to ``begin``, and from ``begin`` to the mark of the next note the
thread did what the note says. ``what`` is the loss that was back-propagated (several: a tuple of them; None: it cannot
be known), a :class:`Logged` one, or a :class:`Kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from monitor.probe._gradients import RawClip
from monitor.probe._values import Value

Note = tuple[float, float, float, Any]
Phases = tuple[float, float, float, float, float, float]
"""Seconds in the order of ``PHASES``."""


class Kind(Enum):
    """What a note says that is not about a loss."""

    STEP = auto()
    """The optimizer has begun its step."""
    WAIT = auto()
    """The thread waited for a batch."""
    BACKWARD = auto()
    """Something was back-propagated that is no loss: it came with a gradient of its own, or it failed."""
    OURS = auto()
    """The monitor noted something that is kept elsewhere."""


class Logged:
    """The loss that the user has given in the place of what was back-propagated."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value


def losses_of(notes: Sequence[Note], first: int = 0) -> list[Value | None]:
    """Return the losses back-propagated since the last step that is noted (one that failed), from the note at ``first``
    on. One that the user has logged stands for all."""
    found: list[Value | None] = []
    for i in reversed(range(len(notes))):
        what = notes[i][3]
        if what is Kind.STEP:
            break
        if isinstance(what, Logged):
            return [what.value]
        if i >= first and not isinstance(what, Kind):
            found += reversed(what) if isinstance(what, tuple) else (what,)
    return found[::-1]


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

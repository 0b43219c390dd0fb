"""The phases of a step, worked out from the spans that the training thread has noted."""

from __future__ import annotations

from collections.abc import Sequence

from monitor.link import Kind, RawClip, Span

Phases = tuple[float, float, float, float, float, float]
"""Seconds in the order of ``PHASES``."""


def phases_of(spans: Sequence[Span], mark: float, done: float, end: float, clips: Sequence[RawClip]) -> Phases:
    """Work out where the time of a step went. ``mark`` is when the last thing noted had ended, ``done`` when the step
    had, ``end`` when it was put into the step buffer."""
    data = forward = backward = optimizer = monitor = other = 0.0
    ends = [*(span[0] for span in spans[1:]), mark]
    for (before, start, begin, what), after in zip(spans, ends, strict=False):
        monitor += begin - start
        before = min(before, start)  # a thread's first mark is set inside the first thing that is noted there
        if what == Kind.WAIT:
            other += start - before
            data += after - begin
        elif what == Kind.STEP:
            other += start - before
            optimizer += after - begin
        elif what == Kind.OURS:
            other += (start - before) + (after - begin)
        else:
            forward += start - before
            backward += after - begin
    spent = sum(clip[6] - clip[5] for clip in clips)
    return data, forward, backward, optimizer + (done - mark), monitor + spent + (end - done), other - spent

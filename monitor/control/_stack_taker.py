"""The Python stack of a training thread: taken on a thread of our own, and bounded."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence

from monitor.common import contained

MAX_STACK = 12_000
"""Characters of one stack as JSON, of which the end is kept."""
MAX_FRAMES = 128
"""Innermost frames of a thread that are looked at."""
MAX_FRAME = 1000
"""Characters of one frame: a source line may be of any length."""


def stack_of(threads: Iterable[int]) -> str:
    """Return the stacks of threads, by their identifiers, as Python prints them: outermost frame first. Reads the
    source lines from the disk.

    >>> print(stack_of([threading.get_ident()]))
      File "...", line ..., in ...
    """
    threads = list(threads)
    stacks = [_stack_of(thread) for thread in threads]
    if len(threads) == 1:
        return stacks[0]
    most = MAX_STACK // max(1, len(threads))
    named = zip(threads, stacks, strict=True)
    return "".join(f"thread {thread}:\n{bounded(stack.splitlines(True), most)}" for thread, stack in named)


def _stack_of(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "  the thread has ended\n"
    # The lines are looked up only once the frame is let go: it holds what the training holds.
    summary = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=MAX_FRAMES, lookup_lines=False)
    del frame
    summary.reverse()
    return bounded(summary.format())


def bounded(frames: Sequence[str], most: int = MAX_STACK) -> str:
    """Join the last frames that fit, and say how many are left out before them.

    >>> bounded(["  outer\\n", "  inner\\n"], most=12)
    '  1 earlier left out\\n  inner\\n'
    """
    kept: list[str] = []
    for frame in reversed(frames):
        short = frame if len(frame) <= MAX_FRAME else f"{frame[:MAX_FRAME]}...\n"
        most -= len(json.dumps(short)) - 2
        if most < 0:
            break
        kept.insert(0, short)
    num_left = len(frames) - len(kept)
    return (f"  {num_left} earlier left out\n" if num_left else "") + "".join(kept)


class StackTaker:
    """Take the stacks of threads on a thread of its own: the source may lie on a disk that hangs.

    Args:
        threads: returns the identifiers of the threads.
        on_error: takes what goes wrong.
    """

    def __init__(self, threads: Callable[[], Iterable[int]], on_error: Callable[[Exception], object]) -> None:
        self._threads, self._on_error = threads, on_error
        self._thread: threading.Thread | None = None

    def begin(self, then: Callable[[str], object]) -> bool:
        """Have ``then`` called with the stacks, on that thread; return False while an earlier call is under way."""
        if self._thread is not None and self._thread.is_alive():
            return False
        thread = threading.Thread(target=self._take, args=(then,), name="monitor-stacks", daemon=True)
        contained(self._on_error, thread.start)  # the machine may have no thread left
        self._thread = thread
        return True

    def _take(self, then: Callable[[str], object]) -> None:
        contained(self._on_error, lambda: then(stack_of(self._threads())))

    def join(self, timeout: float) -> None:
        """Wait for the call under way, ``timeout`` seconds at most."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(timeout)

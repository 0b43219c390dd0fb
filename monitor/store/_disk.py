"""The one thread that does a run's file work: a disk that hangs holds up neither the training nor the exit."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from monitor.common import contained

PATIENCE_SECONDS = 1.5
"""How long the start of a run waits for the disk, and its end once more."""
MOMENT_SECONDS = 0.5
"""How long the end waits where an exception is on its way out, so that its traceback is printed without delay."""
SAVE_SECONDS = 1.0
_SAVE_SHARE = 0.02
"""The part of its time that the thread saves at most."""

_Answer = TypeVar("_Answer")
_LATE: list[DiskThread] = []


class DiskThread:
    """Do jobs in order on a daemon thread, and ``save`` at every interval between them.

    Args:
        save: writes the present state.
        on_error: takes the exception of a job or a save that failed, and a TimeoutError where the end came too late.
        interval: seconds between two saves; more where a save takes long.
    """

    def __init__(
        self, save: Callable[[], None], on_error: Callable[[Exception], None], interval: float = SAVE_SECONDS
    ) -> None:
        self._save = save
        self._on_error = on_error
        self._interval = interval
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="monitor-disk", daemon=True)
        self._stop_deadline = 0.0
        self._next_save = time.monotonic() + interval

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the machine has none left; jobs are then never done."""
        self._thread.start()

    def post(self, job: Callable[[], object]) -> None:
        """Have a job done after those before it."""
        self._jobs.put(job)

    def flush(self, seconds: float) -> bool:
        """Wait until what was posted is done, ``seconds`` at most; return whether it is, or never will be."""
        is_done = threading.Event()
        self.post(is_done.set)
        return not self._thread.is_alive() or is_done.wait(seconds)

    def stop(self, *, is_raising: bool = False) -> None:
        """End the thread once it has done what was posted; wait PATIENCE_SECONDS at most.

        With ``is_raising`` wait a moment only, and the rest of that time when the interpreter exits.
        """
        self._jobs.put(None)
        self._stop_deadline = time.monotonic() + PATIENCE_SECONDS
        if not is_raising:
            self.wait_for_end()
        elif not self._has_ended_within(MOMENT_SECONDS):
            _LATE[:] = [*(one for one in _LATE if one._thread.is_alive()), self]

    def wait_for_end(self) -> None:
        """Wait for what is left of the time since :meth:`stop`."""
        if not self._has_ended_within(max(0.0, self._stop_deadline - time.monotonic())):
            self._on_error(TimeoutError(f"the disk has not answered for {PATIENCE_SECONDS:g} s"))

    def _has_ended_within(self, seconds: float) -> bool:
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            contained(self._on_error, job)

    def _next(self) -> Callable[[], object] | None:
        left = self._next_save - time.monotonic()
        with suppress(queue.Empty):
            if left > 0:
                return self._jobs.get(timeout=left)
        return self._save_in_time

    def _save_in_time(self) -> None:
        begin = time.monotonic()
        try:
            self._save()
        finally:
            end = time.monotonic()
            self._next_save = end + max(self._interval, (end - begin) / _SAVE_SHARE)


@atexit.register
def _wait_for_late() -> None:
    for thread in _LATE:
        thread.wait_for_end()


def answer_within(seconds: float, function: Callable[[], _Answer], default: _Answer) -> _Answer:
    """Return what ``function`` returns on a thread of its own; ``default`` where it takes longer or no thread is left.

    >>> answer_within(5.0, lambda: 2 + 2, 0)
    4
    """
    answers = [default]
    thread = threading.Thread(target=lambda: answers.append(function()), name="monitor-disk", daemon=True)
    with suppress(RuntimeError):
        thread.start()
        thread.join(seconds)
    return answers[-1]

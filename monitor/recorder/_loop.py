"""The recorder's thread: one round after the other, until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Loop:
    """Run a function again and again on a thread of its own.

    Args:
        run_once: one round; its argument tells whether somebody waits for it, or it is the last. Must not raise.
        interval: seconds between rounds.
        counter: a monotonic clock in seconds.
    """

    def __init__(self, run_once: Callable[[bool], None], interval: float, counter: Callable[[], float]) -> None:
        self._run_once = run_once
        self._interval = interval
        self._counter = counter
        self._round = threading.Condition()
        self._wake = threading.Event()
        self._num_waiting = 0
        self._is_stopping = False
        self._num_rounds = 0
        self._thread = threading.Thread(target=self._run, name="monitor-recorder", daemon=True)

    @property
    def is_awaited(self) -> bool:
        """Tell whether somebody waits for the round under way."""
        return self._num_waiting > 0 or self._is_stopping

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Make one last round and end the thread."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is None:  # it could not be started: the last round is made here
            self._run_once(True)
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def wait(self, is_through: Callable[[], bool], timeout: float) -> bool:
        """Wait until that is true and a whole round has been made since; False if that took longer than ``timeout``
        seconds."""
        deadline = self._counter() + timeout
        if self._thread is threading.current_thread():  # a callback of ours: the round that it waits for is this one
            return is_through()
        with self._round:
            goal = self._num_rounds + 2  # the round under way may have begun before
            self._num_waiting += 1  # for as long as it takes: the round that counts must know that it is awaited
            try:
                while self._thread.is_alive():
                    is_done = self._num_rounds >= goal and is_through()
                    left = deadline - self._counter()
                    if is_done or left <= 0:
                        return is_done
                    self._wake.set()
                    self._round.wait(min(left, 0.05))
            finally:
                self._num_waiting -= 1
        return is_through()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            is_last = self._is_stopping
            self._run_once(is_last or self._num_waiting > 0)
            with self._round:
                self._num_rounds += 1
                self._round.notify_all()
            if is_last:
                return

"""A periodic thread: one round after the other, until it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from monitor.common._contain import contained


class Loop:
    """Run a function again and again on a daemon thread of its own.

    Args:
        name: of the thread.
        run_once: one round.
        interval: seconds between rounds; :meth:`wake` cuts them short.
        on_error: takes what a round raises, Ctrl-C and the like apart; the next round is made all the same.
        on_end: the last thing to be done, on the thread, or on that of :meth:`stop` where it could not be started.
        counter: a monotonic clock in seconds.
    """

    def __init__(
        self,
        name: str,
        run_once: Callable[[], object],
        interval: float,
        *,
        on_error: Callable[[Exception], None],
        on_end: Callable[[], object] = lambda: None,
        counter: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_once = run_once
        self._interval = interval
        self._on_error = on_error
        self._on_end = on_end
        self._counter = counter
        self._round = threading.Condition()
        self._wake = threading.Event()
        self._num_waiting = 0
        self._is_stopping = False
        self._num_rounds = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_awaited(self) -> bool:
        """Tell whether somebody waits for the round under way."""
        return self._num_waiting > 0 or self._is_stopping

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    @property
    def native_id(self) -> int:
        """The number of the thread to the operating system; 0 before the start."""
        return self._thread.native_id or 0

    def start(self) -> None:
        """Start the thread. Raises RuntimeError the second time, and where the machine has none left."""
        self._thread.start()

    def wake(self) -> None:
        """Have the next round made at once."""
        self._wake.set()

    def end(self) -> None:
        """End the thread after the round under way; wait for nothing."""
        self._is_stopping = True
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """End the thread, and wait ``timeout`` seconds at most; tell whether it has ended."""
        self.end()
        if self._thread.ident is None:  # it could not be started
            contained(self._on_error, self._on_end)
        return self.join(timeout)

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended, ``timeout`` seconds at most; tell whether it has. On the thread itself wait
        for nothing."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def wait(self, is_through: Callable[[], bool], timeout: float) -> bool:
        """Wait until that is true and a whole round has been made since; False if that took longer than
        ``timeout`` seconds."""
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
            if self._is_stopping:
                break
            contained(self._on_error, self._run_once)
            with self._round:
                self._num_rounds += 1
                self._round.notify_all()
            if self._is_stopping:
                break
        contained(self._on_error, self._on_end)

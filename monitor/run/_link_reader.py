"""The thread that reads what a watcher process sends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from monitor.link import MESSAGE, FailureReporter, WatcherProcess, hold_back_sigpipe, unpack_message


class LinkReader:
    """Read from one watcher after the other, each on a thread of its own.

    Args:
        receive: takes kind and content of each message.
        on_closed: called, on the thread, with a watcher that has closed its end.
        failures: where what is contained is noted.
    """

    def __init__(
        self,
        receive: Callable[[str, Any], None],
        on_closed: Callable[[WatcherProcess], None],
        failures: FailureReporter,
    ) -> None:
        self._receive = receive
        self._on_closed = on_closed
        self._failures = failures
        self._thread: threading.Thread | None = None

    def start(self, process: WatcherProcess) -> None:
        """Read from a watcher. Raises RuntimeError where the machine has no thread left."""
        self._thread = threading.Thread(target=self._read, args=(process,), name="monitor-link-reader", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Tell whether this is the thread that reads."""
        return self._thread is threading.current_thread()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, ``timeout`` seconds at most."""
        if self._thread is not None and self._thread.is_alive() and not self.is_current:
            self._thread.join(max(0.0, timeout))

    def _read(self, process: WatcherProcess) -> None:
        hold_back_sigpipe()
        process.reap()
        while (frame := process.incoming.read()) is not None:
            kind, payload = frame
            if kind == MESSAGE:
                self._failures.contain("link", lambda sent=payload: self._receive(*unpack_message(sent)))  # type: ignore[misc]
        process.incoming.close()
        self._on_closed(process)

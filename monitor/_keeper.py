"""A thread that keeps the last state of a run on disk, for the day its process is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable

KEEP_SECONDS = 30.0


class Keeper:
    """Save again and again, on a thread of its own: a disk that hangs holds up nothing else.

    Args:
        save: writes the present state.
        on_error: takes ``(room, exception)``.
        interval: seconds between two saves.
    """

    def __init__(
        self, save: Callable[[], None], on_error: Callable[[str, Exception], None], interval: float = KEEP_SECONDS
    ) -> None:
        self._save = save
        self._on_error = on_error
        self._interval = interval
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread; the first save follows after one interval."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread; wait ``timeout`` seconds at most."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._is_stopping.wait(self._interval):
            self._attempt()

    def _attempt(self) -> None:
        try:
            self._save()
        except Exception as error:  # noqa: BLE001 - contained: the next time may do better
            self._on_error("folder", error)

"""A thread that ends runs, so that no training waits for it: it waits for an optimizer that is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_LOG = logging.getLogger("monitor")
PATIENCE_SECONDS = 10.0
"""How long the end of the program waits for a run that is being ended."""


class Closer:
    """Call a function, on a thread of its own, with everything that it is told.

    Args:
        end: called with a run that is to end, or with an optimizer that is gone.
    """

    def __init__(self, end: Callable[[Any], None]) -> None:
        self._end = end
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="monitor-auto", daemon=True)
            self._thread.start()

    def tell(self, what: Any) -> None:
        """Have something ended, if the thread was started. Waits for nothing: a weak reference may call it, on any
        thread."""
        if self._thread is not None:
            self._told.put(what)

    def stop(self) -> None:
        """Wait until what was told is done, and for the end of the thread. A second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._told.put(None)
            thread.join(PATIENCE_SECONDS)

    def _run(self) -> None:
        while (what := self._told.get()) is not None:
            self._try(what)

    def _try(self, what: Any) -> None:
        try:
            self._end(what)
        except Exception as error:  # noqa: BLE001 - the next ones are to be ended all the same
            _LOG.warning("a run was not ended: %r", error)

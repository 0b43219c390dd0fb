"""End a run in order on SIGTERM, where that is asked for."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_LOG = logging.getLogger("monitor")


class SigtermHandler:
    """Turn SIGTERM into SystemExit on the main thread, after the handler that was there.

    Args:
        on_signal: called first: the run is about to be interrupted.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._before: Any = None
        self._own: Any = None

    def install(self) -> None:
        """Put the handler in. On another thread than the main one Python allows none: one line says so."""
        if threading.current_thread() is not threading.main_thread():
            _LOG.warning('on_sigterm="interrupt" has no effect: attach was not called on the main thread')
            return
        self._own = self._handle
        self._before = signal.signal(signal.SIGTERM, self._own)

    def remove(self) -> None:
        """Put back the handler that was there, unless somebody has put in another one since."""
        own, self._own = self._own, None
        if own is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._on_signal()
        if callable(self._before):
            self._before(number, frame)
        raise SystemExit(128 + number)

"""The thread that serves: it never keeps the process alive, and ends at once."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from monitor.server.wsgi._cheroot import CheroServer

_LOG = logging.getLogger("monitor")
_live: weakref.WeakSet[Serving] = weakref.WeakSet()
_Self = TypeVar("_Self", bound="Serving")


class Serving:
    """A server that is bound and begins to answer with :meth:`start`, or on entering a ``with`` block.

    Args:
        server: what answers.
        on_error: hears of failures inside it; nothing is ever printed.
        knock: connects to it, which wakes it: by itself it looks up only twice a second.
    """

    def __init__(
        self, server: CheroServer, on_error: Callable[[BaseException], None], knock: Callable[[], object]
    ) -> None:
        self._server = server
        self._on_error = on_error
        self._knock = knock
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_stopped = False
        _live.add(self)

    def start(self: _Self) -> _Self:
        """Begin to answer; returns at once."""
        thread = threading.Thread(target=self._serve, name="monitor-http", daemon=True)
        thread.start()
        self._thread = thread
        return self

    def stop(self, timeout: float = 2.0) -> None:
        """Stop answering and free the address, within ``timeout`` seconds even where clients hang.

        Safe to repeat. In a forked child it does nothing: the connections are the parent's.
        """
        with self._lock:
            if self._is_stopped or os.getpid() != self._pid:
                return
            self._is_stopped = True
        _live.discard(self)
        self._server.shutdown_timeout = timeout / 2
        ending = threading.Thread(target=self._end, name="monitor-http-end", daemon=True)
        ending.start()
        self._nudge_until(ending, timeout)
        if self._thread is not None:
            self._thread.join(timeout)

    def __enter__(self: _Self) -> _Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self) -> None:
        try:
            self._server.serve()
        except BaseException as error:  # noqa: BLE001 - a thread of ours ends quietly; the run continues without HTTP
            _LOG.exception("The HTTP server ended; the run continues without it")
            self._on_error(error)

    def _end(self) -> None:
        try:
            self._server.stop()
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.exception("The HTTP server did not end cleanly")
            self._on_error(error)
        finally:
            self._server.forget_statistics()

    def _nudge_until(self, ending: threading.Thread, timeout: float) -> None:
        waited, step = 0.0, 0.02
        while waited < timeout:
            with contextlib.suppress(OSError):
                self._knock()
            ending.join(step)
            if not ending.is_alive():
                return
            waited += step
            step = min(step * 2, 0.2)

    def _forget_in_child(self) -> None:
        """Close the child's copy of the listening socket: it would keep the address busy and answer nobody."""
        with contextlib.suppress(Exception):
            os.close(self._server.socket.detach())


def _after_fork_in_child() -> None:
    for server in list(_live):
        server._forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

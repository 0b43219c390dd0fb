"""Forward passes as a sign of life: a tripwire on ``torch.nn.Module.__call__`` that goes off once.

An evaluation, a generation or a rollout need not make a step, back-propagate or use a ``DataLoader``: all that the
training thread is seen to do is to call modules. To note every call would cost each layer of a healthy run, so nothing
is patched there. Only when a stall is near is the tripwire armed; at its first call on a training thread it puts the
original back, before calling it, and notes the time.
"""

from __future__ import annotations

import functools
import os
import threading
from threading import get_ident
from time import perf_counter
from typing import Any

from torch import nn

from monitor.probe._compilation import skipped
from monitor.probe._watched import report

_LOCK = threading.Lock()  # among the threads that arm; the training thread takes none
_WANTED: set[int] = set()
"""The threads, by identifier, whose next call of a module is waited for: of all runs together."""
_SEEN: dict[int, float] = {}
"""When each thread was last caught (``perf_counter``)."""
_PATCH: list[Any] = [None, None]
"""The function put in last, and the one that stood there."""


class ForwardWatch:
    """Catch single calls of a module on the training threads of a run, each time that it is asked to.

    Calls on other threads count for nothing: one that serves the model beside a training thread that hangs must not
    excuse it. Each change of the class costs Python its caches of all modules' attributes (50 us), so ask seldom.
    """

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._is_closed = False

    def wait_for(self, threads: set[int]) -> None:
        """Catch the next call on one of these threads; none: wait no more."""
        with _LOCK:
            self._want(set() if self._is_closed else threads)

    def last_call(self, threads: set[int]) -> float:
        """Return when the last call on one of these threads was caught (``perf_counter``), or 0."""
        return max((_SEEN.get(thread, 0.0) for thread in threads), default=0.0)

    def close(self) -> None:
        """Put the original back for good, unless another run waits for a call."""
        with _LOCK:
            self._is_closed = True
            self._want(set())

    def _want(self, threads: set[int]) -> None:
        _WANTED.difference_update(self._threads)  # another run that wants them too asks again
        _WANTED.update(threads)
        self._threads = threads
        if not _WANTED:
            _restore()
        elif not _is_armed():
            _arm()


def _is_armed() -> bool:
    return _PATCH[0] is not None and nn.Module.__dict__["__call__"] is _PATCH[0]


def _arm() -> None:
    original = nn.Module.__dict__["__call__"]

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        try:
            if (thread := get_ident()) in _WANTED:
                _go_off(thread)
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            report(error)
        return original(self, *args, **kwargs)

    patched: Any = skipped(__call__)
    patched._torchdynamo_inline = original  # what torch.compile traces while this is in: it never knows of it
    _PATCH[:] = patched, original
    nn.Module.__call__ = patched  # type: ignore[method-assign]


def _go_off(thread: int) -> None:
    _WANTED.discard(thread)
    if not _WANTED:
        _restore()
    _SEEN[thread] = perf_counter()


def _restore() -> None:
    """Put the original back; somebody who patched after us keeps their patch."""
    if _is_armed():
        nn.Module.__call__ = _PATCH[1]  # type: ignore[method-assign]


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it
    _WANTED.clear()
    _SEEN.clear()
    _restore()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The open runs of this process: an optimizer belongs to one at most; what is left open is closed at exit, forgotten in
a forked child."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from monitor._errors import AlreadyAttachedError


class OpenRun(Protocol):
    """What is asked of a run here."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The optimizers that are still there, by name."""

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread makes the run's steps."""

    def close_for(self, kind: type[BaseException] | None) -> None:
        """End the run in the state that this kind of exception calls for."""

    def forget(self) -> None:
        """Let go of everything: this is a forked child."""


_RUNS: dict[int, OpenRun] = {}
_FAILED: dict[int, type[BaseException]] = {}
_HOOKS: list[Any] = []
_LOCK = threading.Lock()


def open_runs() -> list[Any]:
    """Return the runs of this process that are open."""
    return list(_RUNS.values())


def enter(run: OpenRun) -> None:
    """Count a run among the open ones; to be done before it opens.

    Raises:
        AlreadyAttachedError: if another open run watches one of its optimizers.
    """
    with _LOCK:
        watched = {id(one) for other in _RUNS.values() for one in other.optimizers.values()}
        for key, one in run.optimizers.items():
            if id(one) in watched:
                raise AlreadyAttachedError(
                    f"optimizer {key!r} is watched by another open run; close that one first (run.close())"
                )
        if not _RUNS:
            _watch_threads()
        _RUNS[id(run)] = run


def leave(run: OpenRun) -> None:
    """Count a run among the open ones no more. Safe to repeat."""
    with _LOCK:
        _RUNS.pop(id(run), None)
        _FAILED.pop(id(run), None)
        if not _RUNS:
            _unwatch_threads()


def note_end(run: OpenRun, kind: type[BaseException]) -> None:
    """Remember why a run is about to end, for one that is closed at exit."""
    _FAILED[id(run)] = kind


def _watch_threads() -> None:
    """Remember an exception that ends a training thread: nothing else tells the exit that this run has failed."""
    before = threading.excepthook

    def excepthook(args: Any) -> None:
        ident = None if args.thread is None else args.thread.ident
        for key, run in list(_RUNS.items()):
            if run.is_trained_by(ident):
                _FAILED[key] = args.exc_type
        before(args)

    _HOOKS[:] = [excepthook, before]
    threading.excepthook = excepthook


def _unwatch_threads() -> None:
    if _HOOKS and threading.excepthook is _HOOKS[0]:  # somebody who came after us keeps their hook
        threading.excepthook = _HOOKS[1]
    _HOOKS.clear()


@atexit.register
def _close_what_is_open() -> None:
    error = getattr(sys, "last_type", None)
    for key, run in list(_RUNS.items()):
        run.close_for(error or _FAILED.get(key))


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it
    for run in open_runs():
        run.forget()
    _RUNS.clear()
    _FAILED.clear()
    _unwatch_threads()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The open runs of this process: an optimizer belongs to one at most; what is left open is closed at exit, forgotten in
a forked child."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from monitor._errors import AlreadyAttachedError


class OpenRun(Protocol):
    """What is asked of a run here."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The optimizers that are still there, by name."""

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread makes the run's steps."""

    def close_for(self, kind: type[BaseException] | None, error: BaseException | None = None) -> None:
        """End the run in the state that this kind of exception calls for."""

    def forget(self) -> None:
        """Let go of everything: this is a forked child."""


_RUNS: dict[int, OpenRun] = {}
_FAILED: dict[int, type[BaseException]] = {}
_HOOKS: list[Any] = []
_LOCK = threading.Lock()


_BY_THEMSELVES: list[Callable[[], str | None]] = []
"""What ends the runs that have begun by themselves, and returns the id of the last of them."""


def on_attach(end: Callable[[], str | None]) -> None:
    """Have a function called when the script attaches a run of its own: it ends those that have begun by themselves,
    and returns the id of one that is to be continued, or None."""
    _BY_THEMSELVES.append(end)


def make_way() -> str | None:
    """End the runs that have begun by themselves; return the id of one to continue, or None."""
    ids = [end() for end in _BY_THEMSELVES]
    _BY_THEMSELVES.clear()
    return next((one for one in ids if one is not None), None)


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


def noted_end(run: OpenRun) -> type[BaseException] | None:
    """Return why a run is about to end, as far as that was noted: by a signal, or by its training thread."""
    return _FAILED.get(id(run))


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
    kind, error = getattr(sys, "last_type", None), getattr(sys, "last_value", None)
    for key, run in list(_RUNS.items()):
        run.close_for(kind or _FAILED.get(key), error if kind else None)


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it
    for run in open_runs():
        run.forget()
    _RUNS.clear()
    _FAILED.clear()
    _unwatch_threads()


os.register_at_fork(after_in_child=_after_fork_in_child)

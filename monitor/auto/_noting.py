"""Note the optimizers and schedulers that are made, and hand each step on. Put into torch when it is imported: this
module loads nothing but torch, and torch's compiler, which the first optimizer brings, is not loaded yet."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

_LOG = logging.getLogger("monitor")


class Noting:
    """Watch torch for optimizers, schedulers and steps.

    ``schedulers`` are those of each optimizer, in the order in which they were made. ``settled`` are the ids of the
    optimizers whose steps need no look any more.

    Args:
        load: returns what is told of optimizers and steps; called with the first of them.
    """

    def __init__(self, load: Callable[[Noting], Any]) -> None:
        self.schedulers: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[Any]]] = weakref.WeakKeyDictionary()
        self.settled: set[int] = set()
        self.hook = self._make_hook()
        self.handle: Any = None
        self._load = load
        self._runs: Any = None
        self._undo: list[Callable[[], None]] = []
        self._is_over = False

    def install(self) -> None:
        """Put everything in."""
        self._undo = [
            _follow(Optimizer, self._note_optimizer),
            _follow(LRScheduler, self._note_scheduler),
            _follow(SequentialLR, self._note_scheduler),
        ]
        self.handle = register_optimizer_step_pre_hook(self.hook)

    def stop(self) -> None:
        """Note nothing more. The hook stays where it is, and does nothing: torch may be going through its hooks at this
        moment, and would raise in the training loop. A second call does nothing."""
        self._is_over = True
        while self._undo:
            self._undo.pop()()

    def _make_hook(self) -> Callable[[Any, Any, Any], None]:
        settled = self.settled

        def pre_hook(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            if id(optimizer) not in settled:
                self._tell("look", optimizer)

        return pre_hook

    def _note_optimizer(self, optimizer: Any) -> None:
        self._tell("note", optimizer)

    def _note_scheduler(self, scheduler: Any) -> None:
        if not self._is_over:
            self.schedulers.setdefault(scheduler.optimizer, []).append(weakref.ref(scheduler))

    def _tell(self, what: str, optimizer: Any) -> None:
        if self._is_over:
            return
        try:
            if self._runs is None:
                self._runs = self._load(self)
            getattr(self._runs, what)(optimizer)
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self.stop()
            _say(error)


def note_all() -> None:
    """Have every optimizer of this process noted. A forked child begins no run."""
    noting = Noting(_load)
    noting.install()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=noting.stop)


def _load(noting: Noting) -> Any:
    from monitor.auto._runs import AutoRuns

    return AutoRuns(noting)


def _say(error: Exception) -> None:
    with contextlib.suppress(Exception):
        from monitor.run._log import make_visible

        make_visible()
    with contextlib.suppress(Exception):
        _LOG.warning("MONITOR=1 has no effect from here on: %s", error)


def _follow(kind: Any, note: Callable[[Any], None]) -> Callable[[], None]:
    """Have a function called with every object of a class once it is initialised; return what undoes that."""
    original = kind.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        try:
            note(self)
        except Exception as error:  # noqa: BLE001 - must not reach the program
            _LOG.debug("not noted: %r", error)

    def undo() -> None:
        if kind.__init__ is __init__:  # somebody who patched after us keeps their patch
            kind.__init__ = original

    kind.__init__ = __init__
    return undo

"""What this rank has promised: to ask, before a certain step, whether a command takes effect there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from monitor._records import CommandRecord
from monitor.control._commands import Command

COMMIT, ABORT = "commit", "abort"


@dataclass
class Promise:
    """One command and the step before which it takes effect on all ranks, or on none.

    ``register`` is the key of what is decided, ``decision`` is empty until that is known, ``command`` is the leader's
    own; ``begin_at`` as for ``Commands.submit``; ``is_last`` where an abort is the end of it.
    """

    register: str
    fence: int
    record: CommandRecord
    begin_at: float | None = None
    command: Command | None = None
    decision: str = ""
    is_last: bool = False


class Promises:
    """The promises of one rank, in the order in which they fall due. Nothing here waits for another rank.

    Args:
        num_steps: returns how many steps the training thread has made.
        call_at: has the training thread pass its step boundary once it has made so many steps.
    """

    def __init__(self, num_steps: Callable[[], int], call_at: Callable[[int], None]) -> None:
        self._num_steps = num_steps
        self._call_at = call_at
        self._waiting: list[Promise] = []
        self._paused_at = 0
        self._lock = threading.Lock()  # held for a few assignments: the training thread takes it at a fence alone

    def make(self, promise: Promise) -> bool:
        """Promise, unless the training thread has passed the fence or may be passing it now.

        The training thread is called first and looked at afterwards: one that had not ended the step before the last
        then is sure to hear the call. A fence at which it waits already, or is sure to come by, holds as well.
        """
        with self._lock:
            if any(one.register == promise.register for one in self._waiting):
                return True  # it was made before the store had failed
            is_sure = promise.fence == self._paused_at or any(one.fence == promise.fence for one in self._waiting)
            self._waiting.append(promise)
            self._call()
            if is_sure or self._num_steps() <= promise.fence - 2:
                return True
            self._waiting.remove(promise)
            self._call()
            return False

    def due(self) -> Promise | None:
        """Return the oldest promise whose step the training thread is about to make; while it is paused there, only
        one that is decided: it has the time to wait for that."""
        with self._lock:
            first = self._waiting[0] if self._waiting else None
            if first is None or first.fence > self._num_steps() + 1 or (self._paused_at and not first.decision):
                return None
            return first

    def keep(self, promise: Promise) -> None:
        """Take a promise for kept: what was decided is known, and is done next."""
        with self._lock:
            if promise in self._waiting:
                self._waiting.remove(promise)
            if promise.decision == COMMIT and promise.record.action in ("pause", "resume", "stop"):
                self._paused_at = promise.fence if promise.record.action == "pause" else 0

    def call_for_next(self) -> None:
        """Have the training thread called for what is promised."""
        with self._lock:
            self._call()

    def _call(self) -> None:
        self._call_at(min((one.fence for one in self._waiting), default=sys.maxsize) - 1)

    def drop_all(self) -> list[Promise]:
        """Take back every promise, as the run ends; return them."""
        with self._lock:
            dropped, self._waiting = self._waiting, []
            return dropped

    def undecided(self) -> list[Promise]:
        """Return the promises of which it is not known what was decided."""
        with self._lock:
            return [one for one in self._waiting if not one.decision]

    def least_fence(self, margin: int) -> int:
        """Return the first step, ``margin`` steps from now at least, before which another command may take effect. One
        that follows a pause takes effect where it does."""
        with self._lock:
            pauses = [one.fence for one in self._waiting if one.record.action == "pause"]
            if pauses or self._paused_at:
                return max([*pauses, self._paused_at])
            return max([self._num_steps() + 1 + margin, *(one.fence for one in self._waiting)])

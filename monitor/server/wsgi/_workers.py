"""The threads that answer, and the line before them: known connections first, each kind within its share of CPU."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from cheroot import errors

from monitor.server.wsgi._budget import CpuBudget
from monitor.server.wsgi._connection import Connection

STRANGERS_SHARE, KNOWN_SHARE = 0.15, 0.3
"""Of one core, how much answers may take on average."""
BURST_SECONDS = 0.5
"""How much each of the two may take at once after a rest: more than one look at everything."""
MAX_WAIT_SECONDS = 2.0
"""How long who waits for a share of CPU is kept waiting, before it is told to come back."""


class Workers:
    """A fixed crew of daemon threads behind a line, in the form that cheroot asks of a pool.

    The line is bounded by the number of open connections. What an answer to a known connection takes beyond the share
    of the known ones is taken off that of the strangers, as who is known is a stranger until its head is read.

    Args:
        size: number of threads.
        keep: called with a connection that has been answered and stays open.
        turn_away: called with one that has waited too long.
        on_error: called with what a connection has raised.
    """

    def __init__(
        self,
        size: int,
        *,
        keep: Callable[[Connection], None],
        turn_away: Callable[[Connection], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.min = size
        self.budgets = {
            True: CpuBudget(KNOWN_SHARE, BURST_SECONDS),
            False: CpuBudget(STRANGERS_SHARE, BURST_SECONDS),
        }
        self._keep, self._turn_away, self._on_error = keep, turn_away, on_error
        self._lines: dict[bool, deque[Connection]] = {True: deque(), False: deque()}
        self._changed = threading.Condition()
        self._is_timed = False
        self._threads: list[threading.Thread] = []
        self._busy: set[Connection] = set()
        self._is_stopping = False

    def start(self) -> None:
        """Start the threads."""
        for index in range(self.min):
            thread = threading.Thread(target=self._work, name=f"monitor-http-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def idle(self) -> int:
        """How many threads have nothing to do."""
        return self.min - len(self._busy)

    @property
    def qsize(self) -> int:
        """How many connections wait for a thread."""
        return sum(map(len, self._lines.values()))

    @property
    def is_crowded(self) -> bool:
        """Tell whether connections wait because every thread is taken."""
        return self.idle == 0 and self.qsize > 0

    def put(self, connection: Connection) -> None:
        """Have a connection answered that has something to say."""
        connection.queued = time.monotonic()
        with self._changed:
            if not self._is_stopping:
                self._lines[connection.is_known].append(connection)
                self._changed.notify()
                return
        connection.close()

    def spend(self, seconds: float, *, is_known: bool = False) -> float:
        """Take CPU time off a share; return the seconds for which that of the strangers is overdrawn."""
        with self._changed:
            self.budgets[is_known].spend(seconds)
            if is_known and self.budgets[True].wait():
                self.budgets[False].spend(seconds)
            return self.budgets[False].wait()

    def get(self) -> Connection | None:
        """Wait for the next connection and take it; None when the threads are to end."""
        with self._changed:
            while not self._is_stopping:
                if (connection := self._next()) is not None:
                    self._busy.add(connection)
                    if self.qsize:
                        self._changed.notify()  # another one has to watch the clock now
                    return connection
                self._rest()
        return None

    def _next(self) -> Connection | None:
        for is_known, line in self._lines.items():
            if line and (not self.budgets[is_known].wait() or self._is_late(line[0])):
                return line.popleft()
        return None

    @staticmethod
    def _is_late(connection: Connection) -> bool:
        """Tell whether a stranger has waited for its share of CPU for as long as it is kept waiting."""
        connection.is_late = not connection.is_known and time.monotonic() - connection.queued >= MAX_WAIT_SECONDS
        return connection.is_late

    def _rest(self) -> None:
        """Wait until something has changed. One thread alone watches the clock."""
        if self._is_timed or not self.qsize:
            self._changed.wait()
            return
        self._is_timed = True
        try:
            self._changed.wait(min(self._pause(*waiting) for waiting in self._lines.items() if waiting[1]))
        finally:
            self._is_timed = False

    def _pause(self, is_known: bool, line: deque[Connection]) -> float:
        """Return the seconds until the first one of a line has its turn, or is late."""
        pause = self.budgets[is_known].wait()
        return pause if is_known else max(0.0, min(pause, line[0].queued + MAX_WAIT_SECONDS - time.monotonic()))

    def stop(self, timeout: float = 1.0) -> None:
        """Let answers under way finish within half of ``timeout`` (seconds), cut the rest, join."""
        with self._changed:
            self._is_stopping = True
            waiting = [connection for line in self._lines.values() for connection in line]
            self._changed.notify_all()
        for connection in waiting:
            connection.close()
        for connection in list(self._busy):
            if not connection.is_responding:
                connection.abort()
        self._join(time.monotonic() + timeout / 2)
        for connection in list(self._busy):
            connection.abort()
        self._join(time.monotonic() + timeout / 2)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        begun = time.thread_time()
        while (connection := self.get()) is not None:
            self._serve_contained(connection)
            ended = time.thread_time()
            self.spend(ended - begun, is_known=connection.is_known)
            begun = ended

    def _serve_contained(self, connection: Connection) -> None:
        try:
            self._serve(connection)
        except BaseException as error:  # noqa: BLE001 - a worker that dies would take a share of the server with it
            self._on_error(error)
            connection.close()
        finally:
            self._busy.discard(connection)

    def _serve(self, connection: Connection) -> None:
        if connection.is_late:
            self._turn_away(connection)
            return
        try:
            keep = connection.communicate()
        except (OSError, errors.FatalSSLAlert):
            keep = False
        if not keep or self._is_stopping:
            connection.close()
            return
        try:
            self._keep(connection)
        except (OSError, ValueError, KeyError, RuntimeError):  # closed meanwhile: we are stopping
            connection.close()

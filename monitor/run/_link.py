"""The link to a watcher process: its threads, and another process in the place of one that dies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from monitor.common import Loop
from monitor.link import FailureReporter, Hello, WatcherProcess, hold_back_sigpipe, pack_message
from monitor.run._link_reader import LinkReader
from monitor.run._outbox import Outbox
from monitor.run._questions import Questions
from monitor.run._restarts import MAX_RESTARTS, WINDOW_SECONDS, RestartLimit

_LOG = logging.getLogger("monitor")
LINK_SECONDS = 0.05
"""How often entries are shipped."""


class Link:
    """Write what is in the outbox, hand on what comes in, and keep a watcher alive at the other end.

    Args:
        process: the watcher, which waits for its first message.
        start: starts another one for a run, by its id.
        hello: returns the run as the next watcher is to know it.
        outbox: what is written.
        questions: are asked again of another watcher.
        receive: takes kind and content of each message, on the reader's thread.
        is_over: tells whether the watcher has said its last word.
        on_given_up: called once where no watcher can be kept alive.
        failures: where what is contained is noted.
    """

    def __init__(
        self,
        process: WatcherProcess,
        start: Callable[[str], WatcherProcess],
        *,
        hello: Callable[[], Hello],
        outbox: Outbox,
        questions: Questions,
        receive: Callable[[str, Any], None],
        is_over: Callable[[], bool],
        on_given_up: Callable[[], None],
        failures: FailureReporter,
    ) -> None:
        self.has_given_up = False
        self._process = process
        self._start = start
        self._hello = hello
        self._outbox = outbox
        self._questions = questions
        self._is_over = is_over
        self._on_given_up = on_given_up
        self._failures = failures
        self._lost: WatcherProcess | None = None
        self._restarts = RestartLimit(MAX_RESTARTS, WINDOW_SECONDS)
        self._has_greeted = False
        self._reader = LinkReader(receive, self._on_closed, failures)
        self._loop = Loop("monitor-link", self._ship, LINK_SECONDS, on_error=failures.of("link"))

    # ------------------------------------------------------------------------------------------- any thread

    def open(self) -> None:
        """Start the threads, of which one greets the watcher; wait for nothing."""
        self._loop.wake()
        self._failures.contain("link", self._loop.start)
        self._failures.contain("link", lambda: self._reader.start(self._process))

    def wake(self) -> None:
        """Have the outbox written at once."""
        self._loop.wake()

    @property
    def is_reading(self) -> bool:
        """Tell whether this is the thread that takes the answers: it must wait for none."""
        return self._reader.is_current

    def join(self, deadline: float) -> None:
        """Wait for the end of the threads, until a time on the monotonic clock at most."""
        for part in (self._loop, self._reader):
            part.join(deadline - time.monotonic())

    def close(self) -> None:
        """Close this end before the threads have started."""
        self._process.close()

    def forget(self) -> None:
        """Close the pipes in a forked child: held open there, they would keep the watcher waiting for the end."""
        self.has_given_up = True
        self._process.abandon()

    # ------------------------------------------------------------------------------------------- its own thread

    def _ship(self) -> None:
        """Write what there is; once the end has been written, or nobody reads any more, this was the last round."""
        if not self._has_greeted:
            self._has_greeted = True
            hold_back_sigpipe()
            with suppress(OSError):  # one that has ended already: who reads from it notices
                self._process.greet(pack_message("hello", self._addressed()))
        try:
            if self._lost is self._process:
                raise BrokenPipeError("the watcher has closed its end")
            is_last = self._outbox.write(self._process.outgoing)
        except OSError:  # the watcher is gone
            is_last = not self._replace()
        if is_last:
            self._loop.end()

    def _addressed(self) -> Hello:
        """Return the run with the thread that says whether it continues."""
        return replace(self._hello(), thread=self._loop.native_id)

    def _replace(self) -> bool:
        """Start another watcher in the place of one that has ended and should not have; tell whether there is one.

        To be called on the link thread alone, after its end on that of the reader: nothing else is written meanwhile.
        """
        if self.has_given_up or self._is_over():
            return False
        self._process.close()
        if not self._restarts.allows_another():
            return self._give_up(f"it has ended {MAX_RESTARTS + 1} times within {WINDOW_SECONDS / 60:g} minutes")
        hello = self._addressed()
        try:
            self._process = self._start(hello.info.run_id)
        except OSError as error:
            return self._give_up(str(error))
        _LOG.warning("the watcher process of this run has ended; another one takes over; training is not affected")
        self._failures.contain("link", lambda: self._reader.start(self._process))
        with suppress(OSError):  # it has ended as well: its reader notices
            self._outbox.write_again(self._process, hello, self._questions.still_open())
        return True

    def _give_up(self, why: str) -> bool:
        self.has_given_up = True
        self._outbox.clear()
        self._questions.give_up()
        self._on_given_up()
        self._failures.note(
            "link",
            ChildProcessError(why),
            line=f"the watcher process of this run cannot be kept alive ({why}); the run is no longer recorded or "
            "served; training is not affected",
        )
        return False

    # ---------------------------------------------------------------------------------------- the reader's thread

    def _on_closed(self, process: WatcherProcess) -> None:
        """Have a watcher replaced that has closed its end before its last word."""
        if self._is_over():
            return
        self._lost = process
        self._loop.wake()
        while self._loop.is_alive and self._process is process and not self.has_given_up:
            self._loop.join(LINK_SECONDS)
        if self._process is process and self._replace():  # killed after the last word had been written
            self._process.outgoing.close()

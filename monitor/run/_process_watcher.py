"""The watcher in a process of its own: messages and questions to it, what it asks for, its replacement."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from monitor._errors import MonitorError, UnreachableError
from monitor._records import CommandRecord, Event, OptimizerSnapshot, Snapshot, State
from monitor._settings import Settings
from monitor.common import Loop
from monitor.link import FailureReporter, Hello, WatcherProcess, hold_back_sigpipe, pack_message, start_watcher
from monitor.run._callback_thread import CallbackThread
from monitor.run._callbacks import Callbacks
from monitor.run._link_reader import LinkReader
from monitor.run._outbox import Outbox
from monitor.run._questions import Questions
from monitor.run._restarts import MAX_RESTARTS, WINDOW_SECONDS, RestartLimit
from monitor.run._state_report import StateReport
from monitor.run._training_side import TrainingSide
from monitor.store import check_directory

_LOG = logging.getLogger("monitor")
LINK_SECONDS = 0.05
"""How often entries are shipped."""
ANSWER_SECONDS = 5.0
"""How long a question to the watcher waits for its answer."""
READY_SECONDS = 20.0
"""How long ``run.url`` waits for the address of a watcher that has just been started."""
END_SECONDS = 0.2
"""How long the end of a run waits for its watcher."""
_NOTHING = object()


class ProcessWatcher:
    """A watcher process, and the threads that talk to it.

    Args:
        hello: the run.
        training: what stands on the training thread.
        callbacks: called in order on a thread of their own.
        failures: where what is contained is noted.
        begin_round: called several times a second, on the link's thread.
        process: the watcher, which waits for its first message.
        start: starts another one.
    """

    def __init__(
        self,
        hello: Hello,
        training: TrainingSide,
        callbacks: Callbacks,
        failures: FailureReporter,
        begin_round: Callable[[], None],
        process: WatcherProcess,
        start: Callable[[str], WatcherProcess] = start_watcher,
    ) -> None:
        self._hello = hello
        self._training = training
        self._failures = failures
        self._start = start
        self._process = process
        self._lost: WatcherProcess | None = None
        self._restarts = RestartLimit()
        self._has_greeted = self._has_given_up = self._is_ending = False
        self._ready = threading.Event()
        self._url: str | None = None
        self._has_folder = False
        self._final: dict[str, Any] = {}
        self._has_final = threading.Event()
        self._snapshot = _first_snapshot(hello)
        device_seconds = hello.settings.system_interval if hello.settings.gpu else None
        self._report = StateReport(training, failures, device_seconds)
        self._outbox = Outbox(training, self._report, failures, begin_round)
        self._questions = Questions(lambda words: self._send("ask", words, wakes=True))
        self._callback_thread = CallbackThread(callbacks, failures)
        self._reader = LinkReader(self._receive, self._on_closed, failures)
        self._loop = Loop("monitor-link", self._ship, LINK_SECONDS, on_error=failures.of("link"))

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> None:
        """Start the threads, of which one greets the watcher; wait for nothing.

        Raises:
            ValueError: for a ``directory`` that can never be one or a certificate that cannot be used.
        """
        try:
            check_directory(self._hello.settings.directory)
            _check_certificate(self._hello.settings)
        except BaseException:
            self._process.close()
            raise
        self._loop.wake()
        for start in (self._loop.start, lambda: self._reader.start(self._process), self._callback_thread.start):
            self._failures.contain("link", start)

    def end(self, state: State, end: float, note: Callable[[], None], exception: str = "") -> None:
        """Have the end recorded; wait END_SECONDS at most for the watcher to have it."""
        deadline = self._outbox.end_deadline = time.monotonic() + END_SECONDS
        note()
        self._snapshot = replace(self._snapshot, state=state, end_time=end)
        self._is_ending = True
        self._send("end", (state, end, exception), wakes=True)
        self._has_final.wait(max(0.0, deadline - LINK_SECONDS - time.monotonic()))  # the rest is for leave

    def wait(self) -> None:
        """Wait for a last scrape, if the settings say so. Ctrl-C ends the wait, and nothing but it."""
        seconds = self._hello.settings.wait_for_scrape
        if seconds <= 0 or self._has_given_up:
            return
        try:
            self._ask("last_scrape", seconds, timeout=seconds + 1.0)
        except KeyboardInterrupt:
            _LOG.info("the wait at the end was cut short by Ctrl-C")

    def leave(self) -> None:
        """Close the link. What the watcher has not read yet it still finds in the pipe."""
        self._callback_thread.end()
        self._send("leave", None, wakes=True)
        deadline = max(self._outbox.end_deadline or 0.0, time.monotonic() + LINK_SECONDS)
        for part in (self._loop, self._reader, self._callback_thread):
            part.join(deadline - time.monotonic())

    def forget(self) -> None:
        """Close the pipes in a forked child: held open there, they would keep the watcher waiting for the end."""
        self._has_given_up = True
        self._process.abandon()

    # ------------------------------------------------------------------------------------------ messages, out

    def post(self, event: Event) -> None:
        """Hand in an event."""
        self._send("event", event)

    def set_state(self, state: State) -> None:
        """Set what is shown as the run's state."""
        self._send("run_state", state)

    def note_command(self, record: CommandRecord) -> None:
        """Send a command that was accepted, or its outcome."""
        self._send("command", record, wakes=True)

    def load(self, base_step: int, smoothing: Any, detectors: Any) -> None:
        """Continue from the state of an earlier session. A watcher that does not answer is a failure of ours: the
        training continues, and the smoothed losses and the detectors begin anew.

        Raises:
            ValueError: for what ``state_dict`` did not make.
        """
        found = self._ask("load", base_step, smoothing, detectors, default=_NOTHING)
        if isinstance(found, ValueError):
            raise found
        if found is _NOTHING:
            line = "the watcher process does not answer: smoothed losses and detectors begin anew; training continues"
            self._failures.note("link", TimeoutError(line), line=line)

    def _send(self, kind: str, content: Any, *, wakes: bool = False) -> None:
        if not self._has_given_up:
            self._outbox.post(kind, content)
        if wakes:
            self._loop.wake()

    # ---------------------------------------------------------------------------------------------- questions

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP. Waits for a watcher that has just been started."""
        if self._hello.settings.serve and not self._has_given_up:
            self._ready.wait(READY_SECONDS)
        return self._url

    @property
    def has_folder(self) -> bool:
        """Tell whether the run has a folder, as far as the watcher has said."""
        return self._has_folder

    def snapshot(self) -> Snapshot:
        """Return the latest published state; the last one that is known where the watcher does not answer."""
        found = self._final_or("snapshot", self._snapshot)
        assert isinstance(found, Snapshot)
        self._snapshot = found
        return found

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        nothing = {"since": since, "next": since, "resolution": 1, "optimizers": {}, "system": {"time": []}}
        found: dict[str, Any] = self._final_or("history", nothing, since, points)
        return nothing if self._is_ending and since else found

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        found = self._final_or("events", (), since)
        return tuple(event for event in found if event.seq > since)

    def _final_or(self, what: str, default: Any, *arguments: Any) -> Any:
        if self._is_ending:  # after the end there is nothing new to ask for
            if not self._has_given_up:
                self._has_final.wait(ANSWER_SECONDS)
            return self._final.get(what, default)
        return self._ask(what, *arguments, default=default)

    def flush(self, timeout: float) -> bool:
        """Wait until what was recorded so far is in the snapshot, and what it leads to was called."""
        deadline = time.monotonic() + timeout
        if self._is_ending:
            return self._has_final.wait(timeout)
        if not self._ask("flush", self._training.buffer.last_sequence, timeout, timeout=timeout, default=False):
            return False
        return self._callback_thread.flush(deadline - time.monotonic())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of recorder and detectors; nothing where the watcher does not answer."""
        if not self._is_ending:
            self.flush(ANSWER_SECONDS)
        found: dict[str, Any] = self._final_or("state_dict", {"smoothing": {}, "detectors": {}})
        return found

    def _ask(self, what: str, *arguments: Any, timeout: float = ANSWER_SECONDS, default: Any = None) -> Any:
        if self._has_given_up or self._reader.is_current:
            return default
        return self._questions.ask(what, *arguments, timeout=timeout, default=default)

    # -------------------------------------------------------------------------------------------- link thread

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
        """Return the run with the thread that says whether it goes on, served where it was."""
        settings = self._hello.settings
        return replace(self._hello, thread=self._loop.native_id, settings=_served_at(self._url, settings))

    # ------------------------------------------------------------------------------------------ another watcher

    def _replace(self) -> bool:
        """Start another watcher in the place of one that has ended and should not have; tell whether there is one.

        To be called on the link thread alone, after its end on that of the reader: nothing else is written meanwhile.
        """
        if self._has_given_up or self._has_final.is_set():
            return False
        self._process.close()
        if not self._restarts.allows_another():
            return self._give_up(f"it has ended {MAX_RESTARTS + 1} times within {WINDOW_SECONDS / 60:g} minutes")
        try:
            self._process = self._start(self._hello.info.run_id)
        except OSError as error:
            return self._give_up(str(error))
        _LOG.warning("the watcher process of this run has ended; another one takes over; training is not affected")
        self._failures.contain("link", lambda: self._reader.start(self._process))
        with suppress(OSError):  # it has ended as well: its reader notices
            self._outbox.write_again(self._process, self._addressed(), self._questions.still_open())
        return True

    def _give_up(self, why: str) -> bool:
        self._has_given_up = True
        self._outbox.clear()
        self._ready.set()
        self._has_final.set()
        self._questions.give_up()
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
        if self._has_final.is_set():
            return
        self._lost = process
        self._loop.wake()
        while self._loop.is_alive and self._process is process and not self._has_given_up:
            self._loop.join(LINK_SECONDS)
        if self._process is process and self._replace():  # killed after the last word had been written
            self._process.outgoing.close()

    def _receive(self, kind: str, content: Any) -> None:
        """Do what the watcher asks for."""
        if kind == "digested":
            self._callback_thread.take(content)
        elif kind == "submit":
            self._send("submitted", self._submitted(*content), wakes=True)
        elif kind == "answer":
            self._questions.take_answer(*content)
        elif kind == "memory":
            self._outbox.remember(*content)
        elif kind == "skipped":
            self._training.skipped = content
        elif kind == "near":
            self._report.is_stall_near = content
        elif kind == "log":
            level, text = content
            _LOG.log(level, "%s", text)
        elif kind == "ready":
            self._url, self._has_folder = content
            self._ready.set()
        elif kind == "final":
            self._final = content
            self._has_final.set()

    def _submitted(self, number: int, action: str, fields: Mapping[str, Any], until: float) -> tuple[int, Any]:
        if time.monotonic() > until:  # this process was stopped; whoever asked has heard that nothing was done
            return number, UnreachableError(f"{action} came too late")
        try:
            return number, self._training.commands.submit(action, **fields).record
        except MonitorError as error:
            return number, error


def _served_at(url: str | None, settings: Settings) -> Settings:
    """Return the settings of another watcher: it is served where the last one was."""
    return settings if url is None else replace(settings, port=int(url.rpartition(":")[2]))


def _first_snapshot(hello: Hello) -> Snapshot:
    """Return what is known of a run before its watcher has said anything."""
    optimizers = tuple(OptimizerSnapshot(key, name) for key, name in hello.optimizers.items())
    return Snapshot(
        hello.info,
        "starting",
        hello.info.start_time,
        target_steps=hello.settings.total_steps,
        stall_timeout=hello.settings.stall_timeout,
        optimizers=optimizers,
    )


def _check_certificate(settings: Any) -> None:
    if settings.serve and settings.certfile is not None:
        from monitor.server.wsgi import tls_context  # brings the server along: only where TLS is wanted

        tls_context(settings.certfile, settings.keyfile, settings.client_cafile)

"""The watcher in a process of its own: messages and questions to it, and what it asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from monitor._errors import MonitorError, UnreachableError
from monitor._records import CommandRecord, Event, OptimizerSnapshot, RunInfo, Snapshot, State, no_curves
from monitor.common import PASSED_ON
from monitor.link import FailureReporter, Hello, WatcherProcess, start_watcher
from monitor.run._callback_thread import CallbackThread
from monitor.run._callbacks import Callbacks
from monitor.run._link import LINK_SECONDS, Link
from monitor.run._outbox import Outbox
from monitor.run._questions import Questions
from monitor.run._state_report import StateReport
from monitor.run._training_side import TrainingSide
from monitor.store import check_directory

_LOG = logging.getLogger("monitor")
ANSWER_SECONDS = 5.0
"""How long a question to the watcher waits for its answer."""
READY_SECONDS = 20.0
"""How long ``run.url`` waits for the address of a watcher that has just been started."""
END_SECONDS = 0.2
"""How long the end of a run waits for its watcher."""
_NOTHING = object()
_Answer = TypeVar("_Answer")


class ProcessWatcher:
    """A run's watcher at the other end of a link.

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
        self._is_ending = False
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
        self._link = Link(
            process,
            start,
            hello=self._present_hello,
            outbox=self._outbox,
            questions=self._questions,
            receive=self._receive,
            is_over=self._has_final.is_set,
            on_given_up=self._answer_no_more,
            failures=failures,
        )

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
            self._link.close()
            raise
        self._link.open()
        self._failures.contain("link", self._callback_thread.start)

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
        if seconds <= 0 or self._link.has_given_up:
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
        self._link.join(deadline)
        self._callback_thread.join(deadline - time.monotonic())

    def forget(self) -> None:
        """Close the pipes in a forked child: held open there, they would keep the watcher waiting for the end."""
        self._link.forget()

    # ------------------------------------------------------------------------------------------ messages, out

    def post(self, event: Event) -> None:
        """Hand in an event."""
        self._send("event", event)

    def set_state(self, state: State) -> None:
        """Set what is shown as the run's state."""
        self._send("run_state", state)

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Set which of how many ranks the run is, for this watcher and for one that takes over."""
        self._hello = replace(self._hello, info=replace(self._hello.info, world_size=world_size, rank=rank))
        self._send("ranks", (world_size, rank))

    def set_target(self, total_steps: int) -> None:
        """Set how many steps are planned, for this watcher and for one that takes over."""
        self._hello = replace(self._hello, settings=replace(self._hello.settings, total_steps=total_steps))
        self._send("target", total_steps)

    def join(self, place: Mapping[str, Any], rank: int) -> None:
        """Have the shares of this rank sent to rank 0's watcher, by this watcher and by one that takes over."""
        self._hello = replace(self._hello, place=place, rank=rank)
        self._send("join", (place, rank), wakes=True)

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

    def resume(self, info: RunInfo, base_step: int) -> None:
        """Continue an earlier run that this process has claimed. From here on any watcher knows the run as that one."""
        self._hello = replace(self._hello, info=info, base_step=base_step)
        self._snapshot = replace(self._snapshot, run=info)
        if self._ask("resume", info, base_step, default=_NOTHING) is _NOTHING:
            line = "the watcher process does not answer: what it shows may be that of another run; training continues"
            self._failures.note("link", TimeoutError(line), line=line)

    def _send(self, kind: str, content: Any, *, wakes: bool = False) -> None:
        if not self._link.has_given_up:
            self._outbox.post(kind, content)
        if wakes:
            self._link.wake()

    # ---------------------------------------------------------------------------------------------- questions

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP. Waits for a watcher that has just been started."""
        if self._hello.settings.serve and not self._link.has_given_up:
            self._ready.wait(READY_SECONDS)
        return self._url

    @property
    def has_folder(self) -> bool:
        """Tell whether the run has a folder. A watcher that is still being started is taken to make it."""
        return self._has_folder if self._ready.is_set() else not self._link.has_given_up

    def snapshot(self) -> Snapshot:
        """Return the latest published state; the last one that is known where the watcher does not answer."""
        self._snapshot = self._final_or("snapshot", self._snapshot)
        return self._snapshot

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        nothing = {**no_curves(since), "system": {"time": []}}
        found = self._final_or("history", nothing, since, points)
        return nothing if self._is_ending and since else found

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        nothing: tuple[Event, ...] = ()
        found = self._final_or("events", nothing, since)
        return tuple(event for event in found if isinstance(event, Event) and event.seq > since)

    def _final_or(self, what: str, default: _Answer, *arguments: Any) -> _Answer:
        """Return what the watcher says, of the kind of the default, else that."""
        if self._is_ending and not self._link.has_given_up:  # after the end there is nothing new to ask for
            self._has_final.wait(ANSWER_SECONDS)
        answer = self._final.get(what) if self._is_ending else self._ask(what, *arguments, default=default)
        return answer if isinstance(answer, type(default)) else default

    def flush(self, timeout: float, *, with_sums: bool = True) -> bool:
        """Wait until what was recorded so far is in the snapshot, and what it leads to was called."""
        deadline = time.monotonic() + timeout
        if self._is_ending:
            return self._has_final.wait(timeout)
        words = self._training.buffer.last_sequence, timeout, with_sums
        if not self._ask("flush", *words, timeout=timeout, default=False):
            return False
        return self._callback_thread.flush(deadline - time.monotonic())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of recorder and detectors; nothing where the watcher does not answer."""
        if not self._is_ending:
            self.flush(ANSWER_SECONDS, with_sums=False)  # a checkpoint does not wait for other ranks
        nothing: dict[str, Any] = {"smoothing": {}, "detectors": {}}
        found = self._final_or("state_dict", nothing)
        return {name: found.get(name, nothing[name]) for name in nothing}

    def _ask(self, what: str, *arguments: Any, timeout: float = ANSWER_SECONDS, default: Any = None) -> Any:
        if self._link.has_given_up or self._link.is_reading:
            return default
        return self._questions.ask(what, *arguments, timeout=timeout, default=default)

    # ------------------------------------------------------------------------------------------ messages, in

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
        elif kind == "pace":
            self._training.pace = content
        elif kind == "near":
            self._report.is_stall_near = content
        elif kind == "stall":
            self._training.note_stall()
        elif kind == "log":
            level, text = content
            _LOG.log(level, "%s", text, extra=PASSED_ON)
        elif kind == "ready":
            self._url, self._has_folder = content
            self._training.url = self._url
            self._ready.set()
        elif kind == "final":
            self._final = content
            self._has_final.set()

    def _present_hello(self) -> Hello:
        """Return the run as another watcher is to know it: served where the last one was."""
        if self._url is None:
            return self._hello
        return replace(self._hello, settings=replace(self._hello.settings, port=int(self._url.rpartition(":")[2])))

    def _answer_no_more(self) -> None:
        """Let whoever waits for the watcher wait no longer: there will be none."""
        self._ready.set()
        self._has_final.set()

    def _submitted(self, number: int, action: str, fields: Mapping[str, Any], until: float) -> tuple[int, Any]:
        if time.monotonic() > until:  # this process was stopped; whoever asked has heard that nothing was done
            return number, UnreachableError(f"{action} came too late")
        try:
            return number, self._training.commands.submit(action, **fields).record
        except MonitorError as error:
            return number, error


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

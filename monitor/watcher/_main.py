"""The watcher process: read what the training process sends, until it closes its end or is gone."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil

from monitor._errors import MonitorError
from monitor._records import Event, RunInfo, State
from monitor.common import bound_lines, contained
from monitor.link import (
    ENTRIES,
    RECORDED,
    VERSION,
    FailureReporter,
    Hello,
    Pipe,
    pack_message,
    unpack_entries,
    unpack_message,
)
from monitor.system import OutOfMemoryCounter
from monitor.watcher._presence import Presence
from monitor.watcher._remote import RemoteTraining
from monitor.watcher._watcher import Watcher

_LOG = logging.getLogger("monitor")
LOOK_SECONDS = 0.2
"""How often the watcher looks whether the training process is still there."""
MAX_WAITING_ENTRIES = 65_536
"""Entries that wait for the recorder before no more are read: the pipe fills, and the step buffer behind it."""
GONE_SECONDS = 0.2
"""How long a training process may take to be gone once it has closed the link."""
MEMORY_SECONDS = 2.0
"""How often the training process is given what another watcher would have to know."""
MAX_UNREAD = 16
"""Messages that wait for the training process before it is spared the large ones."""
SETTLE_SECONDS = 1.0
"""How long the last snapshot waits for the disk, so that a failure of the last write is in it."""
ANSWER_SECONDS = 5.0
"""How long the training process may take to read the last message."""
PAGE_SECONDS = 600.0
"""How long an open page keeps the watcher after the end, at most."""
_END = object()


def main(incoming: int, outgoing: int) -> None:
    """Watch the run that the first message names; return once it has ended and nobody looks any more.

    Args:
        incoming, outgoing: descriptors of the link. Standard input and output lead nowhere: a stray ``print`` must not
            come between the frames.
    """
    if hasattr(signal, "pthread_sigmask"):  # what the thread that started this process held back
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    pipes = Pipe(incoming), Pipe(outgoing)
    frame = pipes[0].read()
    if frame is None:
        return
    _, hello = unpack_message(frame[1])
    if hello.version != VERSION:
        return  # the package was exchanged under a live run
    Service(hello, *pipes).run()


class Service:
    """The watcher of one run and its end of the link.

    Args:
        hello: the run.
        incoming, outgoing: the link.
    """

    def __init__(self, hello: Hello, incoming: Pipe, outgoing: Pipe) -> None:
        self._hello = hello
        self._incoming, self._outgoing = incoming, outgoing
        self._frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._training = RemoteTraining(self._send)
        self._failures = FailureReporter(self._note_failure)
        self._oom = OutOfMemoryCounter()
        self._is_told_to_end = False
        self._end: tuple[State, float] | None = None
        self._next_memory = time.monotonic() + MEMORY_SECONDS
        self._remembered = hello.first_sequence - 1, hello.num_messages
        self._num_messages = hello.num_messages
        self._taking = threading.Lock()
        self._num_frames = self._num_seen = 0
        self._is_reading = False
        self._presence = Presence(hello.info.pid, hello.thread)
        bound_lines(_LOG)
        _LOG.addHandler(_Forward(self._send))
        _LOG.setLevel(logging.INFO)
        _LOG.propagate = False
        self._watcher = Watcher(
            hello,
            self._training,
            self._failures,
            process=_process_of(hello),
            is_apart=True,
            on_round=self._on_round,
        )
        if hello.memory:
            self._watcher.remember(hello.memory)
            self._watcher.source.decoder.base_step = hello.base_step

    # ------------------------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Serve until the end."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        reader, writer = (
            threading.Thread(target=target, name=f"monitor-link{target.__name__}", daemon=True)
            for target in (self._read, self._write)
        )
        reader.start()
        writer.start()
        try:
            self._watcher.open()
        except ValueError as error:  # checked before this process was started; the files have changed since
            self._failures.note("server", error, line=f"{error}; the run continues without a page and metrics")
        publisher = self._watcher.publisher
        publisher.open_log()
        self._send("ready", (publisher.url, publisher.has_folder))
        with suppress(OSError):
            os.chdir("/")  # a working directory that is held cannot be unmounted
        self._serve()
        if self._end is None:
            if self._is_cut_off():
                self._hand_over()
                return
            self._note_vanished()
        self._outbox.put(_END)
        writer.join(ANSWER_SECONDS)
        self._outgoing.close()
        publisher.stay(self._linger_seconds(), PAGE_SECONDS, lambda: self._is_told_to_end)
        self._failures.contain("server", publisher.stop)
        self._failures.contain("folder", publisher.withdraw)

    def _serve(self) -> None:
        """Do what comes in until the other end is closed, or its process is gone."""
        while True:
            try:
                item = self._frames.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                item = _END if self._is_left_alone() else None
            if item is _END:
                return
            if item is not None:
                self._failures.contain("link", lambda taken=item: self._take(*taken))  # type: ignore[misc]

    def _is_left_alone(self) -> bool:
        """Tell whether the training process is gone though a forked worker holds the link open: all that it has written
        is read, and nothing has come since the last look."""
        seen, self._num_seen = self._num_seen, self._num_frames
        return self._presence.is_gone and self._is_reading and seen == self._num_frames

    def _is_cut_off(self) -> bool:
        """Tell whether the link was closed under a training process that continues: it starts another watcher."""
        deadline = time.monotonic() + GONE_SECONDS
        while not self._presence.is_gone:  # one that ends closes the link a moment before it is gone
            if time.monotonic() > deadline:
                return True
            time.sleep(0.01)
        return False

    def _hand_over(self) -> None:
        """Leave port, folder and store to another watcher, without a word about an end."""
        self._failures.contain("recorder", self._watcher.recorder.stop)
        self._failures.contain("link", lambda: self._watcher.shares.close(is_over=False))
        self._failures.contain("server", self._watcher.publisher.stop)
        self._failures.contain("folder", self._watcher.publisher.hand_over)

    def _linger_seconds(self) -> float:
        return 0.0 if self._is_told_to_end else self._hello.settings.linger

    def _on_sigterm(self, *_: Any) -> None:
        self._is_told_to_end = True

    def _note_vanished(self) -> None:
        """Record that the training process has ended without a word."""
        self._training.is_gone = True
        self._watcher.recorder.flush(5.0, with_sums=False)  # what was in the pipe
        step = self._watcher.recorder.snapshot.optimizers[0].global_step
        why = self._oom.explain() or "killed, or its end did not reach its watcher"
        message = f"run {self._hello.info.run_id} vanished at step {step}: its process is gone ({why})"
        self._finish("vanished", time.time(), message=message, step=step)

    def _finish(self, state: State, end: float, exception: str = "", message: str = "", step: int = 0) -> None:
        watcher, contain = self._watcher, self._failures.contain
        contain("link", watcher.settle)
        self._end = state, end
        self._training.is_gone = True
        watcher.end(state, end, exception)
        if message:
            details = {"state": state}
            watcher.recorder.post(Event("state", "critical", step, step, message, end_step=step, details=details))
        contain("recorder", watcher.recorder.stop)
        contain("link", watcher.shares.close)
        contain("system", lambda: watcher.sampler.stop(2.0))
        contain("folder", lambda: watcher.publisher.finish(state, end))
        watcher.publisher.settle(SETTLE_SECONDS)
        reports = watcher.reports
        final = {
            "snapshot": reports.snapshot(),
            "history": reports.history(0, 1000),
            "events": reports.events(0),
            "state_dict": watcher.state_dict(),
        }
        self._send("final", final)

    # ----------------------------------------------------------------------------------------------- the link

    def _read(self) -> None:
        """Take frames off the link, no faster than the recorder digests them."""
        while (frame := self._read_one()) is not None:
            self._failures.contain("link", lambda sent=frame: self._receive(*sent))  # type: ignore[misc]
            while len(self._watcher.source) > MAX_WAITING_ENTRIES:
                time.sleep(0.01)
        self._frames.put(_END)

    def _receive(self, kind: int, payload: bytes) -> None:
        if kind == ENTRIES:
            self._watcher.source.receive(unpack_entries(payload))
        else:
            self._frames.put(unpack_message(payload))

    def _read_one(self) -> tuple[int, bytes] | None:
        self._is_reading = True
        frame = self._incoming.read()
        self._is_reading = False
        self._num_frames += 1
        return frame

    def _write(self) -> None:
        """Send what is in the outbox. A training process that does not read holds up nothing but this thread."""
        while True:
            item = self._outbox.get()
            if item is _END:
                return
            frame = contained(self._failures.of("link"), pack_message, *item)
            try:
                if frame is not None:
                    self._outgoing.write(frame)
            except OSError:  # it is gone
                return

    def _send(self, kind: str, content: Any) -> None:
        self._outbox.put((kind, content))

    def _on_round(self) -> None:
        """Send the training process now and then all that is known: what follows is sent again to another watcher."""
        now = time.monotonic()
        if now < self._next_memory or self._outbox.qsize() >= MAX_UNREAD:
            return
        with self._taking:  # between two messages: those that were taken are in what follows, and no others
            known = self._watcher.source.drained_sequence, self._num_messages
            if known == self._remembered or self._watcher.recorder.num_posted:
                return
            memory = self._watcher.memory()
        self._next_memory, self._remembered = now + MEMORY_SECONDS, known
        self._send("memory", (*known, memory))

    def _take(self, kind: str, content: Any) -> None:
        if kind == "end":
            self._finish(*content)
            return
        with self._taking:
            self._num_messages += kind in RECORDED
            self._record(kind, content)

    def _record(self, kind: str, content: Any) -> None:
        watcher, training = self._watcher, self._training
        if kind == "state":
            training.take_state(content)
        elif kind == "event":
            watcher.recorder.post(content)
        elif kind == "run_state":
            watcher.recorder.set_state(content)
        elif kind == "ranks":
            watcher.set_ranks(*content)
        elif kind == "target":
            watcher.recorder.set_target(content)
        elif kind == "join":
            watcher.join(*content)
        elif kind == "command":
            training.book.put(content)
            watcher.note_command(content)
        elif kind == "book":
            training.book.restore(*content)
        elif kind == "submitted":
            training.take_submitted(*content)
        elif kind == "ask":
            number, what, arguments = content
            threading.Thread(target=self._answer, args=(number, what, arguments), daemon=True).start()

    def _answer(self, number: int, what: str, arguments: tuple[Any, ...]) -> None:
        """Answer on a thread of the question's own; one that fails has no answer, and its asker a default."""
        self._failures.contain("link", lambda: self._send("answer", (number, self._answer_to(what, arguments))))

    def _answer_to(self, what: str, arguments: tuple[Any, ...]) -> Any:
        answer: Callable[..., Any] = getattr(self, f"_answer_{what}")
        try:
            return answer(*arguments)
        except (ValueError, MonitorError) as error:
            return error

    def _answer_snapshot(self) -> Any:
        return self._watcher.reports.snapshot()

    def _answer_history(self, since: int, points: int) -> Any:
        return self._watcher.reports.history(since, points)

    def _answer_events(self, since: int) -> Any:
        return self._watcher.reports.events(since)

    def _answer_flush(self, sequence: int, timeout: float, with_sums: bool) -> bool:
        return self._watcher.recorder.flush(timeout, sequence, with_sums=with_sums)

    def _answer_state_dict(self) -> Any:
        return self._watcher.state_dict()

    def _answer_load(self, base_step: int, smoothing: Any, detectors: Any) -> None:
        self._watcher.load(base_step, smoothing, detectors)
        self._next_memory, self._remembered = 0.0, (-1, -1)  # no entry says it: another watcher would not know

    def _answer_resume(self, info: RunInfo, base_step: int) -> None:
        self._hello = replace(self._hello, info=info)
        self._watcher.resume(info, base_step)
        self._next_memory, self._remembered = 0.0, (-1, -1)

    def _answer_last_scrape(self, seconds: float) -> None:
        self._watcher.publisher.wait(seconds)

    # --------------------------------------------------------------------------------------------- failures

    def _note_failure(self, component: str, message: str) -> None:
        watcher = getattr(self, "_watcher", None)
        if watcher is not None:
            step = watcher.recorder.snapshot.optimizers[0].global_step
            details = {"component": component}
            watcher.recorder.post(Event("internal", "warning", step, step, message, end_step=step, details=details))


class _Forward(logging.Handler):
    """Send the lines of the log to the training process: its owner looks there."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__(logging.INFO)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line, with its traceback if it has one."""
        try:
            self._send("log", (record.levelno, self.format(record)))
        except Exception:  # noqa: BLE001 - the last line of defence
            self.handleError(record)


def _process_of(hello: Hello) -> Any:
    try:
        return psutil.Process(hello.info.pid)
    except psutil.Error:  # it is gone already
        return psutil.Process()

"""The watcher in a process of its own: ship entries and messages to it, and do what it asks for."""

from __future__ import annotations

import itertools
import logging
import marshal
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from monitor._errors import MonitorError, UnreachableError
from monitor._records import CommandRecord, Event, OptimizerSnapshot, Snapshot, State, Step
from monitor._settings import Settings
from monitor.link import (
    ENTRIES,
    MESSAGE,
    RECORDED,
    FailureReporter,
    Hello,
    TrainingState,
    WatcherProcess,
    pack_entries,
    pack_message,
    start_watcher,
    unpack_message,
)
from monitor.run._callbacks import Callbacks
from monitor.run._training_side import TrainingSide
from monitor.store import check_directory

_LOG = logging.getLogger("monitor")
LINK_SECONDS = 0.05
"""How often entries are shipped."""
ROUND_SECONDS = 1.0
"""How often the training process looks at itself."""
ANSWER_SECONDS = 5.0
"""How long a question to the watcher waits for its answer."""
READY_SECONDS = 20.0
"""How long ``run.url`` waits for the address of a watcher that has just been started."""
END_SECONDS = 0.2
"""How long the end of a run waits for its watcher."""
MAX_RESTARTS = 3
MAX_RETAINED_BYTES = 2**24
"""How much that is not yet in a watcher's memory is kept, to be sent to the next one; the rest counts as dropped."""
MAX_WAITING = 10_000
"""Messages that wait for the watcher, and batches of records that wait for a callback."""
_BATCH = 1024
_STOP = object()


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
        self._callbacks = callbacks
        self._failures = failures
        self._begin_round = begin_round
        self._start = start
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._messages: deque[tuple[str, Any]] = deque()
        self._wake = threading.Event()
        self._retained: deque[_Retained] = deque()
        self._retained_bytes = 0
        self._num_recorded = 0
        self._acknowledged, self._acknowledged_messages, self._memory = 0, 0, b""
        self._lost: WatcherProcess | None = None
        self._state = TrainingState()
        self._next_round = self._next_devices = 0.0
        self._is_stall_near = False
        self._is_ending = False
        self._deadline = 0.0
        self._has_given_up = False
        self._num_restarts = 0
        self._last_seq = 0
        self._last_steps: dict[str, int] = {}
        self._ready = threading.Event()
        self._url: str | None = None
        self._has_folder = False
        self._final: dict[str, Any] = {}
        self._has_final = threading.Event()
        self._snapshot = _first_snapshot(hello)
        self._digested: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._take_over(process)
        self._threads = {
            name: threading.Thread(target=target, name=f"monitor-{name}", daemon=True)
            for name, target in (("link", self._ship), ("link-reader", self._listen), ("callbacks", self._call_back))
        }

    def _take_over(self, process: WatcherProcess) -> None:
        self._process, self._to, self._from = process, process.outgoing, process.incoming

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
        for thread in self._threads.values():
            self._failures.contain("link", thread.start)

    def end(self, state: State, end: float, note: Callable[[], None], exception: str = "") -> None:
        """Have the end recorded; wait END_SECONDS at most for the watcher to have it."""
        self._deadline = time.monotonic() + END_SECONDS
        note()
        self._snapshot = replace(self._snapshot, state=state, end_time=end)
        self._send("end", (state, end, exception))
        self._is_ending = True
        self._wake.set()
        self._has_final.wait(max(0.0, self._deadline - LINK_SECONDS - time.monotonic()))  # the rest is for leave

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
        self._send("leave", None)
        self._digested.put(_STOP)
        self._wake.set()
        deadline = max(self._deadline, time.monotonic() + LINK_SECONDS)
        for thread in self._threads.values():
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

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
        self._send("command", record)
        self._wake.set()

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

    def _send(self, kind: str, content: Any) -> None:
        if self._has_given_up:
            return
        if kind == "event" and len(self._messages) >= MAX_WAITING:
            self._failures.note("link", TimeoutError("events were left out: the watcher does not read"))
            return
        self._messages.append((kind, content))

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
        if threading.current_thread() is self._threads["callbacks"]:
            return True
        is_through = threading.Event()
        self._digested.put(is_through.set)
        return is_through.wait(max(0.0, deadline - time.monotonic()))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of recorder and detectors; nothing where the watcher does not answer."""
        if not self._is_ending:
            self.flush(ANSWER_SECONDS)
        found: dict[str, Any] = self._final_or("state_dict", {"smoothing": {}, "detectors": {}})
        return found

    def _ask(self, what: str, *arguments: Any, timeout: float = ANSWER_SECONDS, default: Any = None) -> Any:
        if self._has_given_up or threading.current_thread() is self._threads["link-reader"]:
            return default
        number = next(self._numbers)
        question = self._questions[number] = _Question(default, (number, what, arguments))
        self._send("ask", question.words)
        self._wake.set()
        try:
            question.is_answered.wait(timeout)
        finally:
            self._questions.pop(number, None)
        return question.answer

    # -------------------------------------------------------------------------------------------- link thread

    def _ship(self) -> None:
        """Ship entries and messages until the end has been written."""
        _let_no_pipe_end_the_process()
        with suppress(OSError):  # one that has ended already: who reads from it notices
            self._process.greet(pack_message("hello", self._addressed(self._hello)))
        while True:
            self._wake.wait(LINK_SECONDS)
            self._wake.clear()
            try:
                is_last = self._ship_once()
            except OSError:  # the watcher is gone
                is_last = not self._replace()
            except Exception as error:  # noqa: BLE001
                self._failures.note("link", error)
                is_last = False
            if is_last:
                return

    def _addressed(self, hello: Hello) -> Hello:
        return replace(hello, thread=self._threads["link"].native_id or 0)

    def _ship_once(self) -> bool:
        if self._lost is self._process:
            raise BrokenPipeError("the watcher has closed its end")
        now = time.monotonic()
        if now >= self._next_round and not self._is_ending:
            self._next_round = now + ROUND_SECONDS
            self._failures.contain("control", self._begin_round)
            self._send_state()
        self._ship_entries()
        while self._messages:
            kind, content = self._messages[0]
            if kind == "end" and self._training.buffer.num_waiting and now < self._deadline:
                return False  # values of the last steps are still on their way from a device
            if kind == "command" and content.status != "pending":
                self._send_state_now()
            self._write_message(kind, content)
            self._messages.popleft()  # only now: a watcher that is gone is replaced, and the next one gets it
            if kind == "leave":
                self._to.close()
                return True
        return False

    def _ship_entries(self) -> None:
        while entries := self._training.buffer.take(_BATCH):
            frame = pack_entries(entries)
            self._retain(ENTRIES, marshal.loads(entries[-1])[0], frame)
            self._to.write(frame)

    def _retain(self, kind: int, number: int, frame: bytes) -> None:
        self._retained.append(_Retained(kind, number, frame))
        self._retained_bytes += len(frame)
        while self._retained and (self._is_remembered(self._retained[0]) or self._retained_bytes > MAX_RETAINED_BYTES):
            self._retained_bytes -= len(self._retained.popleft().frame)

    def _is_remembered(self, one: _Retained) -> bool:
        last = self._acknowledged if one.kind == ENTRIES else self._acknowledged_messages
        return one.number <= last

    def _write_message(self, kind: str, content: Any) -> None:
        try:
            frame = pack_message(kind, content)
        except Exception as error:  # noqa: BLE001 - whatever an object of the program's raises when it is pickled
            self._failures.note("link", error)
            return
        self._to.write(frame)
        if kind in RECORDED:
            self._num_recorded += 1
            self._retain(MESSAGE, self._num_recorded, frame)

    def _send_state(self) -> None:
        """Send what the training process knows about itself, if it has changed."""
        activity = self._training.look(is_stall_near=self._is_stall_near)
        state = replace(self._present_state(), activity=activity)
        now = time.monotonic()
        if now >= self._next_devices and self._hello.settings.gpu:
            self._next_devices = now + self._hello.settings.system_interval
            devices = self._training.devices()
            allocator = {i: self._training.allocator(i) for i in range(len(devices or ()))}
            state = replace(state, devices=devices, allocator=allocator)
        if state != self._state:
            self._state = state
            self._write_message("state", state)

    def _send_state_now(self) -> None:
        self._state = self._present_state()
        self._write_message("state", self._state)

    def _present_state(self) -> TrainingState:
        boundary = self._training.boundary
        return replace(
            self._state,
            is_busy=boundary.is_busy,
            is_paused=boundary.is_paused,
            in_force=self._training.in_force(),
            failures=dict(self._failures.counts),
        )

    # ------------------------------------------------------------------------------------------ another watcher

    def _replace(self) -> bool:
        """Start another watcher in the place of one that has ended and should not have; tell whether there is one.

        To be called on the link thread alone, after its end on that of the reader: nothing else is written meanwhile.
        """
        if self._has_given_up or self._has_final.is_set():
            return False
        self._process.close()
        self._num_restarts += 1
        if self._num_restarts > MAX_RESTARTS:
            return self._give_up(f"it has ended {self._num_restarts} times")
        try:
            self._take_over(self._start(self._hello.info.run_id))
        except OSError as error:
            return self._give_up(str(error))
        _LOG.warning("the watcher process of this run has ended; another one takes over; training is not affected")
        thread = threading.Thread(target=self._listen, name="monitor-link-reader", daemon=True)
        self._threads["link-reader"] = thread
        self._failures.contain("link", thread.start)
        with suppress(OSError):  # it has ended as well: its reader notices
            self._greet_again()
        return True

    def _greet_again(self) -> None:
        commands = self._training.commands
        hello = replace(
            self._addressed(self._hello),
            is_continued=True,
            settings=self._settings_again(),
            first_sequence=self._acknowledged + 1,
            num_messages=self._acknowledged_messages,
            memory=self._memory,
            base_step=self._training.base_step,
            skipped=dict(self._training.skipped),
        )
        self._process.greet(pack_message("hello", hello))
        self._to.write(pack_message("book", (dict(commands.totals), dict(commands.last_applied), commands.kept())))
        self._write_message("state", self._present_state())
        for one in list(self._retained):
            if not self._is_remembered(one):
                self._to.write(one.frame)
        for question in list(self._questions.values()):
            self._write_message("ask", question.words)

    def _settings_again(self) -> Settings:
        """Return the settings of another watcher: it is served where the last one was."""
        if self._url is None:
            return self._hello.settings
        return replace(self._hello.settings, port=int(self._url.rpartition(":")[2]))

    def _give_up(self, why: str) -> bool:
        self._has_given_up = True
        self._messages.clear()
        self._ready.set()
        self._has_final.set()
        for question in list(self._questions.values()):
            question.is_answered.set()
        self._failures.note(
            "link",
            ChildProcessError(why),
            line=f"the watcher process of this run cannot be kept alive ({why}); the run is no longer recorded or "
            "served; training is not affected",
        )
        return False

    # ------------------------------------------------------------------------------------------ messages, in

    def _listen(self) -> None:
        """Do what the watcher asks for until it closes its end."""
        _let_no_pipe_end_the_process()
        self._process.reap()
        process, pipe = self._process, self._from
        while (frame := pipe.read()) is not None:
            kind, payload = frame
            if kind == ENTRIES:
                continue
            try:
                self._receive(*unpack_message(payload))
            except Exception as error:  # noqa: BLE001
                self._failures.note("link", error)
        pipe.close()
        if self._has_final.is_set():
            return
        self._lost = process
        self._wake.set()
        link = self._threads["link"]
        while link.is_alive() and self._process is process and not self._has_given_up:
            link.join(LINK_SECONDS)
        if self._process is process and self._replace():  # killed after the last word had been written
            self._to.close()

    def _receive(self, kind: str, content: Any) -> None:
        if kind == "digested":
            self._take_digested(content)
        elif kind == "submit":
            self._send("submitted", self._submitted(*content))
            self._wake.set()
        elif kind == "answer":
            number, answer = content
            question = self._questions.get(number)
            if question is not None:
                question.answer = answer
                question.is_answered.set()
        elif kind == "memory":
            self._acknowledged, self._acknowledged_messages, self._memory = content
        elif kind == "skipped":
            self._training.skipped = content
        elif kind == "near":
            self._is_stall_near = content
        elif kind == "log":
            level, text = content
            _LOG.log(level, "%s", text)
        elif kind == "ready":
            self._url, self._has_folder = content
            self._ready.set()
        elif kind == "final":
            self._final = content
            self._has_final.set()

    def _take_digested(self, records: list[Step | Event]) -> None:
        if self._digested.qsize() < MAX_WAITING:
            self._digested.put(records)
        else:  # on_event or a policy has not returned for a long time
            self._failures.note("on_event", TimeoutError("steps and events were left out: a callback does not return"))

    def _submitted(self, number: int, action: str, fields: Mapping[str, Any], until: float) -> tuple[int, Any]:
        if time.monotonic() > until:  # this process was stopped; whoever asked has heard that nothing was done
            return number, UnreachableError(f"{action} came too late")
        try:
            return number, self._training.commands.submit(action, **fields).record
        except MonitorError as error:
            return number, error

    # ------------------------------------------------------------------------------------------------ callbacks

    def _call_back(self) -> None:
        """Call, in order, what wants to hear of steps and events."""
        while (item := self._digested.get()) is not _STOP:
            if callable(item):
                item()
                continue
            for record in item:
                self._failures.contain("link", partial(self._call, record))

    def _call(self, record: Step | Event) -> None:
        """Call what wants to hear of a record, unless it has: a watcher that takes over digests some once more."""
        if isinstance(record, Step):
            if record.number > self._last_steps.get(record.optimizer, 0):
                self._last_steps[record.optimizer] = record.number
                self._callbacks.on_step(record)
        elif record.seq > self._last_seq:
            self._last_seq = record.seq
            self._callbacks.on_event(record)


class _Retained(NamedTuple):
    """What has been written to the watcher and is not in its memory: the last of some entries, or a message, by
    number."""

    kind: int
    number: int
    frame: bytes


class _Question:
    """A question to the watcher, and its answer or what stands for it."""

    def __init__(self, default: Any, words: tuple[int, str, tuple[Any, ...]]) -> None:
        self.words = words
        self.answer = default
        self.is_answered = threading.Event()


_NOTHING = object()


def _let_no_pipe_end_the_process() -> None:
    """Hold SIGPIPE back from this thread: where the program has given it its default action, as command-line programs
    do, to write to a watcher that is gone would end the training."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})


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

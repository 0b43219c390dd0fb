"""The outbox of the link to a watcher process: entries, messages in their order, the state of the training process."""

from __future__ import annotations

import marshal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from monitor.common import contained
from monitor.link import RECORDED, FailureReporter, Hello, Pipe, WatcherProcess, pack_entries, pack_message
from monitor.run._questions import Words
from monitor.run._retained import Remembered, Retained
from monitor.run._state_report import StateReport
from monitor.run._training_side import TrainingSide

ROUND_SECONDS = 1.0
"""How often the training process looks at itself."""
MAX_WAITING = 10_000
"""Messages that wait for the watcher."""
_BATCH = 1024


class Outbox:
    """Take messages on any thread; write on that of the link.

    Args:
        training: what stands on the training thread.
        report: of the training process about itself.
        failures: where what is contained is noted.
        begin_round: called once a second, on the link's thread.
    """

    def __init__(
        self,
        training: TrainingSide,
        report: StateReport,
        failures: FailureReporter,
        begin_round: Callable[[], None],
    ) -> None:
        self.end_deadline: float | None = None
        """Until when the end waits for the values of the last steps; None: the run continues."""
        self._training = training
        self._report = report
        self._failures = failures
        self._begin_round = begin_round
        self._messages: deque[tuple[str, Any]] = deque()
        self._retained = Retained()
        self._next_round = 0.0

    def post(self, kind: str, content: Any) -> None:
        """Take a message; an event is left out where too much waits."""
        if kind == "event" and len(self._messages) >= MAX_WAITING:
            self._failures.note("link", TimeoutError("events were left out: the watcher does not read"))
            return
        self._messages.append((kind, content))

    def clear(self) -> None:
        """Forget what waits: there is nobody to write it to."""
        self._messages.clear()

    @property
    def remembered(self) -> Remembered:
        """What the watcher has said that it knows."""
        return self._retained.remembered

    def remember(self, *known: Any) -> None:
        """Note what the watcher says that it knows."""
        self._retained.remembered = Remembered(*known)

    def write(self, pipe: Pipe) -> bool:
        """Write what there is; tell whether that was the last. Raises OSError where the watcher is gone."""
        now = time.monotonic()
        if now >= self._next_round and self.end_deadline is None:
            self._next_round = now + ROUND_SECONDS
            self._failures.contain("control", self._begin_round)
            self._write_state(pipe)
        self._write_entries(pipe)
        while self._messages:
            kind, content = self._messages[0]
            if kind == "end" and self._training.buffer.num_waiting and now < (self.end_deadline or 0.0):
                return False  # values of the last steps are still on their way from a device
            if kind == "command" and content.status != "pending":
                self._write_message(pipe, "state", self._report.present())
            self._write_message(pipe, kind, content)
            self._messages.popleft()  # only now: a watcher that is gone is replaced, and the next one gets it
            if kind == "leave":
                pipe.close()
                return True
        return False

    def write_again(self, process: WatcherProcess, hello: Hello, questions: list[Words]) -> None:
        """Write to another watcher of the same run what it has to know. Raises OSError where that is gone as well."""
        known, pipe, commands = self.remembered, process.outgoing, self._training.commands
        hello = replace(
            hello,
            is_continued=True,
            first_sequence=known.sequence + 1,
            num_messages=known.num_messages,
            memory=known.memory,
            base_step=self._training.base_step,
            skipped=dict(self._training.skipped),
        )
        process.greet(pack_message("hello", hello))
        pipe.write(pack_message("book", (dict(commands.totals), dict(commands.last_applied), commands.kept())))
        self._write_message(pipe, "state", self._report.present())
        for frame in self._retained.missing(known):
            pipe.write(frame)
        for words in questions:
            self._write_message(pipe, "ask", words)

    def _write_state(self, pipe: Pipe) -> None:
        state = self._report.changed()
        if state is not None:
            self._write_message(pipe, "state", state)

    def _write_entries(self, pipe: Pipe) -> None:
        while entries := self._training.buffer.take(_BATCH):
            frame = pack_entries(entries)
            self._retained.keep_entries(marshal.loads(entries[-1])[0], frame)
            pipe.write(frame)

    def _write_message(self, pipe: Pipe, kind: str, content: Any) -> None:
        frame = contained(self._failures.of("link"), pack_message, kind, content)
        if frame is None:  # an object of the program's cannot be pickled
            return
        pipe.write(frame)
        if kind in RECORDED:
            self._retained.keep_message(frame)

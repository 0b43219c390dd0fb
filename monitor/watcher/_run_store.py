"""The run store as the watcher fills it: records are collected on one thread and written on the disk's."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monitor._errors import StoreError
from monitor._records import CommandRecord, Event, Sample, Step, SystemReading
from monitor.store import STORE_FILE, StoreReader, StoreWriter
from monitor.system import values_of

MAX_WAITING = 200_000
"""Records that wait for a disk that does not answer; what comes after is dropped and counted."""
SAME_SECONDS = 0.001
"""How far apart two watchers show the time of one value."""
_READ_EVENTS = 1000
Post = Callable[[Callable[[Path], None]], None]
"""Has a function called with the path of the run folder, on the one thread that touches the disk; does nothing where
there is no folder."""


class RunStore:
    """Fill the store of one run.

    Args:
        on_error: takes the StoreError of a commit that failed.
        max_bytes: what the store may take; 0: there is none.
        is_continued: an earlier watcher of this run has written to it: what it has, is not written again.
    """

    def __init__(
        self,
        on_error: Callable[[Exception], None],
        *,
        max_bytes: int,
        is_continued: bool = False,
    ) -> None:
        self._on_error = on_error
        self._max_bytes = max_bytes
        self._is_continued = is_continued
        self._waiting: deque[tuple[str, Any]] = deque()
        self._num_posted = self._num_written = 0
        self._writer: StoreWriter | None = None
        self._last: dict[tuple[str, str], tuple[int, float]] = {}
        self._last_seq = 0
        self._num_dropped = self._num_dropped_noted = 0
        self._no_readings: dict[str, float | None] = {}
        self._first: dict[str, tuple[Step, float | None, float] | None] = {}

    # --------------------------------------------------------------------------------------------- any thread

    def add_step(self, step: Step, loss_ema: float | None, time: float) -> None:
        """Take a step; ``time`` is its Unix time as it is shown.

        The first one of an optimizer, if its loss is not known, waits for the next: it may be logged after it, and only
        then does the recorder know to wait for it.
        """
        if step.optimizer not in self._first and step.loss is None:
            self._first[step.optimizer] = step, loss_ema, time
            return
        self._let_go(step.optimizer)
        self._add("step", (step, loss_ema, time))

    def add_sample(self, sample: Sample, time: float) -> None:
        """Take a value that was logged."""
        waiting = self._first.get(sample.name)
        if waiting is not None and sample.kind == "loss" and sample.step == waiting[0].global_step:
            self._first[sample.name] = replace(waiting[0], loss=sample.value), sample.value, waiting[2]
            self._let_go(sample.name)
        self._add("sample", (sample, time))

    def _let_go(self, optimizer: str) -> None:
        """Have the step that waits for its loss written; from here on none does."""
        waiting = self._first.get(optimizer)
        self._first[optimizer] = None
        if waiting is not None:
            self._add("step", waiting)

    def add_event(self, event: Event) -> None:
        """Take an event, once it has its number."""
        self._add("event", event)

    def add_command(self, record: CommandRecord) -> None:
        """Take a command, or its outcome."""
        self._add("command", record)

    def add_reading(self, reading: SystemReading) -> None:
        """Take a round of readings of the machine."""
        self._add("reading", reading)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Take facts of the whole run."""
        self._add("facts", dict(facts))

    def _add(self, kind: str, content: Any) -> None:
        if not self._max_bytes:
            return
        if self._num_posted - self._num_written + len(self._waiting) >= MAX_WAITING:
            self._num_dropped += 1
            return
        self._waiting.append((kind, content))

    def flush(self, post: Post) -> None:
        """Have what was taken written. Called by one thread at a time, once a round, also where nothing was taken, so
        that a commit that is due is made."""
        if not self._max_bytes:
            return
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]  # others hand in meanwhile
        if batch or self._num_posted > self._num_written or (self._writer is not None and self._writer.is_due):
            self._num_posted += len(batch)
            post(lambda folder: self._write(folder, batch))

    def close(self, post: Post) -> None:
        """Have what is left written and the file closed. To be called once nothing else flushes."""
        if self._max_bytes:
            for optimizer in self._first:
                self._let_go(optimizer)
            self.flush(post)
            post(self._close)

    # ---------------------------------------------------------------------------------------- the disk's thread

    def _write(self, folder: Path, batch: list[tuple[str, Any]]) -> None:
        self._num_written += len(batch)
        writer = self._opened(folder)
        for kind, content in batch:
            self._put(writer, kind, content)
        writer.num_dropped += self._num_dropped - self._num_dropped_noted
        self._num_dropped_noted = self._num_dropped
        if writer.is_due:
            self._commit(writer.commit)

    def move(self, last_seq: int) -> None:
        """Write from here on to the store of another run, which has the events up to a number."""
        if self._writer is not None:
            self._commit(self._writer.close)
        self._writer, self._last_seq = None, last_seq

    def _opened(self, folder: Path) -> StoreWriter:
        if self._writer is None:
            path = folder / STORE_FILE
            if self._is_continued and path.exists():
                self._commit(lambda: self._look_back(path))
            self._writer = StoreWriter(path, max_bytes=self._max_bytes)
        return self._writer

    def _look_back(self, path: Path) -> None:
        """See how far an earlier watcher came: what it had digested since its last memory is digested again."""
        with StoreReader(path) as store:
            for one in store.series():
                if one.column in ("loss", "value") and (points := store.curve(*one, points=1)):
                    self._last[one.kind, one.name] = points[-1].last_step, points[-1].time
            after = 0
            while events := store.events(after, _READ_EVENTS):
                after = events[-1]["number"]
                self._last_seq = max(self._last_seq, *(event.get("seq", 0) for event in events))

    def _put(self, writer: StoreWriter, kind: str, content: Any) -> None:
        if kind == "step":
            step, loss_ema, time = content
            if self._is_new(("optimizer", step.optimizer), step.global_step, time):
                writer.add_step(step, loss_ema=loss_ema, time=time)
        elif kind == "sample":
            sample, time = content
            if self._is_new((sample.kind, sample.name), sample.step, time):
                writer.add_sample(sample, time=time)
        elif kind == "event":
            if content.seq > self._last_seq:
                writer.add_event(content)
        elif kind == "command":
            writer.add_command(content)
        elif kind == "reading":
            # The columns stay once they have been there: a GPU that answers now and then cuts no block short.
            values = {**self._no_readings, **values_of(content)}
            self._no_readings = dict.fromkeys(values)
            writer.add_reading(values, time=content.time)
        else:
            for key, value in content.items():
                writer.set_fact(key, value)

    def _is_new(self, key: tuple[str, str], step: int, time: float) -> bool:
        """Tell whether a row comes after those that an earlier watcher has written: its ``time`` tells two values of
        one step apart, and a step that was made again. From the first such row on, all are."""
        if key not in self._last:
            return True
        last_step, last_time = self._last[key]
        if step <= last_step and time < last_time + SAME_SECONDS:
            return False
        del self._last[key]
        return True

    def _commit(self, commit: Callable[[], None]) -> None:
        try:
            commit()
        except (StoreError, OSError, sqlite3.Error) as error:
            self._on_error(error)

    def _close(self, folder: Path) -> None:
        self._commit(self._opened(folder).close)

"""The thread that calls policies and ``on_event`` with what a watcher process has digested."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import Any

from monitor._records import Event, Step
from monitor.link import FailureReporter
from monitor.run._callbacks import Callbacks

MAX_WAITING = 10_000
"""Batches of records that wait for a callback."""
_STOP = object()


class CallbackThread:
    """Call, in order, what wants to hear of steps and events; once each, though a watcher that takes over digests some
    once more."""

    def __init__(self, callbacks: Callbacks, failures: FailureReporter) -> None:
        self._callbacks = callbacks
        self._failures = failures
        self._digested: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last_seq = 0
        self._last_steps: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="monitor-callbacks", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the machine has none left."""
        self._thread.start()

    def take(self, records: list[Step | Event]) -> None:
        """Take a batch of records."""
        if self._digested.qsize() < MAX_WAITING:
            self._digested.put(records)
        else:  # on_event or a policy has not returned for a long time
            self._failures.note("on_event", TimeoutError("steps and events were left out: a callback does not return"))

    def flush(self, timeout: float) -> bool:
        """Wait until all that was taken is called; within a callback wait for nothing."""
        if self._thread is threading.current_thread():
            return True
        is_through = threading.Event()
        self._digested.put(is_through.set)
        return is_through.wait(max(0.0, timeout))

    def end(self) -> None:
        """End the thread once it is through; wait for nothing."""
        self._digested.put(_STOP)

    def join(self, timeout: float) -> None:
        """Wait for its end, ``timeout`` seconds at most."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        while (item := self._digested.get()) is not _STOP:
            if callable(item):
                item()
                continue
            for record in item:
                self._failures.contain("link", partial(self._call, record))

    def _call(self, record: Step | Event) -> None:
        if isinstance(record, Step):
            if record.number > self._last_steps.get(record.optimizer, 0):
                self._last_steps[record.optimizer] = record.number
                self._callbacks.on_step(record)
        elif record.seq > self._last_seq:
            self._last_seq = record.seq
            self._callbacks.on_event(record)

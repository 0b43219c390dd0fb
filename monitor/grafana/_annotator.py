"""Annotations in Grafana for events and commands while a run continues: a bounded queue and one thread."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from monitor._records import Event
from monitor.grafana._api import GrafanaError, connect, disconnect, explained, shown
from monitor.grafana._dashboard import TAG

CAPACITY = 1000
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
_END_SECONDS = 1.0  # for a thread that asks nobody: it ends as soon as it gets the processor
_LOG = logging.getLogger("monitor")


class Annotator:
    """Post every event it is called with to Grafana's annotation store; never wait for Grafana, never raise.

    An event that ends later becomes a region: its annotation is updated. While Grafana is away the newest
    ``capacity`` events wait and the request is tried again; what does not fit, or is refused for good, is dropped and
    counted. The graphs of the dashboards mark events by their metrics anyway; annotations keep the full message.

    Args:
        url: address of the Grafana; may carry a login.
        token: service account token with the role Editor.
        tags: put on every annotation besides ``training-monitor``, the kind and the severity; the run's id, say.
        capacity: events that wait at most.
        timeout: seconds for each request.
        pauses: seconds between tries of one request; after the last it is dropped.

    Raises:
        GrafanaError: for a URL that is none, or without the extra ``grafana``.

    Example:
        >>> with Annotator("http://127.0.0.1:3000", token="glsa_...") as annotate:     # doctest: +SKIP
        ...     with monitor.attach(optimizer, on_event=annotate):
        ...         train()
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tags: Sequence[str] = (),
        capacity: int = CAPACITY,
        timeout: float = 5.0,
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {capacity}")
        self.sent = 0
        self.dropped = 0
        self._url, self._tags = url, (TAG, *tags)
        self._api = connect(url, token, timeout)
        self._pauses = tuple(pauses)
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_busy = self._is_pausing = self._is_abandoned = False
        # id of an event that is still active -> id of its annotation, and its start in seconds
        self._annotations: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._complaints: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="monitor-annotator", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event; safe from any thread."""
        with self._changed:
            if self._is_closing:
                self.dropped += 1
                return
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(event)
            self._changed.notify_all()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything taken so far is sent or dropped; False if that took longer than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for ``timeout`` seconds at most, and end the thread; the rest is dropped and counted.

        A request that has no answer by then is part of the rest, whatever becomes of it: its thread, a daemon, ends
        when its own time is up. Closing again waits for that, for ``timeout`` seconds at most.
        """
        with self._changed:
            is_first = not self._is_closing
            if is_first:
                self._changed.wait_for(self._is_idle, timeout)
                self._is_closing, self._is_abandoned = True, self._is_busy
                self.dropped += len(self._waiting) + self._is_busy
                self._waiting.clear()
                self._changed.notify_all()
            is_asking, dropped = self._is_busy and not self._is_pausing, self.dropped
        if not is_asking:
            self._thread.join(_END_SECONDS)
        elif not is_first:
            self._thread.join(timeout)
        if is_first and dropped:
            _LOG.warning("%d annotations did not get to %s", dropped, shown(self._url))

    def _is_idle(self) -> bool:
        return not self._waiting and not self._is_busy

    def __enter__(self) -> Annotator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    break
                event = self._waiting.popleft()
                self._is_busy = True
            self._post(event)
        disconnect(self._api)

    def _post(self, event: Event) -> None:
        for pause in (*self._pauses, None):
            try:
                self._send(event)
            except GrafanaError as error:
                self._complain(error)
                if error.is_passing and pause is not None and self._wait(pause):
                    continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread continues
                self._complain(error)
            else:
                self._count(is_sent=True)
                return
            self._count(is_sent=False)
            return

    def _count(self, *, is_sent: bool) -> None:
        with self._changed:
            if self._is_abandoned:  # counted by close() already
                return
            self.sent += is_sent
            self.dropped += not is_sent

    def _send(self, event: Event) -> None:
        known = self._annotations.get(event.id) if event.id else None
        with explained(self._url, "saving an annotation"):
            if known is not None:
                self._api.annotations.update_annotation(known[0], **to_annotation(event, self._tags, known[1]))
                del self._annotations[event.id]
                return
            answer = self._api.annotations.add_annotation(**to_annotation(event, self._tags))
        if event.id and event.end_step is None and isinstance(answer, dict) and "id" in answer:
            self._annotations[event.id] = (int(answer["id"]), event.time)
            if len(self._annotations) > self._capacity:
                self._annotations.popitem(last=False)

    def _wait(self, seconds: float) -> bool:
        """Wait; False if the annotator is being closed meanwhile."""
        with self._changed:
            self._is_pausing = True
            self._changed.wait_for(lambda: self._is_closing, seconds)
            self._is_pausing = False
            return not self._is_closing

    def _complain(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'status', '')}"
        if kind not in self._complaints and not self._is_abandoned:  # once per kind
            self._complaints.add(kind)
            _LOG.warning("an annotation did not get to Grafana: %s", error)


def to_annotation(event: Event, tags: Sequence[str], start: float | None = None) -> dict[str, Any]:
    """Return what grafana-client's ``add_annotation`` takes: times in milliseconds, tags, text.

    ``start`` is when an event began that has ended now, in seconds.

    >>> event = Event("spike", "warning", 120, 117, "loss rose", time=1000.0, id=3)
    >>> to_annotation(event, ("training-monitor",))["time_from"]
    1000000
    """
    is_ended = event.end_step not in (None, event.step)
    steps = f"steps {event.start_step} to {event.end_step}" if is_ended else f"step {event.step}"
    return {
        "time_from": round((event.time if start is None else start) * 1000),
        "time_to": round(event.time * 1000),
        "tags": [*tags, event.kind, event.severity],
        "text": f"{event.kind}: {event.message} ({steps})",
    }

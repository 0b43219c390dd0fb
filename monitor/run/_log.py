"""The lines of a run in the program's log."""

from __future__ import annotations

import logging

from monitor._records import EVENT_KINDS, STALLED, Event
from monitor.common import bound_lines, keep_printable

_LOG = logging.getLogger("monitor")


def make_visible() -> None:
    """Have what a user must see, such as the page's address, reach stderr where the program has not set up
    logging itself, and nothing of it steer a terminal."""
    keep_printable(_LOG)
    bound_lines(_LOG)
    if _LOG.level == logging.NOTSET:
        _LOG.setLevel(logging.INFO)
    if not _LOG.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("monitor: %(message)s"))
        _LOG.addHandler(handler)


def warn_of(event: Event) -> None:
    """Log what is wrong with the training itself, or with what is seen of it, once an episode: when a critical
    condition, or blindness, starts; and where the training stands in a stall."""
    if event.details.get("state") == STALLED:
        _LOG.warning("stall at step %d: %s", event.step, event.message)
    if event.end_step is not None:
        return
    if event.kind == "capture":
        _LOG.warning("%s", event.message)
    elif event.severity == "critical" and event.kind in EVENT_KINDS:
        of = f" of {event.optimizer}" if event.optimizer else ""
        _LOG.warning("%s%s at step %d: %s", event.kind, of, event.step, event.message)

"""The reporter of failures of our own: contained, counted, logged once per kind, shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from monitor._records import Component
from monitor.common import contained

_LOG = logging.getLogger("monitor")
MAX_KINDS = 256
"""Kinds of failures that are told apart, and logged: a program may make exception classes without end."""


class FailureReporter:
    """Count failures by component. ``on_new`` takes ``(component, message)`` of each kind that was not seen before."""

    def __init__(self, on_new: Callable[[str, str], None] = lambda *_: None) -> None:
        self._counts: dict[str, int] = {}
        self._seen: set[tuple[str, str]] = set()
        self._on_new = on_new

    @property
    def counts(self) -> Mapping[str, int]:
        """Failures so far, by component; one that has none is left out."""
        return dict(self._counts)

    def of(self, component: Component) -> Callable[[BaseException], None]:
        """Return the reporter of a component: what it is called with is a failure of that component."""
        return partial(self.note, component)

    def note(self, component: Component, error: BaseException, *, line: str = "") -> None:
        """Count a failure; the first of its kind is logged: as ``line``, else with its traceback. Never raises."""
        try:
            self._counts[component] = self._counts.get(component, 0) + 1
            kind = (component, type(error).__name__)
            if kind in self._seen or len(self._seen) >= MAX_KINDS:
                return
            self._seen.add(kind)
            message = f"{component}: {type(error).__name__}: {error}"
            if line:
                _LOG.warning("%s", line)
            else:
                _LOG.warning("contained a failure in %s; training continues", message, exc_info=error)
            self._on_new(component, message)
        except Exception:  # noqa: BLE001 - the last line of defence
            pass

    def contain(self, component: Component, function: Callable[[], Any]) -> None:
        """Call ``function`` and note what it raises, Ctrl-C and the like apart."""
        contained(self.of(component), function)

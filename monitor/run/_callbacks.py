"""Call the policies, the program's log and the user's ``on_event`` with steps and events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monitor._records import Event, Step
from monitor.control import Policies
from monitor.link import FailureReporter
from monitor.run._log import warn_of


class Callbacks:
    """Call them in order, on one thread, and contain what they raise.

    Args:
        policies: of the run.
        on_event: the user's; None: there is none.
        failures: where what is contained is noted.
    """

    def __init__(self, policies: Policies, on_event: Callable[[Event], Any] | None, failures: FailureReporter) -> None:
        self._policies = policies
        self._user_on_event = on_event
        self._failures = failures

    def start(self) -> None:
        """Start the policies."""
        self._policies.start()

    def on_step(self, step: Step) -> None:
        """Hand a step to the policies."""
        self._policies.on_step(step)

    def on_event(self, event: Event) -> None:
        """Hand an event to the policies, to the log and to the user."""
        self._policies.on_event(event)
        self._failures.contain("log", lambda: warn_of(event))
        if self._user_on_event is None:
            return
        try:
            self._user_on_event(event)
        except BaseException as error:  # noqa: BLE001 - a sys.exit() in there would end the thread unheard
            self._failures.note("on_event", error)

    def let_go(self) -> None:
        """Keep nothing that the user has given."""
        self._user_on_event = None
        self._policies.clear()

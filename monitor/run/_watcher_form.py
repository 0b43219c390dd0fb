"""The two forms of a run's watcher, a process of its own or threads of this one, and what both are to the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from monitor._records import CommandRecord, Event, RunInfo, Snapshot, State
from monitor.link import FailureReporter, Hello, start_watcher, why_not_apart
from monitor.run._callbacks import Callbacks
from monitor.run._training_side import TrainingSide

_LOG = logging.getLogger("monitor")


class RunWatcher(Protocol):
    """The watcher of a run as the training process sees it. No method raises unless it says so."""

    def open(self) -> None:
        """Start it.

        Raises:
            ValueError: for a ``directory`` that can never be one or a certificate that cannot be used.
        """

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""

    @property
    def has_folder(self) -> bool:
        """Tell whether the run has a folder."""

    def post(self, event: Event) -> None:
        """Hand in an event, to be numbered and recorded."""

    def set_state(self, state: State) -> None:
        """Set what is shown as the run's state."""

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Set which of how many ranks the run is."""

    def set_target(self, total_steps: int) -> None:
        """Set how many steps are planned."""

    def join(self, place: Mapping[str, Any], rank: int) -> None:
        """Send the shares of this rank, another than 0, to where rank 0's watcher takes them: ``place``."""

    def note_command(self, record: CommandRecord) -> None:
        """Note a command that was accepted, or its outcome."""

    def snapshot(self) -> Snapshot:
        """Return the latest published state."""

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""

    def flush(self, timeout: float, *, with_sums: bool = True) -> bool:
        """Wait until what was recorded so far is in the snapshot, ``with_sums`` also once the shares of the other ranks
        are there; False if that took longer."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of recorder and detectors."""

    def load(self, base_step: int, smoothing: Any, detectors: Any) -> None:
        """Continue from the state of an earlier session.

        Raises:
            ValueError: for what ``state_dict`` did not make.
        """

    def resume(self, info: RunInfo, base_step: int) -> None:
        """Continue an earlier run that this process has claimed, in the place of the one that was to begin."""

    def end(self, state: State, end: float, note: Callable[[], None], exception: str = "") -> None:
        """Record the end of the run; ``note`` hands in its last event, ``exception`` is the text of what it
        failed with."""

    def wait(self) -> None:
        """Wait for a last scrape, if the settings say so."""

    def leave(self) -> None:
        """Let go of what is left."""

    def forget(self) -> None:
        """Let go of everything in a forked child."""


def make_watcher(
    hello: Hello,
    training: TrainingSide,
    callbacks: Callbacks,
    failures: FailureReporter,
    begin_round: Callable[[], None],
) -> RunWatcher:
    """Return the watcher in the form that the settings ask for, on threads where no process can be started."""
    # Each form is loaded when it is needed: that of threads brings the server along, that of a process never does.
    if hello.settings.watcher == "process":
        why = why_not_apart(hello)
        if why is None:
            from monitor.run._process_watcher import ProcessWatcher

            descriptors = () if hello.listener is None else (hello.listener,)
            start = partial(start_watcher, descriptors=descriptors)
            try:
                process = start(hello.info.run_id)
            except OSError as error:
                why = str(error)
            else:
                return ProcessWatcher(hello, training, callbacks, failures, begin_round, process, start)
        _LOG.warning("the monitor runs on threads of this process, as no process can be started for it: %s", why)
    from monitor.run._thread_watcher import ThreadWatcher

    return ThreadWatcher(hello, training, callbacks, failures, begin_round)

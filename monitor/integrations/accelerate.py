"""accelerate: ``Accelerator(log_with="monitor")``. Importing this module makes the name known.

::

    import monitor.integrations.accelerate

    accelerator = Accelerator(log_with="monitor")
    accelerator.init_trackers("digits", init_kwargs={"monitor": {"total_steps": 1000}})
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, register_tracker_class

from monitor.integrations._session import Session

_OPEN: list[MonitorTracker] = []
"""The tracker that was started last, if it has not finished."""


class MonitorTracker(GeneralTracker):
    """Watch the optimizers that an Accelerator has prepared, from its first ``backward`` to ``end_training``.

    What ``accelerator.log`` is given is shown as metrics. The tracker's run is there for the loop as
    ``accelerator.get_tracker("monitor", unwrap=True)``. On several ranks it is on each of them.

    Args:
        project_name: name of the run.
        **settings: as :func:`monitor.attach` takes them.
    """

    name = "monitor"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, project_name: str = "", **settings: Any) -> None:
        super().__init__()
        self._project = project_name
        self._session = Session(**settings)
        self._has_tried = False

    @property
    def tracker(self) -> Any:
        """The :class:`monitor.Run`; None before the first ``backward`` and at the end."""
        return self._session.run

    def start(self) -> None:
        """Take the place of a tracker that was not finished, as in a cell that is run again."""
        for earlier in _OPEN:
            earlier.finish()
        _OPEN[:] = [self]

    def watch(self, accelerator: Any) -> None:
        """Open the run, with all that was prepared by now. Once: later calls do nothing."""
        if self in _OPEN and not self._has_tried and accelerator._optimizers:
            self._has_tried = True
            self._session.open(lambda: (list(accelerator._optimizers), None, {"name": self._project or None}))

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Do nothing: a run has no place for them."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Hand the numbers on."""
        self._session.log(values)

    def finish(self) -> None:
        """Close the run."""
        if self in _OPEN:
            _OPEN.remove(self)
        self._session.close()


def _watching(backward: Any) -> Any:
    """Return ``Accelerator.backward`` that has its trackers begin: all is prepared by then, and no loss is missed."""

    @functools.wraps(backward)
    def wrapped(self: Any, *args: Any, **given: Any) -> Any:
        for tracker in _OPEN:
            if tracker in self.trackers:
                tracker.watch(self)
        return backward(self, *args, **given)

    wrapped._is_monitors = True  # type: ignore[attr-defined]
    return wrapped


if not hasattr(Accelerator.backward, "_is_monitors"):
    Accelerator.backward = _watching(Accelerator.backward)
register_tracker_class(MonitorTracker)

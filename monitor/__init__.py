"""Monitor a PyTorch training run from inside the process and change its learning rate while it runs.

    import monitor

    with monitor.attach(optimizer, scheduler):
        ...                                     # the loop, unchanged

Importing this package imports neither torch nor flask: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monitor._version import __version__

if TYPE_CHECKING:
    from monitor._errors import (
        AlreadyAttachedError,
        ClosedRunError,
        CommandRefusedError,
        MonitorError,
        QueueFullError,
        StopTraining,
    )
    from monitor._records import CommandRecord, Event, Snapshot, Step
    from monitor._settings import Settings
    from monitor.control import AdaptiveLR, Command, Policy, Reaction, ReduceLROn, Request
    from monitor.detect import default_detectors, rl_detectors
    from monitor.run import LearningRate, Run, attach

__all__ = [
    "AdaptiveLR",
    "AlreadyAttachedError",
    "ClosedRunError",
    "Command",
    "CommandRecord",
    "CommandRefusedError",
    "Event",
    "LearningRate",
    "MonitorError",
    "Policy",
    "QueueFullError",
    "Reaction",
    "ReduceLROn",
    "Request",
    "Run",
    "Settings",
    "Snapshot",
    "Step",
    "StopTraining",
    "__version__",
    "attach",
    "default_detectors",
    "rl_detectors",
]

_HOMES = {
    **dict.fromkeys(("AdaptiveLR", "Command", "Policy", "Reaction", "ReduceLROn", "Request"), "monitor.control"),
    **dict.fromkeys(("LearningRate", "Run", "attach"), "monitor.run"),
    "Settings": "monitor._settings",
    "default_detectors": "monitor.detect",
    "rl_detectors": "monitor.detect",
    **dict.fromkeys(("CommandRecord", "Event", "Snapshot", "Step"), "monitor._records"),
    **dict.fromkeys(
        (
            "AlreadyAttachedError",
            "ClosedRunError",
            "CommandRefusedError",
            "MonitorError",
            "QueueFullError",
            "StopTraining",
        ),
        "monitor._errors",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'monitor' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

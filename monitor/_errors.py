"""The error tree.

MonitorError                    what the state of the world forbids
├── AlreadyAttachedError        the optimizer is watched by another open run
├── ClosedRunError              the run has been closed
├── CommandRefusedError         a command that cannot be accepted (also a ValueError)
├── QueueFullError              64 commands are waiting already
├── UnreachableError            the training process does not answer its watcher
├── StoreError                  the file of a run cannot be read or written
└── StopTraining                raised at a step boundary when ``attach(stop_raises=True)`` and a stop was asked for

The caller's own mistakes are ValueError and TypeError.
"""

from __future__ import annotations


class MonitorError(Exception):
    """Base of every error that the monitor raises about the state of the world."""


class AlreadyAttachedError(MonitorError):
    """The optimizer is watched by another open run."""


class ClosedRunError(MonitorError):
    """The run has been closed and takes no more commands."""


class CommandRefusedError(MonitorError, ValueError):
    """A command that cannot be accepted; ``field`` names the argument at fault, if one is."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class QueueFullError(MonitorError):
    """As many commands are waiting as the queue may hold."""


class UnreachableError(MonitorError):
    """The training process is gone, or does not answer."""


class StoreError(MonitorError):
    """The file that keeps a run is damaged, foreign, of another version, or cannot be read or written."""


class StopTraining(MonitorError):  # noqa: N818 - the name is part of the public API
    """A stop was asked for, and the run was attached with ``stop_raises=True``."""

"""The run that ``attach`` returns under ``MONITOR_DISABLED=1``: it watches nothing and changes nothing."""
# ruff: noqa: ARG002 - the signatures are those of a run

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from monitor._errors import CommandRefusedError
from monitor._records import Event, RunInfo, Snapshot, State, no_curves
from monitor._settings import Settings
from monitor.control import Command
from monitor.run._engine import check_end_state, end_state
from monitor.run._run import LearningRate, Run


class DisabledRun(Run):
    """Answer like a run in which nothing has happened, and refuse every command.

    Args:
        settings: shown as ``run.settings``; nothing reads them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = self.name = "disabled"
        self.token = ""
        self._state: State = "running"

    def __enter__(self) -> DisabledRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(end_state(kind))

    def close(self, state: State = "finished") -> None:
        """Set the state that is shown. Safe to repeat; the first one counts."""
        check_end_state(state)
        if self._state == "running":
            self._state = state

    @property
    def url(self) -> str | None:
        """None: there is no page."""
        return None

    @property
    def step(self) -> int:
        """0: no step is seen."""
        return 0

    @property
    def should_stop(self) -> bool:
        """False: nobody can ask for a stop."""
        return False

    @property
    def lr(self) -> list[LearningRate]:
        """Empty: no param group is known."""
        return []

    def snapshot(self) -> Snapshot:
        """Return a state in which nothing has happened."""
        return Snapshot(RunInfo(self.id, self.name, 0.0), self._state, 0.0)

    def history(self, since: int = 0, points: int = 1000) -> dict[str, Any]:
        """Return no curves."""
        return {**no_curves(since), "system": {"time": []}}

    def events(self, since: int = 0) -> tuple[Event, ...]:
        """Return no events."""
        return ()

    def flush(self, timeout: float = 5.0) -> bool:
        """Return True at once: there is nothing to wait for."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state; the run of a later session takes it, and starts afresh."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take any state and keep none."""

    def log(
        self, loss: Any = None, *, val_loss: Any = None, samples: Any = None, tokens: Any = None, **metrics: Any
    ) -> None:
        """Take any values and keep none."""

    def reduce_lr(
        self, factor: float, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = ""
    ) -> Command:
        """Raise CommandRefusedError."""
        raise _refusal()

    def set_lr_factor(
        self, factor: float, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = ""
    ) -> Command:
        """Raise CommandRefusedError."""
        raise _refusal()

    def restore_lr(self, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = "") -> Command:
        """Raise CommandRefusedError."""
        raise _refusal()

    def undo_lr(self, reason: str = "") -> Command:
        """Raise CommandRefusedError."""
        raise _refusal()


def _refusal() -> CommandRefusedError:
    return CommandRefusedError("MONITOR_DISABLED is set: this run watches nothing and changes nothing; unset it")

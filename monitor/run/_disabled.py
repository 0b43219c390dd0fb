"""The run that does nothing: what ``attach`` gives under ``MONITOR_DISABLED=1``."""
# ruff: noqa: ARG002 - the signatures are those of a run

from __future__ import annotations

from typing import Any

from monitor._records import RunInfo, Snapshot


class DisabledRun:
    """Answer like a run, watch nothing, change nothing."""

    id = name = "disabled"
    url = None
    token = ""
    state = "running"
    step = 0
    should_stop = False

    def __init__(self) -> None:
        self.lr: list[Any] = []

    def __enter__(self) -> DisabledRun:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def log(self, loss: Any = None, **_: Any) -> None:
        """Take any value, keep none."""

    def close(self, state: str = "finished") -> None:
        """Do nothing."""

    def flush(self, timeout: float = 5.0) -> bool:
        """Return at once."""
        return True

    def snapshot(self) -> Snapshot:
        """Return a state in which nothing has happened."""
        return Snapshot(RunInfo(self.id, self.name, 0.0), "running", 0.0)

    def history(self, since: int = 0, points: int = 1000) -> dict[str, Any]:
        """Return no curves."""
        return {"since": since, "next": since, "resolution": 1, "optimizers": {}, "system": {"time": []}}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to go on from."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Take any state, keep none."""

    def events(self, since: int = 0) -> tuple[Any, ...]:
        """Return no events."""
        return ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        from monitor._errors import CommandRefusedError

        raise CommandRefusedError("MONITOR_DISABLED is set: this run watches nothing and changes nothing; unset it")

    reduce_lr = set_lr_factor = restore_lr = undo_lr = _refuse

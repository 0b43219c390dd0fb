"""Choose the runs that are over and too many, too large together or too old; keep those that somebody looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from monitor.store._known import RUN, KnownRun
from monitor.store._trusted import opened

try:
    import fcntl
except ImportError:  # Windows removes no file that is open
    fcntl = None  # type: ignore[assignment]

DAY_SECONDS = 86_400.0


def surplus(
    runs: Sequence[KnownRun],
    *,
    num_runs: int | None = None,
    num_bytes: int | None = None,
    before: float | None = None,
    is_late: Callable[[], bool] = lambda: False,
) -> dict[str, list[KnownRun]]:
    """Return for each bound that is given, by its name, the runs that are over and beyond it, oldest first.

    Args:
        runs: all runs, oldest first. Live ones count, and are never among the answers.
        num_runs: how many stay, live ones among them; the newest do. The ranks of one training are one.
        num_bytes: what the folders may take together; the oldest go first.
        before: Unix time; runs whose last session began earlier go.
        is_late: tells that no further folder is to be measured: those that were not do not count as too large.
    """
    found: dict[str, list[KnownRun]] = {}
    ended = [run for run in runs if not run.is_live]
    if num_runs is not None:
        found["num_runs"] = _too_many(runs, num_runs)
    if num_bytes is not None:
        found["num_bytes"] = _beyond(runs, ended, num_bytes, is_late)
    if before is not None:
        found["before"] = [run for run in ended if run.session_time < before]
    return found


def _too_many(runs: Sequence[KnownRun], num_runs: int) -> list[KnownRun]:
    live = {_training_of(run) for run in runs if run.is_live}
    trainings = list(dict.fromkeys(_training_of(run) for run in runs))
    ended = [one for one in trainings if one not in live]
    gone = set(ended[: max(0, len(trainings) - num_runs)])
    return [run for run in runs if _training_of(run) in gone]


def _training_of(run: KnownRun) -> str:
    return run.leader or run.run_id


def _beyond(
    runs: Sequence[KnownRun], ended: Sequence[KnownRun], num_bytes: int, is_late: Callable[[], bool]
) -> list[KnownRun]:
    total = sum(folder_bytes(run.path) for run in runs if run.is_live)
    for index in range(len(ended) - 1, -1, -1):
        if is_late():
            return []
        total += folder_bytes(ended[index].path)
        if total > num_bytes:
            return list(ended[: index + 1])
    return []


def folder_bytes(path: Path) -> int:
    """Return what the files in a folder take; 0 where it cannot be read."""
    total = 0
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


@contextmanager
def held(run: KnownRun) -> Iterator[None]:
    """Keep a run that is over from being removed by others while it is looked at."""
    descriptor = _locked(run.path, "LOCK_SH")
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether somebody looks at the run of a folder."""
    if fcntl is None or not os.path.lexists(path / RUN):
        return False
    descriptor = _locked(path, "LOCK_EX")
    if descriptor is None:
        return _can_be_locked(path)
    os.close(descriptor)
    return False


def _locked(path: Path, kind: str) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        with opened(path) as folder:
            descriptor = folder.open(RUN)
        try:
            fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def _can_be_locked(path: Path) -> bool:
    """Tell a lock that another holds from a file system, or a file, that takes none."""
    descriptor = _locked(path, "LOCK_SH")
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None

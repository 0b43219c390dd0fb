"""Claim a run that is over, to continue it: of several processes that try at once, one gets it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from monitor._errors import StoreError
from monitor.store._files import lock, unlock, write_atomically
from monitor.store._folder import to_json
from monitor.store._known import (
    ALERT_TOKEN,
    LAST,
    LOCK,
    READ_TOKEN,
    RUN,
    TOKEN,
    VANISHED,
    KnownRun,
    list_runs,
    process_start,
    read_run,
    runs_directory,
)

SILENT_SECONDS = 60.0
"""How long a run on another machine must have written nothing to count as gone: it writes every second."""
LOCK_SECONDS = 1.0
"""How long the watcher of a training process that has just been killed may take to write the end of its run."""
_MAX_NAMED = 5
UNFINISHED = ("failed", "interrupted", "vanished")


def newest_run(directory: str | os.PathLike[str] | None, *, name: str, script: str, rank: int) -> KnownRun | None:
    """Return the run of this name, script and rank that began last, be it over or not; None where there is none.

    Raises:
        NoHomeError: as :func:`runs_directory`.
    """
    found = [run for run in list_runs(directory) if (run.name, run.script, run.rank) == (name, script, rank)]
    return found[-1] if found else None


def claim_run(
    directory: str | os.PathLike[str] | None,
    run_id: str,
    *,
    rank: int,
    token: str,
    read_token: str | None = None,
    alert_token: str | None = None,
    states: Collection[str] = (),
    is_wanted: Callable[[], bool] = lambda: True,
) -> KnownRun:
    """Make a run that is over the live run of this process, and return it as it was; :func:`give_back` undoes it.

    Only in one of ``states``, where there are any. A claim that is not wanted any more, as it comes too late, is not
    made.

    Raises:
        StoreError: the run is unknown, may be alive, is somebody else's or another rank's, or another process is about
            to continue it.
        UntrustedError: somebody else may have written its folder. OSError: it cannot be written.
    """
    path = runs_directory(directory).absolute() / run_id
    with _written_alone(path, rank):
        run = _over(path, rank)
        if states and run.state not in states:
            raise StoreError(f"{run_id} is {run.state}")
        if not is_wanted():
            raise StoreError(f"the folder of {run_id} took too long to answer")
        for name, secret in ((TOKEN, token), (READ_TOKEN, read_token), (ALERT_TOKEN, alert_token)):
            if secret is not None:
                write_atomically(path / name, secret + "\n")
        write_atomically(path / RUN, to_json(_live(run)))
        if not is_wanted():  # it hung in the middle
            write_atomically(path / RUN, to_json(run))
    return run


def give_back(run: KnownRun) -> None:
    """Leave a run that was claimed as it was before. Raises OSError where its folder cannot be written."""
    write_atomically(run.path / RUN, to_json(run))


@contextmanager
def _written_alone(path: Path, rank: int) -> Iterator[None]:
    run = read_run(path)
    if run is None:
        raise StoreError(f"no run {path.name} is known in {path.parent}{_ids_of_name(path)}")
    _check_rank(run, rank)
    if run.is_live and run.hostname == socket.gethostname():
        raise _is_going_on(run)
    try:
        descriptor = lock(path, LOCK_SECONDS)
    except BlockingIOError:
        raise StoreError(f"another process writes to the folder of {path.name}") from None
    try:
        yield
    finally:
        unlock(descriptor)


def _ids_of_name(path: Path) -> str:
    """Say which runs have this name, where it is that of runs and no id."""
    found = [run.run_id for run in reversed(list_runs(path.parent)) if run.name == path.name]
    more = f" and {len(found) - _MAX_NAMED} earlier ones" if len(found) > _MAX_NAMED else ""
    return f"; that is the name of {', '.join(found[:_MAX_NAMED])}{more}: give an id" if found else ""


def _over(path: Path, rank: int) -> KnownRun:
    run = read_run(path)
    if run is None:
        raise StoreError(f"{path.name} has been removed")
    if run.is_live and not _is_silent(run):
        raise _is_going_on(run)
    _check_rank(run, rank)
    owner = os.lstat(path).st_uid
    if hasattr(os, "geteuid") and owner != os.geteuid():
        raise StoreError(f"{run.run_id} belongs to user {owner}")
    return replace(run, state=VANISHED) if run.is_live else run


def _check_rank(run: KnownRun, rank: int) -> None:
    """Refuse another rank's run. It is the usual thing where all ranks load one checkpoint, be that run live or not."""
    if run.rank != rank:
        raise StoreError(f"{run.run_id} is the run of rank {run.rank}, this is rank {rank}")


def _is_going_on(run: KnownRun) -> StoreError:
    return StoreError(f"{run.run_id} is {run.state} (process {run.pid} on {run.hostname})")


def _is_silent(run: KnownRun) -> bool:
    """Whether a run on another machine, whose processes are beyond our sight, has written nothing for long. Nobody
    writes to its folder now: it is locked. Its disk tells both times."""
    if run.hostname == socket.gethostname():
        return False
    os.utime(run.path / LOCK)
    written = max(_modified(run.path / name) for name in (LAST, RUN))
    return _modified(run.path / LOCK) - written > SILENT_SECONDS


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _live(run: KnownRun) -> KnownRun:
    pid = os.getpid()
    return replace(
        run,
        pid=pid,
        hostname=socket.gethostname(),
        process_start=process_start(pid),
        state="starting",
        end_time=None,
        resume_time=time.time(),
        url=None,
    )

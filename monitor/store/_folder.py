"""The run folder: what other processes of this machine may know about a run.

::

    <runs directory>/
      targets/<run_id>.json     Prometheus file_sd: one file per run that is being served
      <run_id>/run.json         who and where: id, name, pid, host, URL, state
      <run_id>/token            control token, readable by the owner only
      <run_id>/read_token       read-only token, likewise
      <run_id>/alert_token      token for Alertmanager, likewise
      <run_id>/key              what the run's own server proves itself by, likewise
      <run_id>/socket           where the run's server listens for its owner
      <run_id>/last.json        its state a moment ago, kept while it runs
      <run_id>/final.json       last state of the run, written when it ends
      <run_id>/lock             locked by the process that writes to the folder, or is about to
      <run_id>/watcher.log      what the watcher process has written to its standard error
      <run_id>/run.db           its curves, events and commands (docs/store.md); while it is open, run.db-wal and
                                run.db-shm beside it

Everything here may fail as disks do, with an OSError, or hang: :mod:`monitor.watcher._publisher` calls it on a thread
of its own and contains what it raises.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from monitor.store._disk import answer_within
from monitor.store._files import lock, make_root, unlock, write_atomically
from monitor.store._known import (
    ALERT_TOKEN,
    FINAL,
    KEY,
    LAST,
    LOCK,
    LOG,
    READ_TOKEN,
    RUN,
    SIDE_SUFFIXES,
    STATE_BYTES,
    STORE_FILE,
    TOKEN,
    KnownRun,
    list_runs,
    process_start,
    read_run,
    runs_directory,
)
from monitor.store._retention import DAY_SECONDS, is_held, surplus
from monitor.store._socket import SOCKET
from monitor.store._targets import ALERTED_SECONDS, remove_target, sweep_targets, write_target
from monitor.store._trusted import opened, read_own_object

_STORE_FILES = (STORE_FILE, *(f"{STORE_FILE}{suffix}" for suffix in SIDE_SUFFIXES))
_SECRETS = (TOKEN, READ_TOKEN, ALERT_TOKEN, KEY)
SWEEP_SECONDS = 300.0
"""How often a live run looks for targets of runs that are gone."""
PRUNE_SECONDS = 1.0
CHECK_SECONDS = 0.5


def make_run_id(name: str) -> str:
    """Return ``<name>-<6 hex>``, fit for a file name, a label value and a URL; other characters become ``-``.

    No folder is looked at: of 200 runs of one name, one in 80,000 draws has the digits of another. It gets no folder.

    >>> make_run_id("my run/1")
    'my-run-1-...'
    """
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:48] or "run"
    return f"{stem}-{secrets.token_hex(3)}"


class RunFolder:
    """The folder of one run, held by the run itself: the only writer.

    ::

        folder = RunFolder.create("runs", "digits-3f9a0c", name="digits", start_time=time.time(), token=token)
        folder.update(state="running", url="http://127.0.0.1:9477/")
        folder.finish("finished", end_time=time.time(), final={"state": "finished"})
        folder.withdraw()
    """

    def __init__(self, run: KnownRun) -> None:
        self._run = run
        self._lock: int | None = None
        self._next_sweep = time.monotonic() + SWEEP_SECONDS

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str] | None,
        run_id: str,
        *,
        name: str,
        start_time: float,
        script: str = "",
        rank: int = 0,
        world_size: int = 1,
        pid: int | None = None,
        token: str | None = None,
        read_token: str | None = None,
        alert_token: str | None = None,
    ) -> RunFolder:
        """Make the folder of a run that starts now, in this process or that of ``pid``: whole, or not at all.

        ``directory`` is resolved as by :func:`runs_directory`.

        Raises:
            ValueError: for a ``directory`` that can never be one, such as a regular file.
            OSError: if the folder cannot be written. FileExistsError: if ``run_id`` is taken.
        """
        root = runs_directory(directory).absolute()  # the script may change its working directory
        path = root / run_id
        pid = os.getpid() if pid is None else pid
        run = KnownRun(
            run_id=run_id,
            name=name,
            pid=pid,
            hostname=socket.gethostname(),
            state="starting",
            start_time=start_time,
            script=script,
            rank=rank,
            world_size=world_size,
            process_start=process_start(pid),
            path=path,
        )
        with ExitStack() as undo:
            undo.callback(_remove_empty, [one for one in (root, *root.parents) if not os.path.lexists(one)])
            _make_root(root, directory)
            path.mkdir(mode=0o700)
            undo.callback(_remove_run, path)
            for file_name, secret in ((TOKEN, token), (READ_TOKEN, read_token), (ALERT_TOKEN, alert_token)):
                if secret is not None:
                    write_atomically(path / file_name, secret + "\n")
            write_atomically(path / RUN, to_json(run))
            undo.pop_all()
        return cls(run)

    @classmethod
    def reopen(cls, directory: str | os.PathLike[str] | None, run_id: str, pid: int) -> RunFolder | None:
        """Return the folder that an earlier watcher of this run has made; None where there is none of this process."""
        run = read_run(runs_directory(directory).absolute() / run_id)
        return cls(run) if run is not None and run.pid == pid else None

    def hold(self, seconds: float) -> None:
        """Have nobody else continue or remove the run while this process lives, up to :meth:`finish`, also where the
        training process is gone. Wait ``seconds`` at most for an earlier watcher to let go.

        Raises:
            OSError: as :func:`lock`.
        """
        self._lock = lock(self.path, seconds)

    def abandon(self) -> None:
        """Have the lock of the parent end with the parent: this is a forked child."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def let_go(self) -> None:
        """Let another process write to the folder. Safe to repeat."""
        unlock(self._lock)
        self._lock = None

    def carry_on(self) -> dict[str, Any] | None:
        """Return the last state of the earlier session, which from here on is that of a run that goes on; None where
        there is none."""
        with suppress(FileNotFoundError):
            os.replace(self.path / FINAL, self.path / LAST)
        return read_own_object(self.path / LAST, STATE_BYTES)

    def discard(self) -> None:
        """Remove the folder of a run that has not begun, as this process continues another one."""
        self.withdraw()
        _remove_run(self.path)
        self.let_go()

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self._run.path

    @property
    def run(self) -> KnownRun:
        """What ``run.json`` says."""
        return self._run

    def update(
        self,
        *,
        state: str | None = None,
        url: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        leader: str | None = None,
    ) -> None:
        """Write a new state, URL, rank, number of ranks or leader. A URL also makes the run a target of Prometheus
        (file_sd)."""
        run = replace(
            self._run,
            state=state or self._run.state,
            url=url or self._run.url,
            rank=self._run.rank if rank is None else rank,
            world_size=world_size or self._run.world_size,
            leader=self._run.leader if leader is None else leader,
        )
        if run == self._run:
            return
        write_atomically(self.path / RUN, to_json(run))
        self._run = run
        if url:
            write_target(self.path, run.name, url)

    def announce(self, url: str, key: str) -> None:
        """Write where the run is served, and what its server proves itself by."""
        write_atomically(self.path / KEY, key + "\n")
        self.update(state="running", url=url)

    def autosave(self, state: Mapping[str, Any]) -> None:
        """Write the present state of a live run: all that is left should its process be killed."""
        if self._run.end_time is None:
            write_atomically(self.path / LAST, json.dumps(state) + "\n")
            if time.monotonic() >= self._next_sweep:
                self._next_sweep = time.monotonic() + SWEEP_SECONDS
                sweep_targets(self.path.parent, ALERTED_SECONDS)

    def take_errors(self) -> None:
        """Have standard error of this process go into the log of the folder from here on."""
        with opened(self.path) as folder:
            log = folder.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.dup2(log, 2)
        finally:
            os.close(log)

    def finish(self, state: str, *, end_time: float, final: Mapping[str, Any] | None = None) -> None:
        """Write the end: state, time, last snapshot. The run stays a target until :meth:`withdraw`. Safe to repeat."""
        if final is not None:
            write_atomically(self.path / FINAL, json.dumps(final) + "\n")
        run = replace(self._run, state=state, end_time=end_time)
        write_atomically(self.path / RUN, to_json(run))
        self._run = run
        (self.path / LAST).unlink(missing_ok=True)
        self.let_go()

    def withdraw(self) -> None:
        """Take the run off the list of targets, once its last state could be scraped. Safe to repeat. One that another
        process continues stays."""
        now = read_run(self.path)
        if now is None or (now.pid, now.process_start) == (self._run.pid, self._run.process_start):
            remove_target(self.path)


def prune(
    root: Path,
    keep: int = 200,
    *,
    max_bytes: int | None = None,
    max_days: float | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
) -> None:
    """Remove the oldest ended runs until ``keep`` folders are left that take ``max_bytes`` at most together, those that
    began more than ``max_days`` ago, and the targets of runs that are gone.

    Only files of ours are removed: a folder with anything else in it stays, as does a run that may be alive or that
    somebody looks at. A run that has ended stays a target while its process is there: it may wait for its last scrape,
    and withdraws by itself. Half of PRUNE_SECONDS goes into reading, a fifth into measuring, the rest into removing;
    the next run to start does what is left. A run with ``keep`` newer ones among those that were read is one too many,
    however many were not.
    """
    start = timer()

    def is_late(share: float) -> bool:
        return timer() - start > share * PRUNE_SECONDS

    sweep_targets(root, clock=clock, is_late=lambda: is_late(0.5))
    if max_bytes is None and max_days is None and len(os.listdir(root)) <= keep:
        return
    runs = list_runs(root, lambda: is_late(0.5))
    before = None if max_days is None else clock() - max_days * DAY_SECONDS
    found = surplus(runs, num_runs=keep, num_bytes=max_bytes, before=before, is_late=lambda: is_late(0.7))
    chosen = {run.path for beyond in found.values() for run in beyond}
    for run in takewhile(lambda _: not is_late(1.0), (run for run in runs if run.path in chosen)):
        _remove_if_over(run.path)


def remove_run(run: KnownRun) -> bool:
    """Remove what a run that is over has left; return whether nothing is left. A file that no run has made stays, and
    so does its folder; all of it stays while somebody looks at the run.

    Raises:
        ValueError: the run may be alive.
    """
    if run.is_live:
        raise ValueError(f"{run.run_id} is {run.state}; only a run that is over can be removed")
    _remove_if_over(run.path)
    return not run.path.exists()


def _remove_if_over(path: Path) -> None:
    """Remove a run, unless somebody looks at it, writes to it or has continued it."""
    with suppress(OSError):
        descriptor = lock(path)
        try:
            run = read_run(path)
            if run is not None and not run.is_live and not is_held(path):
                remove_target(path)
                _remove_run(path)
        finally:
            unlock(descriptor)


def check_directory(directory: str | os.PathLike[str] | None) -> None:
    """Refuse a directory for run folders that can never be one. Anything else is found out when it is used; a disk that
    does not answer within CHECK_SECONDS is taken at its word.

    Raises:
        ValueError: with the value and the remedy.
    """
    error = answer_within(CHECK_SECONDS, lambda: _mistake_in(directory), None)
    if error is not None:
        raise error


def _mistake_in(directory: str | os.PathLike[str] | None) -> ValueError | None:
    if directory is None:
        return None
    try:
        root = runs_directory(directory).absolute()
        is_directory = root.is_dir() if root.exists() else True
        root.lstat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return _no_directory(directory, error) if _is_mistake(Path(directory), error) else None
    return None if is_directory else _no_directory(directory, FileExistsError(errno.EEXIST, "File exists", str(root)))


def _no_directory(directory: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(
        f"directory={str(directory)!r} cannot be a directory ({error}); choose another one or leave it out "
        "(MONITOR_DIR sets it too)"
    )


def _make_root(root: Path, directory: str | os.PathLike[str] | None) -> None:
    try:
        make_root(root)
    except (OSError, ValueError) as error:
        if directory is None or not _is_mistake(root, error):
            raise
        raise _no_directory(directory, error) from error


def _is_mistake(root: Path, error: Exception) -> bool:
    """Whether no state of the disk could make a directory of this path. A dangling link may come to lead somewhere."""
    if isinstance(error, FileExistsError):
        return root.exists()
    return isinstance(error, ValueError | NotADirectoryError) or getattr(error, "errno", 0) == errno.ENAMETOOLONG


def _remove_run(path: Path) -> None:
    """Remove the files of a run, those too that a kill left half written, and the folder if it is empty then."""
    with suppress(OSError), opened(path) as folder:
        names = folder.names()
        for file in (*_SECRETS, SOCKET, *_STORE_FILES, LAST, FINAL, LOG, LOCK, RUN):  # RUN last: it makes a run
            for name in [*(one for one in names if one.startswith(f".{file}.")), file]:
                folder.remove(name)
    with suppress(OSError):
        path.rmdir()


def _remove_empty(directories: Iterable[Path]) -> None:
    with suppress(OSError, ValueError):
        for directory in directories:
            directory.rmdir()


def to_json(run: KnownRun) -> str:
    """Return what ``run.json`` says of a run."""
    content = asdict(run)
    del content["path"]
    return json.dumps(content, indent=2) + "\n"

"""The runs that this machine knows of, as their folders tell: what is read, and never written, here.

What lies in a folder stands in :mod:`monitor.store._folder`.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import platformdirs

from monitor._checks import is_token
from monitor._records import LIVE_STATES, STATES
from monitor.common import one_line
from monitor.store._trusted import UntrustedError, read_own_object, read_own_text, read_text

VANISHED = "vanished"
RUN, LAST, FINAL = "run.json", "last.json", "final.json"
TOKEN, READ_TOKEN, ALERT_TOKEN, KEY = "token", "read_token", "alert_token", "key"
LOG = "watcher.log"
LOCK = "lock"
STORE_FILE = "run.db"
SIDE_SUFFIXES = ("-wal", "-shm", "-journal")
"""Names of what SQLite puts beside the store while it is open, and leaves there when its process is killed."""
_TOKEN_BYTES = 2**13
STATE_BYTES = 2**24
"""The longest last state: some 100,000 param groups."""


class NoHomeError(OSError):
    """The default place of the run folders is unknown, as the user has no home directory."""


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as its folder tells; ``state`` is one of STATES; ``vanished``: its process died silently.
    ``leader`` is the id of the run that shows the steps of this rank, if another one does."""

    run_id: str
    name: str
    pid: int
    hostname: str
    state: str
    start_time: float
    end_time: float | None = None
    url: str | None = None
    script: str = ""
    process_start: str | None = None
    rank: int = 0
    world_size: int = 1
    resume_time: float | None = None
    leader: str = ""
    path: Path = Path()

    @property
    def is_live(self) -> bool:
        """Whether the run may still be going on."""
        return self.state in LIVE_STATES

    @property
    def session_time(self) -> float:
        """When its last session began: the first one, if it was never resumed."""
        return self.start_time if self.resume_time is None else self.resume_time

    @property
    def has_store(self) -> bool:
        """Whether there is a run store in the folder, be it one that cannot be read."""
        return os.path.lexists(self.path / STORE_FILE)

    def read_token(self) -> str | None:
        """Return the control token; None where there is none, it is not ours to read, or no header can carry it.

        Raises:
            UntrustedError: the file may be somebody else's.
        """
        token = read_own_text(self.path / TOKEN, _TOKEN_BYTES)
        return token if token is not None and is_token(token) else None

    def read_key(self) -> str | None:
        """Return what the run's own server knows as well, and proves itself by; None where there is none.

        Raises:
            UntrustedError: the file may be somebody else's.
        """
        return read_own_text(self.path / KEY, _TOKEN_BYTES) or None

    def read_final(self) -> dict[str, Any] | None:
        """Return the last state, as ``GET /api/v1/run`` gave it: that of the end, and of a run that has vanished the
        last one that was kept; None where there is none.

        Raises:
            UntrustedError: the file may be somebody else's.
        """
        final = read_own_object(self.path / FINAL, STATE_BYTES)
        if final is not None or self.state != VANISHED:
            return final
        kept = read_own_object(self.path / LAST, STATE_BYTES)
        return None if kept is None else {**kept, "state": VANISHED}


def runs_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return where run folders live: the argument, else ``$MONITOR_DIR``, else the user's data folder.

    Raises:
        NoHomeError: if that place depends on a home directory that cannot be found.
    """
    given = directory or os.environ.get("MONITOR_DIR") or None
    try:
        path = Path(given).expanduser() if given else platformdirs.user_data_path("training-monitor")
    except (RuntimeError, KeyError) as error:
        raise _no_home(given) from error
    if given is None and not path.is_absolute():  # what older releases of platformdirs return then
        raise _no_home(given)
    return path


def _no_home(given: object) -> NoHomeError:
    if given is not None:
        return NoHomeError(f"no home directory is known for {str(given)!r}; set HOME or give a full path")
    return NoHomeError(
        "no home directory is known for this user, and so no place for run folders; "
        "set HOME, XDG_DATA_HOME or MONITOR_DIR"
    )


def list_runs(
    directory: str | os.PathLike[str] | None = None,
    is_due: Callable[[], bool] = lambda: False,
    on_refused: Callable[[UntrustedError], object] = lambda _: None,
) -> list[KnownRun]:
    """Return the runs whose folders lie under ``directory`` (as by :func:`runs_directory`), oldest first: by
    when their last session began.

    Torn files are passed over; what may be somebody else's is, too, and handed to ``on_refused``, as are folders that
    this user may not read. A run of this host with no process is ``vanished``. Once ``is_due`` returns True, those read
    so far are returned.

    Raises:
        NoHomeError: as :func:`runs_directory`.
    """
    root = runs_directory(directory)
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if _is_folder(entry))
    except PermissionError:
        on_refused(_unreadable(root))
        return []
    except OSError:
        return []
    folders = takewhile(lambda _: not is_due(), (root / name for name in names))
    found = [run for folder in folders if (run := _read_or_refuse(folder, on_refused)) is not None]
    return sorted(found, key=lambda run: (run.session_time, run.run_id))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # one that cannot be looked at hides no other
        return False


def _read_or_refuse(folder: Path, on_refused: Callable[[UntrustedError], object]) -> KnownRun | None:
    try:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise _unreadable(folder)
        return read_run(folder)
    except UntrustedError as error:
        on_refused(error)
        return None


def _unreadable(folder: Path) -> UntrustedError:
    return UntrustedError(f"{folder} cannot be read by this user; act as its owner, or name another with --dir")


def without_parts(runs: Sequence[KnownRun]) -> list[KnownRun]:
    """Return the runs but for the ranks whose steps another one of them shows."""
    ids = {run.run_id for run in runs}
    return [run for run in runs if run.leader not in ids]


def read_run(folder: Path) -> KnownRun | None:
    """Return the run that a folder tells of; None where it tells of none, or of another.

    Raises:
        UntrustedError: somebody else may have written what it tells.
    """
    found = read_own_object(folder / RUN)
    if found is None or found.get("run_id") != folder.name or found.get("state") not in STATES:
        return None
    if one_line(folder.name) != folder.name:  # no id of ours, and none to show
        return None
    try:
        run = KnownRun(
            run_id=folder.name,
            name=one_line(found["name"]),
            pid=int(found["pid"]),
            hostname=one_line(found["hostname"]),
            state=found["state"],
            start_time=float(found["start_time"]),
            end_time=None if found.get("end_time") is None else float(found["end_time"]),
            url=None if found.get("url") is None else one_line(found["url"]),
            script=one_line(found.get("script") or ""),
            process_start=None if found.get("process_start") is None else one_line(found["process_start"]),
            rank=int(found.get("rank") or 0),
            world_size=int(found.get("world_size") or 1),
            resume_time=None if found.get("resume_time") is None else float(found["resume_time"]),
            leader=one_line(found.get("leader") or ""),
            path=folder,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    if not (math.isfinite(run.start_time) and math.isfinite(run.session_time)):
        return None
    return replace(run, state=VANISHED) if run.is_live and is_gone(run) else run


def is_gone(run: KnownRun) -> bool:
    """Whether the run's process is known to be gone; that of a run on another host is beyond our sight."""
    if run.hostname != socket.gethostname() or os.name == "nt":
        return False
    if run.pid <= 0:
        return True
    try:
        os.kill(run.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    # A pid is used again sooner or later; the same pid with another start time is another process.
    return run.process_start is not None and process_start(run.pid) not in (None, run.process_start)


def process_start(pid: int) -> str | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None without /proc."""
    stat = read_text(Path("/proc") / str(pid) / "stat")
    # The second field is the command's name in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split() if stat else []
    return fields[19] if len(fields) > 19 else None

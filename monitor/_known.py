"""The runs that this machine knows of, as their folders tell: what is read, and never written, here.

What lies in a folder stands in :mod:`monitor._folder`.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

LIVE_STATES = ("starting", "running", "paused")
VANISHED = "vanished"
RUN, TOKEN, READ_TOKEN, LAST, FINAL = "run.json", "token", "read_token", "last.json", "final.json"


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run as its folder tells; ``state`` is one of STATES or ``vanished``: its process died silently."""

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
    path: Path = Path()

    @property
    def is_live(self) -> bool:
        """Whether the run may still be going on."""
        return self.state in LIVE_STATES

    def read_token(self) -> str | None:
        """Return the control token; None where there is none or it is not ours to read."""
        return read_text(self.path / TOKEN)

    def read_final(self) -> dict[str, Any] | None:
        """Return the last state, as ``GET /api/v1/run`` gave it: that of the end, and of a run that has vanished the
        last one that was kept; None where there is none."""
        if self.state != VANISHED:
            return _read_object(self.path / FINAL)
        kept = _read_object(self.path / LAST)
        return None if kept is None else {**kept, "state": VANISHED}


def runs_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return where run folders live: the argument, else ``$MONITOR_DIR``, else the user's data folder."""
    given = directory or os.environ.get("MONITOR_DIR")
    return Path(given).expanduser() if given else platformdirs.user_data_path("training-monitor")


def list_runs(directory: str | os.PathLike[str] | None = None) -> list[KnownRun]:
    """Return the runs whose folders lie under ``directory`` (as by :func:`runs_directory`), oldest first.

    Torn, foreign and unreadable files are passed over. A run of this host with no process is ``vanished``.
    """
    root = runs_directory(directory)
    try:
        folders = sorted(entry for entry in root.iterdir() if not entry.is_symlink())
    except OSError:
        return []
    found = [run for folder in folders if (run := read_run(folder)) is not None]
    return sorted(found, key=lambda run: (run.start_time, run.run_id))


def read_run(folder: Path) -> KnownRun | None:
    """Return the run that a folder tells of; None where it tells of none, or of another."""
    found = _read_object(folder / RUN)
    if found is None or found.get("run_id") != folder.name:
        return None
    try:
        run = KnownRun(
            run_id=folder.name,
            name=str(found["name"]),
            pid=int(found["pid"]),
            hostname=str(found["hostname"]),
            state=str(found["state"]),
            start_time=float(found["start_time"]),
            end_time=None if found.get("end_time") is None else float(found["end_time"]),
            url=None if found.get("url") is None else str(found["url"]),
            script=str(found.get("script") or ""),
            process_start=None if found.get("process_start") is None else str(found["process_start"]),
            path=folder,
        )
    except (KeyError, TypeError, ValueError):
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


def read_text(path: Path) -> str | None:
    """Return what a file holds, without blanks around it; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _read_object(path: Path) -> dict[str, Any] | None:
    text = read_text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

"""The run folder: what other processes of this machine may know about a run.

::

    <runs directory>/
      targets/<run_id>.json     Prometheus file_sd: one file per run that is being served
      <run_id>/run.json         who and where: id, name, pid, host, URL, state
      <run_id>/token            control token, readable by the owner only
      <run_id>/read_token       read-only token, likewise, where one is set
      <run_id>/final.json       last state of the run, written when it ends

Everything here may fail as disks do: with an OSError, which the caller contains.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

KEEP_RUNS = 200
FORGOTTEN_SECONDS = 86_400.0
"""How long after its end a run, as far as can be told, may still wait for its last scrape."""
LIVE_STATES = ("starting", "running", "paused")
VANISHED = "vanished"
_RUN, _TOKEN, _READ_TOKEN, _FINAL, _TARGETS = "run.json", "token", "read_token", "final.json", "targets"


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
        return _read_text(self.path / _TOKEN)

    def read_final(self) -> dict[str, Any] | None:
        """Return the last state, as ``GET /api/v1/run`` gave it, written when the run ended; None before."""
        return _read_object(self.path / _FINAL)


def runs_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return where run folders live: the argument, else ``$MONITOR_DIR``, else the user's data folder."""
    given = directory or os.environ.get("MONITOR_DIR")
    return Path(given).expanduser() if given else platformdirs.user_data_path("training-monitor")


def make_run_id(name: str) -> str:
    """Return ``<name>-<6 hex>``, fit for a file name, a label value and a URL; other characters become ``-``.

    >>> make_run_id("my run/1")  # doctest: +SKIP
    'my-run-1-3f9a0c'
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

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str] | None,
        run_id: str,
        *,
        name: str,
        start_time: float,
        script: str = "",
        token: str | None = None,
        read_token: str | None = None,
        keep: int = KEEP_RUNS,
    ) -> RunFolder:
        """Make the folder of a run that starts now in this process, and remove what old runs left behind.

        ``directory`` is resolved as by :func:`runs_directory`; ``keep`` is how many run folders stay at most.
        Raises OSError where it cannot be written, and FileExistsError where ``run_id`` is taken.
        """
        root = runs_directory(directory)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = root / run_id
        path.mkdir(mode=0o700)
        pid = os.getpid()
        run = KnownRun(
            run_id=run_id,
            name=name,
            pid=pid,
            hostname=socket.gethostname(),
            state="starting",
            start_time=start_time,
            script=script,
            process_start=_process_start(pid),
            path=path,
        )
        for file_name, secret in ((_TOKEN, token), (_READ_TOKEN, read_token)):
            if secret is not None:
                _write_atomically(path / file_name, secret + "\n")
        _write_atomically(path / _RUN, _to_json(run))
        with suppress(OSError):
            prune(root, keep)
        return cls(run)

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self._run.path

    @property
    def run(self) -> KnownRun:
        """What ``run.json`` says."""
        return self._run

    def update(self, *, state: str | None = None, url: str | None = None) -> None:
        """Write a new state or URL. A URL also makes the run a Prometheus target (file_sd)."""
        run = replace(self._run, state=state or self._run.state, url=url or self._run.url)
        if run == self._run:
            return
        _write_atomically(self.path / _RUN, _to_json(run))
        self._run = run
        if url:
            self._target.parent.mkdir(exist_ok=True)
            _write_atomically(self._target, json.dumps([_to_target(run.name, url)]), mode=0o644)

    def finish(self, state: str, *, end_time: float, final: Mapping[str, Any] | None = None) -> None:
        """Write the end: state, time, last snapshot. The run stays a target until :meth:`withdraw`. Safe to repeat."""
        if final is not None:
            _write_atomically(self.path / _FINAL, json.dumps(final) + "\n")
        run = replace(self._run, state=state, end_time=end_time)
        _write_atomically(self.path / _RUN, _to_json(run))
        self._run = run

    def withdraw(self) -> None:
        """Take the run off the list of targets, once its last state could be scraped. Safe to repeat."""
        self._target.unlink(missing_ok=True)

    @property
    def _target(self) -> Path:
        return self.path.parent / _TARGETS / f"{self._run.run_id}.json"


def list_runs(directory: str | os.PathLike[str] | None = None) -> list[KnownRun]:
    """Return the runs whose folders lie under ``directory`` (as by :func:`runs_directory`), oldest first.

    Torn, foreign and unreadable files are passed over. A run of this host with no process is ``vanished``.
    """
    root = runs_directory(directory)
    try:
        folders = sorted(entry for entry in root.iterdir() if not entry.is_symlink())
    except OSError:
        return []
    found = [run for folder in folders if (run := _read_run(folder)) is not None]
    return sorted(found, key=lambda run: (run.start_time, run.run_id))


def prune(root: Path, keep: int = KEEP_RUNS, clock: Callable[[], float] = time.time) -> None:
    """Remove the oldest ended runs until ``keep`` folders are left, and the targets of runs that are gone.

    Only files of ours are removed: a folder with anything else in it stays, as does a run that may be alive. A run that
    has ended stays a target while its process is there: it may wait for its last scrape, and withdraws by itself.
    """
    folder = root / _TARGETS
    for target in [] if folder.is_symlink() else list(folder.glob("*.json")):
        run = _read_run(root / target.stem)
        if (run is None or not _may_be_served(run, clock())) and _is_target(target):
            target.unlink(missing_ok=True)
    if sum(1 for _ in root.iterdir()) <= keep:
        return
    runs = list_runs(root)
    ended = [run for run in runs if not run.is_live]
    for run in ended[: max(0, len(runs) - keep)]:
        for name in (_TOKEN, _READ_TOKEN, _FINAL, _RUN):
            (run.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            run.path.rmdir()


def _read_run(folder: Path) -> KnownRun | None:
    found = _read_object(folder / _RUN)
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
    return replace(run, state=VANISHED) if run.is_live and _is_gone(run) else run


def _may_be_served(run: KnownRun, now: float) -> bool:
    if run.state == VANISHED or _is_gone(run):
        return False
    return run.end_time is None or now - run.end_time < FORGOTTEN_SECONDS


def _is_gone(run: KnownRun) -> bool:
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
    return run.process_start is not None and _process_start(run.pid) not in (None, run.process_start)


def _process_start(pid: int) -> str | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None without /proc."""
    stat = _read_text(Path("/proc") / str(pid) / "stat")
    # The second field is the command's name in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split() if stat else []
    return fields[19] if len(fields) > 19 else None


def _to_json(run: KnownRun) -> str:
    content = asdict(run)
    del content["path"]
    return json.dumps(content, indent=2) + "\n"


def _to_target(name: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    labels = {"run_name": name, "__scheme__": parts.scheme, "__metrics_path__": "/metrics"}
    return {"targets": [parts.netloc], "labels": labels}


def _is_target(path: Path) -> bool:
    """Whether a file is one that a run has written: of the form of :func:`_to_target`."""
    if path.is_symlink():
        return False
    try:
        found = json.loads(_read_text(path) or "")
    except ValueError:
        return False
    one = found[0] if isinstance(found, list) and len(found) == 1 else None
    labels = one.get("labels") if isinstance(one, dict) else None
    return isinstance(labels, dict) and {"run_name", "__metrics_path__"} <= set(labels)


def _write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old content or the new, and a full disk leaves the old."""
    # mkstemp makes the file 0600, so a secret is never readable by others, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        if mode != 0o600:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _read_object(path: Path) -> dict[str, Any] | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

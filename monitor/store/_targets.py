"""The targets of Prometheus (file_sd): a file for each run that is being served, in the folder ``targets`` beside the
run folders."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monitor.store._files import make_public, write_atomically
from monitor.store._known import FINAL, LAST, RUN, VANISHED, KnownRun, is_gone, read_run
from monitor.store._trusted import UntrustedError, opened, read_own_json

TARGETS = "targets"
FORGOTTEN_SECONDS = 86_400.0
"""How long after its end a run, as far as can be told, may still wait for its last scrape."""
ALERTED_SECONDS = 600.0
"""How long after its last sign a run that is gone stays a target: Prometheus has seen it fail by then, and the alert is
out."""


def write_target(folder: Path, name: str, url: str) -> None:
    """Make the run of a folder a target. Raises OSError."""
    path = _target_of(folder)
    make_public(path.parent)
    write_atomically(path, json.dumps([_to_target(name, url)]), mode=0o644)


def remove_target(folder: Path) -> None:
    """Take the run of a folder off the targets. Safe to repeat. Raises OSError."""
    path = _target_of(folder)
    with suppress(FileNotFoundError), opened(path.parent) as targets:
        targets.remove(path.name)


def _target_of(folder: Path) -> Path:
    return folder.parent / TARGETS / f"{folder.name}.json"


def sweep_targets(
    root: Path,
    silent_seconds: float = -math.inf,
    *,
    clock: Callable[[], float] = time.time,
    is_late: Callable[[], bool] = lambda: False,
) -> None:
    """Remove the targets of runs that are gone, and have written nothing for ``silent_seconds`` where that is given:
    their ports are anybody's."""
    for target in takewhile(lambda _: not is_late(), _targets(root)):
        folder = root / target.stem
        with suppress(OSError):
            is_silent = clock() - _last_sign(folder) >= silent_seconds
            if is_silent and _is_target(target) and not _is_served(folder, clock()):
                remove_target(folder)


def _last_sign(path: Path) -> float:
    """Return when the files of a run were last written; minus infinity where there are none."""
    files = (path / name for name in (LAST, FINAL, RUN))
    return max((file.lstat().st_mtime for file in files if os.path.lexists(file)), default=-math.inf)


def _targets(root: Path) -> list[Path]:
    with suppress(OSError), opened(root / TARGETS) as folder:
        return [folder.path / name for name in folder.names() if name.endswith(".json")]
    return []


def _is_served(path: Path, now: float) -> bool:
    """Whether the run of a folder may be served; of one that is not to be looked at, none of ours can be."""
    try:
        run = read_run(path)
    except UntrustedError:
        return False
    return run is not None and _may_be_served(run, now)


def _may_be_served(run: KnownRun, now: float) -> bool:
    if run.state == VANISHED or is_gone(run):
        return False
    return run.end_time is None or now - run.end_time < FORGOTTEN_SECONDS


def _to_target(name: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    labels = {"run_name": name, "__scheme__": parts.scheme, "__metrics_path__": "/metrics"}
    return {"targets": [parts.netloc], "labels": labels}


def _is_target(path: Path) -> bool:
    """Whether a file is one that a run has written: of the form of :func:`_to_target`."""
    found = read_own_json(path)
    one = found[0] if isinstance(found, list) and len(found) == 1 else None
    labels = one.get("labels") if isinstance(one, dict) else None
    return isinstance(labels, dict) and {"run_name", "__metrics_path__"} <= set(labels)

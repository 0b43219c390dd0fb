"""The files of the servers beside a run, as docker-compose.yml mounts them, and how they are put into a folder.

::

    grafana/*.json, grafana/provisioning/             dashboards, data source
    prometheus/prometheus.yml, prometheus/rules/      configuration, recording rules and alerts
    alertmanager/alertmanager.yml, .../examples/      routes and inhibition; receivers for Slack, mail, webhooks
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monitor import alerts, grafana
from monitor.alerts import RUNBOOK
from monitor.store import runs_directory

__all__ = ["RUNBOOK", "Exported", "export", "localize", "render_files", "runs_directory"]


_HEAD = "as docker-compose.yml mounts it; without containers: `monitor dashboards export --local`."


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did: the files that are now ours, and those that somebody had changed and that stayed."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def render_files(runbook: str = RUNBOOK) -> Mapping[str, str]:
    """Return every file: relative path to content. ``runbook`` is the address of docs/alerts.md for your readers.

    >>> "prometheus/rules/alerts.yml" in render_files()
    True
    """
    return {
        **{f"grafana/{name}": text for name, text in grafana.render_files().items()},
        **{f"prometheus/rules/{name}": text for name, text in alerts.render_files(runbook).items()},
        **alerts.server_files(),
    }


def localize(files: Mapping[str, str], directory: Path, runs: Path) -> Mapping[str, str]:
    """Return the files for servers that run on this machine without containers.

    They find each other and the runs on 127.0.0.1, the targets in the folder of the runs, ``runs``, the dashboards and
    Alertmanager's token in ``directory``.
    """
    targets, dashboards, token = (
        json.dumps(str(path)) for path in (runs / "targets" / "*.json", directory / "grafana", directory / "run_token")
    )
    prometheus, relabelled = "prometheus/prometheus.yml", "      # The address that the run's owner knows"
    authorized, kept = "    # Needed for runs that are not", "    # A run names itself"
    swaps = {
        prometheus: [
            ('["alertmanager:9093"]', '["127.0.0.1:9093"]'),
            ('["targets/*.json", "train/targets/*.json"]', f"[{targets}]"),
            (_between(files[prometheus], authorized, kept), ""),
            (_between(files[prometheus], relabelled, None), ""),
        ],
        "alertmanager/alertmanager.yml": [
            ("http://host.docker.internal:9477/", "http://127.0.0.1:9477/"),
            ("/run/secrets/monitor_token", token),
        ],
        "grafana/provisioning/datasources/prometheus.yml": [
            (" $PROMETHEUS_URL is set where Grafana runs.", ""),
            ("url: $PROMETHEUS_URL", "url: http://127.0.0.1:9090"),
        ],
        "grafana/provisioning/dashboards/training.yml": [("/var/lib/training-monitor/dashboards", dashboards)],
    }
    changed = dict(files)
    for name, pairs in swaps.items():
        for old, new in (*pairs, (_HEAD, "without containers, by `monitor dashboards export --local`.")):
            changed[name] = changed[name].replace(old, new)
    return changed


def _between(text: str, start: str, end: str | None) -> str:
    """Return the part of ``text`` from ``start`` up to ``end``, both of which are there."""
    first = text.index(start)
    return text[first : text.index(end, first) if end else None]


def export(
    directory: str | os.PathLike[str],
    *,
    runbook: str = RUNBOOK,
    overwrite: bool = False,
    local_runs: str | os.PathLike[str] | None = None,
) -> Exported:
    """Write every file into ``directory``: all of them, or none.

    Everything is written beside its place first and then moved there, each file in one go. When that fails midway, what
    was there before is put back. Other files in the folder stay.

    Args:
        directory: made where it is missing.
        runbook: address of docs/alerts.md, as your readers reach it; the alerts link to its sections.
        overwrite: replace configuration that is there and differs, too. Dashboards and rules, which are not for
            editing, are always replaced.
        local_runs: the folder of the run folders, for servers on this machine without containers; default: for those
            of docker-compose.yml.

    Raises:
        OSError: where the folder cannot be made or written; nothing has changed then.

    Example:
        >>> done = export("training")
        >>> done.written[0], done.kept
        (PosixPath('training/alertmanager/alertmanager.yml'), ())
    """
    target, files = Path(directory), render_files(runbook)
    if local_runs is not None:
        files = localize(files, target.absolute(), Path(local_runs).absolute())
    kept = () if overwrite else tuple(name for name, text in files.items() if _is_changed(target / name, text))
    written = {name: text for name, text in files.items() if name not in kept}
    _write_all(target, written)
    return Exported(tuple(target / name for name in sorted(written)), tuple(target / name for name in sorted(kept)))


def _is_changed(path: Path, text: str) -> bool:
    """Whether a file that people edit is there and is not ours. If it cannot be read, the writing will tell."""
    if path.suffix == ".json" or path.parent.name == "rules":
        return False
    try:
        return path.read_text(encoding="utf-8") != text
    except UnicodeDecodeError:
        return True
    except OSError:
        return False


def _write_all(target: Path, files: Mapping[str, str]) -> None:
    made: list[Path] = []
    moved: list[str] = []
    waiting = None
    try:
        _make_folders((target, *(target / Path(name).parent for name in files)), made)
        waiting = Path(tempfile.mkdtemp(dir=target, prefix=".export-"))
        for number, (name, text) in enumerate(files.items()):
            _prepare(waiting / f"new-{number}", text)
            if os.path.lexists(target / name):
                shutil.copy2(target / name, waiting / f"old-{number}", follow_symlinks=False)
        for number, name in enumerate(files):
            moved.append(name)
            os.replace(waiting / f"new-{number}", target / name)
    except BaseException:
        _put_back(target, waiting, moved, made)
        raise
    finally:
        if waiting is not None:
            shutil.rmtree(waiting, ignore_errors=True)


def _make_folders(folders: Iterable[Path], made: list[Path]) -> None:
    for folder in folders:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            made.append(each)


def _prepare(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)  # the servers run as other users


def _put_back(target: Path, waiting: Path | None, moved: list[str], made: list[Path]) -> None:
    """Undo what was done, as far as the file system lets us: the failure itself is what the caller is told."""
    for number, name in enumerate(moved):
        with suppress(OSError):
            if waiting is not None and os.path.lexists(waiting / f"old-{number}"):
                os.replace(waiting / f"old-{number}", target / name)
            elif not (waiting is not None and (waiting / f"new-{number}").exists()):
                (target / name).unlink()
    if waiting is not None:
        shutil.rmtree(waiting, ignore_errors=True)
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()

"""The files of the servers beside a run, for its containers or for this machine, and how they are put into a folder.

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

__all__ = ["RUNBOOK", "Exported", "export", "render_files", "runs_directory"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did: the files that are now ours, and those that somebody had changed and that stayed."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def render_files(runbook: str = RUNBOOK, local: tuple[Path, Path] | None = None) -> Mapping[str, str]:
    """Return every file: relative path to content.

    Args:
        runbook: the address of docs/alerts.md for your readers.
        local: the folder of these files and that of the runs, for servers on this machine without containers: they
            find each other and the runs on 127.0.0.1, the targets in the folder of the runs, the dashboards and
            Alertmanager's token in that of the files; default: for the containers of docker-compose.yml.

    >>> "prometheus/rules/alerts.yml" in render_files()
    True
    """
    if local is None:
        shown, configured = grafana.render_files(), alerts.server_files()
    else:
        directory, runs = local
        places = alerts.on_this_machine(_quoted(runs / "targets" / "*.json"), _quoted(directory / "alert_token"))
        shown, configured = grafana.render_files(_quoted(directory / "grafana")), alerts.server_files(places)
    return {
        **{f"grafana/{name}": text for name, text in shown.items()},
        **{f"prometheus/rules/{name}": text for name, text in alerts.render_files(runbook).items()},
        **configured,
    }


def _quoted(path: Path) -> str:
    """Return a path as YAML: a JSON string is one, whatever is in it."""
    return json.dumps(str(path))


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
    target = Path(directory)
    local = None if local_runs is None else (target.absolute(), Path(local_runs).absolute())
    files = render_files(runbook, local)
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

"""`monitor dashboards export`: every file that the servers beside a run read, all of them or none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from monitor import alerts
from monitor.cli import main
from monitor.cli._stack import export, render_files
from tests.requirements import need

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "dashboards"
PROGRAMS = {"kubernetes.py", "screenshot.py", "train.Dockerfile"}
EDITED = "alertmanager/alertmanager.yml"


def tree(folder: Path) -> dict[str, str]:
    """Return every file of a folder, relative path to content."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_what_is_exported_is_what_is_committed(tmp_path: Path) -> None:
    """`monitor dashboards export` writes the folder dashboards/ as it is committed, to the last character."""
    done = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path / "new" / "folder")])
    assert (done.exit_code, done.stderr) == (0, "")
    committed = {name: text for name, text in tree(OURS).items() if name not in PROGRAMS}
    assert tree(tmp_path / "new" / "folder") == committed
    assert sorted(done.stdout.splitlines()) == sorted(str(tmp_path / "new" / "folder" / name) for name in committed)


def test_each_placeholder_of_the_servers_files_is_filled_in() -> None:
    """The containers and this machine give a value to the same placeholders, and each stands in a file."""
    local = alerts.on_this_machine("targets", "token")
    assert local.keys() == alerts.COMPOSE.keys()
    text = "".join(alerts.server_files({name: f"<{name}>" for name in local}).values())
    assert [name for name in local if f"<{name}>" not in text] == []


def test_the_servers_may_read_it(tmp_path: Path) -> None:
    """The files are readable by the users that the servers run as, and no other file is left in the folder."""
    done = export(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in done.written} == {0o644}
    assert {path.name for path in tmp_path.iterdir()} == {"alertmanager", "grafana", "prometheus"}


def test_every_file_that_compose_mounts_is_exported() -> None:
    """What docker-compose.yml mounts of this repository is what the export writes."""
    mounts = [found for line in _compose() for found in re.findall(r"\./dashboards/([\w./]+)[:}]", line)]
    assert len(mounts) >= 5
    names = render_files()
    assert all(any(name == mount or name.startswith(f"{mount}/") for name in names) for mount in mounts)


def _compose() -> list[str]:
    return (ROOT / "docker-compose.yml").read_text(encoding="utf-8").splitlines()


def test_the_servers_accept_what_was_exported(tmp_path: Path) -> None:
    """promtool and amtool find nothing to object in the exported folder."""
    export(tmp_path)
    config = tmp_path / "prometheus" / "prometheus.yml"
    (tmp_path / "token").write_text("secret")
    config.write_text(config.read_text().replace("/run/secrets/monitor_read_token", str(tmp_path / "token")))
    for command in (
        [need("promtool", "prometheus"), "check", "config", str(config)],
        [need("amtool", "prometheus-alertmanager"), "check-config", str(tmp_path / EDITED)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_that_was_changed_stays(tmp_path: Path) -> None:
    """A second export replaces dashboards and rules, and keeps and names edited configuration unless told otherwise."""
    export(tmp_path)
    for name in (EDITED, "grafana/run.json", "prometheus/rules/alerts.yml"):
        (tmp_path / name).write_text("changed\n")
    (tmp_path / "grafana" / "mine.json").write_text("{}")
    done = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stderr == f"{tmp_path / EDITED} differs and was kept; --overwrite replaces it\n"
    assert str(tmp_path / EDITED) not in done.stdout
    expected = {**render_files(), "grafana/mine.json": "{}"}
    assert tree(tmp_path) == {**expected, EDITED: "changed\n"}
    assert CliRunner().invoke(main, ["dashboards", "export", str(tmp_path), "--overwrite"]).stderr == ""
    assert tree(tmp_path) == expected


def test_the_alerts_link_to_the_readers_own_page(tmp_path: Path) -> None:
    """--runbook puts an address before the anchor of every alert."""
    words = ["dashboards", "export", str(tmp_path), "--runbook", "https://wiki.example.org/alerts"]
    assert CliRunner().invoke(main, words).exit_code == 0
    rules = (tmp_path / "prometheus" / "rules" / "alerts.yml").read_text()
    assert rules.count("runbook_url: ") == rules.count('runbook_url: "https://wiki.example.org/alerts#training') > 20


def _refuse(*_: object, **__: object) -> Any:
    raise OSError(28, "No space left on device")


def _after(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``real`` for its first calls, and after them a full disk."""
    calls = iter(range(count))
    return lambda *args, **given: real(*args, **given) if next(calls, None) is not None else _refuse()


@pytest.mark.parametrize("count", [0, 3])
def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """When a file cannot be written the error is told, and the folders that were made for it are gone again."""
    monkeypatch.setattr(Path, "write_text", _after(count, Path.write_text))
    done = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path / "a" / "b")])
    assert done.exit_code == 1
    assert f"{tmp_path / 'a' / 'b'} cannot be written ([Errno 28] No space left on device); nothing was" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_while_moving_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """When the disk fails after some files are in place, those before them come back and the others go."""
    target = tmp_path / "out"
    if not is_new:
        export(target)
        (target / "grafana" / "compare.json").write_text("of an older version\n")
        (target / "grafana" / "run.json").unlink()
        (target / "grafana" / "hardware.json").unlink()
        (target / "grafana" / "hardware.json").symlink_to("run.json")
    before = tree(tmp_path)
    real, calls = os.replace, iter(range(5))

    def replace(old: Path, new: Path) -> None:
        if Path(old).name.startswith("new-") and next(calls, None) is None:
            _refuse()
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        export(target, overwrite=True)
    assert tree(tmp_path) == before
    assert target.exists() is not is_new
    assert is_new or (target / "grafana" / "hardware.json").is_symlink()


def test_a_folder_in_a_files_place_is_told(tmp_path: Path) -> None:
    """Where a folder has the name of one of our files, nothing else is touched."""
    (tmp_path / "prometheus" / "prometheus.yml").mkdir(parents=True)
    done = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path)])
    assert done.exit_code == 1
    assert "prometheus.yml" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prometheus"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Below a file there can be no folder: exit status 1, one line that names it, no traceback."""
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["dashboards", "export", str(tmp_path / "file" / "below")])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {tmp_path / 'file' / 'below'} cannot be written (")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write: /proc")
def test_a_folder_that_may_not_be_written_is_told() -> None:
    """A folder without permission is told in the same words."""
    done = CliRunner().invoke(main, ["dashboards", "export", "/proc/self"])
    assert done.exit_code == 1
    assert "/proc/self cannot be written" in done.stderr

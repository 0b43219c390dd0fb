from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from monitor.store._folder import RunFolder, make_run_id, prune, remove_run
from monitor.store._known import NoHomeError, list_runs, runs_directory
from monitor.store._retention import held
from monitor.store._trusted import UntrustedError, read_text


def create(root: Path, run_id: str = "digits-000001", **changes: Any) -> RunFolder:
    given: dict[str, Any] = {"name": "digits", "start_time": 100.0, **changes}
    return RunFolder.create(root, run_id, **given)


def rewrite(folder: RunFolder, **changes: Any) -> None:
    path = folder.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pid_of_ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_argument_beats_environment_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs directory is the argument, else $MONITOR_DIR, else a folder named training-monitor."""
    monkeypatch.setenv("MONITOR_DIR", str(tmp_path / "environment"))
    assert runs_directory(tmp_path / "argument") == tmp_path / "argument"
    assert runs_directory() == tmp_path / "environment"
    monkeypatch.delenv("MONITOR_DIR")
    assert runs_directory().name == "training-monitor"


@pytest.mark.parametrize(
    ("name", "stem"),
    [("digits", "digits"), ("my run/1", "my-run-1"), ("../..", "run"), ("", "run"), ("é" * 9, "run")],
)
def test_run_id_is_fit_for_a_file_name(name: str, stem: str) -> None:
    """A run id is the name without odd characters and six hex digits, different every time."""
    first, second = make_run_id(name), make_run_id(name)
    assert first.rpartition("-")[0] == stem
    assert len(first.rpartition("-")[2]) == 6
    assert first != second


def test_a_new_run_is_listed(tmp_path: Path) -> None:
    """What create was told is what another reader sees."""
    create(tmp_path, script="train.py", token="secret")
    (found,) = list_runs(tmp_path)
    assert (found.run_id, found.name, found.pid, found.state) == (
        "digits-000001",
        "digits",
        os.getpid(),
        "starting",
    )
    assert (found.script, found.start_time, found.end_time, found.url) == ("train.py", 100.0, None, None)
    assert found.is_live
    assert found.read_token() == "secret"
    assert found.read_final() is None


def test_tokens_are_for_the_owner_only(tmp_path: Path) -> None:
    """Token files have mode 0600 in a folder of mode 0700, whatever the umask."""
    before = os.umask(0)
    try:
        folder = create(tmp_path, token="secret", read_token="look")
    finally:
        os.umask(before)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    for name in ("token", "read_token"):
        assert (folder.path / name).stat().st_mode & 0o777 == 0o600


def test_a_served_run_is_a_prometheus_target_until_it_ends(tmp_path: Path) -> None:
    """With a URL the run has a file_sd entry, until after its last state could be scraped."""
    folder = create(tmp_path)
    target = tmp_path / "targets" / "digits-000001.json"
    assert not target.exists()
    folder.update(state="running", url="https://127.0.0.1:9477/")
    labels = {"run_name": "digits", "__scheme__": "https", "__metrics_path__": "/metrics"}
    assert json.loads(target.read_text()) == [{"targets": ["127.0.0.1:9477"], "labels": labels}]
    assert target.stat().st_mode & 0o777 == 0o644
    folder.finish("finished", end_time=200.0, final={"state": "finished", "step": 7})
    assert target.exists()
    folder.withdraw()
    folder.withdraw()
    assert not target.exists()


def test_the_end_is_kept(tmp_path: Path) -> None:
    """After finish the run is not live, and its last state can be read; finishing again is harmless."""
    folder = create(tmp_path)
    folder.finish("failed", end_time=200.0, final={"step": 7})
    folder.finish("failed", end_time=200.0)
    (found,) = list_runs(tmp_path)
    assert (found.state, found.end_time, found.is_live) == ("failed", 200.0, False)
    assert found.read_final() == {"step": 7}


def test_a_dead_process_makes_its_run_vanish(tmp_path: Path) -> None:
    """A live run by its file, but whose process is gone, is listed as vanished."""
    rewrite(create(tmp_path), pid=pid_of_ended_process(), state="running")
    assert [run.state for run in list_runs(tmp_path)] == ["vanished"]


def test_a_run_that_vanished_leaves_the_state_that_was_kept(tmp_path: Path) -> None:
    """Of a process that was killed the last kept state is known; an orderly end replaces it."""
    folder = create(tmp_path)
    folder.autosave({"state": "running", "step": 7})
    assert list_runs(tmp_path)[0].read_final() is None
    rewrite(folder, pid=pid_of_ended_process(), state="running")
    assert list_runs(tmp_path)[0].read_final() == {"state": "vanished", "step": 7}
    folder.finish("finished", end_time=200.0, final={"state": "finished", "step": 9})
    assert list_runs(tmp_path)[0].read_final() == {"state": "finished", "step": 9}
    assert not (folder.path / "last.json").exists()


def test_an_ended_run_does_not_vanish(tmp_path: Path) -> None:
    """A run that said how it ended keeps that state when its process is gone."""
    folder = create(tmp_path)
    folder.finish("finished", end_time=200.0)
    rewrite(folder, pid=pid_of_ended_process())
    assert [run.state for run in list_runs(tmp_path)] == ["finished"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_pid_used_again_is_another_process(tmp_path: Path) -> None:
    """The pid alone does not keep a run alive: the process must have started when the run's did."""
    rewrite(create(tmp_path), process_start="1")
    assert [run.state for run in list_runs(tmp_path)] == ["vanished"]


def test_a_run_of_another_host_is_believed(tmp_path: Path) -> None:
    """A pid of another host says nothing here."""
    rewrite(create(tmp_path), hostname="elsewhere", pid=pid_of_ended_process(), state="running")
    assert [run.state for run in list_runs(tmp_path)] == ["running"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"run_id": "x-1", "na',
        b"[]",
        b"\xff\xfe",
        b'{"run_id": "x-1"}',
        b'{"run_id": "other", "name": "n"}',
        b'{"run_id": "x-1", "name": "n", "pid": "p", "hostname": "h", "state": "running", "start_time": 1}',
    ],
)
def test_torn_and_foreign_files_are_passed_over(tmp_path: Path, content: bytes) -> None:
    """A folder whose run.json cannot be understood does not hide the other runs."""
    create(tmp_path)
    (tmp_path / "x-1").mkdir()
    (tmp_path / "x-1" / "run.json").write_bytes(content)
    (tmp_path / "notes.txt").write_text("mine")
    assert [run.run_id for run in list_runs(tmp_path)] == ["digits-000001"]


def test_no_directory_no_runs(tmp_path: Path) -> None:
    """A runs directory that does not exist holds no runs, and looking does not make it."""
    assert list_runs(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    """The order is that of the start times."""
    create(tmp_path, "b-1", start_time=3.0)
    create(tmp_path, "c-1", start_time=1.0)
    create(tmp_path, "a-1", start_time=2.0)
    assert [run.run_id for run in list_runs(tmp_path)] == ["c-1", "a-1", "b-1"]


def test_the_oldest_ended_runs_are_pruned(tmp_path: Path) -> None:
    """No more folders than asked for are kept; runs that go on stay, however old."""
    create(tmp_path, "old-live", start_time=0.0)
    for number in range(5):
        create(tmp_path, f"run-{number}", start_time=float(number + 1)).finish("finished", end_time=9.0, final={})
    create(tmp_path, "new-live", start_time=10.0)
    prune(tmp_path, keep=4)
    assert [run.run_id for run in list_runs(tmp_path)] == ["old-live", "run-3", "run-4", "new-live"]


def test_the_ranks_of_one_training_are_pruned_as_one(tmp_path: Path) -> None:
    """They count once, and go with the run that shows their steps; while one of them lives, all stay."""
    for number in range(3):
        for rank in range(2):
            folder = create(tmp_path, f"run-{number}{rank}", start_time=float(number + 1), rank=rank)
            folder.update(leader=f"run-{number}0" if rank else "")
            if (number, rank) != (1, 1):
                folder.finish("failed", end_time=9.0, final={})
    prune(tmp_path, keep=2)
    assert [run.run_id for run in list_runs(tmp_path)] == ["run-10", "run-11", "run-20", "run-21"]
    prune(tmp_path, keep=1)
    assert [run.run_id for run in list_runs(tmp_path)] == ["run-10", "run-11"]


def test_pruning_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """A folder with a file of someone else keeps that file."""
    folder = create(tmp_path, token="secret")
    folder.finish("finished", end_time=9.0)
    (folder.path / "model.pt").write_text("precious")
    prune(tmp_path, keep=0)
    assert [path.name for path in folder.path.iterdir()] == ["model.pt"]


def test_what_a_kill_left_half_written_is_pruned(tmp_path: Path) -> None:
    """A file that was being written when its process was killed goes with its run."""
    folder = create(tmp_path, token="secret")
    folder.finish("finished", end_time=9.0)
    (folder.path / ".final.json.k3j2h1g0").write_text("{")
    prune(tmp_path, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_pruned_with_all_that_lies_beside_it(tmp_path: Path) -> None:
    """The store of a run goes with it, after a kill too, which leaves its log, its index or a store half made."""
    folder = create(tmp_path)
    folder.finish("finished", end_time=9.0)
    half_made = (".run.db.k3j2h1g0", ".run.db.k3j2h1g0-journal")
    for name in ("run.db", "run.db-wal", "run.db-shm", "run.db-journal", *half_made):
        (folder.path / name).write_bytes(b"")
    prune(tmp_path, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_removed_leaves_a_run_that_can_be_pruned_later(tmp_path: Path) -> None:
    """What says that the folder is a run's goes last."""
    folder = create(tmp_path)
    folder.finish("finished", end_time=9.0)
    (folder.path / "run.db").mkdir()
    prune(tmp_path, keep=0)
    (folder.path / "run.db").rmdir()
    prune(tmp_path, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_a_vanished_run_is_no_target_for_long(tmp_path: Path) -> None:
    """Pruning removes the target of a run that died, and only that."""
    dead, live = create(tmp_path, "dead-1"), create(tmp_path, "live-1")
    for folder in (dead, live):
        folder.update(state="running", url="http://127.0.0.1:9477/")
    rewrite(dead, pid=pid_of_ended_process())
    prune(tmp_path)
    assert [path.name for path in (tmp_path / "targets").iterdir()] == ["live-1.json"]


def test_a_live_run_sweeps_the_targets_of_those_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed with its watcher stays a target for ten minutes, so that alerts fire, and no longer."""
    live, fresh, silent, none = (create(tmp_path, f"{name}-1") for name in ("live", "fresh", "silent", "none"))
    for folder in (live, fresh, silent, none):
        folder.update(state="running", url="http://127.0.0.1:9477/")
        folder.autosave({"state": "running"})
    for folder in (fresh, silent):
        rewrite(folder, pid=pid_of_ended_process())
    for path in silent.path.iterdir():
        os.utime(path, (time.time() - 601, time.time() - 601))
    shutil.rmtree(none.path)
    names = {path.name for path in (tmp_path / "targets").iterdir()}
    live.autosave({"state": "running"})
    assert {path.name for path in (tmp_path / "targets").iterdir()} == names
    monkeypatch.setattr(live, "_next_sweep", time.monotonic())
    live.autosave({"state": "running"})
    assert {path.name for path in (tmp_path / "targets").iterdir()} == {"live-1.json", "fresh-1.json"}


def test_a_run_that_waits_for_its_last_scrape_stays_a_target(tmp_path: Path) -> None:
    """Another run that starts in the meantime leaves the target of an ended one alone while its process is there."""
    waiting, killed = create(tmp_path, "waiting-1"), create(tmp_path, "killed-1")
    for folder in (waiting, killed):
        folder.update(state="running", url="http://127.0.0.1:9477/")
        folder.finish("finished", end_time=1000.0)
    rewrite(killed, pid=pid_of_ended_process())
    prune(tmp_path, clock=lambda: 1030.0)
    assert [path.name for path in (tmp_path / "targets").iterdir()] == ["waiting-1.json"]


@pytest.mark.parametrize("hostname", [socket.gethostname(), "another-host"])
def test_a_target_that_was_never_withdrawn_is_removed_a_day_after_the_end(tmp_path: Path, hostname: str) -> None:
    """Where the process cannot be seen, or continues without the run, the target goes a day after the run's end."""
    folder = create(tmp_path, "stuck-1")
    folder.update(state="running", url="http://127.0.0.1:9477/")
    folder.finish("finished", end_time=1000.0)
    rewrite(folder, hostname=hostname)
    prune(tmp_path, clock=lambda: 1000.0 + 86_399)
    assert (tmp_path / "targets" / "stuck-1.json").exists()
    prune(tmp_path, clock=lambda: 1000.0 + 86_400)
    assert not (tmp_path / "targets" / "stuck-1.json").exists()


def test_a_run_id_that_is_taken_is_an_oserror(tmp_path: Path) -> None:
    """The folder of another run with the same six digits stays as it is."""
    first = create(tmp_path, token="secret")
    with pytest.raises(FileExistsError):
        create(tmp_path, token="other")
    assert (first.path / "token").read_text() == "secret\n"


@pytest.mark.parametrize("kind", ["file", "below a file", "device", "too long", "NUL"])
def test_a_directory_that_can_never_be_one_is_a_mistake(kind: str, tmp_path: Path) -> None:
    """A path that names a file, leads through one, or is none at all is a ValueError with the value and the cure."""
    (tmp_path / "file").touch()
    given = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "runs",
        "device": Path(os.devnull),
        "too long": tmp_path / ("x" * 300),
        "NUL": tmp_path / "a\0b",
    }[kind]
    with pytest.raises(ValueError) as refusal:
        create(given)
    assert str(refusal.value).startswith(f"directory={str(given)!r} cannot be a directory (")
    assert str(refusal.value).endswith("); choose another one or leave it out (MONITOR_DIR sets it too)")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_to_a_disk_that_is_not_mounted_is_no_mistake(tmp_path: Path) -> None:
    """A dangling link is a state of the disk, not of the setting: an OSError."""
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    with pytest.raises(OSError):
        create(tmp_path / "runs")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("step", ["mkdir", "open", "replace"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_is_made_whole_or_not_at_all(
    step: str, error: int, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the disk fails under way, neither the run's folder nor an empty directory above it stays."""
    root = tmp_path / "data" / "runs"
    if is_there:
        root.mkdir(parents=True)
    function = getattr(os, step)

    def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
        is_above = step == "mkdir" and Path(path).name != "digits-000001"
        if is_above or (step == "open" and not str(path).startswith(".token")):
            return function(path, *args, **kwargs)
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match=os.strerror(error)):
            create(root, token="secret")
    assert sorted(tmp_path.rglob("*")) == ([tmp_path / "data", root] if is_there else [])


def test_a_relative_directory_is_where_it_was_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that changes its working directory has its folder written where it began."""
    monkeypatch.chdir(tmp_path)
    folder = create(Path("runs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.finish("finished", end_time=200.0)
    assert [run.state for run in list_runs(tmp_path / "runs")] == ["finished"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a write fails the old file is whole, nothing is left over, and the caller gets the OSError."""
    folder = create(tmp_path)
    before = sorted(path.name for path in folder.path.iterdir())
    real_fdopen = os.fdopen

    def to_full_disk(descriptor: int, *args: Any, **kwargs: Any) -> Any:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, descriptor, inheritable=False)
        os.close(full)
        return real_fdopen(descriptor, *args, **kwargs)

    monkeypatch.setattr(os, "fdopen", to_full_disk)
    with pytest.raises(OSError, match="No space left"):
        folder.update(state="running")
    assert [run.state for run in list_runs(tmp_path)] == ["starting"]
    assert sorted(path.name for path in folder.path.iterdir()) == before


def test_only_targets_of_runs_are_pruned(tmp_path: Path) -> None:
    """Files of the user's own in a folder named targets stay, whatever they hold; a dead run's target goes."""
    targets = tmp_path / "targets"
    targets.mkdir()
    theirs = {
        "labels.json": "{}",
        "train-0a1b2c.json": '[{"targets": [], "labels": {"env": "x"}}]',
        "broken-0a1b2d.json": "{",
    }
    for name, text in theirs.items():
        (targets / name).write_text(text)
    ours = '[{"targets": ["127.0.0.1:1"], "labels": {"run_name": "r", "__metrics_path__": "/metrics"}}]'
    (targets / "r-00ff00.json").write_text(ours)
    prune(tmp_path)
    assert {path.name for path in targets.iterdir()} == set(theirs)


def no_entry(_: object) -> Any:
    raise KeyError("uid not found")


def test_without_a_home_there_is_no_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with neither HOME nor a passwd entry is told what to set; what they name is taken."""
    for name in ("HOME", "XDG_DATA_HOME", "MONITOR_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(NoHomeError, match="set HOME, XDG_DATA_HOME or MONITOR_DIR"):
        runs_directory()
    with pytest.raises(NoHomeError, match="'~/runs'; set HOME or give a full path"):
        runs_directory("~/runs")
    assert runs_directory(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert runs_directory() == tmp_path / "training-monitor"


def put(kind: str, path: Path) -> None:
    """Put something in the place of a file of ours."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**40)  # sparse
    else:
        path.write_bytes({"nested": b"[" * 200_000, "deep": b'{"run_id":' * 5_000, "binary": b"\xff\xfe\0"}[kind])


def tried(read: Callable[[], Any]) -> Any:
    """Return what is read; None where it is refused or not there."""
    with suppress(UntrustedError):
        return read()


KINDS = ("fifo", "link to /dev/zero", "directory", "huge", "nested", "deep", "binary")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_lies_in_a_folder_hides_no_other_run(kind: str, tmp_path: Path) -> None:
    """A FIFO, a device, a directory or a flood of brackets in the place of any file is passed over, and pruned by."""
    good, bad, ended = (create(tmp_path, f"{name}-000001", token="secret") for name in ("good", "bad", "ended"))
    for folder in (good, bad):
        folder.update(state="running", url="http://127.0.0.1:9477/")
    ended.finish("finished", end_time=200.0)
    for path in (bad.path / "run.json", ended.path / "final.json", ended.path / "last.json", ended.path / "token"):
        put(kind, path)
    put(kind, tmp_path / "targets" / "bad-000001.json")
    put(kind, tmp_path / "a-000001")
    found = list_runs(tmp_path)
    assert [run.run_id for run in found] == ["ended-000001", "good-000001"]
    assert (tried(found[0].read_final), tried(found[0].read_token), found[1].read_token()) == (None, None, "secret")
    prune(tmp_path, keep=1)
    assert "good-000001" in [run.run_id for run in list_runs(tmp_path)]


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": float("inf")},
        {"start_time": float("nan")},
        {"start_time": 10**400},
        {"state": []},
        {"state": "x" * 10_000},
        {"pid": [1]},
    ],
    ids=str,
)
def test_values_that_no_run_writes_are_passed_over(changes: dict[str, Any], tmp_path: Path) -> None:
    """A run.json whose numbers or words cannot be is no run."""
    rewrite(create(tmp_path), **changes)
    assert list_runs(tmp_path) == []


def test_names_are_fit_for_a_terminal(tmp_path: Path) -> None:
    """Control characters and half a character, which JSON can hold, are shown as question marks."""
    rewrite(create(tmp_path), name="a\x1b[2J\n\ud800é", url="http://x/\x07")
    (found,) = list_runs(tmp_path)
    assert (found.name, found.url) == ("a?[2J??é", "http://x/?")


def test_an_id_that_no_terminal_can_show_is_none(tmp_path: Path) -> None:
    """A folder whose name would steer the terminal is passed over, whatever it holds."""
    folder = create(tmp_path)
    rewrite(folder, run_id="a\x1b[2J")
    folder.path.rename(tmp_path / "a\x1b[2J")
    assert list_runs(tmp_path) == []


@pytest.mark.parametrize("token", ["two\nlines", "sécret", ""])
def test_a_token_that_no_header_can_carry_is_none(token: str, tmp_path: Path) -> None:
    """What stands in the file named token is sent only if it can be."""
    folder = create(tmp_path, token="secret")
    (folder.path / "token").write_text(token)
    assert list_runs(tmp_path)[0].read_token() is None


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    """A file of the longest length is read whole, a longer one not at all, and a link is not followed."""
    (tmp_path / "file").write_text("x" * 10)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    found = (read_text(tmp_path / "file", 10), read_text(tmp_path / "file", 9), read_text(tmp_path / "link"))
    assert found == ("x" * 10, None, None)


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Whatever stands there, as many descriptors are open as before."""
    before = len(os.listdir("/proc/self/fd"))
    for kind in KINDS:
        put(kind, tmp_path / "file")
        read_text(tmp_path / "file")
        (tmp_path / "file").rename(tmp_path / f"passed over {KINDS.index(kind)}")
    assert len(os.listdir("/proc/self/fd")) == before


class Timer:
    """A clock that is running by a second fraction at every look."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def test_pruning_takes_a_second_at_most(tmp_path: Path) -> None:
    """On a slow disk a part of what is too much is removed, oldest first, and the rest by the runs that follow."""
    for number in range(12):
        create(tmp_path, f"run-{number:02}", start_time=float(number)).finish("finished", end_time=9.0)
    prune(tmp_path, keep=2, timer=Timer(0.07))
    assert [run.run_id for run in list_runs(tmp_path)] == [f"run-{number:02}" for number in range(5, 12)]
    for _ in range(4):
        prune(tmp_path, keep=2, timer=Timer(0.07))
    assert [run.run_id for run in list_runs(tmp_path)] == ["run-10", "run-11"]


def fill(folder: RunFolder, size: int) -> None:
    (folder.path / "run.db").write_bytes(b"x" * size)


def test_the_oldest_ended_runs_go_when_all_together_are_too_large(tmp_path: Path) -> None:
    """Live runs count and stay; of those that ended the newest that fit stay."""
    fill(create(tmp_path, "old-live", start_time=0.0), 40_000)
    for number in range(4):
        folder = create(tmp_path, f"run-{number}", start_time=float(number + 1))
        fill(folder, 20_000)
        folder.finish("finished", end_time=9.0)
    prune(tmp_path, max_bytes=90_000)
    assert [run.run_id for run in list_runs(tmp_path)] == ["old-live", "run-2", "run-3"]
    prune(tmp_path, max_bytes=2**32)
    assert len(list_runs(tmp_path)) == 3


def test_runs_that_are_too_old_go(tmp_path: Path) -> None:
    """A run that began earlier than so many days ago goes, unless it is live."""
    create(tmp_path, "old-live", start_time=0.0)
    for number in range(3):
        create(tmp_path, f"run-{number}", start_time=number * 86_400.0).finish("finished", end_time=9.0)
    prune(tmp_path, max_days=1.5, clock=lambda: 3 * 86_400.0)
    assert [run.run_id for run in list_runs(tmp_path)] == ["old-live", "run-2"]


def test_a_run_that_is_looked_at_is_not_removed(tmp_path: Path) -> None:
    """Neither by a run that starts nor by hand; once nobody looks any more, it goes."""
    create(tmp_path).finish("finished", end_time=9.0)
    (known,) = list_runs(tmp_path)
    with held(known), held(known):
        prune(tmp_path, keep=0)
        assert not remove_run(known)
        assert list_runs(tmp_path) == [known]
    assert remove_run(known)
    assert list_runs(tmp_path) == []

"""Of a run folder nothing is read, written, locked or removed that somebody else may have put there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor._errors import StoreError
from monitor.store import RunFolder, StoreReader, UntrustedError, claim_run, list_runs, prune, remove_run
from monitor.store._files import lock
from monitor.store._trusted import opened, read_own_text
from tests.foreign import NOBODY, give_away
from tests.store.made import write

RUN_ID = "digits-000001"
FILES = ("run.json", "token", "last.json", "lock")
SECRET = "one-line-secret-of-the-user"


def create(root: Path, run_id: str = RUN_ID) -> RunFolder:
    folder = RunFolder.create(root, run_id, name="digits", start_time=100.0, token="secret")
    folder.update(state="running", url="http://127.0.0.1:9477/")
    folder.autosave({"state": "running"})
    folder.hold(0.0)
    return folder


def planted(path: Path) -> None:
    """Put a link to a secret in the place of a file."""
    secret = path.parent.parent / "secret"
    secret.write_text(SECRET)
    path.unlink()
    path.symlink_to(secret)


def hung(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


def by_anybody(path: Path) -> None:
    path.chmod(0o666)


def by_a_group(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another group")
    os.chown(path, -1, NOBODY)
    path.chmod(0o660)


REFUSALS: dict[Callable[[Path], None], str] = {
    planted: "is a link, and links are not followed; put there what it leads to",
    hung: "is not a regular file; remove it",
    by_anybody: r"can be written by others \(mode 0666\); `chmod go-w {path}` if nobody has, or remove it",
    by_a_group: r"can be written by others \(mode 0660\); `chmod go-w {path}` if nobody has, or remove it",
    give_away: rf"belongs to user {NOBODY}, and only what is yours or root's is used; act as that user, or remove it",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_a_file_is_refused_by_name_with_the_remedy(spoil: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    """A link, a FIFO, what others can write and what is another user's is neither read nor locked."""
    path = create(tmp_path).path / name
    spoil(path)
    with pytest.raises(UntrustedError, match=f"^{path} {REFUSALS[spoil].format(path=path)}$"):
        lock(path.parent) if name == "lock" else read_own_text(path)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """A file has a longest length, a last state another one."""
    folder = create(tmp_path)
    huge(folder.path / "token")
    with pytest.raises(UntrustedError, match="token is longer than 8,192 bytes, and no run has written that; remove"):
        folder.run.read_token()
    folder.finish("finished", end_time=200.0, final={})
    huge(folder.path / "final.json")
    with pytest.raises(UntrustedError, match=r"final\.json is longer than 16,777,216 bytes"):
        folder.run.read_final()


@pytest.mark.parametrize("spoil", [by_anybody, give_away], ids=lambda spoil: spoil.__name__)
def test_a_folder_of_others_is_passed_over_and_told(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    """Of three folders the one that somebody else may have written hides none, is told once, and is not touched."""
    for number in range(3):
        create(tmp_path, f"digits-00000{number}").finish("finished", end_time=200.0)
    bad = tmp_path / RUN_ID
    spoil(bad)
    refused: list[UntrustedError] = []
    assert [run.run_id for run in list_runs(tmp_path, on_refused=refused.append)] == ["digits-000000", "digits-000002"]
    assert [str(error).startswith(f"{bad} ") for error in refused] == [True]
    prune(tmp_path, keep=0)
    assert [path.name for path in sorted(tmp_path.glob("digits*"))] == [RUN_ID]
    with pytest.raises(UntrustedError, match=str(bad)):
        claim_run(tmp_path, RUN_ID, rank=0, token="new")
    assert (bad / "token").read_text() == "secret\n"


def test_what_is_no_run_is_nobodys_business(tmp_path: Path) -> None:
    """A folder of somebody else's without a run in it is no refusal: a runs directory may hold anything."""
    (tmp_path / "theirs").mkdir(mode=0o777)
    (tmp_path / "theirs").chmod(0o777)
    refused: list[UntrustedError] = []
    assert list_runs(tmp_path, on_refused=refused.append) == []
    assert refused == []


def test_a_link_to_a_folder_is_no_run(tmp_path: Path) -> None:
    """A run folder is where it is said to be, and nothing of it is written, locked or removed by way of a link."""
    folder = create(tmp_path / "elsewhere")
    link = tmp_path / RUN_ID
    link.symlink_to(folder.path)
    assert list_runs(tmp_path) == []
    with pytest.raises(UntrustedError, match=f"^{link} is a link"), opened(link):
        pass
    with pytest.raises(FileExistsError):
        create(tmp_path)


def test_the_folder_that_was_opened_is_the_one_that_is_used(tmp_path: Path) -> None:
    """Whoever may rename a run folder gains nothing: its files are found by the descriptor, not by the path again."""
    folder = create(tmp_path)
    with opened(folder.path) as place:
        folder.path.rename(tmp_path / "moved")
        (tmp_path / "trap").mkdir()
        folder.path.symlink_to(tmp_path / "trap")
        os.close(place.open("new", os.O_WRONLY | os.O_CREAT))
        place.replace("new", "token")
        place.remove("last.json")
    assert list((tmp_path / "trap").iterdir()) == []
    assert (tmp_path / "moved" / "token").read_text() == ""
    assert not (tmp_path / "moved" / "last.json").exists()


def test_a_token_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    """A link named token in a planted folder has no secret of the user read, whoever the folder's address leads to."""
    path = create(tmp_path).path
    planted(path / "token")
    (found,) = list_runs(tmp_path)
    with pytest.raises(UntrustedError, match="token is a link"):
        found.read_token()


def test_root_and_a_private_group_are_trusted(tmp_path: Path) -> None:
    """What root has written, and what only the user's own group of the same number can write, is used as it is."""
    folder = create(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("only root can make files of root")
    for path in (folder.path, folder.path / "token"):
        path.chmod(path.stat().st_mode | 0o020)  # gid 0 is root's own group
    (found,) = list_runs(tmp_path)
    assert found.read_token() == "secret"
    for path in (folder.path, *folder.path.iterdir()):
        path.chmod(0o755)
    tmp_path.chmod(0o755)
    assert as_nobody(tmp_path, lambda: [run.read_token() for run in list_runs(".")]) == "['secret']"


def as_nobody(directory: Path, function: Callable[[], object]) -> str:
    """Return what a function returns in a process of another user that begins in a directory."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, repr(function()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return answer.read()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_whatever_the_umask_nobody_else_can_write(umask: int, tmp_path: Path) -> None:
    """Runs directory, those above it, run folder, targets and every file: no bit for others to write."""
    before = os.umask(umask)
    try:
        folder = create(tmp_path / "a" / "b" / "runs")
        write(folder.path / "run.db", [1]).close()
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode for path in tmp_path.rglob("*")}
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o022} == {}
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755 & ~umask


def test_targets_that_an_earlier_version_left_open_are_closed(tmp_path: Path) -> None:
    """A folder of one's own that was made as the umask said is mended; the run becomes a target."""
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets").chmod(0o777)
    create(tmp_path)
    assert (tmp_path / "targets").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "targets" / f"{RUN_ID}.json").exists()


def test_sticky_targets_are_shared(tmp_path: Path) -> None:
    """Where an administrator has made one folder of targets for all, a user's own lie there; no others are swept."""
    targets = tmp_path / "targets"
    targets.mkdir()
    targets.chmod(0o1777)
    theirs = targets / "theirs-000001.json"
    create(tmp_path)
    theirs.write_text((targets / f"{RUN_ID}.json").read_text())
    give_away(theirs)
    prune(tmp_path)
    assert sorted(path.name for path in targets.iterdir()) == [f"{RUN_ID}.json", theirs.name]
    assert targets.stat().st_mode & 0o7777 == 0o1777


def test_targets_that_are_a_link_get_no_file(tmp_path: Path) -> None:
    """Nothing is written, pruned or withdrawn by way of a link named targets, and the refusal names it."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / f"{RUN_ID}.json").write_text("[]")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "targets").symlink_to(theirs)
    with pytest.raises(UntrustedError, match="targets is a link"):
        create(tmp_path / "runs")
    (run,) = list_runs(tmp_path / "runs")
    prune(tmp_path / "runs", keep=0)
    with pytest.raises(UntrustedError, match="targets is a link"):
        RunFolder(run).withdraw()
    assert (theirs / f"{RUN_ID}.json").read_text() == "[]"


def test_targets_of_another_user_stay(tmp_path: Path) -> None:
    """Where several users share a runs directory, a target that is another's is not swept."""
    folder = create(tmp_path)
    target = tmp_path / "targets" / f"{RUN_ID}.json"
    content = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**content, "state": "finished", "end_time": 200.0}))
    give_away(target)
    prune(tmp_path)
    assert target.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o755])
@pytest.mark.parametrize("is_link", [False, True])
def test_the_runs_directory_may_be_anybodys(mode: int, is_link: bool, tmp_path: Path) -> None:
    """A shared one, a volume that all may write, a link to another disk: what lies in it is judged by itself."""
    disk = tmp_path / "disk"
    disk.mkdir()
    disk.chmod(mode)
    root = tmp_path / "link" if is_link else disk
    if is_link:
        root.symlink_to(disk)
    folder = create(root)
    assert [run.read_token() for run in list_runs(root)] == ["secret"]
    folder.finish("finished", end_time=200.0)
    assert remove_run(list_runs(root)[0])


def test_a_store_that_others_can_write_is_not_opened(tmp_path: Path) -> None:
    """The run store, too, is one's own or root's alone."""
    write(tmp_path / "run.db", [1]).close()
    (tmp_path / "run.db").chmod(0o666)
    with pytest.raises(StoreError, match=r"run.db can be written by others \(mode 0666\); `chmod go-w"):
        StoreReader(tmp_path)


@pytest.mark.parametrize("name", ["watcher.log", "lock", "run.json"])
def test_nothing_is_written_by_way_of_a_link(name: str, tmp_path: Path) -> None:
    """A link in the place of log or lock is refused; one in the place of a state is replaced, not followed."""
    folder = create(tmp_path)
    theirs = tmp_path / "theirs"
    theirs.write_text("as it was")
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).symlink_to(theirs)
    if name == "run.json":
        folder.finish("finished", end_time=200.0)
    else:
        with pytest.raises(UntrustedError, match=f"{name} is a link"):
            lock(folder.path) if name == "lock" else folder.take_errors()
    assert theirs.read_text() == "as it was"


def test_a_socket_is_no_file(tmp_path: Path) -> None:
    """What cannot even be opened is no reason to fail."""
    folder = create(tmp_path)
    (folder.path / "run.json").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder.path / "run.json"))
        assert list_runs(tmp_path) == []

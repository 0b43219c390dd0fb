"""``monitor runs rm`` removes what is over, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from monitor.cli._main import main
from monitor.store import STORE_FILE, RunFolder, list_runs

DAY = 86_400.0


@pytest.fixture
def folders() -> list[RunFolder]:
    """Four runs that are over, a day between them, and a live one."""
    made = []
    for number, state in enumerate(("finished", "failed", "vanished", "interrupted", "running")):
        start = time.time() - (4 - number) * DAY - 60
        folder = RunFolder.create(None, f"run{number}-00000{number}", name=f"run{number}", start_time=start, token="t")
        if state != "running":
            folder.finish(state, end_time=start + 10, final={"state": state})
        (folder.path / STORE_FILE).touch()
        made.append(folder)
    return made


def rm(*words: str) -> Result:
    return CliRunner().invoke(main, ["runs", "rm", *words])


def left() -> list[str]:
    return [run.name for run in list_runs()]


def test_named_runs_are_removed_with_all_their_files(folders: list[RunFolder]) -> None:
    """By id, name or prefix; the others stay."""
    result = rm("run0", folders[2].run.run_id)
    assert (result.exit_code, left()) == (0, ["run1", "run3", "run4"])
    assert result.output.splitlines() == ["removed run0-000000", "removed run2-000002"]
    assert not folders[0].path.exists()


def test_the_newest_are_kept(folders: list[RunFolder]) -> None:
    """``--keep 2`` leaves the two newest; a live run counts, and is never removed."""
    assert (rm("--keep", "2").exit_code, left()) == (0, ["run3", "run4"])
    assert (rm("--keep", "0").exit_code, left()) == (0, ["run4"])


def test_old_ones_are_removed(folders: list[RunFolder]) -> None:
    """``--older-than`` counts from the start of a run; with ``--keep`` both must hold."""
    assert (rm("--older-than", "2", "--keep", "4").exit_code, left()) == (0, ["run1", "run2", "run3", "run4"])
    assert (rm("--older-than", "2").exit_code, left()) == (0, ["run3", "run4"])


def test_the_newest_that_have_room_are_kept(folders: list[RunFolder]) -> None:
    """``--keep-bytes`` counts all folders, live ones too."""
    for folder in folders:
        (folder.path / STORE_FILE).write_bytes(b"x" * 50_000)
    assert (rm("--keep-bytes", "180000").exit_code, left()) == (0, ["run2", "run3", "run4"])
    assert (rm("--keep-bytes", "0").exit_code, left()) == (0, ["run4"])


def test_a_dry_run_removes_nothing(folders: list[RunFolder]) -> None:
    """It says what would be removed."""
    result = rm("--keep", "4", "--dry-run")
    assert (result.output, len(left())) == ("would remove run0-000000\n", 5)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "name runs to remove, or say which by --keep, --older-than or --keep-bytes"),
        (("run0", "--keep", "1"), 2, "name runs to remove, or say which by --keep, --older-than or --keep-bytes"),
        (("run4",), 1, "run4-000004 is starting; `monitor stop run4-000004` asks it to end"),
        (("nothing",), 2, "nothing"),
    ],
)
def test_what_cannot_be_removed_is_refused(
    words: tuple[str, ...], code: int, said: str, folders: list[RunFolder]
) -> None:
    """A live run, an unknown one, and a command that says nothing: all runs stay."""
    result = rm(*words)
    assert (result.exit_code, len(left())) == (code, 5)
    assert said in result.output


def test_a_file_of_somebody_else_stays(folders: list[RunFolder]) -> None:
    """What no run has made is not ours to remove, and neither is the folder around it."""
    (folders[0].path / "notes.txt").write_text("mine")
    result = rm("run0")
    assert result.exit_code == 1
    assert "the folder holds other files" in result.output
    assert (folders[0].path / "notes.txt").read_text() == "mine"


def test_nothing_to_remove(tmp_path: Path) -> None:
    """Without runs there is nothing to do, and no error."""
    result = rm("--keep", "3")
    assert (result.exit_code, result.output) == (0, "nothing to remove\n")

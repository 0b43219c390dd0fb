"""A run that is over is claimed by one process, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from monitor._errors import StoreError
from monitor.store import KnownRun, RunFolder, claim_run, give_back, list_runs, newest_run, prune
from monitor.store import _claim as claims
from monitor.store._files import lock, unlock

RUN_ID = "digits-000001"


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOCK_SECONDS", 0.05)


def over(root: Path, run_id: str = RUN_ID, state: str = "interrupted", **changes: Any) -> RunFolder:
    """Return the folder of a run that has ended."""
    given = {"name": "digits", "start_time": 100.0, "script": "digits.py", "token": "old", **changes}
    folder = RunFolder.create(root, run_id, **given)
    folder.finish(state, end_time=200.0, final={"state": state, "optimizers": []})
    return folder


def claim(root: Path, **changes: Any) -> KnownRun:
    return claim_run(root, RUN_ID, **{"rank": 0, "token": "new", **changes})


def test_a_claimed_run_is_the_live_run_of_this_process(tmp_path: Path) -> None:
    """Id, name and start stay; process, state and token are those of the new session; what it was can be had back."""
    over(tmp_path)
    before = claim(tmp_path)
    (now,) = list_runs(tmp_path)
    assert (before.state, before.end_time) == ("interrupted", 200.0)
    assert (now.state, now.pid, now.start_time, now.end_time) == ("starting", os.getpid(), 100.0, None)
    assert (now.read_token(), now.name, now.script) == ("new", "digits", "digits.py")
    assert now.session_time > 200.0
    give_back(before)
    assert list_runs(tmp_path) == [before]


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"state": "running", "end_time": None}, {}, "is running"),
        ({"rank": 2}, {}, "run of rank 2, this is rank 0"),
        ({"rank": 2, "state": "running", "end_time": None}, {}, "run of rank 2, this is rank 0"),
        ({"state": "finished"}, {"states": ("failed",)}, "is finished"),
        ({}, {"is_wanted": lambda: False}, "took too long"),
    ],
)
def test_what_cannot_be_claimed_is_left_as_it_was(
    changes: dict[str, Any], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The reason is told, and run.json is not touched."""
    path = over(tmp_path).path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    content = path.read_text()
    with pytest.raises(StoreError, match=message):
        claim(tmp_path, **given)
    assert path.read_text() == content


def test_a_claim_that_hung_in_the_middle_is_taken_back(tmp_path: Path) -> None:
    """Nobody waits for it any more: the run is over as it was."""
    over(tmp_path)
    before = list_runs(tmp_path)
    answers = iter([True, False])
    claim(tmp_path, is_wanted=lambda: next(answers))
    assert list_runs(tmp_path) == before


def test_a_folder_that_is_written_to_is_neither_claimed_nor_removed(tmp_path: Path) -> None:
    """The watcher of a process that was killed still records its end; then the run may be continued or go."""
    folder = over(tmp_path)
    held = lock(folder.path)
    with pytest.raises(StoreError, match="another process writes to the folder"):
        claim(tmp_path)
    prune(tmp_path, 0)
    assert [run.run_id for run in list_runs(tmp_path)] == [RUN_ID]
    unlock(held)
    claim(tmp_path)
    prune(tmp_path, 0)
    assert [run.state for run in list_runs(tmp_path)] == ["starting"]
    with pytest.raises(StoreError, match="no run digits-000009 is known"):
        claim_run(tmp_path, "digits-000009", rank=0, token="new")


@pytest.mark.parametrize(
    ("num", "told"),
    [(2, "digits-000001, digits-000000: give an id"), (7, "digits-000002 and 2 earlier ones: give an id")],
)
def test_a_name_is_answered_with_the_ids_of_its_runs(num: int, told: str, tmp_path: Path) -> None:
    """The newest first: one of them was meant."""
    for number in range(num):
        over(tmp_path, f"digits-{number:06}", start_time=100.0 + number)
    over(tmp_path, "gan-000001", name="gan")
    with pytest.raises(StoreError) as caught:
        claim_run(tmp_path, "digits", rank=0, token="new")
    assert f"no run digits is known in {tmp_path}; that is the name of digits-" in str(caught.value)
    assert str(caught.value).endswith(told)
    assert "gan" not in str(caught.value)


def test_a_live_run_holds_its_folder_up_to_its_end(tmp_path: Path) -> None:
    """Nobody else takes the lock meanwhile; with the end it is free."""
    folder = RunFolder.create(tmp_path, RUN_ID, name="digits", start_time=100.0)
    folder.hold(0.0)
    with pytest.raises(BlockingIOError):
        lock(folder.path)
    folder.finish("finished", end_time=200.0)
    unlock(lock(folder.path))


def test_a_watcher_that_lingers_touches_nothing_of_the_next_session(tmp_path: Path) -> None:
    """It neither keeps its last state there nor takes the target of the run away."""
    old = over(tmp_path)
    path = old.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 1, "process_start": "1"}))
    claim(tmp_path)
    new = RunFolder.reopen(tmp_path, RUN_ID, os.getpid())
    assert new is not None
    assert new.carry_on() == {"state": "interrupted", "optimizers": []}
    new.update(state="running", url="http://127.0.0.1:9477")
    old._run = claims.replace(old.run, process_start="another")
    old.autosave({"state": "of the old session"})
    old.withdraw()
    assert (tmp_path / "targets" / f"{RUN_ID}.json").exists()
    assert new.carry_on() == {"state": "interrupted", "optimizers": []}


def test_the_newest_run_is_the_one_whose_session_began_last(tmp_path: Path) -> None:
    """Of the same name, script and rank; a run that was continued is as young as its last session."""
    over(tmp_path)
    over(tmp_path, "digits-000002", start_time=150.0)
    over(tmp_path, "digits-000003", start_time=160.0, script="other.py")
    over(tmp_path, "digits-000004", start_time=160.0, rank=1)
    over(tmp_path, "other-000005", start_time=160.0, name="other")

    def newest() -> str | None:
        found = newest_run(tmp_path, name="digits", script="digits.py", rank=0)
        return None if found is None else found.run_id

    assert newest() == "digits-000002"
    claim(tmp_path)
    assert newest() == RUN_ID
    assert newest_run(tmp_path, name="nobody", script="digits.py", rank=0) is None

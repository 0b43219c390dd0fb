"""What a run leaves in its store: everything, once, whatever becomes of the two processes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor._records import Sample
from monitor.store import STORE_FILE, StoreReader, list_runs
from monitor.watcher._run_store import RunStore
from tests.store.made import a_step as step_of
from tests.watcher.test_process import (
    PATIENCE_SECONDS,
    Script,
    Trained,
    attach,
    gone,
    pid_of_watcher,
    wait_for,
    watcher_of,
)

KEPT = {"store_bytes": 2**23}


def store_of(directory: Path) -> StoreReader:
    (run,) = list_runs(directory)
    return StoreReader(run.path / STORE_FILE)


def steps_in(store: StoreReader, optimizer: str = "SGD") -> list[int]:
    return [point.last_step for point in store.rows("optimizer", optimizer, "loss")]


@pytest.fixture(params=["process", "thread"])
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**KEPT, "watcher": request.param}


def test_everything_that_was_recorded_is_in_the_store(form: dict[str, Any], tmp_path: Path) -> None:
    """Every step, every logged value, every event and command with its text, settings, environment and exception."""
    trained = Trained()
    with pytest.raises(RuntimeError), attach(trained.optimizer, total_steps=7, token="a" * 20, **form) as run:
        for number in range(5):
            trained.train(1)
            run.log(accuracy=number / 10, val_loss=1.0 - number / 10)
        command = run.reduce_lr(0.5, reason="tried")
        trained.train(1)
        run.flush(PATIENCE_SECONDS)
        raise RuntimeError("the disk of the data set is gone")
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "failed", "the end")
    with store_of(tmp_path / "runs") as store:
        assert steps_in(store) == [1, 2, 3, 4, 5, 6]
        assert [point.mean for point in store.rows("metric", "accuracy")] == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert len(list(store.rows("val_loss", "validation"))) == 5
        events = store.events()
        assert [event["kind"] for event in events] == ["state", "control", "state"]
        assert "the disk of the data set is gone" in events[-1]["message"]
        outcome = store.commands()[-1]
        assert (outcome["id"], outcome["status"], outcome["reason"]) == (command.id, "applied", "tried")
        facts = store.facts()
    assert (facts["state"], facts["settings"]["total_steps"]) == ("failed", 7)
    assert facts["run"]["run_id"] == run.id
    assert {"python", "torch", "platform", "arguments"} <= set(facts["environment"])
    assert "RuntimeError: the disk of the data set is gone" in facts["exception"]
    (folder,) = [one.path for one in list_runs(tmp_path / "runs")]
    assert b"a" * 20 not in (folder / STORE_FILE).read_bytes()


def test_a_loss_that_is_logged_after_its_step_is_in_the_row_of_that_step(form: dict[str, Any], tmp_path: Path) -> None:
    """That of the first step as well, and of a run that makes one step only."""
    for steps in (3, 1):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        with attach(optimizer, directory=str(tmp_path / f"{steps}"), **form) as run:
            for number in range(1, steps + 1):
                weight.grad = torch.ones(3)
                optimizer.step()
                run.log(loss=number / 10)
        wait_for(lambda: [one.state for one in list_runs(tmp_path / f"{steps}")] == ["finished"], "the end")  # noqa: B023
        with store_of(tmp_path / f"{steps}") as store:
            points = list(store.rows("optimizer", "SGD", "loss"))
        assert [(point.last_step, point.mean) for point in points] == [(n, n / 10) for n in range(1, steps + 1)]


def test_a_store_is_read_while_the_run_continues(tmp_path: Path) -> None:
    """A second after a step it is on disk, and whoever opens the file meanwhile sees it."""
    trained = Trained()
    with attach(trained.optimizer, **KEPT) as run:
        trained.train(3)
        run.flush(PATIENCE_SECONDS)
        wait_for(lambda: (list_runs(tmp_path / "runs")[0].path / STORE_FILE).exists(), "the store")

        def found() -> list[int]:
            with store_of(tmp_path / "runs") as store:
                return steps_in(store)

        wait_for(lambda: found() == [1, 2, 3], "three steps in the store")


def test_no_store_is_kept_where_none_is_wanted(form: dict[str, Any], tmp_path: Path) -> None:
    """``store_bytes=0`` leaves no file."""
    trained = Trained()
    with attach(trained.optimizer, **{**form, "store_bytes": 0}) as run:
        trained.train(1)
        run.flush(PATIENCE_SECONDS)
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")
    assert not (list_runs(tmp_path / "runs")[0].path / STORE_FILE).exists()


def test_a_killed_training_leaves_every_step_that_was_shipped(tmp_path: Path) -> None:
    """The watcher writes what it has got and closes the file; the last event says that the run has vanished."""
    script = Script(tmp_path, f"run = attach(**{KEPT}); train(40); run.flush(); say(run.url); wait()")
    script.hear()
    watcher = pid_of_watcher(script)
    script.end()
    wait_for(lambda: gone(watcher), "the end of the watcher")
    with store_of(tmp_path / "runs") as store:
        assert steps_in(store) == list(range(1, 41))
        assert "vanished at step 40" in store.events()[-1]["message"]
        assert store.facts()["state"] == "vanished"


def test_a_watcher_that_takes_over_writes_nothing_twice(tmp_path: Path) -> None:
    """What the last watcher had committed and is sent again is in the store once, events included."""
    trained = Trained()
    with attach(trained.optimizer, **KEPT) as run:
        trained.train(10)
        assert run.flush(PATIENCE_SECONDS)
        for _ in range(2):
            first = watcher_of(run)
            wait_for(lambda: store_has(tmp_path, run.step), "a commit")
            first.kill()
            trained.train(10)
            wait_for(lambda seen=first: watcher_of(run).pid != seen.pid, "another watcher")  # type: ignore[misc]
            assert run.flush(PATIENCE_SECONDS)
        assert run.snapshot().errors.get("folder", 0) == 0
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")
    with store_of(tmp_path / "runs") as store:
        assert steps_in(store) == list(range(1, 31))
        numbers = [event["seq"] for event in store.events()]
        assert store.attempts() == []
    assert numbers == sorted(set(numbers))


def test_what_comes_at_the_last_step_of_the_last_watcher_is_kept(tmp_path: Path) -> None:
    """Sent again, rows are left out; a value logged at the same step later, and an earlier step run again, are not."""

    def post(act: Callable[[Path], None]) -> None:
        act(tmp_path)

    def filled(rows: list[Any], **settings: Any) -> RunStore:
        errors: list[Exception] = []
        store = RunStore(errors.append, max_bytes=2**21, **settings)
        for number, when in rows:
            store.add_step(step_of(number), None, when)
            store.add_sample(Sample("metric", "accuracy", when, number, when), when)
        store.flush(post)
        store.close(post)
        assert errors == []
        return store

    filled([(1, 1.0), (2, 2.0), (3, 3.0)])
    again = RunStore(pytest.fail, max_bytes=2**21, is_continued=True)
    again.add_sample(Sample("metric", "accuracy", 3.0, 3, 3.0), 3.0)
    again.add_sample(Sample("metric", "accuracy", 3.5, 3, 3.5), 3.5)
    again.close(post)
    filled([(2, 2.0), (3, 3.0), (4, 4.0), (2, 5.0), (3, 6.0)], is_continued=True)
    with StoreReader(tmp_path / STORE_FILE) as store:
        assert [point.last_step for point in store.rows("optimizer", "adam", "loss")] == [1, 2, 3, 4, 2, 3]
        values = [point.mean for point in store.rows("metric", "accuracy")]
    assert values == [1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 6.0]


def test_no_record_is_lost_between_the_threads_that_hand_them_in(tmp_path: Path) -> None:
    """Commands come on another thread than steps: what is handed in during a flush is written with the next one."""
    store = RunStore(pytest.fail, max_bytes=2**21)
    others = [monitor.CommandRecord("a1", "reduce", "api", 0.0)]

    class Handed(deque[Any]):
        def popleft(self) -> Any:
            while others:
                store.add_command(others.pop())
            return super().popleft()

    store._waiting = Handed()
    store.add_step(step_of(1), None, 1.0)
    store.flush(lambda act: act(tmp_path))
    store.close(lambda act: act(tmp_path))
    with StoreReader(tmp_path / STORE_FILE) as reader:
        assert [one["id"] for one in reader.commands()] == ["a1"]


def test_what_a_disk_that_does_not_answer_costs_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of waiting records they are dropped, and the store says how many."""
    monkeypatch.setattr("monitor.watcher._run_store.MAX_WAITING", 2)
    waiting: list[Any] = []
    store = RunStore(pytest.fail, max_bytes=2**21)
    for number in range(1, 6):
        store.add_step(step_of(number), None, float(number))
    store.close(waiting.append)
    for act in waiting:
        act(tmp_path)
    with StoreReader(tmp_path / STORE_FILE) as reader:
        assert len(list(reader.rows("optimizer", "adam", "loss"))) == 2
        assert reader.facts()["dropped"] == 3


def store_has(tmp_path: Path, step: int) -> bool:
    try:
        with store_of(tmp_path / "runs") as store:
            return steps_in(store)[-1:] == [step]
    except monitor.MonitorError:
        return False


@pytest.mark.parametrize("seed", range(3))
def test_both_killed_at_a_random_moment_leave_a_store_that_opens(tmp_path: Path, seed: int) -> None:
    """Whenever both processes are killed, the file opens, and its steps are the first ones without a gap."""
    script = Script(
        tmp_path, f"run = attach(**{KEPT}); train(5); say(run.url)\nwhile True: train(1); time.sleep(0.001)"
    )
    script.hear()
    watcher = pid_of_watcher(script)
    path = wait_for(lambda: list_runs(tmp_path / "runs"), "the folder")[0].path / STORE_FILE
    wait_for(path.exists, "the store")

    time.sleep(random.Random(seed).uniform(0.0, 2.0))
    os.kill(watcher, signal.SIGKILL)
    script.end()
    with store_of(tmp_path / "runs") as store:
        steps = steps_in(store)
    assert steps == list(range(1, len(steps) + 1))

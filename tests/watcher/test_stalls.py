"""A run that stalls says where its training thread stands, in both forms of the watcher."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import monitor
from monitor._records import Event
from tests.watcher.test_process import Trained, ask, attach, trained

__all__ = ["trained"]
FORMS = pytest.mark.parametrize("form", ["thread", "process"])
PATIENCE = 60.0


def stand_still(run: monitor.Run) -> list[Event]:
    """Make no step until the run has said where this thread stands; return the events of it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := stalled(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def stalled(run: monitor.Run) -> list[Event]:
    return [event for event in run.events() if event.details.get("state") == "stalled"]


@FORMS
def test_a_stall_says_where_the_training_thread_stands(form: str, trained: Trained) -> None:
    """An event after that of the stall, with the stack, on the page and in the API; the message is one line."""
    with attach(trained.optimizer, watcher=form, stall_timeout=0.5) as run:
        trained.train(5)
        (event,) = stand_still(run)
        kinds = [one.kind for one in run.events()]
        told = ask(run, "/api/v1/events")["events"]
        trained.train(3)
        run.flush()
        assert len(stalled(run)) == 1
    (stack,) = event.details["stacks"]
    assert stack["ranks"] == [0]
    assert "in stand_still\n" in stack["stack"]
    assert kinds.index("stall") < kinds.index("state", 1)
    assert (event.kind, event.severity, event.end_step, event.step) == ("state", "warning", 5, 5)
    assert event.message.startswith("the training thread is in ")
    assert "(test_stalls.py:" in event.message
    assert "\n" not in event.message
    assert told[-1]["details"]["stacks"] == [stack]


@FORMS
def test_the_line_in_the_log_is_one(form: str, trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    """It names the innermost frame; the stack is in the event."""
    with attach(trained.optimizer, watcher=form, stall_timeout=0.5) as run:
        trained.train(5)
        stand_still(run)
        run.flush()
    first, line = [one.getMessage() for one in caplog.records if one.getMessage().startswith("stall")]
    assert first.startswith("stall of SGD at step 5: no step for ")
    assert line.startswith("stall at step 5: the training thread is in ")
    assert "\n" not in line


def test_only_so_many_stalls_have_their_stacks_taken(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events are large: memory and store have a bound."""
    monkeypatch.setattr("monitor.run._training_side.MAX_STALLS", 2)
    with attach(trained.optimizer, watcher="thread", serve=False) as run:
        for _ in range(4):
            run._engine._training.note_stall()
            run._engine._training._stacks.join(PATIENCE)
        run.flush()
        assert len(stalled(run)) == 2


@FORMS
def test_a_source_on_a_disk_that_hangs_stops_nothing(
    form: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are read on a thread of their own: commands are taken, steps recorded, and the run ends meanwhile."""
    is_hanging, may_go = threading.Event(), threading.Event()

    def hang(*_: object) -> str:
        is_hanging.set()
        may_go.wait(PATIENCE)
        return ""

    monkeypatch.setattr("linecache.getline", hang)
    with attach(trained.optimizer, watcher=form, stall_timeout=0.5) as run:
        trained.train(5)
        assert is_hanging.wait(PATIENCE)
        assert ask(run, "/api/v1/lr/reduce", {"factor": 0.5})["status"] == "pending"
        trained.train(5)
        run.flush()
        assert run.lr[0].factor == 0.5
        assert run.snapshot().optimizers[0].global_step == 10
        assert not stalled(run)
    may_go.set()


def test_a_run_that_has_made_no_step_is_asked_for_its_own_thread(trained: Trained, tmp_path: Path) -> None:
    """The thread that attached is the one that is to train."""
    with attach(trained.optimizer, watcher="thread", serve=False, directory=str(tmp_path)) as run:
        run._engine._training.note_stall()
        (event,) = stand_still(run)
    assert "in test_a_run_that_has_made_no_step" in event.details["stacks"][0]["stack"]

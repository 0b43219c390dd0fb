"""Pause, resume, stop and checkpoint: carried out by the training thread between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor import CommandRefusedError, MonitorError, Run, StopTraining
from tests.control.conftest import Noting, noting

Attach = Callable[..., Run]


def ask(run: Run, action: str, **fields: Any) -> Any:
    """Submit as the HTTP server does."""
    return run._engine.commands.submit(action, source="api", **fields)


@pytest.fixture
def train() -> Iterator[Callable[[Noting, Run], threading.Thread]]:
    """Return a function that steps an optimizer on another thread until the run is asked to stop."""
    begun: list[tuple[Run, threading.Thread]] = []

    def begin(optimizer: Noting, run: Run) -> threading.Thread:
        has_begun = threading.Event()

        def loop() -> None:
            while not run.should_stop:
                optimizer.step()
                has_begun.set()

        thread = threading.Thread(target=loop)
        begun.append((run, thread))
        thread.start()
        assert has_begun.wait(60)
        return thread

    yield begin
    for run, thread in begun:
        if thread.is_alive() and not run.should_stop:
            ask(run, "stop")
        thread.join(60)


def test_a_paused_run_makes_no_step_and_takes_commands(attach: Attach, train: Callable[..., Any]) -> None:
    """The training thread waits between two steps, carries out what comes, and continues when told to."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    train(optimizer, run)
    paused = ask(run, "pause").wait(60)
    assert (paused.status, paused.message) == ("applied", "training waits at the step boundary")
    num_steps = len(optimizer.used)
    reduced = run.reduce_lr(0.5).wait(60)
    again = ask(run, "pause").wait(60)
    run.flush()
    assert run.state == "paused"
    assert (reduced.status, reduced.step, again.status) == ("applied", num_steps + 1, "applied")
    assert len(optimizer.used) == num_steps
    resumed = ask(run, "resume").wait(60)
    assert (resumed.status, resumed.message) == ("applied", "training continues")
    stopped = ask(run, "stop").wait(60)
    assert stopped.status == "applied"
    assert run.should_stop
    assert optimizer.used[num_steps] == [0.05]


def test_a_stop_ends_a_pause(attach: Attach, train: Callable[..., Any]) -> None:
    """Who stops a paused run need not resume it first."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    thread = train(optimizer, run)
    ask(run, "pause").wait(60)
    assert ask(run, "stop").wait(60).status == "applied"
    thread.join(60)
    assert not thread.is_alive()
    messages = [event.message for event in (run.flush() and run.events()) if event.kind == "state"]
    assert any(message.startswith("training pauses before step") for message in messages)
    assert any(message.startswith("training continues before step") for message in messages)


def test_resume_of_a_run_that_is_not_paused_says_so(attach: Attach) -> None:
    """It is done, and harmless."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    command = ask(run, "resume")
    optimizer.step()
    assert (command.status, command.record.message) == ("applied", "training was not paused")


def test_pause_and_resume_before_one_step_do_not_wait(attach: Attach) -> None:
    """Both wait for the same boundary: the step is made at once."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    both = [ask(run, "pause"), ask(run, "resume")]
    optimizer.step()
    assert [command.status for command in both] == ["applied", "applied"]
    assert len(optimizer.used) == 1


def test_a_stop_is_seen_by_a_loop_that_looks(attach: Attach) -> None:
    """Without stop_raises the step is made and run.should_stop is true after it."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    assert not run.should_stop
    command = ask(run, "stop", reason="enough")
    optimizer.step()
    assert run.should_stop
    assert len(optimizer.used) == 1
    assert command.record.message == "run.should_stop is true"


def test_a_stop_raises_where_that_was_asked_for(attach: Attach) -> None:
    """StopTraining leaves from optimizer.step, before the update; what waited before it has been carried out."""
    optimizer = noting(0.1)
    run = attach(optimizer, stop_raises=True)
    reduce, stop = run.reduce_lr(0.5), ask(run, "stop")
    with pytest.raises(StopTraining, match="a stop was asked for"):
        optimizer.step()
    assert (reduce.status, stop.status, optimizer.used) == ("applied", "applied", [])
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
    assert optimizer.used == [[0.05]]


def test_a_checkpoint_is_made_between_two_steps(attach: Attach) -> None:
    """On the training thread, with the schedule's own LR in the groups; what the function returns is reported."""
    optimizer, made = noting(0.1), []

    def save() -> str:
        made.append((threading.get_ident(), optimizer.param_groups[0]["lr"], len(optimizer.used)))
        return "step-1.pt"

    run = attach(optimizer, on_checkpoint=save)
    run.reduce_lr(0.5)
    optimizer.step()
    command = ask(run, "checkpoint")
    optimizer.step()
    assert made == [(threading.get_ident(), 0.1, 1)]
    assert (command.status, command.record.message, command.record.step) == ("applied", "checkpoint: step-1.pt", 2)


def test_a_checkpoint_that_fails_is_rejected_and_training_goes_on(attach: Attach) -> None:
    """The failure is the command's outcome, and it is counted and logged."""
    optimizer = noting(0.1)

    def save() -> None:
        raise OSError("No space left on device")

    run = attach(optimizer, on_checkpoint=save)
    failed, reduce = ask(run, "checkpoint"), run.reduce_lr(0.5)
    optimizer.step()
    assert (failed.status, failed.record.message) == ("rejected", "OSError: No space left on device")
    assert reduce.status == "applied"
    assert optimizer.used == [[0.05]]
    assert run.snapshot().errors == {"on_checkpoint": 1}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_in_a_checkpoint_reaches_the_loop(attach: Attach, interruption: type[BaseException]) -> None:
    """Ctrl-C is the user's, not ours to contain; the command has an outcome all the same."""
    optimizer = noting(0.1)

    def save() -> None:
        raise interruption

    run = attach(optimizer, on_checkpoint=save)
    command = ask(run, "checkpoint")
    with pytest.raises(interruption):
        optimizer.step()
    assert command.status == "rejected"
    assert optimizer.used == []
    optimizer.step()
    assert optimizer.used == [[0.1]]


def test_a_checkpoint_function_that_waits_for_a_command_is_told_that_it_cannot(attach: Attach) -> None:
    """It runs on the training thread: waiting there would never end."""
    optimizer = noting(0.1)
    run = attach(optimizer, on_checkpoint=lambda: run.reduce_lr(0.5).wait(60))
    command = ask(run, "checkpoint")
    optimizer.step()
    assert command.status == "rejected"
    assert "would never end" in command.record.message
    optimizer.step()
    assert optimizer.used == [[0.05], [0.05]]


def test_a_checkpoint_without_a_function_is_refused(attach: Attach) -> None:
    """The refusal names the setting; it has no field, as the run's state forbids it."""
    with pytest.raises(CommandRefusedError, match=r"attach\(on_checkpoint=...\) gives it one") as caught:
        ask(attach(noting(0.1)), "checkpoint")
    assert caught.value.field is None


@pytest.mark.parametrize("action", ["pause", "resume", "stop", "checkpoint"])
@pytest.mark.parametrize(("field", "value"), [("factor", 0.5), ("groups", (0,)), ("over_steps", 3)])
def test_what_changes_no_lr_takes_no_lr_fields(attach: Attach, action: str, field: str, value: Any) -> None:
    """A factor for a pause is a misunderstanding, reported before anything happens."""
    run = attach(noting(0.1), on_checkpoint=lambda: None)
    with pytest.raises(CommandRefusedError, match=f"{action} takes no {field}") as caught:
        ask(run, action, **{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_step_that_fails_leaves_the_schedules_lr(attach: Attach, kind: type[BaseException]) -> None:
    """Whatever leaves optimizer.step, the groups hold what the schedule asks for, and the next step is exact."""
    optimizer = noting(0.1, 0.2)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    optimizer.failure = kind("no")
    with pytest.raises(kind):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    optimizer.failure = None
    optimizer.step()
    assert optimizer.used == [[0.05, 0.1], [0.05, 0.1]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_command_sent_while_the_run_ends_has_one_outcome(attach: Attach) -> None:
    """Applied, expired or refused: never half, never none."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    start, outcomes = threading.Barrier(2), []

    def attempt() -> Any:
        try:
            return run.set_lr_factor(0.5)
        except MonitorError as error:  # the run has ended, or the queue is full
            return error

    def client() -> None:
        start.wait()
        outcomes.extend(attempt() for _ in range(200))

    thread = threading.Thread(target=client)
    thread.start()
    start.wait()
    for _ in range(20):
        optimizer.step()
    run.close()
    thread.join(60)
    kinds = {type(o).__name__ if isinstance(o, Exception) else o.status for o in outcomes}
    assert kinds <= {"applied", "expired", "ClosedRunError", "QueueFullError"}
    assert len(outcomes) == 200
    optimizer.step()
    assert optimizer.used[-1] == [1.0]

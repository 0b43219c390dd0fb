"""The queue: accepted on any thread, one outcome each, in order, none lost."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor import ClosedRunError, CommandRefusedError, Run
from monitor._records import MAX_COMMANDS_KEPT, CommandRecord
from monitor.control import Commands, audit, describe
from tests.control.conftest import noting

YEAR = 365 * 86400.0


class Desk:
    """A queue with a clock that the test moves, and what it was told."""

    def __init__(self, timeout: float = 600.0) -> None:
        self.now = 1000.0
        self.set_by = 0.0
        self.finished: list[CommandRecord] = []
        self.num_calls = 0
        self.queue = Commands(
            lambda record: None,
            on_waiting=self._called,
            on_finished=self.finished.append,
            timeout=timeout,
            clock=lambda: self.now + self.set_by,
            counter=lambda: self.now,
        )

    def _called(self) -> None:
        self.num_calls += 1


def test_commands_are_taken_in_the_order_in_which_they_came() -> None:
    """First in, first out; the training thread is called each time."""
    desk = Desk()
    ids = [desk.queue.submit("set", source="api", factor=0.5).id for _ in range(3)]
    assert [record.id for record in desk.queue.waiting()] == ids
    assert desk.num_calls == 3
    taken = []
    while (command := desk.queue.take()) is not None:
        taken.append(command.id)
        desk.queue.finish(command, "applied", step=1)
    assert taken == ids == [record.id for record in desk.finished]
    assert desk.queue.waiting() == ()


def test_a_command_that_no_step_takes_expires() -> None:
    """After the timeout, not before; the outcome says how long was waited."""
    desk = Desk(timeout=30)
    command = desk.queue.submit("reduce", source="api", factor=0.5)
    desk.now += 29.9
    desk.queue.expire()
    assert command.status == "pending"
    desk.now += 0.1
    desk.queue.expire()
    assert (command.status, command.record.message) == ("expired", "no optimizer step within 30 s")
    assert command.record.finished == 1030.0
    assert desk.queue.take() is None
    assert desk.queue.totals == {("reduce", "api", "expired"): 1}
    assert desk.queue.last_applied == {}


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_that_is_set_expires_nothing(jump: float) -> None:
    """The timeout is measured, not read off the wall clock; that one is shown."""
    desk = Desk(timeout=30)
    command = desk.queue.submit("reduce", source="api", factor=0.5)
    desk.set_by = jump
    desk.now += 29.9
    desk.queue.expire()
    assert command.status == "pending"
    desk.now += 0.1
    desk.queue.expire()
    assert (command.status, command.record.finished) == ("expired", 1030.0 + jump)


def test_what_was_taken_does_not_expire() -> None:
    """Whoever takes a command makes its outcome: it is applied or expired, never both."""
    desk = Desk(timeout=30)
    command = desk.queue.submit("reduce", source="api", factor=0.5)
    taken = desk.queue.take()
    desk.now += 100
    desk.queue.expire()
    desk.queue.close()
    assert taken is command
    assert command.status == "pending"
    desk.queue.finish(command, "applied", step=9)
    assert [record.status for record in desk.finished] == ["applied"]


def test_closing_expires_what_waits_and_refuses_what_comes() -> None:
    """A command has an outcome whatever happens to the run."""
    desk = Desk()
    command = desk.queue.submit("pause", source="api")
    desk.queue.close()
    assert command.status == "expired"
    with pytest.raises(ClosedRunError, match="pause was not applied"):
        desk.queue.submit("pause", source="api")


def test_the_oldest_outcomes_are_forgotten() -> None:
    """What is kept is bounded; the newest can be asked for by id."""
    desk = Desk()
    commands = []
    for _ in range(MAX_COMMANDS_KEPT + 10):
        commands.append(desk.queue.submit("set", source="api", factor=0.5))
        desk.queue.finish(desk.queue.take(), "applied", step=1)  # type: ignore[arg-type]
    assert desk.queue.get(commands[0].id) is None
    assert desk.queue.get(commands[-1].id) == commands[-1].record
    assert desk.queue.totals == {("set", "api", "applied"): MAX_COMMANDS_KEPT + 10}
    assert desk.queue.last_applied == {"set": 1000.0}


def test_outcomes_that_nobody_reads_are_bounded() -> None:
    """A run whose totals are never asked for keeps no more records than one whose are, and counts them all."""

    def num_records() -> int:
        gc.collect()
        return sum(type(one) is CommandRecord for one in gc.get_objects())

    desk = Desk()
    num_commands, num_before = 3 * MAX_COMMANDS_KEPT, num_records()  # other tests may have left some
    for _ in range(num_commands):
        with pytest.raises(CommandRefusedError):
            desk.queue.submit("explode", source="api")
        desk.finished.clear()
    assert num_records() - num_before <= MAX_COMMANDS_KEPT + 1
    assert desk.queue.totals == {("explode", "api", "rejected"): num_commands}


def test_an_unknown_action_is_refused() -> None:
    """The refusal lists what there is."""
    with pytest.raises(CommandRefusedError, match="unknown action 'explode'; there are reduce, set, restore"):
        Desk().queue.submit("explode", source="api")


def test_waiting_gives_what_is_known_when_the_time_is_over() -> None:
    """A time-out is not an outcome: the record is still pending."""
    command = Desk().queue.submit("pause", source="api")
    assert command.wait(0).status == "pending"


def test_many_clients_at_once_are_in_one_order_and_each_is_audited(attach: Callable[..., Run]) -> None:
    """Whoever is first, the outcome is that of the commands one after the other, and no count is lost."""
    optimizer = noting(1.0)
    run = attach(optimizer, allow_increase=True)
    start, seen = threading.Barrier(5), []

    def client(factor: float) -> None:
        start.wait()
        for _ in range(40):
            seen.append(run.reduce_lr(factor).wait(60))
            with pytest.raises(CommandRefusedError):
                run.reduce_lr(0)

    threads = [threading.Thread(target=client, args=(factor,)) for factor in (0.5, 2.0, 0.25, 4.0)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        optimizer.step()
    for thread in threads:
        thread.join()
    assert len(seen) == 160
    assert {record.status for record in seen} == {"applied"}
    totals = run.snapshot().commands_total
    assert totals == {("reduce", "code", "applied"): 160, ("reduce", "code", "rejected"): 160}
    assert optimizer.used[-1] == [1.0]
    run.flush()
    changes = [e.details for e in run.events() if e.kind == "control" and e.details["status"] == "applied"]
    assert len(changes) == 160
    for before, after in itertools.pairwise(changes):
        assert after["before"][0][2] == before["after"][0][2]


def test_a_run_expires_a_command_that_no_step_takes(attach: Callable[..., Run]) -> None:
    """After ``command_timeout`` without a step it is expired, counted and audited; a later step does not apply it."""
    optimizer = noting(0.1)
    run = attach(optimizer, command_timeout=0.5)
    command = run.reduce_lr(0.5)
    with ThreadPoolExecutor(1) as elsewhere:
        outcome = elsewhere.submit(command.wait, 60).result()
    assert (outcome.status, outcome.message) == ("expired", "no optimizer step within 0.5 s")
    assert run.snapshot().commands_total == {("reduce", "code", "expired"): 1}
    optimizer.step()
    assert optimizer.used == [[0.1]]
    run.flush()
    (entry,) = [event for event in run.events() if event.kind == "control"]
    assert (entry.details["status"], entry.severity) == ("expired", "warning")


def record(**values: Any) -> CommandRecord:
    return CommandRecord(**{"id": "a1", "action": "reduce", "source": "api", "created": 0.0, **values})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"action": "pause", "status": "applied", "step": 3, "message": "training waits", "actor": "page@::1"},
         "pause by api (page@::1) at step 3. training waits"),
        ({"factor": 0.5, "status": "expired", "message": "no step", "reason": "spikes"},
         'reduce 0.5 by api expired: no step: "spikes"'),
        ({"action": "stop", "status": "applied", "step": 3, "reason": 'so "be" it. Ended\nat step 9'},
         'stop by api at step 3: "so \\"be\\" it. Ended\\nat step 9".'),
        ({"factor": 0.5, "status": "rejected", "message": "below the floor"},
         "reduce 0.5 by api rejected: below the floor"),
    ],
)  # fmt: skip
def test_the_audit_sentence(given: dict[str, Any], sentence: str) -> None:
    """One line says who did what, when, why, and what came of it."""
    assert describe(record(**given)) == sentence
    assert audit(record(**given))["status"] == given["status"]


def test_the_audit_sentence_of_many_groups_is_short(attach: Callable[..., Run]) -> None:
    """Four groups are named, the rest are counted; the entry itself holds all of them."""
    optimizer = noting(*[0.1] * 6)
    run = attach(optimizer)
    command = run.reduce_lr(0.5, over_steps=3)
    optimizer.step()
    text = describe(command.record)
    assert text.startswith(
        "reduce 0.5 over 3 steps by code at step 1. Noting group 0: factor 1 to 0.5, LR 0.1 to 0.05;"
    )
    assert text.endswith("and 2 more groups")
    assert len(audit(command.record)["after"]) == 6

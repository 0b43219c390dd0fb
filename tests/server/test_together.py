"""Several clients command one real run at once, and while it ends: one order, all audited, none half applied."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from tests.server.real_run import Live
from tests.server.wire import CONTROL, Answer

Attach = Callable[..., Live]
CLIENTS = ("ada", "bob")
BOTH = {"factor": 0.5}


def step_until(live: Live, is_over: Callable[[], bool]) -> None:
    """Train, as a loop would that knows nothing of the clients."""
    while not is_over():
        live.optimizer.step()


def test_two_clients_at_once_are_put_in_one_order(attach: Attach) -> None:
    """Each of their commands starts from where the one before it ended, whoever sent that; all are audited by name."""
    live = attach()
    start = threading.Barrier(3)

    def command(name: str) -> list[Answer]:
        start.wait()
        sent = []
        for number in range(24):
            path, method = ("/lr/reduce", "POST") if number % 3 else ("/lr", "PUT")
            body = {"factor": (0.9 if name == "ada" else 0.8), "reason": f"{name} {number}"}
            sent.append(live.send(path, body, {**CONTROL, "Monitor-Actor": name}, method))
        return sent

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(command, name) for name in CLIENTS]
        start.wait()
        step_until(live, lambda: all(client.done() for client in clients))
        live.optimizer.step()
        accepted = [client.result() for client in clients]

    audit = live.audit()
    assert [entry["status"] for entry in audit] == ["applied"] * 48
    factor = 1.0
    for entry in audit:
        assert [row[2] for row in entry["before"]] == [factor, factor]
        factor = factor * entry["factor"] if entry["action"] == "reduce" else entry["factor"]
        assert [row[2] for row in entry["after"]] == [factor, factor]
    for name, answers in zip(CLIENTS, accepted, strict=True):
        own = [entry for entry in audit if entry["actor"].startswith(f"{name} via token@")]
        assert [entry["reason"] for entry in own] == [f"{name} {number}" for number in range(24)]
        assert [entry["command_id"] for entry in own] == [answer.json["id"] for answer in answers]
    assert live.optimizer.used[-1] == [0.1 * factor, 0.2 * factor]


def test_one_command_sent_by_many_hands_is_one(attach: Attach) -> None:
    """Sixteen requests at once with one Idempotency-Key: one id, one audit entry, one reduction."""
    live = attach()
    start = threading.Barrier(16)

    def command(_: int) -> Answer:
        start.wait()
        return live.send("/lr/reduce", BOTH, {**CONTROL, "Idempotency-Key": "once"})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(command, range(16)))
    assert {answer.status for answer in answers} == {202}
    assert sorted(answer.headers.get("Idempotency-Replayed", "") for answer in answers) == ["", *["true"] * 15]
    live.optimizer.step()
    (entry,) = live.audit()
    assert {answer.json["id"] for answer in answers} == {entry["command_id"]}
    assert live.optimizer.used == [[0.05, 0.1]]


@pytest.mark.parametrize("closer", ["the loop", "another thread"])
def test_a_command_that_meets_the_end_is_applied_expired_or_refused(attach: Attach, closer: str) -> None:
    """Clients continue to send until nobody answers: what was accepted has one outcome, what was applied was applied to
    all groups at once, and after the end the schedule's own LRs are used."""
    live = attach()
    start, is_over = threading.Barrier(3), threading.Event()

    def command(name: str) -> list[Answer]:
        answers: list[Answer] = []
        start.wait()
        while True:
            try:
                answer = live.send(
                    "/lr", {"factor": 0.5 + len(answers) % 5 / 10}, {**CONTROL, "Monitor-Actor": name}, "PUT"
                )
            except (OSError, HTTPException):
                return answers
            answers.append(answer)

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(command, name) for name in CLIENTS]
        start.wait()
        trainer = pool.submit(step_until, live, is_over.is_set) if closer == "another thread" else None
        if trainer is None:
            step_until(live, lambda: len(live.optimizer.used) >= 200)
        else:
            step_until_commanded(live)
        live.run.close()
        is_over.set()
        if trainer is not None:
            trainer.result()
        answers = [answer for client in clients for answer in client.result()]

    assert {answer.status for answer in answers} <= {202, 409, 429}
    entries = [event.details for event in live.run.events() if event.kind == "control"]
    audit = {entry["command_id"]: entry for entry in entries}
    assert len(audit) == len(entries)
    accepted = [answer.json["id"] for answer in answers if answer.status == 202]
    # A client whose answer got lost with the connection may have one command more in the audit than it knows of.
    assert set(accepted) <= set(audit)
    assert len(audit) <= len(accepted) + len(CLIENTS)
    assert {entry["status"] for entry in audit.values()} <= {"applied", "expired"}
    for entry in audit.values():
        assert len(entry["after"]) == (2 if entry["status"] == "applied" else 0)
        assert {row[2] for row in entry["after"]} <= {entry["factor"]}
    for body, head in live.optimizer.used:
        assert math.isclose(head, 2 * body)
    live.optimizer.step()
    assert live.optimizer.used[-1] == [0.1, 0.2]


def step_until_commanded(live: Live) -> None:
    """Wait until the loop on the other thread has applied a few commands."""
    while live.run.snapshot().commands_total.get(("set", "api", "applied"), 0) < 5:
        pass


def test_what_waits_when_the_run_ends_has_expired(attach: Attach) -> None:
    """Accepted before the end, never met by a step: expired with the reason, and the next update is the schedule's."""
    live = attach()
    accepted = [live.send(path, BOTH).json["id"] for path in ("/lr/reduce", "/lr/reduce")]
    live.run.close()
    entries = [event for event in live.run.events() if event.kind == "control"]
    assert [entry.details["command_id"] for entry in entries] == accepted
    assert [entry.details["status"] for entry in entries] == ["expired"] * 2
    assert all("the run ended before its next optimizer step" in entry.message for entry in entries)
    assert all(entry.details["after"] == [] for entry in entries)
    live.optimizer.step()
    assert live.optimizer.used == [[0.1, 0.2]]

"""Every refusal of a real run over its real server: what is said, in which shape, and that nothing has changed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from monitor import ClosedRunError, CommandRefusedError, QueueFullError
from tests.control.conftest import noting
from tests.server.fake_run import TOKEN
from tests.server.real_run import Live
from tests.server.wire import CONTROL, JSON, READ, Answer, call

Attach = Callable[..., Live]
API = "/api/v1"
REDUCE = ("POST", "/lr/reduce")
SET = ("PUT", "/lr")
CHANGES = [
    SET,
    REDUCE,
    ("POST", "/lr/restore"),
    ("POST", "/lr/undo"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/stop"),
    ("POST", "/checkpoint"),
    ("POST", "/alertmanager"),
]
FREE = [(method, path) for method, path in CHANGES if path != "/alertmanager"]


def assert_problem(answer: Answer, status: int, words: tuple[str, ...] = (), field: str | None = None) -> None:
    """An RFC 9457 problem of this status, whose detail holds the words: the value that was sent, and the cure."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "status", "title", "detail"} | ({"field"} if field else set())
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["title"] == HTTPStatus(status).phrase
    assert problem.get("field") == field
    for word in words:
        assert word in problem["detail"], problem["detail"]
    assert len(problem["detail"]) < 400


def assert_untouched(live: Live, *, rejected: int = 0) -> None:
    """No command waits, the next update uses the schedule's own LRs, and the audit holds so many refusals alone."""
    assert live.get("/lr")["pending"] == []
    scheduled = [group["lr"] for group in live.optimizer.param_groups]
    live.optimizer.step()
    assert live.optimizer.used[-1] == scheduled
    assert all("monitor_lr_factor" not in group for group in live.optimizer.param_groups)
    assert [entry["status"] for entry in live.audit()] == ["rejected"] * rejected
    shown = live.get("/run")
    assert [group["factor"] for group in shown["optimizers"][0]["groups"]] == [1.0] * len(scheduled)
    assert (shown["state"], live.run.should_stop, shown["errors"]) == ("running", False, {})


# ------------------------------------------------------------------- what the run refuses, by HTTP and Python alike

BOTH_WAYS = [
    ({"factor": 0}, "factor", ("(0, 1]", "got 0.0", "to end a run use stop")),
    ({"factor": -1}, "factor", ("(0, 1]", "got -1.0", "to end a run use stop")),
    ({"factor": 2}, "factor", ("(0, 1]", "got 2.0", "attach(allow_increase=True) lifts the upper bound")),
    ({"factor": 1.0001}, "factor", ("(0, 1]", "got 1.0001", "allow_increase=True")),
    ({"factor": float("inf")}, "factor", ("(0, 1]", "got inf")),
    ({"factor": 1e-200}, "factor", ("1e-200", "must stay between 1e-100 and 1e+100")),
    ({"factor": 0.1}, "factor", ("LR of Noting group 0 to 0.01", "below min_lr=0.04", "a factor of at least 0.4")),
    ({"factor": 0.3, "groups": ["body"]}, "factor", ("to 0.03", "min_lr=0.04", "a factor of at least 0.4")),
    ({"factor": 0.5, "groups": [2]}, "groups", ("no param group 2", "there are 0, 1, body, head")),
    ({"factor": 0.5, "groups": ["tail"]}, "groups", ("no param group 'tail'", "there are 0, 1, body, head")),
    ({"factor": 0.5, "groups": ["critic"]}, "groups", ("no param group 'critic'", "there are 0, 1, body, head")),
    ({"factor": 0.5, "groups": [0, "critic/0"]}, "groups", ("no param group 'critic/0'", "there are 0, 1")),
    ({"factor": 0.5, "over_steps": -1}, "over_steps", ("from 0 to 10**9", "got -1")),
    ({"factor": 0.5, "over_steps": 10**9 + 1}, "over_steps", ("from 0 to 10**9", "got 1000000001")),
]


@pytest.mark.parametrize("action", ["reduce", "set"])
@pytest.mark.parametrize(("asked", "field", "words"), BOTH_WAYS)
def test_a_value_that_cannot_be_is_refused_by_both_doors_in_the_same_words(
    attach: Attach, action: str, asked: dict[str, Any], field: str, words: tuple[str, ...]
) -> None:
    """422 with the field over HTTP, CommandRefusedError in Python; both are audited, and nothing has changed."""
    live = attach(min_lr=0.04)
    body = json.dumps(asked).replace("Infinity", "1e999")
    method, path = REDUCE if action == "reduce" else SET
    answer = live.send(path, body, method=method)
    assert_problem(answer, 422, words, field)
    act = live.run.reduce_lr if action == "reduce" else live.run.set_lr_factor
    with pytest.raises(CommandRefusedError) as caught:
        act(**asked)
    assert (str(caught.value), caught.value.field) == (answer.json["detail"], field)
    assert_untouched(live, rejected=2)
    by_api, by_code = live.audit()
    assert (by_api["action"], by_api["source"], by_api["actor"]) == (action, "api", "token@127.0.0.1")
    assert (by_code["action"], by_code["source"]) == (action, "code")
    assert by_api["before"] == by_api["after"] == []


def test_an_unknown_optimizer_is_refused_with_those_that_there_are(attach: Attach) -> None:
    """With several optimizers the refusal lists the names by which their groups go."""
    first, second = noting(0.1), noting(0.2)
    live = attach({"generator": first, "critic": second})
    object.__setattr__(live, "optimizer", first)
    answer = live.send("/lr/reduce", {"factor": 0.5, "groups": ["discriminator"]})
    known = "there are 0, critic, generator, and OPTIMIZER/INDEX, such as critic/0"
    assert_problem(answer, 422, ("'discriminator'", known), "groups")
    with pytest.raises(CommandRefusedError, match=known):
        live.run.reduce_lr(0.5, groups="discriminator")
    second.step()
    assert second.used == [[0.2]]


@pytest.mark.parametrize(("method", "path"), [REDUCE, SET])
def test_a_group_without_an_lr_is_a_conflict(attach: Attach, method: str, path: str) -> None:
    """What is wrong with the optimizer, not with the request, is 409 without a field."""
    live = attach()
    live.optimizer.param_groups[1]["lr"] = "0.2"
    words = ("Noting group 1 has no learning rate to change", "lr='0.2'", "name other groups")
    assert_problem(live.send(path, {"factor": 0.5}, method=method), 409, words)
    live.optimizer.param_groups[1]["lr"] = 0.2
    assert_untouched(live, rejected=1)


def test_a_checkpoint_needs_a_function(attach: Attach) -> None:
    """409 with the argument that gives it one."""
    live = attach()
    assert_problem(live.send("/checkpoint", {}), 409, ("no checkpoint function", "attach(on_checkpoint=...)"))
    assert_untouched(live, rejected=1)


def test_undo_without_a_change_is_rejected_at_its_step(attach: Attach) -> None:
    """Whether there is something to undo is known when its turn comes: accepted, and rejected with the reason."""
    live = attach()
    accepted = live.send("/lr/undo", {})
    in_python = live.run.undo_lr()
    live.optimizer.step()
    outcome = live.outcome(accepted)
    assert (outcome["status"], outcome["message"], outcome["changes"]) == ("rejected", "there is no change to undo", [])
    assert (in_python.status, in_python.record.message) == ("rejected", "there is no change to undo")
    assert_untouched(live, rejected=2)


def test_a_group_that_has_gone_is_rejected_at_its_step(attach: Attach) -> None:
    """The groups may change while a command waits: it is checked again, and all of it is dropped."""
    live = attach()
    accepted = live.send("/lr/reduce", {"factor": 0.5, "groups": [0, "head"]})
    del live.optimizer.param_groups[1]
    live.optimizer.step()
    outcome = live.outcome(accepted)
    assert outcome["status"] == "rejected"
    assert "no param group 'head'; there are 0, body" in outcome["message"]
    assert live.optimizer.used == [[0.1]]


def test_the_sixty_fifth_command_is_refused(attach: Attach) -> None:
    """429 with Retry-After; no audit entry, and after the next step there is room again."""
    live = attach()
    for _ in range(64):
        assert live.send("/lr/reduce", {"factor": 0.999}).status == 202
    full = live.send("/lr/reduce", {"factor": 0.5})
    assert_problem(full, 429, ("64 commands are waiting", "wait for it and try again"))
    assert full.headers["Retry-After"] == "5"
    with pytest.raises(QueueFullError) as caught:
        live.run.reduce_lr(0.5)
    assert str(caught.value) == full.json["detail"]
    live.optimizer.step()
    assert live.optimizer.used[-1] == pytest.approx([0.1 * 0.999**64, 0.2 * 0.999**64])
    assert [entry["status"] for entry in live.audit()] == ["applied"] * 64
    assert live.send("/lr/restore", {}).status == 202


# ------------------------------------------------------------- what is no command: refused before the run is asked

NO_COMMAND = [
    ('{"factor": NaN}', 400, None, ("NaN is not a JSON number", "send a finite number")),
    ('{"factor": Infinity}', 400, None, ("Infinity is not a JSON number",)),
    ({"factor": "NaN"}, 422, "factor", ("a JSON number, such as 0.5", "got 'NaN'")),
    ({"factor": "a"}, 422, "factor", ("a JSON number, such as 0.5", "got 'a'")),
    ({"factor": "0.5"}, 422, "factor", ("a JSON number", "got '0.5'")),
    ({"factor": True}, 422, "factor", ("a JSON number", "got True")),
    ({"factor": None}, 422, "factor", ("a JSON number", "got None")),
    ({}, 422, "factor", ("factor is missing", "such as 0.5")),
    ({"groups": [0]}, 422, "factor", ("factor is missing",)),
    ({"factor": 0.5, "grups": [0]}, 422, "grups", ("no field 'grups'", "factor, groups, over_steps, reason")),
    ({"factor": 0.5, "groups": []}, 422, "groups", ("non-empty list", "got []", "null for all")),
    ({"factor": 0.5, "groups": "head"}, 422, "groups", ("non-empty list", "got 'head'")),
    ({"factor": 0.5, "groups": [-1]}, 422, "groups", ("got [-1]",)),
    ({"factor": 0.5, "groups": [True]}, 422, "groups", ("got [True]",)),
    ({"factor": 0.5, "over_steps": 1.5}, 422, "over_steps", ("an integer", "got 1.5")),
    ({"factor": 0.5, "over_steps": True}, 422, "over_steps", ("an integer", "got True")),
    ({"factor": 0.5, "over_steps": "3"}, 422, "over_steps", ("an integer", "got '3'")),
    ({"factor": 0.5, "reason": 5}, 422, "reason", ("at most 500 characters", "got 5")),
    ({"factor": 0.5, "reason": "x" * 501}, 422, "reason", ("one line of at most 500 characters",)),
    ({"factor": 0.5, "reason": "a\nb"}, 422, "reason", ("one line", "'a\\nb'")),
    ("{", 400, None, ("not valid JSON", "line 1, column 2")),
    ("", 400, None, ("not valid JSON",)),
    ("[0.5]", 400, None, ("must be a JSON object", "got [0.5]")),
    ('{"factor": 0.5, "factor": 0.1}', 400, None, ("'factor' is given more than once", "once")),
    (b'{"factor": "\xff"}', 400, None, ("not UTF-8", "byte 12")),
    (b'{"factor": 0.5}'.ljust(65_537), 413, None, ("65536 bytes",)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), [REDUCE, SET])
@pytest.mark.parametrize(("body", "status", "field", "words"), NO_COMMAND)
def test_a_body_that_is_no_command_is_refused(
    attach: Attach, method: str, path: str, body: Any, status: int, field: str | None, words: tuple[str, ...]
) -> None:
    """The problem names what was sent and what would be right; there is nothing to audit, as nothing was asked."""
    live = attach()
    assert_problem(live.send(path, body, method=method), status, words, field)
    assert_untouched(live)


@pytest.mark.parametrize("path", ["/lr/restore", "/lr/undo", "/pause", "/resume", "/stop", "/checkpoint"])
def test_what_an_action_does_not_take_is_refused(attach: Attach, path: str) -> None:
    """A factor for a pause is a misunderstanding; the fields that it has are named."""
    live = attach()
    assert_problem(live.send(path, {"factor": 0.5}), 422, ("no field 'factor'", "the fields are", "reason"), "factor")
    assert_untouched(live)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize(("method", "path"), [REDUCE, SET])
def test_a_body_of_another_type_is_refused(attach: Attach, method: str, path: str, content_type: str) -> None:
    """415 names the type that was sent and the one that is taken: no form of another site can say it."""
    live = attach()
    headers = {**CONTROL, "Content-Type": content_type}
    words = ("must be application/json", f"got {content_type or 'none'}")
    assert_problem(call(live, method, API + path, headers, '{"factor": 0.5}'), 415, words)
    assert_untouched(live)


def test_a_key_stands_for_one_command(attach: Attach) -> None:
    """The same key with another body, or for another action, is refused; the first command counts once."""
    live = attach()
    key = {**CONTROL, "Idempotency-Key": "k1"}
    first = live.send("/lr/reduce", {"factor": 0.5}, key)
    words = ("Idempotency-Key 'k1'", "use a new one")
    assert_problem(live.send("/lr/reduce", {"factor": 0.6}, key), 422, words, "Idempotency-Key")
    assert_problem(live.send("/lr/restore", {}, key), 422, words, "Idempotency-Key")
    again = live.send("/lr/reduce", {"factor": 0.5}, key)
    assert (again.json["id"], again.headers["Idempotency-Replayed"]) == (first.json["id"], "true")
    live.optimizer.step()
    assert live.optimizer.used == [[0.05, 0.1]]
    assert [entry["command_id"] for entry in live.audit()] == [first.json["id"]]


def test_a_key_that_cannot_be_one_is_refused(attach: Attach) -> None:
    """400 with what a key may be."""
    live = attach()
    answer = live.send("/lr/reduce", {"factor": 0.5}, {**CONTROL, "Idempotency-Key": "x" * 256})
    assert_problem(answer, 400, ("1 to 255 printable ASCII characters",), "Idempotency-Key")
    assert_untouched(live)


def test_a_command_that_is_not_known_is_not_found(attach: Attach) -> None:
    """404 names the id."""
    assert_problem(call(attach(), "GET", f"{API}/commands/nope", READ), 404, ("'nope'",))


# ----------------------------------------------------------------------------------------------- who may not


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_who_may_not_change_is_told_before_anything_is_read(attach: Attach, method: str, path: str) -> None:
    """No token and a wrong one: 401 and how to send one; the read-only one: 403; a foreign Host: 421. Nothing is
    audited, as nobody who may has asked."""
    live = attach()

    def ask(headers: dict[str, str]) -> Answer:
        return call(live, method, API + path, {**JSON, **headers}, b'{"factor": 0.5}')

    nobody = ask({})
    assert_problem(nobody, 401, ("needs a token", "Authorization: Bearer TOKEN"))
    assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="monitor"'
    assert_problem(ask({"Authorization": "Bearer wrong"}), 401, ("not the one of this run", "its folder has it"))
    assert_problem(ask({"Authorization": f"Basic {TOKEN}"}), 401, ("Authorization: Bearer TOKEN",))
    assert_problem(ask(READ), 403, ("read-only", "send the control token"))
    assert_problem(ask({**CONTROL, "Host": "evil.example"}), 421, ("'evil.example'", "use localhost"))
    assert_untouched(live)


def test_a_guesser_is_told_to_wait(attach: Attach) -> None:
    """The eleventh wrong token within a minute is 429 with the seconds; the right one passes."""
    live = attach()
    wrong = {"Authorization": "Bearer wrong"}
    answers = [call(live, "POST", f"{API}/pause", wrong) for _ in range(11)]
    assert [answer.status for answer in answers] == [401] * 10 + [429]
    assert_problem(answers[-1], 429, ("Too many wrong tokens from 127.0.0.1", "try again in"))
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    assert_untouched(live)


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_the_pages_cookie_alone_changes_nothing(attach: Attach, method: str, path: str) -> None:
    """403 without the CSRF header, with a wrong one, and with that of another session; the cure is named."""
    live = attach()
    (cookie, _), (_, stolen) = (log_in(live, TOKEN) for _ in range(2))
    for csrf in ({}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": stolen}):
        answer = call(live, method, API + path, {**JSON, **cookie, **csrf}, b'{"factor": 0.5}')
        assert_problem(answer, 403, ("needs the header X-CSRF-Token", "open the URL of the run's log again"))
    assert_untouched(live)


def test_a_read_only_session_gains_no_control(attach: Attach) -> None:
    """It is given no CSRF token, and that of a session with control does not lift it."""
    live = attach()
    reader, nothing = log_in(live, READ["Authorization"].partition(" ")[2])
    _, csrf = log_in(live, TOKEN)
    assert nothing == ""
    assert call(live, "GET", f"{API}/run", reader).json["page"] == {"can_control": False}
    for method, path in CHANGES:
        answer = call(live, method, API + path, {**JSON, **reader, "X-CSRF-Token": csrf}, b'{"factor": 0.5}')
        assert_problem(answer, 403, ("read-only",))
    assert_untouched(live)


def log_in(live: Live, token: str) -> tuple[dict[str, str], str]:
    """Return the header that a browser sends once the URL of the log was opened, and the page's CSRF token."""
    opened = call(live, "GET", f"/?token={token}")
    assert opened.status == 303
    return {"Cookie": opened.headers["Set-Cookie"].partition(";")[0]}, opened.headers["Location"].partition("#csrf=")[2]


@pytest.mark.parametrize("path", [path for method, path in CHANGES if method == "POST"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_changed_by_another_method(attach: Attach, method: str, path: str) -> None:
    """405 with those that are allowed, with the control token and a good body too."""
    live = attach()
    answer = call(live, method, f"{API}{path}?factor=0.5", {**JSON, **CONTROL}, b'{"factor": 0.5}')
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    if method != "HEAD":
        assert_problem(answer, 405, (f"does not take {method}", "Allowed here: POST"))
    assert_untouched(live)


def test_reading_the_learning_rate_sets_none(attach: Attach) -> None:
    """GET /lr with the query and the body of a change is a reading."""
    live = attach()
    answer = call(
        live, "GET", f"{API}/lr?factor=0.5", {**JSON, **CONTROL, "X-HTTP-Method-Override": "PUT"}, b'{"factor": 1}'
    )
    assert answer.status == 200
    assert_untouched(live)


# -------------------------------------------------------------------------------------------------- the end


def test_a_run_that_has_ended_takes_no_command(attach: Attach) -> None:
    """While it lingers for one more scrape the server still answers: 409 for each action, and nothing waits."""
    live = attach(wait_for_scrape=60, on_checkpoint=lambda: None)
    live.optimizer.step()
    assert call(live, "GET", "/metrics").status == 200
    ending = threading.Thread(target=live.run.close)
    ending.start()
    while live.get("/run")["state"] != "finished":
        pass
    for method, path in FREE:
        body = {"factor": 0.5} if path in ("/lr", "/lr/reduce") else {}
        assert_problem(live.send(path, body, method=method), 409, ("the run has ended", "was not applied"))
    assert live.get("/lr")["pending"] == []
    assert call(live, "GET", "/metrics").status == 200
    ending.join()
    with pytest.raises(ClosedRunError, match="the run has ended and takes no more commands; reduce was not applied"):
        live.run.reduce_lr(0.5)
    live.optimizer.step()
    assert live.optimizer.used == [[0.1, 0.2]] * 2
    assert [event for event in live.run.events() if event.kind == "control"] == []


def test_a_pause_of_a_paused_run_and_a_resume_of_a_running_one_are_no_errors(attach: Attach) -> None:
    """Both are applied and say how it was: a second click, or a repeated request, harms nothing."""
    live = attach()
    resume = live.send("/resume", {})
    live.optimizer.step()
    assert live.outcome(resume)["message"] == "training was not paused"
    pauses = [live.send("/pause", {})]
    training = threading.Thread(target=live.optimizer.step)
    training.start()
    live.outcome(pauses[0])
    pauses.append(live.send("/pause", {}))
    assert [live.outcome(one)["status"] for one in pauses] == ["applied", "applied"]
    assert live.get("/run")["state"] == "paused"
    assert live.outcome(live.send("/resume", {}))["message"] == "training continues"
    training.join()
    assert [entry["action"] for entry in live.audit()] == ["resume", "pause", "pause", "resume"]
    assert live.optimizer.used == [[0.1, 0.2]] * 2


def test_a_flood_of_alerts_leaves_a_bounded_trace(attach: Attach) -> None:
    """A rule that is refused for each of a hundred alerts, repeated twenty times: a hundred audit entries, each once,
    and what happened before is still in the log."""
    live = attach()
    alerts = [
        {
            "status": "firing",
            "startsAt": "2026-11-21T04:48:12Z",
            "fingerprint": f"{index:016x}",
            "labels": {"alertname": "Wild", "run_id": live.run.id, "remediation": "checkpoint"},
        }
        for index in range(100)
    ]
    reported = [live.send("/alertmanager", {"version": "4", "alerts": alerts}) for _ in range(20)]
    words = ("64 of 100 alerts", "36 were left out", "attach(on_checkpoint=...)")
    assert_problem(reported[0], 409, words)
    assert_problem(reported[-1], 409, ("100 of 100 alerts",))
    assert_untouched(live, rejected=100)
    assert live.get("/events")["events"][0]["kind"] == "state"


# ------------------------------------------------------------------------------------------------ several ranks

RANKS = """
    import json, sys, time
    import torch
    import torch.distributed as dist
    import monitor
    from tests.control.conftest import noting
    from tests.server.fake_run import READ_TOKEN, TOKEN
    from tests.server.real_run import Live
    from tests.server.test_alertmanager import alert, notification
    from tests.server.wire import READ, call

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    optimizer = noting(0.1, 0.2)
    settings = {"port": 0, "gpu": False, "directory": folder, "linger": 0, "on_checkpoint": lambda: None}
    with monitor.attach(optimizer, token=TOKEN, read_token=READ_TOKEN, **settings) as run:
        live = Live(run, optimizer)
        dist.barrier()
        deadline = time.monotonic() + 60
        while rank and f"{run.name}-" not in str(live.send("/pause", {}).json) and time.monotonic() < deadline:
            time.sleep(0.1)  # until it has heard of rank 0's run
        reported = {}
        actions = ("", "/reduce", "/restore", "/undo")
        paths = [*(f"/lr{one}" for one in actions), "/pause", "/resume", "/stop", "/checkpoint"]
        for path in paths[:1] if rank == 0 else paths:
            body = {"factor": 0.5} if path in ("/lr", "/lr/reduce") else {}
            answer = live.send(path, body, method="PUT" if path == "/lr" else "POST")
            reported[path] = [answer.status, answer.json]
        ours = alert(labels={"run_id": live.get("/run")["run"]["run_id"]})
        alerted = live.send("/alertmanager", notification(ours)) if rank else None
        acts = (lambda: run.reduce_lr(0.5), lambda: run.set_lr_factor(0.5), run.restore_lr, run.undo_lr)
        python = [act().record.message for act in acts] if rank else []
        for _ in range(100):
            dist.barrier()
            time.sleep(0.01)
            optimizer.step()
        run.flush()
        metrics = call(live, "GET", "/metrics").body.decode()
        info = [line for line in metrics.splitlines() if line.startswith("training_run_info{")]
        print(json.dumps({
            "rank": rank, "http": reported, "python": python, "used": optimizer.used, "info": info,
            "page": live.get("/run")["run"], "alerted": alerted and [alerted.status, alerted.json],
            "audit": [entry["status"] for entry in live.audit()],
        }))
        dist.barrier()
    dist.destroy_process_group()
"""


def test_ranks_that_train_together_take_commands_by_rank_0(tmp_path: Path) -> None:
    """Two real processes of one gloo group: what rank 0 is sent takes effect on both; the other answers 409 to every
    action, and to an alert, with the way to go. Metrics and page say how many train."""
    program = textwrap.dedent(RANKS)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [one.communicate(timeout=300) for one in ranks]
    assert [one.returncode for one in ranks] == [0, 0], ends
    leader, follower = (json.loads(output.splitlines()[-1]) for output, _ in ends)
    (accepted,) = leader["http"].values()
    assert accepted[0] == 202
    assert leader["audit"] == ["applied"]
    for rank, reported in enumerate((leader, follower)):
        assert reported["used"][0] == [0.1, 0.2]
        assert reported["used"][-1] == [0.05, 0.1]
        (info,) = reported["info"]
        assert 'world_size="2"' in info
        assert (reported["page"]["world_size"], reported["page"]["rank"]) == (2, rank)
    assert leader["used"] == follower["used"]
    where = f"this is rank 1: send it to rank 0's run, {leader['page']['run_id']}, and it takes effect on every rank"
    problem = {"type": "about:blank", "status": 409, "title": "Conflict", "detail": where}
    assert list(follower["http"].values()) == [[409, problem]] * 8
    assert follower["python"] == ["rank 0's command holds for all ranks"] * 4
    status, alerted = follower["alerted"]
    assert (status, alerted["detail"].endswith(f"TrainingDiverges: {where}")) == (409, True), alerted
    assert sorted(set(follower["audit"])) == ["applied", "rejected"]

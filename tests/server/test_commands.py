"""Commands over HTTP: what is accepted, what is refused, and once means once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from monitor._records import CommandRecord
from monitor.server._idempotency import KEEP_SECONDS, IdempotencyKeys
from monitor.server._problems import HttpProblem
from tests.server.fake_run import FakeRun
from tests.server.wire import CONTROL, JSON, READ

API = "/api/v1"


def post(client: FlaskClient, path: str, body: Any, **headers: str):
    raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return client.post(API + path, data=raw, headers={**CONTROL, **JSON, **headers})


def test_a_command_is_accepted_and_its_outcome_is_where_location_says(client: FlaskClient, run: FakeRun) -> None:
    """202 with an id at once; after the next step the same resource reports what was done."""
    accepted = post(
        client, "/lr/reduce", {"factor": 0.5, "groups": [0, "no_decay"], "over_steps": 3, "reason": "spike"}
    )
    assert accepted.status_code == 202
    record = accepted.json
    assert record["status"] == "pending"
    assert (record["factor"], record["groups"], record["over_steps"]) == (0.5, [0, "no_decay"], 3)
    assert (record["source"], record["actor"], record["reason"]) == ("api", "token@127.0.0.1", "spike")
    assert accepted.headers["Location"] == f"{API}/commands/{record['id']}"
    run.advance()
    outcome = client.get(accepted.headers["Location"], headers=READ).json
    assert (outcome["status"], outcome["step"]) == ("applied", 301)
    assert [(c["factor_before"], c["factor_after"]) for c in outcome["changes"]] == [(1.0, 0.5), (1.0, 0.5)]


def test_the_audit_names_who_the_sender_says_it_is(client: FlaskClient) -> None:
    """Monitor-Actor stands before what the server knows by itself, and cannot take its place."""
    accepted = post(client, "/pause", {}, **{"Monitor-Actor": "ada@workstation"})
    assert accepted.json["actor"] == "ada@workstation via token@127.0.0.1"


@pytest.mark.parametrize("claimed", ["", "two words", "a" * 101, "ada;", "åda@host"])
def test_an_actor_that_cannot_be_is_refused(client: FlaskClient, run: FakeRun, claimed: str) -> None:
    """A name that could pass for something else in the log is a 400 which says what a name may be."""
    refused = post(client, "/pause", {}, **{"Monitor-Actor": claimed})
    assert (refused.status_code, refused.json["field"]) == (400, "Monitor-Actor")
    assert "such as ada@workstation, got " in refused.json["detail"]
    assert run.commands() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "action"),
    [
        ("PUT", "/lr", {"factor": 0.25}, "set"),
        ("POST", "/lr/reduce", {"factor": 1}, "reduce"),
        ("POST", "/lr/reduce", {"factor": 0.5, "groups": None}, "reduce"),
        ("POST", "/lr/restore", {}, "restore"),
        ("POST", "/lr/restore", None, "restore"),
        ("POST", "/pause", None, "pause"),
        ("POST", "/resume", {}, "resume"),
        ("POST", "/stop", {"reason": "enough"}, "stop"),
    ],
)
def test_each_route_submits_its_action(
    client: FlaskClient, run: FakeRun, method: str, path: str, body: Any, action: str
) -> None:
    """One queue for everything; a body that could be empty may be left out, content type included."""
    data = None if body is None else json.dumps(body)
    headers = CONTROL if body is None else {**CONTROL, **JSON}
    response = client.open(API + path, method=method, data=data, headers=headers)
    assert response.status_code == 202, response.text
    assert [command.action for command in run.commands()] == [action]


@pytest.mark.parametrize(
    ("body", "status", "field", "words"),
    [
        ({"factor": 0}, 422, "factor", "must be in (0, 1], got 0"),
        ({"factor": -1}, 422, "factor", "got -1"),
        ({"factor": 2}, 422, "factor", "must be in (0, 1], got 2.0"),
        ({"factor": "a"}, 422, "factor", "got 'a'"),
        ({"factor": "0.5"}, 422, "factor", "JSON number"),
        ({"factor": "NaN"}, 422, "factor", "got 'NaN'"),
        ({"factor": True}, 422, "factor", "got True"),
        ({"factor": None}, 422, "factor", "got None"),
        ({"factor": [0.5]}, 422, "factor", "got [0.5]"),
        ('{"factor": NaN}', 400, None, "NaN is not a JSON number"),
        ('{"factor": -Infinity}', 400, None, "-Infinity is not a JSON number"),
        ('{"factor": 1e999}', 422, "factor", "got inf"),
        ('{"factor": %s}' % ("9" * 5000), 400, None, "too large a number"),
        ('{"factor": 0.5, "factor": 0.6}', 400, None, "'factor' is given more than once"),
        ({}, 422, "factor", "factor is missing"),
        ("", 400, None, "not valid JSON"),
        ("{", 400, None, "line 1, column 2"),
        ("nonsense", 400, None, "not valid JSON"),
        ("[0.5]", 400, None, "must be a JSON object, got [0.5]"),
        ("0.5", 400, None, "must be a JSON object"),
        ("null", 400, None, "must be a JSON object, got None"),
        ("[" * 30000, 400, None, "nested too deeply"),
        (b"\xff\xfe", 400, None, "not UTF-8"),
        ({"factor": 0.5, "grups": [0]}, 422, "grups", "the fields are factor, groups, over_steps, reason"),
        ({"factor": 0.5, "__class__": 1}, 422, "__class__", "no field"),
        ({"factor": 0.5, "groups": []}, 422, "groups", "non-empty list"),
        ({"factor": 0.5, "groups": 0}, 422, "groups", "got 0"),
        ({"factor": 0.5, "groups": [True]}, 422, "groups", "got [True]"),
        ({"factor": 0.5, "groups": [-1]}, 422, "groups", "got [-1]"),
        ({"factor": 0.5, "groups": [0.0]}, 422, "groups", "got [0.0]"),
        ({"factor": 0.5, "groups": [7]}, 422, "groups", "there is no param group 7; there are 0 (decay)"),
        ({"factor": 0.5, "groups": ["hed"]}, 422, "groups", "no param group 'hed'"),
        ({"factor": 0.5, "groups": list(range(2000))}, 422, "groups", "non-empty list"),
        ({"factor": 0.5, "over_steps": -1}, 422, "over_steps", "from 0 to 10**9, got -1"),
        ({"factor": 0.5, "over_steps": 1.5}, 422, "over_steps", "got 1.5"),
        ({"factor": 0.5, "over_steps": True}, 422, "over_steps", "got True"),
        ({"factor": 0.5, "over_steps": 10**12}, 422, "over_steps", "got 1000000000000"),
        ({"factor": 0.5, "reason": 5}, 422, "reason", "got 5"),
        ({"factor": 0.5, "reason": "x" * 501}, 422, "reason", "at most 500 characters"),
        ({"factor": 0.5, "reason": "a\nCRITICAL forged line"}, 422, "reason", "one line"),
        ('{"factor": 0.5, "reason": "\\ud800"}', 422, "reason", "one line"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_and_nothing_changes(
    client: FlaskClient, run: FakeRun, body: Any, status: int, field: str | None, words: str
) -> None:
    """The problem has the offending value, what would be right, and the field; no command is queued."""
    response = post(client, "/lr/reduce", body)
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    problem = response.json
    assert problem["status"] == status
    assert problem.get("field") == field
    assert words in problem["detail"]
    assert len(problem["detail"]) < 400
    assert not run.commands()


@pytest.mark.parametrize("path", ["/lr/undo", "/pause", "/resume", "/stop", "/checkpoint"])
def test_fields_that_an_action_does_not_have_are_refused(client: FlaskClient, run: FakeRun, path: str) -> None:
    """A factor for a pause is a misunderstanding, reported before anything happens."""
    response = post(client, path, {"factor": 0.5})
    assert (response.status_code, response.json["field"]) == (422, "factor")
    assert not run.commands()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_json_is_refused_by_its_type(client: FlaskClient, run: FakeRun, content_type: str) -> None:
    """A form of a foreign page cannot say application/json: 415 before the body is read."""
    response = client.post(
        f"{API}/lr/reduce", data='{"factor": 0.5}', headers={**CONTROL, "Content-Type": content_type}
    )
    assert response.status_code == 415
    assert "application/json" in response.json["detail"]
    assert not run.commands()


def test_a_refusal_without_a_field_is_a_conflict(client: FlaskClient) -> None:
    """What the state of the run forbids is 409, in the run's own words."""
    nothing = post(client, "/lr/undo", {})
    assert (nothing.status_code, nothing.json["detail"]) == (409, "there is no change to undo")
    assert "on_checkpoint" in post(client, "/checkpoint", {}).json["detail"]


def test_a_closed_run_takes_no_command(client: FlaskClient, run: FakeRun) -> None:
    """409, not 500."""
    run.is_closed = True
    assert post(client, "/pause", {}).status_code == 409


def test_a_full_queue_is_too_many_requests(client: FlaskClient) -> None:
    """The 65th waiting command is refused with 429 and a Retry-After."""
    codes = [post(client, "/lr/reduce", {"factor": 0.9}).status_code for _ in range(64)]
    assert codes == [202] * 64
    full = post(client, "/lr/reduce", {"factor": 0.9})
    assert full.status_code == 429
    assert full.headers["Retry-After"] == "5"


def test_an_unknown_command_is_not_found(client: FlaskClient) -> None:
    """404 as a problem that names the id."""
    response = client.get(f"{API}/commands/nope", headers=READ)
    assert response.status_code == 404
    assert "'nope'" in response.json["detail"]


def test_a_body_over_the_limit_is_refused(client: FlaskClient, run: FakeRun) -> None:
    """64 KiB are more than enough; the problem says how much is allowed."""
    response = post(client, "/lr/reduce", json.dumps({"factor": 0.5, "reason": "x" * 70_000}))
    assert response.status_code == 413
    assert "65536" in response.json["detail"]
    assert not run.commands()


def test_the_same_key_is_the_same_command(client: FlaskClient, run: FakeRun) -> None:
    """A retry after a lost answer must not reduce twice."""
    first = post(client, "/lr/reduce", {"factor": 0.5}, **{"Idempotency-Key": "k1"})
    run.advance()
    again = post(client, "/lr/reduce", {"factor": 0.50}, **{"Idempotency-Key": "k1"})
    assert again.json["id"] == first.json["id"]
    assert again.status_code == 202
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    run.advance()
    assert run.snapshot().optimizers[0].groups[0].factor == 0.5


def test_a_key_used_for_another_command_is_refused(client: FlaskClient, run: FakeRun) -> None:
    """Another body or another path under a known key is a mistake, reported as one."""
    post(client, "/lr/reduce", {"factor": 0.5}, **{"Idempotency-Key": "k1"})
    other_body = post(client, "/lr/reduce", {"factor": 0.6}, **{"Idempotency-Key": "k1"})
    other_path = post(client, "/lr/restore", {}, **{"Idempotency-Key": "k1"})
    assert [(r.status_code, r.json["field"]) for r in (other_body, other_path)] == [(422, "Idempotency-Key")] * 2
    assert len(run.commands()) == 1


def test_a_refused_command_does_not_use_up_its_key(client: FlaskClient) -> None:
    """What was refused may be corrected and sent again under the same key."""
    assert post(client, "/lr/reduce", {"factor": 4}, **{"Idempotency-Key": "k1"}).status_code == 422
    assert post(client, "/lr/reduce", {"factor": 0.4}, **{"Idempotency-Key": "k1"}).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ"])
def test_a_key_that_cannot_be_one_is_refused(client: FlaskClient, run: FakeRun, key: str) -> None:
    """1 to 255 printable ASCII characters."""
    response = client.post(
        f"{API}/lr/restore", environ_overrides={"HTTP_IDEMPOTENCY_KEY": key.encode().decode("latin-1")}, headers=CONTROL
    )
    assert response.status_code == 400
    assert not run.commands()


def record_of(name: str) -> CommandRecord:
    return CommandRecord(id=name, action="reduce", source="api", created=0.0)


def test_keys_belong_to_their_owner_and_end_after_a_day() -> None:
    """Two users may choose the same key; after 24 h it may be used anew."""
    now = [0.0]
    keys = IdempotencyKeys(clock=lambda: now[0])
    assert keys.once("a", "k", b"1", lambda: record_of("c1")) == (record_of("c1"), False)
    assert keys.once("b", "k", b"1", lambda: record_of("c2")) == (record_of("c2"), False)
    now[0] = KEEP_SECONDS - 1
    assert keys.once("a", "k", b"1", lambda: record_of("c3")) == (record_of("c1"), True)
    now[0] = KEEP_SECONDS
    assert keys.once("a", "k", b"1", lambda: record_of("c4")) == (record_of("c4"), False)


def test_the_store_of_keys_is_bounded() -> None:
    """Beyond its capacity the oldest key goes first."""
    keys = IdempotencyKeys(capacity=3, clock=lambda: 0.0)
    for index in range(5):
        keys.once("a", f"k{index}", b"1", lambda: record_of("first"))
    assert keys.once("a", "k4", b"1", lambda: record_of("second")) == (record_of("first"), True)
    assert keys.once("a", "k0", b"1", lambda: record_of("second")) == (record_of("second"), False)


def test_a_submit_that_raises_is_not_remembered() -> None:
    """The next try under the key is a first one."""
    keys = IdempotencyKeys()

    def refuse() -> CommandRecord:
        raise HttpProblem(409, "not now")

    with pytest.raises(HttpProblem):
        keys.once("a", "k", b"1", refuse)
    assert keys.once("a", "k", b"1", lambda: record_of("c1"))[1] is False

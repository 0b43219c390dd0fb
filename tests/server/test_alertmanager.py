"""What Alertmanager sends becomes a command once, or nothing; and it gets an answer that it understands."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from monitor._errors import CommandRefusedError
from monitor.server import HttpServer, Security, create_app
from monitor.server._alertmanager import COOLDOWN_SECONDS, OUTCOMES, Receiver
from monitor.server._notifications import Alert
from tests.server.fake_run import TOKEN, FakeRun
from tests.server.wire import CONTROL, JSON, OPENAPI, READ, send

URL = "/api/v1/alertmanager"
RUN_ID = "fake-0a1b2c"


def alert(name: str = "TrainingDiverges", **more: Any) -> dict[str, Any]:
    """One alert as Alertmanager writes it; ``labels`` and ``annotations`` are added to the usual ones."""
    labels = {"alertname": name, "run_id": RUN_ID, "severity": "critical", "remediation": "reduce"}
    return {
        "status": "firing",
        "startsAt": "2026-11-21T04:48:12.345678901Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph?g0.expr=training_event_active",
        "fingerprint": "8a5b1c0f3d2e4f60",
        **more,
        "labels": {**labels, **more.get("labels", {})},
        "annotations": {"summary": "The loss has left its level", **more.get("annotations", {})},
    }


def notification(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The body around them, with every field that Alertmanager sends."""
    return {
        "receiver": "training-run",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"run_id": RUN_ID},
        "commonLabels": {"run_id": RUN_ID},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": '{}:{run_id="fake-0a1b2c"}',
        "truncatedAlerts": 0,
        **more,
    }


def post(client: FlaskClient, body: Any, headers: dict[str, str] = CONTROL) -> Any:
    raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return client.post(URL, data=raw, headers={**JSON, **headers})


def outcomes(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["outcome"] for result in response.json["results"]]


def test_a_firing_alert_reduces_and_the_audit_names_it(client: FlaskClient, run: FakeRun) -> None:
    """Source, actor and reason say who asked and why; the factor is a half where the rule names none."""
    response = post(client, notification(alert()))
    assert outcomes(response) == ["accepted"]
    (record,) = run.commands()
    assert response.json["results"][0]["command"] == record.id
    assert (record.action, record.factor, record.source, record.actor) == (
        "reduce",
        0.5,
        "alertmanager",
        "TrainingDiverges",
    )
    assert record.reason == (
        "alert TrainingDiverges fires since 2026-11-21T04:48:12.345678901Z: The loss has left its level"
    )
    run.advance()
    assert run.snapshot().optimizers[0].groups[0].factor == 0.5
    assert run.snapshot().commands_total == {("reduce", "alertmanager", "applied"): 1}


@pytest.mark.parametrize(
    ("labels", "annotations", "factor"),
    [
        ({"remediation_factor": "0.1"}, {}, 0.1),
        ({}, {"remediation_factor": "0.25"}, 0.25),
        ({"remediation_factor": "0.1"}, {"remediation_factor": "0.25"}, 0.1),
        ({"remediation_factor": "1"}, {}, 1.0),
    ],
)
def test_the_rule_sets_the_factor(
    client: FlaskClient, run: FakeRun, labels: dict[str, str], annotations: dict[str, str], factor: float
) -> None:
    """As a label or as an annotation; the label has precedence."""
    assert outcomes(post(client, notification(alert(labels=labels, annotations=annotations)))) == ["accepted"]
    assert run.commands()[0].factor == factor


@pytest.mark.parametrize("action", ["pause", "stop"])
def test_an_alert_may_also_pause_or_stop(client: FlaskClient, run: FakeRun, action: str) -> None:
    """A stop or a pause has no factor, whatever the rule says beside it."""
    body = notification(alert(labels={"remediation": action, "remediation_factor": "0.1"}))
    assert outcomes(post(client, body)) == ["accepted"]
    assert [(c.action, c.factor) for c in run.commands()] == [(action, None)]


def test_a_repeated_notification_acts_once(client: FlaskClient, run: FakeRun) -> None:
    """The same fingerprint and start are the same alert, before and after its command was applied."""
    body = notification(alert())
    first = post(client, body)
    again = post(client, body)
    run.advance()
    later = post(client, body)
    assert [outcomes(r) for r in (first, again, later)] == [["accepted"], ["duplicate"], ["duplicate"]]
    assert {r.json["results"][0]["command"] for r in (first, again, later)} == {"c0001"}
    assert run.command("c0002") is None


def test_a_resolved_alert_changes_nothing(client: FlaskClient, run: FakeRun) -> None:
    """Resolved is not undone: the reduction stays, and the same alert sent late by a peer is still known."""
    resolved = alert(status="resolved", endsAt="2026-11-21T05:00:00Z")
    assert outcomes(post(client, notification(alert()))) == ["accepted"]
    assert outcomes(post(client, notification(resolved, status="resolved"))) == ["resolved"]
    assert outcomes(post(client, notification(alert()))) == ["duplicate"]
    assert len(run.commands()) == 1


def test_what_is_not_for_us_is_taken_and_passed_over(client: FlaskClient, run: FakeRun) -> None:
    """Another run's alert, one without a run, one without a remedy: 200, as no retry would change it."""
    nobody = alert()
    del nobody["labels"]["run_id"]
    body = notification(
        alert(labels={"run_id": "other-ffffff"}),
        nobody,
        alert(labels={"remediation": ""}),
        alert(labels={"run_id": "other-ffffff", "remediation": "explode"}),
    )
    assert outcomes(post(client, body)) == ["other_run", "other_run", "no_remediation", "other_run"]
    assert outcomes(post(client, notification())) == []
    assert not run.commands()


def test_alerts_of_one_trouble_are_one_reduction(client: FlaskClient, run: FakeRun) -> None:
    """The second alert cools down; another action is not held back by it."""
    body = notification(
        alert("TrainingDiverges"),
        alert("TrainingSpikes", fingerprint="00000000000000ff"),
        alert("TrainingHopeless", fingerprint="00000000000000aa", labels={"remediation": "stop"}),
    )
    response = post(client, body)
    assert outcomes(response) == ["accepted", "cooling_down", "accepted"]
    assert "again possible in 300 s" in response.json["results"][1]["detail"]
    assert [c.action for c in run.commands()] == ["reduce", "stop"]


def read(name: str, fingerprint: str = "f1", starts_at: str = "2026-01-01T00:00:00Z") -> Alert:
    return Alert(name, fingerprint, starts_at, True, {"run_id": RUN_ID, "remediation": "reduce"}, {})


def test_what_still_fires_after_the_cool_down_acts(run: FakeRun) -> None:
    """An alert that came during the cool-down has not been dealt with: its repetition is."""
    now = [0.0]
    receiver = Receiver(run, clock=lambda: now[0])
    assert receiver.take(read("A")).outcome == "accepted"
    assert receiver.take(read("B", "f2")).outcome == "cooling_down"
    now[0] = COOLDOWN_SECONDS
    assert receiver.take(read("A")).outcome == "duplicate"
    assert receiver.take(read("B", "f2")).outcome == "accepted"
    now[0] = 2 * COOLDOWN_SECONDS
    assert receiver.take(read("A", starts_at="2026-01-01T01:00:00Z")).outcome == "accepted"
    assert len(run.commands()) == 3


def test_an_alert_whose_command_expired_acts_again(run: FakeRun) -> None:
    """No step took the first command; the alert that is repeated asks anew."""
    receiver = Receiver(run, cooldown=0.0)
    first = receiver.take(read("A"))
    run.expire()
    second = receiver.take(read("A"))
    assert (first.outcome, second.outcome) == ("accepted", "accepted")
    assert first.command != second.command


class FlooredRun(FakeRun):
    """A run at an LR that bears no reduction until ``is_low`` is lifted, and that notes how often it was asked."""

    is_low = True
    asked = 0

    def submit(self, action: str, **command: Any) -> Any:
        self.asked += 1
        if self.is_low:
            raise CommandRefusedError("below min_lr", "factor")
        return super().submit(action, **command)


def test_a_refusal_that_passes_silences_nothing_for_good() -> None:
    """It is remembered for a cool-down, in which the run is asked once; then the alert is heard again."""
    run, now = FlooredRun(), [0.0]
    receiver = Receiver(run, clock=lambda: now[0])
    for at in (0.0, 1.0, COOLDOWN_SECONDS - 1, COOLDOWN_SECONDS, COOLDOWN_SECONDS + 1):
        now[0] = at
        assert receiver.take(read("A")).outcome == "refused"
    assert run.asked == 2
    run.is_low = False
    now[0] = 2 * COOLDOWN_SECONDS - 1
    assert receiver.take(read("A")).outcome == "refused"
    now[0] = 2 * COOLDOWN_SECONDS
    assert [receiver.take(read("A")).outcome for _ in range(2)] == ["accepted", "duplicate"]


def test_an_alert_whose_command_was_rejected_at_its_step_acts_again(run: FakeRun) -> None:
    """What was accepted and then could not be is no remedy: the alert asks anew, after the cool-down."""
    now = [0.0]
    receiver = Receiver(run, clock=lambda: now[0])
    first = receiver.take(read("A"))
    run.expire("rejected")
    assert receiver.take(read("A")).outcome == "cooling_down"
    now[0] = COOLDOWN_SECONDS
    second = receiver.take(read("A"))
    assert (first.outcome, second.outcome) == ("accepted", "accepted")
    assert first.command != second.command


def test_the_memory_is_bounded_and_keeps_what_is_repeated(run: FakeRun) -> None:
    """Beyond its capacity the alert goes first that was not heard of for longest."""
    receiver = Receiver(run, cooldown=0.0, capacity=2)
    assert [receiver.take(read("A", f)).outcome for f in ("f1", "f2", "f1", "f3", "f1", "f2")] == [
        "accepted", "accepted", "duplicate", "accepted", "duplicate", "accepted",
    ]  # fmt: skip


class RefusingRun(FakeRun):
    """A run that refuses every checkpoint, as one without a function for it, and notes how often it was asked."""

    asked = 0

    def submit(self, action: str, **command: Any) -> Any:
        self.asked += action == "checkpoint"
        return super().submit(action, **command)


def checkpoints(number: int, first: int = 0) -> list[dict[str, Any]]:
    """So many alerts that each ask for a checkpoint."""
    numbers = range(first, first + number)
    return [alert(fingerprint=f"{index:016x}", labels={"remediation": "checkpoint"}) for index in numbers]


def refusing() -> tuple[RefusingRun, FlaskClient]:
    run = RefusingRun()
    return run, create_app(run, Security(token=TOKEN)).test_client()


def test_what_was_refused_is_not_asked_for_again() -> None:
    """Alertmanager repeats what fires: the answer stays, and no repetition adds an audit event."""
    run, client = refusing()
    first = post(client, notification(*checkpoints(3)))
    for _ in range(20):
        again = post(client, notification(*checkpoints(3)))
        assert (again.status_code, again.json) == (409, first.json)
    assert run.asked == 3


def test_a_rule_that_was_put_right_is_heard(run: FakeRun) -> None:
    """A refusal is remembered for what was asked: another factor for the same alert is another wish."""
    receiver = Receiver(run)
    wrong, right = (Alert("A", "f1", "2026-01-01T00:00:00Z", True, {"run_id": RUN_ID, **more}, {}) for more in (
        {"remediation": "checkpoint"}, {"remediation": "reduce"},
    ))  # fmt: skip
    assert [receiver.take(one).outcome for one in (wrong, wrong, right)] == ["refused", "refused", "accepted"]


def test_refusals_do_not_push_out_what_was_carried_out() -> None:
    """Each has a memory of its own: however much is refused in between, a reduction is not repeated."""
    run = RefusingRun()
    receiver = Receiver(run, cooldown=0.0, capacity=2)
    assert receiver.take(read("A")).outcome == "accepted"
    for index in range(5):
        labels = {"run_id": RUN_ID, "remediation": "checkpoint"}
        receiver.take(Alert("B", f"b{index}", "2026-01-01T00:00:00Z", True, labels, {}))
    assert receiver.take(read("A")).outcome == "duplicate"
    assert run.asked == 5


def test_one_notification_asks_sixty_four_times_at_most(caplog: pytest.LogCaptureFixture) -> None:
    """A rule gone wild floods neither audit nor log: the rest is counted, reported in one line, and heard later."""
    run, client = refusing()
    body = notification(*checkpoints(1000), alert(fingerprint="00000000000000ff00"))
    response = post(client, body)
    assert response.status_code == 409
    assert "64 of 1001 alerts asked for what is refused; 937 were left out" in response.json["detail"]
    assert (run.asked, len(run.commands())) == (64, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "937 alerts of a notification were left out: it asked for more than 64"
    ]
    for _ in range(15):
        post(client, body)
    assert run.asked == 1000
    assert [command.action for command in run.commands()] == ["reduce"]


def test_alerts_of_other_runs_use_nothing_up(client: FlaskClient, run: FakeRun) -> None:
    """A large group is looked through to its end, and a 200 says that nothing was left out."""
    strangers = [alert(labels={"run_id": "other"}) for _ in range(200)]
    response = post(client, notification(*strangers, alert()))
    assert outcomes(response) == ["other_run"] * 200 + ["accepted"]
    assert response.json["left_out"] == 0


def test_a_full_queue_is_to_be_sent_again(client: FlaskClient, run: FakeRun) -> None:
    """503 with Retry-After, which Alertmanager retries; what the first try has queued is not queued twice."""
    for _ in range(63):
        run.submit("pause", source="code", actor="", reason="", factor=None, groups=None, over_steps=0)
    body = notification(alert(), alert(fingerprint="00000000000000aa", labels={"remediation": "pause"}))
    full = post(client, body)
    assert full.status_code == 503
    assert full.headers["Retry-After"] == "5"
    assert full.content_type == "application/problem+json"
    run.advance()
    assert outcomes(post(client, body)) == ["duplicate", "accepted"]
    assert [c.action for c in run.commands()] == ["pause"]


@pytest.mark.parametrize(
    ("change", "status", "field", "words"),
    [
        ({"labels": {"remediation": "restore"}}, 422, "labels.remediation", "one of reduce, pause, stop, checkpoint"),
        ({"labels": {"remediation_factor": "2"}}, 422, "labels.remediation_factor", "in (0, 1], such as 0.5, got '2'"),
        ({"labels": {"remediation_factor": "0"}}, 422, "labels.remediation_factor", "got '0'"),
        ({"labels": {"remediation_factor": "nan"}}, 422, "labels.remediation_factor", "got 'nan'"),
        ({"annotations": {"remediation_factor": "half"}}, 422, "annotations.remediation_factor", "got 'half'"),
        ({"labels": {"remediation": "checkpoint"}}, 409, None, "on_checkpoint"),
    ],
)
def test_a_rule_that_asks_for_what_is_refused_is_told(
    client: FlaskClient, run: FakeRun, change: dict[str, Any], status: int, field: str | None, words: str
) -> None:
    """4xx, which Alertmanager logs, counts and does not retry; the other alerts of the body are carried out."""
    bad = alert("BadRule", fingerprint="00000000000000aa", **change)
    response = post(client, notification(bad, alert(labels={"remediation": "pause"})))
    assert (response.status_code, response.json.get("field")) == (status, field), response.text
    assert "1 of 2 alerts" in response.json["detail"]
    assert "BadRule: " in response.json["detail"]
    assert words in response.json["detail"]
    assert [c.action for c in run.commands()] == ["pause"]


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        (("version",), "3", "version", "got '3'"),
        (("version",), 4, "version", "got 4"),
        (("alerts",), {}, "alerts", "got {}"),
        (("alerts",), None, "alerts", "got None"),
        (("truncatedAlerts",), -1, "truncatedAlerts", "got -1"),
        (("truncatedAlerts",), True, "truncatedAlerts", "got True"),
        (("alerts", 1), "x", "alerts[1]", "got 'x'"),
        (("alerts", 1, "status"), "pending", "alerts[1].status", "firing or resolved, got 'pending'"),
        (("alerts", 1, "fingerprint"), "", "alerts[1].fingerprint", "got ''"),
        (("alerts", 1, "fingerprint"), 7, "alerts[1].fingerprint", "got 7"),
        (("alerts", 1, "fingerprint"), "a b", "alerts[1].fingerprint", "got 'a b'"),
        (("alerts", 1, "startsAt"), "yesterday", "alerts[1].startsAt", "got 'yesterday'"),
        (("alerts", 1, "startsAt"), 1.0, "alerts[1].startsAt", "got 1.0"),
        (("alerts", 1, "labels"), None, "alerts[1].labels", "got None"),
        (("alerts", 1, "labels", "run_id"), 5, "alerts[1].labels", "an object of strings"),
        (("alerts", 1, "annotations"), [], "alerts[1].annotations", "got []"),
    ],
)
def test_what_no_alertmanager_sends_is_refused_whole(
    client: FlaskClient, run: FakeRun, path: tuple[Any, ...], value: Any, field: str, words: str
) -> None:
    """422 with the field and the value; the good alert before the bad one is not carried out either."""
    body = notification(alert(), alert(fingerprint="00000000000000aa", labels={"remediation": "stop"}))
    where: Any = body
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    response = post(client, body)
    assert (response.status_code, response.json["field"]) == (422, field)
    assert words in response.json["detail"]
    assert not run.commands()
    assert not schema("requestBody").is_valid(body)


@pytest.mark.parametrize(("body", "status"), [("{", 400), ("[]", 400), ("", 400), ('{"version": NaN}', 400)])
def test_what_is_no_object_is_refused(client: FlaskClient, body: str, status: int) -> None:
    """400, in the words of the other commands."""
    assert post(client, body).status_code == status


def test_another_content_type_is_refused(client: FlaskClient) -> None:
    """415: Alertmanager sends application/json."""
    assert post(client, notification(alert()), {**CONTROL, "Content-Type": "text/plain"}).status_code == 415


def test_only_the_control_token_may(client: FlaskClient, run: FakeRun) -> None:
    """401 without a token, 403 with the read-only one."""
    assert post(client, notification(alert()), {}).status_code == 401
    assert post(client, notification(alert()), READ).status_code == 403
    assert not run.commands()


def test_a_closed_run_is_a_conflict(client: FlaskClient, run: FakeRun) -> None:
    """409: no retry brings the run back."""
    run.is_closed = True
    assert post(client, notification(alert())).status_code == 409


def test_truncated_alerts_are_told_and_the_rest_is_carried_out(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Alertmanager's max_alerts may cut the one that matters: the log says so."""
    response = post(client, notification(alert(), truncatedAlerts=7))
    assert outcomes(response) == ["accepted"]
    assert response.json["truncated"] == 7
    assert "left 7 alerts out" in caplog.text


def test_a_notification_of_many_alerts_is_taken(server: HttpServer, run: FakeRun) -> None:
    """Larger than a command may be: a group of 200 alerts, of which the last is ours, over a real connection."""
    others = [alert(labels={"run_id": f"other-{i:06x}"}, fingerprint=f"{i:016x}") for i in range(200)]
    answer = send(server, "/alertmanager", notification(*others, alert()))
    assert answer.status == 200
    assert answer.json["results"][-1]["outcome"] == "accepted"
    assert len(run.commands()) == 1


def test_a_notification_has_a_limit_too(client: FlaskClient) -> None:
    """413 above 512 KiB, and the problem says how much is allowed."""
    response = post(client, notification(alert(annotations={"summary": "x" * 600_000})))
    assert response.status_code == 413
    assert "524288" in response.json["detail"]


def test_labels_cannot_forge_a_line_of_the_log(client: FlaskClient, run: FakeRun) -> None:
    """Names and summaries of any text end up as one line of bounded length."""
    body = notification(
        alert("A\nCRITICAL forged", annotations={"summary": "one\r\n\ttwo\u2028three \ud800" + "x" * 600})
    )
    assert outcomes(post(client, body)) == ["accepted"]
    (record,) = run.commands()
    assert record.actor == "A CRITICAL forged"
    assert "one two three xxx" in record.reason
    assert (len(record.reason), record.reason[-4:]) == (500, "x...")


def schema(part: str, status: str = "200") -> Draft202012Validator:
    """The schema that the OpenAPI document gives for the body, or for the answer."""
    operation = OPENAPI["paths"][URL]["post"]
    content = operation[part] if part == "requestBody" else operation["responses"][status]
    return Draft202012Validator(
        {**content["content"]["application/json"]["schema"], "components": OPENAPI["components"]}
    )


def test_body_and_answer_are_those_of_the_document(client: FlaskClient) -> None:
    """What Alertmanager sends is valid by the OpenAPI document, and so is what it is answered, outcome by outcome."""
    resolved = alert(fingerprint="00000000000000bb", status="resolved")
    body = notification(alert(), alert(), alert(fingerprint="00000000000000aa"), resolved)
    schema("requestBody").validate(body)
    response = post(client, body)
    schema("responses").validate(response.json)
    assert outcomes(response) == ["accepted", "duplicate", "cooling_down", "resolved"]
    assert set(outcomes(response)) < set(OUTCOMES)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(["firing", "reduce", RUN_ID]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_keys = st.sampled_from(["version", "alerts", "truncatedAlerts", "status", "labels", "annotations", "fingerprint"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(_keys, st.booleans(), _values), max_size=4), st.text(max_size=9), st.text(max_size=9))
def test_whatever_is_sent_nothing_breaks(changes: list[tuple[str, bool, Any]], action: str, factor: str) -> None:
    """A notification with any of its parts replaced by anything: an answer below 500, and a command with a 200 only."""
    run, errors = FakeRun(), []
    client = create_app(run, Security(token=TOKEN), on_error=errors.append).test_client()
    body = notification(alert(labels={"remediation": action or "reduce", "remediation_factor": factor}))
    for key, is_inside, value in changes:
        target = body["alerts"][0] if is_inside and isinstance(body["alerts"], list) and body["alerts"] else body
        if isinstance(target, dict):
            target[key] = copy.deepcopy(value)
    response = post(client, body)
    assert errors == []
    assert response.status_code in (200, 400, 409, 422)
    assert len(run.commands()) <= (response.status_code == 200)

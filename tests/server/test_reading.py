"""Reading: what the API shows of a run."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from monitor._records import RankReading
from monitor.server import _json
from tests.server.fake_run import FakeRun
from tests.server.wire import CONTROL, READ


def get(client: FlaskClient, path: str, headers: dict[str, str] = READ, status: int = 200):
    response = client.get(f"/api/v1{path}", headers=headers)
    assert response.status_code == status, response.text
    return json.loads(response.data, parse_constant=lambda name: pytest.fail(f"bare {name}"))


HOSTS = [
    ("workstation", "http://10.0.0.6:9477"),
    ("workstation", ""),
    ("node-b", "https://10.0.0.7:9477"),
    ("node-b", ""),
]


def test_run_shows_the_whole_snapshot(client: FlaskClient, run: FakeRun) -> None:
    """/run holds every field of the snapshot, and what the reader may do."""
    shown = get(client, "/run")
    snapshot = run.snapshot()
    assert set(shown) == {*snapshot.__dataclass_fields__, "page"}
    assert shown["run"]["run_id"] == snapshot.run.run_id
    assert shown["optimizers"][0]["global_step"] == 300
    assert shown["page"] == {"can_control": False}
    assert get(client, "/run", CONTROL)["page"]["can_control"] is True


def test_counts_of_commands_become_a_list(client: FlaskClient, run: FakeRun) -> None:
    """Triples as keys do not exist in JSON: /run lists them with names."""
    client.post("/api/v1/lr/reduce", json={"factor": 0.5}, headers=CONTROL)
    run.advance()
    assert get(client, "/run")["commands_total"] == [
        {"action": "reduce", "source": "api", "outcome": "applied", "count": 1}
    ]


def test_a_loss_that_is_not_finite_is_a_string(client: FlaskClient, run: FakeRun) -> None:
    """NaN is shown as NaN, in a form that every JSON parser takes."""
    run.advance(1200)
    assert math.isnan(run.snapshot().optimizers[0].loss)
    assert get(client, "/run")["optimizers"][0]["loss"] == "NaN"
    assert get(client, "/history")["optimizers"]["AdamW"]["loss"][-1] == "NaN"
    assert get(client, "/events")["events"][-1]["value"] == "NaN"


@pytest.mark.parametrize(("value", "expected"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")])
def test_what_is_not_finite_is_spelled_as_prometheus_does(value: float, expected: str) -> None:
    """The three values that JSON lacks have one spelling each, at any depth."""
    assert json.loads(_json.encode({"a": [1.5, {"b": value}]})) == {"a": [1.5, {"b": expected}]}


def test_history_passes_the_cursor_and_the_number_of_points(client: FlaskClient) -> None:
    """The page asks only for what is new."""
    first = get(client, "/history?points=10")
    assert len(first["optimizers"]["AdamW"]["step"]) == 10
    assert first["next"] == 300
    assert get(client, f"/history?since={first['next'] - 2}")["optimizers"]["AdamW"]["step"] == [299, 300]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("since=-1", "since"),
        ("since=x", "since"),
        ("since=1.5", "since"),
        ("since=", "since"),
        ("since=٣", "since"),
        ("since=" + "9" * 5000, "since"),
        ("since=9999999999999999999", "since"),
        ("points=0", "points"),
        ("points=10001", "points"),
    ],
)
def test_a_parameter_that_is_no_such_integer_is_refused(client: FlaskClient, query: str, field: str) -> None:
    """The refusal names the parameter and shows what was given."""
    problem = get(client, f"/history?{query}", status=422)
    assert problem["field"] == field
    assert "must be an integer from" in problem["detail"]
    assert len(problem["detail"]) < 200


def test_events_come_after_the_cursor(client: FlaskClient, run: FakeRun) -> None:
    """`next` is the cursor for the following request; it stays where nothing is new."""
    run.publish("spike", "warning", "loss rose")
    everything = get(client, "/events")
    assert [event["seq"] for event in everything["events"]] == [1, 2]
    assert get(client, f"/events?since={everything['next']}") == {"events": [], "next": 2, "earlier": None}


def test_events_come_in_pages_into_the_past(client: FlaskClient, run: FakeRun) -> None:
    """The newest come first; `earlier` leads to those before them, until there are none."""
    for _ in range(4):
        run.publish("spike", "warning", "loss rose")
    newest = get(client, "/events?limit=2")
    assert ([event["seq"] for event in newest["events"]], newest["next"], newest["earlier"]) == ([4, 5], 5, 4)
    middle = get(client, "/events?limit=2&before=4")
    assert ([event["seq"] for event in middle["events"]], middle["earlier"]) == ([2, 3], 2)
    assert [event["seq"] for event in get(client, "/events?limit=2&since=3")["events"]] == [4, 5]
    oldest = get(client, "/events?limit=2&before=2")
    assert ([event["seq"] for event in oldest["events"]], oldest["earlier"]) == ([1], None)


@pytest.mark.parametrize("query", ["limit=0", "limit=2001", "before=-1"])
def test_a_page_that_cannot_be_is_refused(client: FlaskClient, query: str) -> None:
    """The refusal names the parameter."""
    assert get(client, f"/events?{query}", status=422)["field"] == query.partition("=")[0]


def test_lr_shows_what_is_applied_and_what_waits(client: FlaskClient) -> None:
    """Each group has its scheduled and applied LR, and a waiting command is listed."""
    client.put("/api/v1/lr", json={"factor": 0.25}, headers=CONTROL)
    shown = get(client, "/lr")
    assert [(group["param_group"], group["name"], group["factor"]) for group in shown["groups"]] == [
        (0, "decay", 1.0),
        (1, "no_decay", 1.0),
    ]
    assert [(command["action"], command["status"]) for command in shown["pending"]] == [("set", "pending")]


def test_targets_name_the_address_that_was_asked(client: FlaskClient) -> None:
    """http_sd: the target is how the asker reached us; run_id is no target label, as every series has it."""
    response = client.get("/api/v1/targets", headers={**READ, "Host": "127.0.0.1:9477"})
    assert response.json == [
        {
            "targets": ["127.0.0.1:9477"],
            "labels": {
                "__scheme__": "http",
                "__meta_monitor_run_id": "fake-0a1b2c",
                "__meta_monitor_run_name": "fake",
            },
        }
    ]


def test_targets_name_the_other_hosts_of_the_ranks(
    client: FlaskClient, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that can be reached: one rank of each says where."""
    ranks = [RankReading(i, "ok", host=host, url=url) for i, (host, url) in enumerate(HOSTS)]
    monkeypatch.setattr(run, "snapshot", lambda shown=run.snapshot(): replace(shown, ranks=tuple(ranks)))
    response = client.get("/api/v1/targets", headers={**READ, "Host": "127.0.0.1:9477"})
    assert response.json is not None
    named = [(one["labels"]["__scheme__"], *one["targets"]) for one in response.json]
    assert named == [("http", "127.0.0.1:9477"), ("https", "10.0.0.7:9477")]
    assert {one["labels"]["__meta_monitor_run_id"] for one in response.json} == {"fake-0a1b2c"}


def test_metrics_pass_accept_and_names(client: FlaskClient, run: FakeRun) -> None:
    """Content negotiation and the name filter are the exporter's; the server hands both over."""
    text = client.get("/metrics?name[]=training_global_step")
    assert text.text == 'training_global_step{run_id="fake-0a1b2c",optimizer="AdamW"} 300\n'
    assert text.content_type.startswith("text/plain; version=0.0.4")
    open_metrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.content_type.startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


def test_only_a_whole_scrape_counts(client: FlaskClient, run: FakeRun) -> None:
    """The linger waits for a real scrape: a HEAD or a failed one is none."""
    client.head("/metrics").close()
    assert run.num_scrapes == 0
    client.get("/metrics").close()
    assert run.num_scrapes == 1


def test_large_answers_are_compressed_where_that_is_asked_for(client: FlaskClient) -> None:
    """gzip saves four fifths of a scrape; who does not accept it gets plain bytes."""
    plain = client.get("/metrics")
    packed = client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.data) == plain.data
    refused = client.get("/metrics", headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert refused.data == plain.data


def test_small_answers_are_not_compressed(client: FlaskClient) -> None:
    """Below a kilobyte compression costs more than it saves."""
    response = client.get("/healthz", headers={"Accept-Encoding": "gzip"})
    assert response.json == {"status": "ok"}
    assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize("path", ["/api/v1/run", "/metrics", "/", "/nothing", "/api/v1/lr/reduce"])
def test_every_answer_carries_the_headers_that_bind_a_browser(client: FlaskClient, path: str) -> None:
    """No inline script, no framing, no sniffing, no referrer, no cache, no CORS; errors included."""
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name, _ in headers if name.lower().startswith("access-control-")]


def test_a_failure_of_ours_is_a_problem_that_shows_nothing(
    client: FlaskClient, run: FakeRun, errors: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A view that raises is a 500 problem, counted and logged; the client sees no traceback."""
    run.failure = RuntimeError("secret of the machine room")
    problem = get(client, "/run", status=500)
    assert "secret" not in json.dumps(problem)
    assert errors == [run.failure]
    assert "machine room" in caplog.text

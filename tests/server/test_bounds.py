"""Load is bounded where it is made: renderings, points, names, entries of refused commands."""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable
from contextlib import closing

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitor.common import MAX_NAME, as_name
from monitor.export import Exporter
from monitor.link._refusals import BURST
from monitor.server import _app
from monitor.watcher._reports import Reports
from tests.control.conftest import noting
from tests.server.fake_run import FakeRun
from tests.server.real_run import Live
from tests.server.wire import CONTROL, READ, call

Attach = Callable[..., Live]
GZIP = {"Accept-Encoding": "gzip"}


def counting(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[object]:
    """Note each call of a function, which does what it did."""
    calls: list[object] = []
    real = getattr(owner, name)

    def noted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)
    return calls


# renderings


def test_a_document_is_rendered_once_for_all_who_may_see_the_same(
    client: FlaskClient, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/run of one published state: once for readers and once for owners; another state, another rendering."""
    rendered = counting(monkeypatch, _app, "run_document")
    answers = [client.get("/api/v1/run", headers=who).json["page"] for who in (READ, CONTROL, READ, CONTROL)]
    assert [answer["can_control"] for answer in answers] == [False, True, False, True]
    assert len(rendered) == 2
    run.advance()
    assert client.get("/api/v1/run", headers=READ).json["optimizers"][0]["global_step"] == 301
    assert len(rendered) == 3


def test_what_is_rendered_once_is_compressed_once(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compressed form is kept as well."""
    _app._kept_gzip.cache_clear()
    compressed = counting(monkeypatch, _app.gzip, "compress")
    bodies = {client.get("/api/v1/run", headers={**READ, **GZIP}).data for _ in range(3)}
    assert (len(bodies), len(compressed)) == (1, 1)


def test_a_scrape_is_rendered_once(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each format and choice of names; a command that is applied meanwhile shows in the next one."""
    live = attach(digest_interval=5)
    live.optimizer.step()
    live.run.flush()
    state = Reports.snapshot(live.run._engine.watcher.watcher.reports)
    monkeypatch.setattr(Reports, "snapshot", lambda self: state)
    rendered = counting(monkeypatch, Exporter, "render")
    paths = ["/metrics", "/metrics", "/metrics?name[]=training_loss", "/metrics"]
    accepts = [{}, {"Accept": "application/openmetrics-text"}]
    monkeypatch.setattr("monitor.common._renderings.time.monotonic", lambda: 0.0)
    for _ in range(2):
        for path in paths:
            for accept in accepts:
                assert call(live, "GET", path, accept).status == 200
    assert len(rendered) == 4


# points


@pytest.mark.parametrize(("who", "most"), [(READ, _app.MAX_POINTS_TO_READ), (CONTROL, _app.MAX_POINTS)])
def test_points_are_bounded_by_permission(client: FlaskClient, who: dict[str, str], most: int) -> None:
    """A read-only token gets what the page asks for at most; the refusal names the bound."""
    assert client.get(f"/api/v1/history?points={most}", headers=who).status_code == 200
    refused = client.get(f"/api/v1/history?points={most + 1}", headers=who)
    assert refused.status_code == 422
    assert refused.json["detail"] == f"points must be an integer from 1 to {most}, got '{most + 1}'."


# names


def test_names_of_the_users_own_are_shortened_and_stay_distinct(
    attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    """Run, optimizers, param groups and metrics of a megabyte each: a scrape of some kilobytes, a line for each."""
    huge = "x" * 10**6
    live = attach(
        {f"{huge}1": noting(0.1, names=(f"{huge}a",)), f"{huge}2": noting(0.1, names=(f"{huge}b",))}, name=huge
    )
    live.run.log(**{f"{huge}{number}": 1.0 for number in range(3)})
    for optimizer in live.optimizer.values():
        optimizer.step()
    live.run.flush()
    scrape = call(live, "GET", "/metrics").body.decode()
    assert len(scrape) < 300_000
    families = {family.name: family.samples for family in parse_text(scrape)}
    assert {sample.labels["name"] for sample in families["training_metric"]} == {
        as_name(f"{huge}{n}") for n in range(3)
    }
    assert families["training_run_info"][0].labels["run_name"] == as_name(huge)
    groups = live.get("/lr")["groups"]
    assert {(one["optimizer"], one["name"]) for one in groups} == {
        (as_name(f"{huge}1"), as_name(f"{huge}a")),
        (as_name(f"{huge}2"), as_name(f"{huge}b")),
    }
    told = [
        line for line in caplog.messages if line.startswith(f"a name of more than {MAX_NAME} characters is shown as")
    ]
    assert len(told) == 8


def test_a_group_goes_by_its_shortened_name(attach: Attach) -> None:
    """Over HTTP by what is shown, in the script by the whole name."""
    name = "x" * 300
    live = attach(noting(0.1, 0.2, names=(name, "head")))
    accepted = live.send("/lr/reduce", {"factor": 0.5, "groups": [as_name(name)]})
    live.run.reduce_lr(0.5, groups=[name])
    live.optimizer.step()
    assert live.outcome(accepted)["status"] == "applied"
    live.run.flush()
    assert [group["factor"] for group in live.get("/lr")["groups"]] == [0.25, 1.0]


def test_what_a_checkpoint_function_returns_is_bounded(attach: Attach) -> None:
    """A megabyte of it is not kept in the audit."""
    live = attach(on_checkpoint=lambda: "x" * 10**6)
    accepted = live.send("/checkpoint", {})
    live.optimizer.step()
    message = live.outcome(accepted)["message"]
    assert (len(message), message[:13], message[-1]) == (1000, "checkpoint: x", "…")


# refused commands


def test_a_flood_of_refused_commands_leaves_few_entries(attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    """Each is answered and counted; audit and log hold the first ones, and how many there were besides."""
    caplog.set_level(logging.INFO)
    live = attach()
    num_refused = BURST + 60
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    with closing(connection):
        for _ in range(num_refused):
            headers = {**CONTROL, "Content-Type": "application/json"}
            connection.request("POST", "/api/v1/lr/reduce", b'{"factor": 0.5, "groups": ["none"]}', headers)
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:1]) == (422, b"{")
    accepted = live.send("/lr/reduce", {"factor": 0.5})
    live.optimizer.step()
    assert live.outcome(accepted)["status"] == "applied"
    audit = live.audit()
    assert len(audit) < num_refused
    assert sum(entry.get("count", 1) for entry in audit if entry["status"] == "rejected") == num_refused
    assert audit[-1]["status"] == "applied"
    assert live.get("/run")["commands_total"][0]["count"] == num_refused
    assert len([line for line in caplog.messages if "rejected" in line]) < num_refused / 2

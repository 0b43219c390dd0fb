"""Publishing and annotating: against a recording double, and against the Grafana at $GRAFANA_URL where there is one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import monitor
from monitor._records import Event
from monitor.cli import main
from monitor.cli._dashboards import follow
from monitor.grafana import Annotator, GrafanaError, dashboards, publish
from monitor.store._folder import RunFolder
from tests.certificate import self_signed
from tests.grafana.double import TOKEN, Grafana
from tests.requirements import need_module

UIDS = {each.uid for each in dashboards()}


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    need_module("grafana_client")
    with Grafana() as double:
        yield double


def annotator(grafana: Grafana, **options: Any) -> Annotator:
    return Annotator(grafana.url, **{"token": TOKEN, "pauses": (0.01, 0.01), "timeout": 60.0, **options})


def event(number: int = 1, **changes: Any) -> Event:
    fields = {"kind": "spike", "severity": "warning", "step": 120, "start_step": 117, "message": "loss rose"}
    return Event(**{**fields, "time": 1000.5, "id": number, "seq": number, **changes})  # type: ignore[arg-type]


def test_all_dashboards_are_published(grafana: Grafana) -> None:
    """Folder and dashboards are there, over the default Prometheus, and the answer says where and how healthy."""
    done = publish(grafana.url, token=TOKEN)
    assert set(grafana.dashboards) == UIDS
    assert grafana.folders == {"training-monitor": "Training"}
    assert {each["folderUid"] for each in grafana.dashboards.values()} == {"training-monitor"}
    preset = grafana.dashboards["training-monitor-run"]["dashboard"]["templating"]["list"][0]["current"]
    assert preset == {"selected": True, "text": "Prometheus", "value": "prom"}
    assert done.dashboards[0] == ("Training: overview", f"{grafana.url}/d/training-monitor-overview/x")
    assert (done.datasource, done.is_healthy) == ("Prometheus", True)


@pytest.mark.parametrize(("default", "chosen"), [("second", "second"), ("loki", "first")])
def test_the_default_data_source_is_taken(grafana: Grafana, default: str, chosen: str) -> None:
    """Of several Prometheus it is Grafana's default one, else the first."""
    kinds = {"loki": "loki", "first": "prometheus", "second": "prometheus"}
    grafana.sources = [
        {"id": i, "uid": uid, "name": uid.title(), "type": kind, "isDefault": uid == default}
        for i, (uid, kind) in enumerate(kinds.items(), 1)
    ]
    assert publish(grafana.url, token=TOKEN).datasource == chosen.title()
    presets = {d["dashboard"]["templating"]["list"][0]["current"]["value"] for d in grafana.dashboards.values()}
    assert presets == {chosen}


def test_publishing_again_changes_nothing_else(grafana: Grafana) -> None:
    """A second time finds the folder and replaces the dashboards."""
    grafana.folders["own"] = "Training"
    publish(grafana.url, token=TOKEN)
    publish(grafana.url, token=TOKEN)
    assert grafana.folders == {"own": "Training"}
    assert set(grafana.dashboards) == UIDS


def test_an_unhealthy_data_source_is_reported(grafana: Grafana) -> None:
    """The dashboards are published, and the answer holds what Grafana says."""
    grafana.health = {"status": "ERROR", "message": "connection refused"}
    done = publish(grafana.url, token=TOKEN)
    assert not done.is_healthy
    assert "connection refused" in done.health


@pytest.mark.parametrize("datasource", [None, "no-such"])
def test_nothing_is_written_without_a_data_source(grafana: Grafana, datasource: str | None) -> None:
    """A Grafana without the Prometheus asked for is refused before anything is written."""
    if datasource is None:
        grafana.sources.pop()
    with pytest.raises(GrafanaError, match=r"no data source .*--datasource"):
        publish(grafana.url, token=TOKEN, datasource=datasource)
    assert not grafana.folders
    assert {method for method, _ in grafana.requests} == {"GET"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "403.*role Editor"), (412, "412.*changed"), (500, "500 .made to answer 500"), (400, "400 .Bad Input")],
)
def test_a_refusal_midway_leaves_nothing_half_written(grafana: Grafana, status: int, words: str) -> None:
    """When one dashboard is refused the message says which and why; those before it and the folder are gone again."""
    grafana.fail_dashboard["training-monitor-compare"] = status
    with pytest.raises(GrafanaError, match=f"saving the dashboard 'Training: compare': {words}") as caught:
        publish(grafana.url, token=TOKEN)
    assert caught.value.status == status
    assert not grafana.dashboards
    assert not grafana.folders


def test_a_refusal_midway_puts_the_old_ones_back(grafana: Grafana) -> None:
    """Dashboards that were there before are what they were, in the folder that they were in."""
    grafana.folders["elsewhere"] = "Elsewhere"
    old = {"dashboard": {"uid": "training-monitor-overview", "title": "mine"}, "folderUid": "elsewhere"}
    grafana.dashboards["training-monitor-overview"] = old
    grafana.fail_dashboard["training-monitor-hardware"] = 500
    with pytest.raises(GrafanaError):
        publish(grafana.url, token=TOKEN)
    assert set(grafana.dashboards) == {"training-monitor-overview"}
    kept = grafana.dashboards["training-monitor-overview"]
    assert (kept["dashboard"], kept["folderUid"]) == (old["dashboard"], "elsewhere")
    assert grafana.folders == {"elsewhere": "Elsewhere"}


def test_a_grafana_that_disappears_midway_is_told(grafana: Grafana) -> None:
    """When nothing can be taken back any more, the message names what may be half-published, and what to do."""
    grafana.vanish_at = "training-monitor-compare"
    with pytest.raises(GrafanaError, match="cannot be reached") as caught:
        publish(grafana.url, token=TOKEN)
    assert "while saving the dashboard 'Training: compare'" in str(caught.value)
    left = "the folder 'Training', the dashboard 'Training: overview', the dashboard 'Training: run', "
    assert f"half-published may be: {left}the dashboard 'Training: compare'; publish again" in str(caught.value)
    grafana.vanish_at, grafana.is_gone = None, False
    publish(grafana.url, token=TOKEN)
    assert set(grafana.dashboards) == UIDS


def test_what_cannot_be_taken_back_is_told(grafana: Grafana) -> None:
    """When the refusal of a dashboard is followed by one of the undoing, the message names what is left."""
    grafana.fail_dashboard["training-monitor-run"] = 500
    grafana.fail["DELETE", "/dashboards/uid/training-monitor-overview"] = 403
    with pytest.raises(
        GrafanaError, match=r"500.*; half-published may be: the dashboard 'Training: overview'; publish"
    ):
        publish(grafana.url, token=TOKEN)
    assert set(grafana.dashboards) == {"training-monitor-overview"}


def test_changes_by_hand_can_be_kept(grafana: Grafana) -> None:
    """Without overwriting a dashboard that is there is a 412, which says so."""
    publish(grafana.url, token=TOKEN)
    with pytest.raises(GrafanaError, match="412, somebody has changed"):
        publish(grafana.url, token=TOKEN, overwrite=False)
    assert set(grafana.dashboards) == UIDS


def test_a_wrong_token_is_told(grafana: Grafana) -> None:
    """401 names the cure, and never shows a login that is part of the URL."""
    with pytest.raises(GrafanaError, match=r"401.*service account token") as caught:
        publish(grafana.url.replace("//", "//admin:hunter2@"))
    assert "hunter2" not in str(caught.value)


def test_a_grafana_that_is_away_is_told() -> None:
    """A port that nobody has is a clear error, as are an address that is none and one that speaks something else."""
    need_module("grafana_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(GrafanaError, match="cannot be reached") as caught:
            publish(f"http://127.0.0.1:{taken.getsockname()[1]}", token=TOKEN)
    assert caught.value.is_passing
    with pytest.raises(GrafanaError, match="'ftp://x' is not an http"):
        publish("ftp://x")


@pytest.mark.parametrize("body", [b'{"status": "ok"}', b"null", b"[1]", b"3", b"<html>", b"", b"\xff"])
def test_another_server_at_the_address_is_told(grafana: Grafana, body: bytes) -> None:
    """What answers 200 with something else is no Grafana: exit status 1 and one line, not a traceback."""
    grafana.say["GET", "/datasources"] = body
    words = ["dashboards", "publish", "--grafana", grafana.url, "--token", TOKEN]
    done = CliRunner().invoke(main, words)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert f"Error: {grafana.url} does not answer like a Grafana" in done.output
    assert "while listing its data sources; check the address" in done.output


@pytest.mark.parametrize("body", [b'{"status": "ok"}', b"null", b"[1]", b"<html>"])
@pytest.mark.parametrize(
    ("request_", "doing"),
    [
        (("GET", "/folders"), "listing its folders"),
        (("POST", "/folders"), "making the folder 'Training'"),
        (("GET", "/dashboards/uid/training-monitor-run"), "looking for the dashboard 'training-monitor-run'"),
        (("POST", "/dashboards/db"), "saving the dashboard 'Training: overview'"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
def test_an_answer_in_another_form_leaves_nothing_half_written(
    grafana: Grafana, request_: tuple[str, str], doing: str, body: bytes
) -> None:
    """Wherever the answer is not Grafana's the message says so, and what was published before is taken back."""
    grafana.say[request_] = body
    with pytest.raises(GrafanaError, match=f"does not answer like a Grafana .* while {doing}") as caught:
        publish(grafana.url, token=TOKEN)
    assert not caught.value.is_passing
    assert "half-published" not in str(caught.value)
    assert not grafana.dashboards
    assert not grafana.folders


def test_a_health_in_another_form_is_reported(grafana: Grafana) -> None:
    """The dashboards are published, and the data source is not called healthy."""
    grafana.say["GET", "/datasources/uid/prom/health"] = b"[1]"
    done = publish(grafana.url, token=TOKEN)
    assert not done.is_healthy
    assert "does not answer like a Grafana" in done.health


def test_a_grafana_that_hangs_is_told(grafana: Grafana) -> None:
    """No answer in time is an error that says so."""
    grafana.stall.clear()
    with pytest.raises(GrafanaError, match=r"did not answer in time|cannot be reached"):
        publish(grafana.url, token=TOKEN, timeout=0.2)
    grafana.stall.set()


def test_an_event_becomes_an_annotation_and_its_end_a_region(grafana: Grafana) -> None:
    """Time, text and tags are the event's; when it ends the same annotation gets its end."""
    with annotator(grafana, tags=("digits-1",)) as annotate:
        annotate(event())
        assert annotate.flush(60)
        assert grafana.annotations[1] == {
            "panelId": None,
            "time": 1000500,
            "timeEnd": 1000500,
            "tags": ["training-monitor", "digits-1", "spike", "warning"],
            "text": "spike: loss rose (step 120)",
        }
        annotate(event(seq=2, end_step=140, time=1010.0, message="loss is back"))
        assert annotate.flush(60)
    assert len(grafana.annotations) == 1
    assert (grafana.annotations[1]["time"], grafana.annotations[1]["timeEnd"]) == (1000500, 1010000)
    assert grafana.annotations[1]["text"] == "spike: loss is back (steps 117 to 140)"
    assert (annotate.sent, annotate.dropped) == (2, 0)


def test_a_passing_failure_is_tried_again(grafana: Grafana) -> None:
    """A 500 is tried again and then dropped and counted; a 403 is dropped at once."""
    with annotator(grafana) as annotate:
        for status, tries in ((500, 3), (403, 1)):
            grafana.requests.clear()
            grafana.fail["POST", "/annotations"] = status
            annotate(event())
            assert annotate.flush(60)
            assert len(grafana.requests) == tries
        assert (annotate.sent, annotate.dropped) == (0, 2)
        grafana.fail.clear()
        annotate(event(2))
        assert annotate.flush(60)
        assert annotate.sent == 1


def test_the_queue_is_bounded(grafana: Grafana) -> None:
    """While Grafana hangs the newest events wait, older ones are dropped and counted, and nobody waits."""
    grafana.stall.clear()
    with annotator(grafana, capacity=3) as annotate:
        annotate(event(1))
        while not grafana.requests and annotate._waiting:  # the thread has taken the first
            pass
        for number in range(2, 12):
            annotate(event(number, message=f"number {number}"))
        assert annotate.dropped == 7
        grafana.stall.set()
        assert annotate.flush(60)
    assert [each["text"] for each in grafana.annotations.values()][-1] == "spike: number 11 (step 120)"
    assert len(grafana.annotations) == 4


def test_closing_does_not_wait_for_a_grafana_that_is_gone(grafana: Grafana) -> None:
    """What cannot be sent is dropped and counted; the thread ends amid a pause; later events are dropped."""
    annotate = annotator(grafana, pauses=(3600.0,))
    grafana.stop()
    annotate(event(1))
    annotate(event(2))
    annotate.close(timeout=0.2)
    assert annotate.sent == 0
    annotate(event(3))
    assert annotate.dropped == 3
    assert "monitor-annotator" not in {thread.name for thread in threading.enumerate()}


def test_closing_gives_up_a_request_without_an_answer(grafana: Grafana, caplog: pytest.LogCaptureFixture) -> None:
    """Its own deadline ends the wait, not that of the request, which is counted and reported once, late or never."""
    grafana.stall.clear()
    annotate = annotator(grafana, timeout=3600.0)
    annotate(event(1))
    assert grafana.has_request.wait(60)
    annotate(event(2))
    annotate.close(timeout=0.1)
    assert annotate._thread.is_alive()
    assert (annotate.sent, annotate.dropped) == (0, 2)
    grafana.stall.set()
    annotate.close(timeout=60)
    assert not annotate._thread.is_alive()
    assert (annotate.sent, annotate.dropped) == (0, 2)
    assert [record.getMessage() for record in caplog.records] == [f"2 annotations did not get to {grafana.url}"]


@pytest.mark.parametrize("is_hanging", [False, True], ids=["gone", "hanging"])
def test_a_run_takes_no_notice_of_a_grafana_that_disappears(grafana: Grafana, tmp_path: Path, is_hanging: bool) -> None:
    """A run whose annotator loses its Grafana makes its steps, ends as it should, and counts no failure of its own."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with annotator(grafana, pauses=(3600.0,)) as annotate:
        options = {"directory": str(tmp_path), "port": 0, "gpu": False, "on_event": annotate}
        with monitor.attach(optimizer, **options) as run:
            for step in range(40):
                if step == 10:
                    grafana.stall.clear() if is_hanging else grafana.stop()
                optimizer.zero_grad()
                (weight.sum() + (float("nan") if step == 20 else 0.0)).backward()
                optimizer.step()
            run.flush()
        assert (run.state, run.step) == ("finished", 40)
        assert run.snapshot().errors == {}
        assert torch.allclose(weight, torch.full((3,), 1 - 40 * 0.1), atol=1e-4)
        assert any(event.kind == "nonfinite" for event in run.events())
        annotate.close(timeout=0.1)
        assert annotate.dropped > 0
        grafana.stall.set()


def test_a_run_is_followed_until_it_ends(grafana: Grafana) -> None:
    """Only events from now on are handed over, each once, and those of the end too."""
    event_of = {"kind": "state", "severity": "info", "step": 1, "start_step": 1, "message": "m", "more": "unknown"}

    class Run:
        states = iter(["running", "running", "running", "finished"])
        pages = iter([[{**event_of, "seq": 8}], [], [{**event_of, "seq": 9}]])

        def get(self, path: str) -> dict[str, Any]:
            if path == "/run":
                return {"state": next(self.states), "last_event_seq": 7}
            found = next(self.pages)
            return {"events": found, "next": found[-1]["seq"] if found else int(path.rpartition("=")[2])}

    seen: list[Event] = []
    follow(Run(), seen.append, sleep=lambda _: None)
    assert [each.seq for each in seen] == [8, 9]


def test_a_run_that_cannot_be_read_is_told(grafana: Grafana, tmp_path: Path) -> None:
    """Where the run to annotate does not answer, that is exit status 1 and the reason, not a quiet end."""
    folder = RunFolder.create(tmp_path, "digits-0a1b2c", name="digits", start_time=1.0)
    folder.update(state="running", url="http://127.0.0.1:1")
    words = ["dashboards", "publish", "--grafana", grafana.url, "--token", TOKEN, "--annotate", "--dir", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "http://127.0.0.1:1" in done.stderr


def test_a_run_over_tls_is_annotated(grafana: Grafana, tmp_path: Path) -> None:
    """With the CA of its certificate given, the events of a run that is served over TLS are saved."""
    certfile, keyfile = self_signed(tmp_path)
    weight = torch.nn.Parameter(torch.ones(1))
    options = {"directory": str(tmp_path / "runs"), "port": 0, "gpu": False, "certfile": certfile, "keyfile": keyfile}

    def is_annotated() -> bool:
        return any("a reason of the test" in each["text"] for each in list(grafana.annotations.values()))

    def train() -> None:
        optimizer = torch.optim.SGD([weight], lr=0.1)
        with monitor.attach(optimizer, **options) as run:
            is_served.set()
            deadline = time.monotonic() + 120
            while not is_annotated() and time.monotonic() < deadline:
                run.reduce_lr(0.99, reason="a reason of the test")
                weight.sum().backward()
                optimizer.step()
                time.sleep(0.02)

    is_served = threading.Event()
    training = threading.Thread(target=train)
    training.start()
    assert is_served.wait(60)
    words = ["dashboards", "publish", "--grafana", grafana.url, "--token", TOKEN, "--annotate"]
    done = CliRunner().invoke(main, [*words, "--dir", str(tmp_path / "runs"), "--cafile", certfile])
    training.join()
    assert done.exit_code == 0, done.output
    assert is_annotated()


def test_the_command_line_publishes(grafana: Grafana) -> None:
    """`monitor dashboards publish` prints where the dashboards are; a refusal is exit status 1 and one line."""
    words = ["dashboards", "publish", "--grafana", grafana.url, "--token", TOKEN]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert f"Training: run: {grafana.url}/d/training-monitor-run/x" in done.output
    assert "data source Prometheus: healthy" in done.output
    done = CliRunner().invoke(main, [*words[:-1], "wrong"])
    assert done.exit_code == 1
    assert "Error: " in done.output
    assert "401" in done.output
    done = CliRunner().invoke(main, [*words, "--annotate"])
    assert done.exit_code == 1
    assert "no run is going on" in done.output


@pytest.mark.skipif("GRAFANA_URL" not in os.environ, reason="needs a Grafana: set GRAFANA_URL, and GRAFANA_TOKEN")
def test_a_real_grafana_takes_them() -> None:
    """The Grafana at $GRAFANA_URL keeps dashboards and annotation as they were sent."""
    from monitor.grafana._api import connect, disconnect

    url, token = os.environ["GRAFANA_URL"], os.environ.get("GRAFANA_TOKEN")
    publish(url, token=token)
    api = connect(url, token)
    try:
        for each in dashboards():
            kept = api.dashboard.get_dashboard(each.uid)["dashboard"]
            assert [panel["title"] for panel in kept["panels"]] == [panel["title"] for panel in each.render()["panels"]]
    finally:
        disconnect(api)
    with Annotator(url, token=token, tags=("a-test",)) as annotate:
        annotate(event())
        assert annotate.flush(60)
        assert (annotate.sent, annotate.dropped) == (1, 0)

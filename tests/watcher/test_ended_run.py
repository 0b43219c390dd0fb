"""A run that is over is served out of its folder as it was served while it was live."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from monitor._errors import ClosedRunError, StoreError
from monitor.server import Security, create_app
from monitor.store import KnownRun, RunFolder, list_runs
from monitor.watcher import EndedRun
from tests.watcher.ended import an_ended_run
from tests.watcher.test_process import (
    PATIENCE_SECONDS,
    Script,
    Trained,
    ask,
    attach,
    gone,
    pid_of_watcher,
    wait_for,
)

TOKEN = "the-token-of-a-run-that-is-over"
PATHS = ("/run", "/history", "/events", "/lr")
PASSING = {"time", "elapsed_seconds", "state", "end_time", "host", "gpus", "collections", "page", "last_step_time"}
"""What a live run changes while nothing happens, or at its end."""


class Asked:
    """The application of a run that is over, and how to ask it."""

    def __init__(self, known: KnownRun) -> None:
        self._client = create_app(EndedRun(known), Security(token=TOKEN)).test_client()

    def get(self, path: str) -> Any:
        """Return the JSON at a path of the API."""
        return self.ask("GET", path).json

    def ask(self, method: str, path: str, **given: Any) -> Any:
        """Return the whole answer."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return self._client.open(f"/api/v1{path}", method=method, headers=headers, **given)


@pytest.fixture(params=["process", "thread"])
def told(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], KnownRun, str]:
    """What a live run told last, its folder once it has ended, and the id of a command that it took."""
    trained = Trained()
    with attach(trained.optimizer, store_bytes=2**23, watcher=request.param, system_interval=0.1) as run:
        trained.train(3)
        command = run.reduce_lr(0.5, reason="tried")
        trained.train(4)
        run.log(val_loss=0.25)
        wait_for(lambda: len(run.history()["system"]["time"]) > 2, "readings of the machine")
        run.flush(PATIENCE_SECONDS)
        live = {path: ask(run, f"/api/v1{path}") for path in (*PATHS, f"/commands/{command.id}")}
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")
    return live, list_runs(tmp_path / "runs")[0], command.id


def lasting(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in PASSING}


def test_it_tells_what_it_told_while_it_was_live(told: tuple[dict[str, Any], KnownRun, str]) -> None:
    """State, learning rates, curves, events and commands are those of the live run, with the end after them."""
    live, known, command = told
    asked = Asked(known)
    ended = asked.get("/run")
    assert ended["state"] == "finished"
    ours = {"last_event_seq", "events_total", "last_event_time", "last_event_step", "hook_seconds", "overhead_ratio"}
    same = lasting(live["/run"]).keys() - ours
    assert {name: ended[name] for name in same} == {name: live["/run"][name] for name in same}
    assert asked.get("/lr") == live["/lr"]
    assert asked.get(f"/commands/{command}") == live[f"/commands/{command}"]
    told_events = live["/events"]["events"]
    events = asked.get("/events")["events"]
    assert events[: len(told_events)] == told_events
    assert "finished" in events[-1]["message"]
    before, after = live["/history"]["system"], asked.get("/history")["system"]
    assert after.keys() == before.keys()
    for name in ("time", "cpu_ratio", "memory_used_bytes", "tree_resident_bytes"):
        shown = after[name][: len(before[name])]
        assert shown == (pytest.approx(before[name], abs=1e-5) if name == "time" else before[name]), name
    (before,), (after,) = (one["optimizers"].values() for one in (live["/history"], asked.get("/history")))
    assert after.keys() == before.keys()
    for name in ("step", "count", "loss", "loss_min", "loss_max", "loss_ema", "gradient_norm", "lr"):
        assert after[name] == before[name], name


def test_curves_after_a_cursor_are_the_rest(told: tuple[dict[str, Any], KnownRun, str]) -> None:
    """A cursor continues where an earlier answer stopped; behind the last one there is nothing."""
    asked = Asked(told[1])
    whole = asked.get("/history")
    rest = asked.get("/history?since=5")
    (optimizer,) = rest["optimizers"].values()
    assert (whole["next"], rest["since"], rest["next"]) == (7, 5, 7)
    assert (optimizer["step"], len(optimizer["phases"]["data"])) == ([6, 7], 2)
    (optimizer,) = asked.get("/history?since=7")["optimizers"].values()
    assert optimizer["step"] == []


def test_all_events_can_be_paged_through(tmp_path: Path) -> None:
    """Page by page into the past, every event comes once, the newest page first."""
    asked = Asked(an_ended_run(tmp_path, num_events=4501))
    pages = [asked.get("/events")]
    while pages[-1]["earlier"] is not None:
        pages.append(asked.get(f"/events?before={pages[-1]['earlier']}"))
    assert [len(page["events"]) for page in pages] == [2000, 2000, 501]
    assert [event["seq"] for page in reversed(pages) for event in page["events"]] == list(range(1, 4502))
    assert asked.get("/events?since=4498&before=4501&limit=1")["events"][0]["seq"] == 4500


def test_a_command_is_refused_with_one_line(told: tuple[dict[str, Any], KnownRun, str]) -> None:
    """Nothing is left to change, whatever is asked for."""
    answer = Asked(told[1]).ask("POST", "/lr/reduce", json={"factor": 0.5})
    assert answer.status_code == 409
    assert answer.json["detail"] == f"{told[1].run_id} is over (finished); it takes no reduce any more"
    with pytest.raises(ClosedRunError):
        EndedRun(told[1]).submit("stop")


def test_its_metrics_page_and_targets_are_served(told: tuple[dict[str, Any], KnownRun, str]) -> None:
    """What a live run answers besides, a run that is over answers too."""
    client = create_app(EndedRun(told[1]), Security(token=TOKEN)).test_client()
    assert "training_loss{" in client.get("/metrics").text
    assert client.get(f"/?token={TOKEN}").status_code in (200, 302, 303)
    assert Asked(told[1]).get("/commands/none")["status"] == 404


def test_a_run_whose_processes_were_both_killed_is_shown_up_to_the_last_second(tmp_path: Path) -> None:
    """Its state is vanished; state, curves and events are there as they were committed."""
    script = Script(
        tmp_path,
        "run = attach(store_bytes=2**23); say(); train(3); run.flush(); time.sleep(3); train(4); run.flush(); "
        "time.sleep(3); say(); wait()",
    )
    script.hear(), script.hear()
    watcher = pid_of_watcher(script)
    os.kill(watcher, signal.SIGSTOP)  # so that it cannot record the end
    script.process.kill()
    script.process.wait()
    os.kill(watcher, signal.SIGKILL)
    wait_for(lambda: gone(watcher), "the end of the watcher")
    script.end()
    (known,) = list_runs(script.runs_directory)
    asked = Asked(known)
    run = asked.get("/run")
    assert (run["state"], run["optimizers"][0]["steps"]) == ("vanished", 7)
    (optimizer,) = asked.get("/history")["optimizers"].values()
    assert optimizer["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["kind"] for event in asked.get("/events")["events"]] == ["state"]


def test_a_run_that_left_no_state_is_refused(tmp_path: Path) -> None:
    """A run without a last state, or with one that is none, cannot be shown: the error says so."""
    folder = RunFolder.create(tmp_path, "digits-000001", name="digits", start_time=1.0)
    folder.finish("finished", end_time=2.0)
    with pytest.raises(StoreError, match="digits-000001 is finished and left no last state behind"):
        EndedRun(list_runs(tmp_path)[0])
    folder.finish("finished", end_time=2.0, final={"state": "finished", "optimizers": 3})
    with pytest.raises(StoreError, match="the last state of digits-000001 cannot be read"):
        EndedRun(list_runs(tmp_path)[0])

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from monitor._records import HostReading, RankReading
from monitor.cli import _format
from monitor.cli._client import Client, ClientError, NoAnswerError, own_name, token_of
from monitor.cli._main import _ramp, main
from monitor.control import Stacks
from monitor.server import HttpServer, Security, create_app, run_document
from monitor.store import STORE_FILE, StoreWriter
from monitor.store._folder import RunFolder
from monitor.store._known import list_runs
from tests.cli.proving import KEY, announce, proving, serving, serving_in
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun


class QuickRun(FakeRun):
    """A fake run that makes its next step as soon as a command is there."""

    def submit(self, action: str, **given: Any) -> Any:
        record = super().submit(action, **given)
        self.advance()
        return record


@pytest.fixture
def fake() -> FakeRun:
    run = QuickRun(clock=time.time)
    run.advance(300)
    return run


@pytest.fixture
def server(fake: FakeRun) -> Iterator[HttpServer]:
    with serving(fake, "fake-0a1b2c") as http_server:
        yield http_server


def make_folder(run_id: str, url: str | None = None, token: str | None = TOKEN, **given: Any) -> RunFolder:
    """A run of this process, listed in the test's own runs directory."""
    name = run_id.rpartition("-")[0]
    folder = RunFolder.create(None, run_id, **{"name": name, "start_time": time.time(), "token": token, **given})
    folder.update(state="running")
    if url is not None:
        announce(folder, url)
    return folder


@pytest.fixture
def folder(server: HttpServer) -> RunFolder:
    return make_folder("fake-0a1b2c", server.url)


def publish_stacks(fake: FakeRun, stack: str) -> None:
    """Say of two ranks that they stand in the same place, as a run does that has stalled."""
    stacks = Stacks({0: stack, 1: stack}, (), 2)
    fake.publish("state", "warning", stacks.message, details={"state": "stalled", **stacks.details})


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="monitor")


def call_json(*words: str) -> Any:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("folder")
class TestLearningRate:
    def test_reduce_prints_the_outcome_at_its_step(self) -> None:
        """`lr reduce` says at which step it took effect and what became of each group of which optimizer."""
        result = call("lr", "reduce", "0.5", "--reason", "loss spikes")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == "reduce 0.5: applied at step 301 of fake-0a1b2c"
        assert [line.split()[:5] for line in lines[1:]] == [
            ["AdamW/0", "decay", "factor", "1", "->"],
            ["AdamW/1", "no_decay", "factor", "1", "->"],
        ]

    @pytest.mark.parametrize("run", ["fake", "fake-0a1b2c", "fak", "fake-0"])
    def test_the_run_may_stand_before_the_verb(self, run: str) -> None:
        """`lr RUN reduce F` works with an id, a name and a prefix of either."""
        record = call_json("lr", run, "reduce", "0.5")
        assert (record["status"], record["factor"], record["over_steps"]) == ("applied", 0.5, 0)

    def test_everything_that_was_asked_arrives(self, fake: FakeRun) -> None:
        """Groups by index and by name, the ramp and the reason reach the run."""
        record = call_json(
            *("lr", "set", "0.25", "--group", "0", "--group", "no_decay", "--over-steps", "10", "--reason", "why")
        )
        assert (record["groups"], record["over_steps"], record["reason"]) == ([0, "no_decay"], 10, "why")
        assert [group.factor for group in fake.snapshot().optimizers[0].groups] == [0.25, 0.25]

    def test_a_change_by_degrees_says_when_it_is_complete(self) -> None:
        """With --over-steps the outcome names the step that uses the new factor itself, then each group."""
        lines = call("lr", "set", "0.25", "--over-steps", "200").stdout.splitlines()
        assert lines[:2] == [
            "set 0.25: applied at step 301 of fake-0a1b2c",
            "  by degrees over 200 steps, complete at step 500",
        ]
        assert len(lines) == 4

    def test_the_audit_names_who_gave_the_command(self) -> None:
        """The actor of a command is the user and the machine that it came from."""
        assert call_json("lr", "reduce", "0.5")["actor"] == f"{own_name()} via token@127.0.0.1"

    def test_restore_and_undo_take_no_factor(self, fake: FakeRun) -> None:
        """`restore` and `undo` work without a value and refuse one."""
        assert call("lr", "reduce", "0.5").exit_code == 0
        assert call("lr", "undo").exit_code == 0
        assert call("lr", "reduce", "0.5").exit_code == 0
        assert call("lr", "fake", "restore").exit_code == 0
        assert [group.factor for group in fake.snapshot().optimizers[0].groups] == [1.0, 1.0]
        assert call("lr", "restore", "1").exit_code == 2

    def test_no_wait_only_sends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With --no-wait the answer is the accepted command."""
        monkeypatch.setattr(QuickRun, "submit", FakeRun.submit)
        result = call("lr", "reduce", "0.5", "--no-wait")
        assert result.exit_code == 0
        assert result.stdout.startswith("reduce 0.5: accepted by fake-0a1b2c as c0001")

    def test_without_a_verb_it_is_shown(self) -> None:
        """`lr` alone lists applied and scheduled learning rates."""
        assert [group["name"] for group in call_json("lr")["groups"]] == ["decay", "no_decay"]
        assert call("lr", "fake").stdout.splitlines()[0].split() == ["group", "LR", "applied", "scheduled", "factor"]

    def test_what_the_run_refuses_is_status_1_with_its_reason(self) -> None:
        """A factor above 1, an unknown group and an undo of nothing are refused in the run's own words."""
        for words, reason in (
            (("set", "2"), "factor must be in (0, 1], got 2.0; allow_increase=True lifts the upper bound"),
            (("set", "0.5", "--group", "9"), "there is no param group 9; there are 0 (decay), 1 (no_decay)"),
            (("undo",), "there is no change to undo"),
        ):
            result = call("lr", *words)
            assert (result.exit_code, result.stderr) == (1, f"Error: {reason}\n")
            assert result.stdout == ""

    @pytest.mark.parametrize("status", ["rejected", "expired"])
    def test_a_command_that_came_to_nothing_is_status_1(
        self, fake: FakeRun, status: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An accepted command that is rejected or expires later is told with its reason, as JSON too."""

        real = fake.command
        monkeypatch.setattr(fake, "command", lambda key: replace(real(key), status=status, message="no step came"))
        result = call("lr", "reduce", "0.5")
        assert (result.exit_code, result.stderr) == (1, f"reduce 0.5: {status}: no step came\n")
        result = call("lr", "reduce", "0.5", "--json")
        assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, status)

    @pytest.mark.parametrize("factor", ["0", "-1", "nan", "inf", "a", "0,5", ""])
    def test_a_factor_that_cannot_be_is_refused_at_the_door(self, fake: FakeRun, factor: str) -> None:
        """Zero, negative, non-finite and no numbers are status 2; the message names the value; nothing is sent."""
        result = call("lr", "reduce", factor)
        assert result.exit_code == 2
        assert f"got {factor!r}" in result.stderr
        assert fake.snapshot().commands_total == {}

    @pytest.mark.parametrize(
        "words",
        [
            ("reduce",),
            ("reduce", "0.5", "0.5"),
            ("fake", "shrink", "0.5"),
            ("fake", "reduce"),
            ("--gruop", "1"),
            ("reduce", "0.5", "--over-steps", "-1"),
            ("undo", "--group", "0"),
            ("restore", "--nonsense"),
            ("--reason", "why"),
        ],
    )
    def test_wrong_usage_is_status_2(self, fake: FakeRun, words: tuple[str, ...]) -> None:
        """Too few words, too many, unknown verbs and options that mean nothing are usage errors."""
        result = call("lr", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Error: " in result.stderr
        assert fake.snapshot().commands_total == {}

    def test_a_run_may_be_called_like_a_verb(self, fake: FakeRun) -> None:
        """`lr undo reduce 0.5` reduces the run named undo."""
        with serving(fake, "undo-000001") as server:
            make_folder("undo-000001", server.url)
            done = call("lr", "undo", "reduce", "0.5")
        assert done.stdout.startswith("reduce 0.5: applied at step 301 of undo-000001")


@pytest.mark.usefixtures("folder")
class TestActions:
    @pytest.mark.parametrize(("action", "state"), [("pause", "paused"), ("stop", "finished")])
    def test_actions_reach_the_run(self, fake: FakeRun, action: str, state: str) -> None:
        """`pause` and `stop` are applied, with their reason kept."""
        record = call_json(action, "fake", "--reason", "lunch")
        assert (record["action"], record["status"], record["reason"]) == (action, "applied", "lunch")
        assert fake.state == state

    def test_resume_follows_pause(self, fake: FakeRun) -> None:
        """`resume` lets a paused run continue."""
        assert call("pause").exit_code == 0
        assert call("resume").exit_code == 0
        assert fake.state == "running"

    def test_checkpoint_without_a_callable_is_refused(self) -> None:
        """A run without `on_checkpoint` says so."""
        result = call("checkpoint")
        assert result.exit_code == 1
        assert "this run has no on_checkpoint" in result.stderr


@pytest.mark.usefixtures("folder")
class TestStatus:
    def test_figures_are_those_of_the_run(self, fake: FakeRun) -> None:
        """`status` prints the step, the loss and the learning rates that the snapshot holds."""
        text, snapshot = call("status").stdout, fake.snapshot()
        assert text.startswith("fake-0a1b2c  running  http://127.0.0.1:")
        assert "300 of 5,000 (6 %), 8.33 steps/s" in text
        assert f"{snapshot.optimizers[0].loss:.4g}, smoothed" in text
        assert f"{snapshot.optimizers[0].groups[1].applied:.4g}" in text

    def test_the_cost_is_told_as_a_share_and_in_microseconds(self) -> None:
        """Hook time over step time, and what that is for one step at the pace of the window."""
        assert row_of(call("status").stdout, "monitor") == "0.25 % of the step time, 300 µs a step"

    def test_the_lowest_loss_is_called_what_it_is(self) -> None:
        """The best is that of the smoothed loss, and is called so."""
        assert re.search(
            r", smoothed [\d.]+, lowest smoothed loss [\d.]+ at step \d+$", row_of(call("status").stdout, "loss")
        )

    def test_what_still_held_at_the_end_of_a_run_is_past(self, folder: RunFolder) -> None:
        """A condition that no event has ended is told of as that of the end, not of now."""
        document = {**call_json("status"), "events_active": {"slowdown": True}}
        folder.finish("finished", end_time=1.0, final={**document, "state": "finished", "end_time": 1.0})
        text = call("status", "fake").stdout
        assert row_of(text, "at the end") == "slowdown"
        assert "now" not in text

    def test_an_ended_run_took_its_time(self, folder: RunFolder) -> None:
        """After the end there is neither an age nor a time left, but how long the run took."""
        document = call_json("status")
        document = {**document, "state": "finished", "end_time": 1.0, "elapsed_seconds": 4000.0}
        folder.finish("finished", end_time=1.0, final=document)
        text = call("status", "fake").stdout
        assert row_of(text, "time") == "took 1 h 6 min"
        assert row_of(text, "step") == "300 of 5,000 (6 %)"
        del document["elapsed_seconds"]  # left by an earlier version
        folder.finish("finished", end_time=1.0, final={**document, "end_time": document["run"]["start_time"] + 60})
        assert row_of(call("status", "fake").stdout, "time") == "took 1 min 0 s"

    @pytest.mark.parametrize(
        ("resume_time", "told"), [(None, "16 s since the start"), (5.0, "16 s in all its sessions")]
    )
    @pytest.mark.usefixtures("folder")
    def test_the_time_of_a_resumed_run_is_that_of_its_sessions(self, resume_time: float | None, told: str) -> None:
        """What lay between the sessions does not count, so it is not the time since the start."""
        document = call_json("status")
        document = {**document, "elapsed_seconds": 16.0, "run": {**document["run"], "resume_time": resume_time}}
        assert dict(_format.progress_rows(document, document["time"]))["time"] == told

    @pytest.mark.parametrize("steps", [0, 3])
    def test_a_loss_that_is_not_known_says_so(self, folder: RunFolder, steps: int) -> None:
        """A dash has its reason, once there was a step that could have had a loss."""
        document = call_json("status")
        optimizer = {**document["optimizers"][0], "loss": None, "loss_ema": None, "loss_best": None, "steps": steps}
        folder.finish("finished", end_time=1.0, final={**document, "state": "finished", "optimizers": [optimizer]})
        assert row_of(call("status", "fake").stdout, "loss") == ("-" + " (not known for the last step)" * bool(steps))

    def test_json_is_the_document_of_the_api(self) -> None:
        """`status --json` gives what GET /api/v1/run gives, without the page's own part."""
        document = call_json("status", "fake")
        assert document["run"]["run_id"] == "fake-0a1b2c"
        assert "page" not in document

    def test_nan_is_shown_as_nan(self, fake: FakeRun) -> None:
        """A loss that is NaN is printed as NaN, in text and in JSON."""
        fake.advance(1200)
        assert call_json("status")["optimizers"][0]["loss"] == "NaN"
        assert any(line.split()[:2] == ["loss", "NaN,"] for line in call("status").stdout.splitlines())
        assert "NaN" in call("runs").stdout

    def test_an_ended_run_shows_its_last_state(self, folder: RunFolder) -> None:
        """After the end the last state comes from the run folder."""
        document = call_json("status")
        folder.finish("finished", end_time=time.time(), final={**document, "state": "finished"})
        for words in (("status", "fake"), ("status",)):
            assert call(*words).stdout.startswith("fake-0a1b2c  finished\n")

    def test_a_run_that_left_nothing_is_said_to_be_so(self, folder: RunFolder) -> None:
        """A run that ended without a last state is status 1 with that reason."""
        folder.finish("failed", end_time=time.time())
        result = call("status", "fake")
        assert (result.exit_code, result.stderr) == (1, "Error: fake-0a1b2c is failed and left no last state behind\n")


class TestRuns:
    def test_no_runs(self) -> None:
        """Without any run the list is empty and says so."""
        assert call_json("runs") == []
        assert call("runs").stdout == "no run is known here; `monitor demo` makes one\n"

    def test_running_ended_and_silent_runs_are_listed(self, folder: RunFolder, server: HttpServer) -> None:
        """Each run has a line: what continues by its API, what ended by its folder, what does not answer as such."""
        document = call_json("status")
        ended = make_folder("ended-000001", server.url, start_time=1.0)
        ended.finish("finished", end_time=2.0, final={**document, "state": "finished"})
        make_folder("silent-000001", "http://127.0.0.1:9")
        make_folder("local-000001")
        found = {run["name"]: run for run in call_json("runs")}
        assert next(iter(found)) == "ended"
        assert {name: run["state"] for name, run in found.items()} == {
            "ended": "finished",
            "fake": "running",
            "silent": "running, no answer",
            "local": "running",
        }
        assert found["fake"]["step"] == found["ended"]["step"] == 300
        assert (found["silent"]["step"], found["ended"]["url"]) == (None, None)
        lines = call("runs").stdout.splitlines()
        assert len(lines) == 5
        assert lines[1].split()[:3] == ["ended-000001", "finished", "300"]

    def test_only_the_newest_are_listed(self) -> None:
        """-n limits the list to the newest."""
        for number in range(3):
            make_folder(f"run-{number}", start_time=float(number))
        assert [run["run_id"] for run in call_json("runs", "-n", "2")] == ["run-1", "run-2"]


class TestChoice:
    def test_the_only_running_run_needs_no_name(self, folder: RunFolder, server: HttpServer) -> None:
        """Ended runs do not make the choice ambiguous."""
        make_folder("old-000001", server.url).finish("finished", end_time=1.0)
        assert call("status").exit_code == 0

    def test_several_running_runs_are_listed(self, folder: RunFolder, server: HttpServer) -> None:
        """Without RUN, or with a prefix of two, the refusal names the candidates."""
        make_folder("fake-ffffff", server.url)
        for words in (("status",), ("lr", "reduce", "0.5"), ("status", "fake"), ("pause", "f")):
            result = call(*words)
            assert result.exit_code == 2
            assert "fake-0a1b2c  running" in result.stderr
            assert "fake-ffffff  running" in result.stderr
        assert call("status", "fake-0").exit_code == 0

    def test_the_ranks_of_one_training_are_one_run(self, folder: RunFolder, server: HttpServer) -> None:
        """Without RUN, or by their name, rank 0's is meant; the list tells them apart."""
        make_folder("fake-000001", "http://127.0.0.1:9", rank=1)
        for words in (("lr", "reduce", "0.5"), ("lr", "fake", "reduce", "0.5"), ("pause",), ("status", "fa")):
            result = call(*words)
            assert result.exit_code == 0, result.output
            assert "fake-0a1b2c" in result.stdout
        assert {run["run_id"]: run["rank"] for run in call_json("runs")} == {"fake-0a1b2c": 0, "fake-000001": 1}
        assert [line.split()[:2] for line in call("runs").stdout.splitlines()] == [
            ["RUN", "RANK"], ["fake-0a1b2c", "0"], ["fake-000001", "1"],
        ]  # fmt: skip

    def test_a_rank_whose_steps_another_run_shows_is_none_of_its_own(self, folder: RunFolder) -> None:
        """It is listed with ``--all``, and found by its id; one whose leader is not known here is listed."""
        part = make_folder("fake-000001", rank=1)
        part.update(leader="fake-0a1b2c")
        make_folder("far-000002", rank=1).update(leader="elsewhere-000003")
        assert [run["run_id"] for run in call_json("runs")] == ["fake-0a1b2c", "far-000002"]
        assert len(call_json("runs", "--all")) == 3
        assert "fake-0a1b2c" in call("status", "fake").stdout
        for known in (part, folder):
            known.finish("failed", end_time=time.time())
        assert "fake-0a1b2c is failed" in call("status", "fake").output
        assert "fake-000001" in call("status", "fake-000001").output

    def test_rank_0_lists_its_ranks(self, folder: RunFolder, fake: FakeRun, server: HttpServer) -> None:
        """Their number stands in the list of runs; the state of each in that of the run."""
        fake.ranks = (
            RankReading(0, "ok", "fake-0a1b2c", "node-a", 1204, 0.052, 2.301, 0.0, 0.02),
            RankReading(1, "lost", "fake-000001", "node-b", 1180, 0.052, 2.287, 34.0),
            RankReading(2),
        )
        lines = [" ".join(line.split()) for line in call("status").stdout.splitlines()]
        assert lines[-4:] == [
            "3 ranks state step step time own time loss last seen host",
            "0 ok 1,204 0.052 s 0.02 s 2.301 0.0 s ago node-a",
            "1 lost 1,180 0.052 s - 2.287 34 s ago node-b",
            "2 not attached - - - - - -",
        ]
        assert "fake-0a1b2c  3 ranks  running" in call("runs").stdout
        assert [run["num_ranks"] for run in call_json("runs")] == [3]
        fake.state = "finished"
        lines = [" ".join(line.split()) for line in call("status").stdout.splitlines()]
        assert lines[-4] == "3 ranks at the end state step step time own time loss last seen host"
        assert lines[-2] == "1 lost 1,180 0.052 s - 2.287 34 s before node-b"

    def test_a_stalled_run_shows_where_its_ranks_stand(
        self, folder: RunFolder, fake: FakeRun, server: HttpServer
    ) -> None:
        """The stacks of this stall, below the state, while it lasts; nothing in them steers the terminal."""
        publish_stacks(fake, "of an earlier stall")
        assert "stack of" not in call("status").stdout
        fake.publish("stall", "critical", "no step for 60 s")
        assert "stack of" not in call("status").stdout
        publish_stacks(fake, '  File "job.py", line 7, in load\n    x = "\x1b[2J"\n')
        lines = call("status").stdout.splitlines()
        assert lines[-4:] == [
            "stalled at step 300: ranks 0-1 are in load (job.py:7)",
            "  stack of ranks 0-1:",
            '    File "job.py", line 7, in load',
            '      x = "?[2J"',
        ]

    def test_an_ended_run_shows_where_it_stood(self, folder: RunFolder, fake: FakeRun) -> None:
        """Of a run that was killed in a stall, out of its store; without a store, its state alone."""
        fake.publish("stall", "critical", "no step for 60 s")
        publish_stacks(fake, '  File "job.py", line 7, in load\n    x = load()\n')
        fake.state = "failed"
        folder.finish("failed", end_time=1.0, final=run_document(fake.snapshot()))
        assert "stack of" not in call("status", "fake-0a1b2c").stdout
        store = StoreWriter(folder.path / STORE_FILE)
        for event in fake.events(0, 2**63, 2000):
            store.add_event(event)
        store.close()
        lines = call("status", "fake-0a1b2c").stdout.splitlines()
        assert lines[-3:] == ["  stack of ranks 0-1:", '    File "job.py", line 7, in load', "      x = load()"]

    def test_a_run_of_its_own_is_not_rank_0_of_another_one(self, folder: RunFolder) -> None:
        """This machine has rank 1 of a training over two, and another run of the same script, which trains alone."""
        make_folder("fake-000001", rank=1, world_size=2)
        assert call("lr", "reduce", "0.5").exit_code == 2

    @pytest.mark.parametrize("ranks", [(1, 1), (2,), (0, 1)])
    def test_ranks_of_several_trainings_are_not(self, folder: RunFolder, ranks: tuple[int, ...]) -> None:
        """Where a rank is there twice, or one is missing, the refusal says which is which."""
        for number, rank in enumerate(ranks):
            make_folder(f"fake-00000{number}", rank=rank)
        result = call("lr", "reduce", "0.5")
        assert result.exit_code == 2
        assert "fake-0a1b2c  running  rank 0" in result.stderr
        assert f"fake-000000  running  rank {ranks[0]}" in result.stderr

    def test_a_running_run_beats_an_ended_one_of_the_same_name(self, folder: RunFolder, server: HttpServer) -> None:
        """A name means the live run."""
        make_folder("fake-000000", server.url).finish("finished", end_time=1.0)
        assert call_json("status", "fake")["run"]["run_id"] == "fake-0a1b2c"

    def test_the_last_that_ended_is_shown_where_none_goes_on(self, folder: RunFolder, server: HttpServer) -> None:
        """After the end `status` alone looks back at the last run; while one continues it means that one."""
        early = make_folder("early-000000", server.url)
        early.finish("finished", end_time=4.0, final={"run": {"run_id": "early-000000"}})
        assert call_json("status")["run"]["run_id"] == "fake-0a1b2c"
        folder.finish("failed", end_time=9.0, final={"run": {"run_id": "fake-0a1b2c"}})
        assert call_json("status") == {"run": {"run_id": "fake-0a1b2c"}}
        assert "no run is going on" in call("lr").stderr

    def test_refusals_say_why(self, folder: RunFolder) -> None:
        """An unknown run is usage; no running run, an ended one and one without HTTP are failures."""
        assert (call("status", "nope").exit_code, "no run 'nope'" in call("status", "nope").stderr) == (2, True)
        make_folder("quiet-000001")
        assert "quiet-000001 serves no HTTP" in call("lr", "quiet").stderr
        for run in list_runs():
            RunFolder(run).finish("finished", end_time=1.0)
        assert (call("pause").exit_code, "no run is going on" in call("pause").stderr) == (1, True)
        assert (call("pause", "fake").exit_code, "'fake' has ended" in call("pause", "fake").stderr) == (1, True)


class TestReaching:
    def test_an_address_and_a_token_need_no_folder(self, server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """--url with --token, or with $MONITOR_TOKEN, reaches a run that this machine has no folder of."""
        assert call("lr", "reduce", "0.5", "--url", server.url, "--token", TOKEN).exit_code == 0
        result = call("lr", "reduce", "0.5", "--url", server.url)
        assert (result.exit_code, "give it with --token or $MONITOR_TOKEN" in result.stderr) == (1, True)
        monkeypatch.setenv("MONITOR_TOKEN", TOKEN)
        assert call("lr", "reduce", "0.5", "--url", server.url).exit_code == 0
        assert call("lr", "reduce", "0.5", "--url", server.url.removeprefix("http://")).exit_code == 0

    def test_a_known_address_brings_its_token(self, folder: RunFolder, server: HttpServer) -> None:
        """--url of a run of this machine uses the token of its folder."""
        assert call("lr", "--url", f"{server.url}/").exit_code == 0
        assert call("lr", "fake", "--url", server.url).exit_code == 2

    def test_the_read_token_may_look_only(self, server: HttpServer) -> None:
        """With the read-only token `status` works and `lr reduce` is refused."""
        assert call("status", "--url", server.url, "--token", READ_TOKEN).exit_code == 0
        assert call("lr", "reduce", "0.5", "--url", server.url, "--token", READ_TOKEN).exit_code == 1

    def test_another_runs_directory(self, fake: FakeRun, tmp_path: Path) -> None:
        """--dir looks for runs somewhere else."""
        other = RunFolder.create(tmp_path / "other", "far-000001", name="far", start_time=1.0, token=TOKEN)
        with serving(fake, "far-000001") as server:
            announce(other, server.url)
            assert call("status", "far").exit_code == 2
            assert call("status", "far", "--dir", str(tmp_path / "other")).exit_code == 0

    @pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "http://x:port", "/tmp"])
    def test_no_address(self, url: str) -> None:
        """What is no http(s) URL is refused by name."""
        result = call("status", "--url", url)
        assert result.exit_code == 1
        assert repr(url) in result.stderr

    def test_nobody_there(self) -> None:
        """A closed port is told in a sentence, not in a traceback."""
        result = call("status", "--url", "http://127.0.0.1:9")
        assert (result.exit_code, result.stderr) == (
            1,
            "Error: http://127.0.0.1:9 does not answer (connection refused)\n",
        )

    def test_the_token_given_beats_the_folders_beats_the_environment(self, folder: RunFolder) -> None:
        """Option, run folder, $MONITOR_TOKEN: in this order."""
        environ = {"MONITOR_TOKEN": "from-environment"}
        assert token_of(folder.run, "given", environ) == "given"
        assert token_of(folder.run, None, environ) == TOKEN
        assert token_of(None, None, environ) == "from-environment"
        assert token_of(None, None, {}) is None

    @pytest.mark.parametrize(
        ("url", "stranger", "sent"),
        [
            ("http://127.0.0.1:9477/", 0, True),
            ("http://[::1]:9477/", 0, True),
            ("http://localhost:9477/", 0, True),
            ("http://192.0.2.7:9477/", 0, False),
            ("http://127.0.0.1.evil.example:9477/", 0, False),
            ("http://[::1:9477/", 0, False),
            ("http://127.0.0.1:9477/", 1, False),
        ],
    )
    def test_the_environments_token_goes_to_no_address_that_a_stranger_wrote(
        self, url: str, stranger: int, sent: bool
    ) -> None:
        """A folder without a token gets $MONITOR_TOKEN sent to loopback alone, and only where the folder is ours; what
        was named by --url gets it whatever a folder says."""
        environ = {"MONITOR_TOKEN": "from-environment"}
        known = replace(make_folder("fake-0a1b2c", token=None).run, url=url)
        assert token_of(known, None, environ, uid=lambda: os.getuid() + stranger) == (
            "from-environment" if sent else None
        )
        assert token_of(known, None, environ, is_named=True, uid=lambda: 12345) == "from-environment"
        assert token_of(known, "given", environ, uid=lambda: 12345) == "given"
        assert token_of(replace(known, path=Path("/nowhere")), None, environ) is None

    def test_a_listener_that_is_not_the_run_gets_no_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who has the port of a run that is gone is asked for a proof and gets nothing more. An address that is given
        by --url, of no run that is known, gets $MONITOR_TOKEN."""
        monkeypatch.setenv("MONITOR_TOKEN", "from-environment")
        seen: list[tuple[str, str | None]] = []

        def trap(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.append((environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION")))
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
            return [b"{}"]

        with HttpServer(trap, port=0) as trapping:
            far = trapping.url.replace("127.0.0.1", "0.0.0.0")  # the same listener by an address that is not loopback
            make_folder("far-000001", far, token=None)
            make_folder("near-000002", trapping.url)
            refused = [call(*words).stderr for words in (("status", "far"), ("status", "near"), ("pause", "near"))]
            with HttpServer(trap, port=0) as elsewhere:
                assert call("status", "--url", elsewhere.url, "--json").exit_code == 0
        assert all("does not know the key in the run's folder, and gets no token" in line for line in refused)
        assert seen == [("/api/v1/proof", None)] * 3 + [("/api/v1/run", "Bearer from-environment")]

    @pytest.mark.parametrize("is_dead", [False, True])
    def test_an_address_of_a_run_of_ones_own_must_prove_itself(
        self, is_dead: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However --url spells it, and also once the run was killed: the next one to listen there gets no token."""
        monkeypatch.setenv("MONITOR_TOKEN", "from-environment")
        seen: list[str | None] = []

        def trap(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.append(environ.get("HTTP_AUTHORIZATION"))
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
            return [b"{}"]

        with HttpServer(trap, port=0) as squatter:
            make_folder("near-000001", squatter.url, **({"pid": 2**22 + 1} if is_dead else {}))
            port = squatter.port
            for url in (f"127.0.0.1:{port}", f"http://localhost:{port}", f"HTTP://127.1:{port}", f"{squatter.url}/?"):
                assert "gets no token" in call("status", "--url", url).stderr
        assert seen == [None] * 4

    def test_a_proof_cannot_be_relayed(self, folder: RunFolder, fake: FakeRun) -> None:
        """Who has the port of a run, and asks the run's server at another one, hears a proof for that other port."""

        def relay(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            address = f"{folder.run.url}{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                body = answer.read()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]

        with HttpServer(relay, port=0) as relaying:
            client = Client(relaying.url, TOKEN, key=KEY, run_id="fake-0a1b2c")
            with pytest.raises(ClientError, match="is not the server of fake-0a1b2c"):
                client.get("/run")

    def test_a_proof_is_of_this_run_by_this_key_and_for_this_question(self, fake: FakeRun) -> None:
        """Another run's server, one with another key, and an answer that was heard before prove nothing."""
        heard = proving("fake-0a1b2c")("00" * 16, 9477)
        for prove in (proving("other-000001"), proving("fake-0a1b2c", "another key"), lambda *_: heard, None):
            app = create_app(fake, Security(token=TOKEN), prove=prove)
            with HttpServer(app, port=0) as server:
                client = Client(server.url, TOKEN, key=KEY, run_id="fake-0a1b2c")
                with pytest.raises(ClientError, match="is not the server of fake-0a1b2c"):
                    client.get("/run")

    def test_a_folder_without_a_key_sends_no_token(self, folder: RunFolder) -> None:
        """One of an older version, or one from which the key was removed: the refusal says what to do."""
        (folder.path / "key").unlink()
        refused = call("status", "fake")
        assert refused.exit_code == 1
        assert f"--url {folder.run.url} with --token-file" in refused.stderr
        assert call("status", "--url", folder.run.url or "", "--token", TOKEN).exit_code == 0

    def test_the_socket_in_the_folder_needs_no_port_and_no_token(self, fake: FakeRun) -> None:
        """Where the run listens in its folder, commands go there, whatever its address and host name say."""
        folder = make_folder("fake-0a1b2c", "http://127.0.0.1:9", token=None)
        content = json.loads((folder.path / "run.json").read_text())
        (folder.path / "run.json").write_text(json.dumps({**content, "hostname": "a-container"}))
        with serving_in(folder, create_app(fake, Security(token=TOKEN))):
            assert stat.S_IMODE((folder.path / "socket").stat().st_mode) == 0o600
            record = call_json("lr", "reduce", "0.5")
            assert (record["status"], record["actor"]) == ("applied", f"{own_name()} via socket")
            assert re.fullmatch(r"http://127.0.0.1:9/\?code=\S{22}\n", call("open", "fake").stdout)
            assert [row["state"] for row in call_json("runs")] == ["running"]
        assert call("status", "fake").exit_code == 1

    def test_the_name_of_the_socket_as_something_else_is_not_used(self, folder: RunFolder, tmp_path: Path) -> None:
        """A link to a socket of somebody else's, or a file, is passed over: the address will do."""
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(str(tmp_path / "s"))
            stranger.listen()
            for plant in (lambda path: path.symlink_to(tmp_path / "s"), lambda path: path.write_text("")):
                plant(folder.path / "socket")
                assert call("status", "fake").exit_code == 0
                (folder.path / "socket").unlink()

    def test_a_token_may_be_in_a_file(
        self, server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """--token-file and $MONITOR_TOKEN_FILE keep it out of the list of processes; two at once, or none in it, are
        refused."""
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        (tmp_path / "empty").touch()
        url = ("status", "--url", server.url)
        assert call(*url, "--token-file", str(tmp_path / "token")).exit_code == 0
        assert "must be a file" in call(*url, "--token-file", str(tmp_path / "empty")).stderr
        assert "not both" in call(*url, "--token-file", str(tmp_path / "token"), "--token", TOKEN).stderr
        monkeypatch.setenv("MONITOR_TOKEN_FILE", str(tmp_path / "token"))
        assert call(*url).exit_code == 0
        monkeypatch.setenv("MONITOR_TOKEN", TOKEN)
        assert "MONITOR_TOKEN and MONITOR_TOKEN_FILE are both set; keep one" in call(*url).stderr


class TestAnotherHost:
    """A shared home, or a container, has folders of runs whose loopback address is another machine's."""

    @pytest.fixture
    def far(self, server: HttpServer) -> RunFolder:
        folder = make_folder("far-000001", server.url)
        content = json.loads((folder.path / "run.json").read_text())
        (folder.path / "run.json").write_text(json.dumps({**content, "hostname": "node-b"}))
        return folder

    @pytest.mark.parametrize("words", [("status",), ("lr", "reduce", "0.5"), ("open",), ("status", "--token", TOKEN)])
    def test_its_loopback_address_is_not_asked(self, words: tuple[str, ...], far: RunFolder, fake: FakeRun) -> None:
        """Whoever listens here at that port gets no token; the refusal says how to get there."""
        result = call(*words)
        url = far.run.url or ""
        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: far-000001 runs on node-b, and {url} is an address of that machine alone; "
            f"`ssh -L 9477:127.0.0.1:{urlsplit(url).port} node-b`, then --url http://127.0.0.1:9477 with --token\n"
        )
        assert [row["state"] for row in call_json("runs")] == ["running, no answer"]
        assert not fake.commands()

    def test_its_token_goes_to_no_address_of_this_machine(self, far: RunFolder) -> None:
        """An address of this machine that is given by --url gets the token that is given, not that of a far run."""
        result = call("status", "--url", far.run.url or "")
        assert (result.exit_code, "wants its token" in result.stderr) == (1, True)
        assert call("status", "--url", far.run.url or "", "--token", TOKEN).exit_code == 0

    def test_an_address_that_others_reach_is_asked(self, far: RunFolder, server: HttpServer) -> None:
        """A run on another machine that is bound to an address of the network is asked there."""
        (known,) = list_runs()
        assert token_of(replace(known, url="http://192.0.2.7:9477/"), None, {}) == TOKEN


class TestClient:
    def test_a_lost_answer_is_asked_for_again_once(self, fake: FakeRun, server: HttpServer) -> None:
        """A command whose answer got lost counts once: it is sent again under the same key."""

        class Lossy(Client):
            answers = 0

            def _read(self, status: int, content: bytes) -> dict[str, Any]:
                Lossy.answers += 1
                if Lossy.answers == 1:
                    raise NoAnswerError("lost")
                return super()._read(status, content)

        record = Lossy(server.url, TOKEN).send("reduce", {"factor": 0.5})
        assert (record["id"], Lossy.answers) == ("c0001", 2)
        assert [group.factor for group in fake.snapshot().optimizers[0].groups] == [0.5, 0.5]

    def test_a_user_without_a_name_is_named_all_the_same(self) -> None:
        """An unknown user, and characters that no header takes, give a name that the server accepts."""

        def nobody() -> str:
            raise KeyError("getpwuid(): uid not found: 1234")

        assert own_name(nobody, lambda: "box") == "unknown@box"
        assert own_name(lambda: "Zoë W", lambda: "b" * 200) == "Zo--W@" + "b" * 94

    def test_something_else_at_the_address(self) -> None:
        """An answer that is not ours is refused as such."""

        def stranger(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/html")])
            return [b"<h1>hello</h1>"]

        with HttpServer(stranger, port=0) as server, pytest.raises(ClientError, match="is not a training-monitor run"):
            Client(server.url).get("/run")


def document_of(**optimizer: Any) -> dict[str, Any]:
    """A run as GET /run tells it."""
    run = FakeRun()
    run.advance(3)
    document = run_document(run.snapshot())
    document["optimizers"][0].update(optimizer)
    return document


def row_of(text: str, name: str) -> str | None:
    """What stands behind a name in the lines of `status`."""
    found = re.search(rf"^  {name}  +(.*)$", text, re.MULTILINE)
    return found and found[1]


class TestReport:
    @pytest.mark.parametrize(
        ("skipped", "bad", "rows"),
        [
            (0, {}, (None, None)),
            (12, {}, ("12 (GradScaler overflow)", None)),
            (0, {"loss": 1, "gradient": 1}, (None, "1 loss, 1 gradient")),
            (1234, {"loss": 3, "gradient": 0}, ("1,234 (GradScaler overflow)", "3 losses")),
            (0, {"gradient": 2}, (None, "2 gradients")),
        ],
    )
    def test_skipped_steps_are_not_called_not_finite(self, skipped: int, bad: dict[str, int], rows: Any) -> None:
        """Overflows of a GradScaler stand apart from losses and gradients that are NaN or infinite."""
        document = document_of(skipped_steps={"amp_overflow": skipped}, nonfinite=bad)
        text = "\n".join(_format.status(document, None, 0.0))
        assert (row_of(text, "skipped steps"), row_of(text, "not finite")) == rows

    @pytest.mark.parametrize(
        ("host", "shown"),
        [
            (None, None),
            (HostReading(), None),
            (HostReading(memory_used_bytes=2**30, memory_total_bytes=2**31), "1.0 GiB of 2.0 GiB memory"),
            (HostReading(cpu_utilization_ratio=0.5), "50 % CPU"),
        ],
    )
    def test_what_is_not_known_of_the_host_is_left_out(self, host: HostReading | None, shown: str | None) -> None:
        """Before the first reading of the CPU its load is not shown as a dash."""
        document = {**document_of(), "host": None if host is None else asdict(host)}
        assert row_of("\n".join(_format.status(document, None, 0.0)), "host") == shown

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.5, "0.5"), (123456.7, "123,457"), (1e12, "1e+12"), (-0.00012345, "-0.0001234"), ("-Inf", "-Inf")],
    )
    def test_numbers(self, value: Any, text: str) -> None:
        """Four significant digits; what is not finite comes through."""
        assert _format.number(value) == text

    def test_progress_is_that_of_the_first_optimizer(self, fake: FakeRun) -> None:
        """Against the planned steps stands what ``run.step`` and the time left count, though another makes more."""
        document = run_document(fake.snapshot())
        (first,) = document["optimizers"]
        document = {**document, "optimizers": [first, {**first, "key": "critic", "global_step": 9000}]}
        assert dict(_format.progress_rows(document, 0.0))["step"].startswith("300 of 5,000 (6 %)")

    def test_two_optimizers_are_told_apart(self) -> None:
        """With several optimizers each group is named after its own."""
        group = {"param_group": 0, "name": None, "applied": 0.1, "scheduled": 0.1, "factor": 1.0}
        lines = _format.lr_table([{**group, "optimizer": "generator"}, {**group, "optimizer": "discriminator"}])
        assert [line.split()[:2] for line in lines[1:]] == [["generator/0", "0.1"], ["discriminator/0", "0.1"]]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["status"],
        ["lr", "reduce", "0.5"],
        ["runs"],
        ["replay", "--help"],
        ["top", "--help"],
        ["export", "x"],
    ],
)
def test_the_command_line_never_imports_torch(words: list[str]) -> None:
    """The commands that speak HTTP, and the help, start without torch, flask or prometheus_client."""
    code = (
        "import sys\nfrom monitor.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'flask', 'prometheus_client', 'numpy', 'psutil', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert (done.returncode, "imported" in done.stderr) == (0, False), done.stderr


def test_module_and_help() -> None:
    """`python -m monitor --help` names every command."""
    done = subprocess.run([sys.executable, "-m", "monitor", "--help"], capture_output=True, text=True, check=True)
    commands = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    expected = {"checkpoint", "demo", "export", "lr", "pause", "replay", "resume", "runs", "status", "stop", "top"}
    assert expected <= commands


class TestByDegrees:
    def test_the_step_that_is_told_uses_the_new_factor(self) -> None:
        """In a real run the factor is the new one at the step that the command line names, not before."""
        import torch

        import monitor

        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        factors = []
        with monitor.attach(optimizer, port=0) as run:
            assert run.url is not None
            client = Client(run.url, run.token)
            for step in range(1, 10):
                if step == 3:
                    record = client.send("set", {"factor": 0.5, "over_steps": 4})
                weight.sum().backward()
                optimizer.step()
                factors.append(run.lr[0].factor)
            (told,) = _ramp(client.wait(record))
        assert told == "  by degrees over 4 steps, complete at step 6"
        assert factors.index(0.5) + 1 == 6

    def test_optimizers_of_their_own_pace_have_no_one_step(self) -> None:
        """For several optimizers the number of steps is told, and no step."""
        changes = [{"optimizer": "generator"}, {"optimizer": "critic"}]
        record = {"status": "applied", "over_steps": 1000, "step": 5, "changes": changes}
        assert _ramp(record) == ["  by degrees, complete after 1,000 steps of each optimizer"]

    @pytest.mark.parametrize("given", [{"status": "pending"}, {"status": "rejected"}, {"over_steps": 0}])
    def test_what_is_no_change_by_degrees_says_nothing(self, given: dict[str, Any]) -> None:
        """A command that waits, that came to nothing or that took effect at once has no such line."""
        assert _ramp({"status": "applied", "over_steps": 3, "step": 5, "changes": [], **given}) == []


class TestForeignFolders:
    """Whatever lies among the runs, the commands answer."""

    def test_without_a_home_one_line_names_the_cure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Commands that look for runs end with status 1; an address needs no folder."""
        for name in ("HOME", "XDG_DATA_HOME", "MONITOR_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", no_entry)
        for words in (
            ("runs",),
            ("status",),
            ("lr",),
            ("pause",),
            ("export", "x"),
            ("dashboards", "export", "--local", "unused"),
        ):
            result = call(*words)
            assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
            assert result.stderr.endswith("; set HOME, XDG_DATA_HOME or MONITOR_DIR\n")

    def test_an_address_needs_no_home(self, server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that is named by its address is reached by a user without home directory."""
        for name in ("HOME", "XDG_DATA_HOME", "MONITOR_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", no_entry)
        assert call_json("status", "--url", server.url, "--token", TOKEN)["state"] == "running"

    @pytest.mark.parametrize(
        "final",
        [
            {},
            {"state": "finished"},
            {"state": "finished", "optimizers": [], "target_steps": None, "last_step_time": "x"},
            {"state": "finished", "optimizers": 3, "target_steps": None, "last_step_time": 1.0},
        ],
        ids=["empty", "short", "words", "numbers"],
    )
    def test_a_last_state_that_is_none_hides_no_other_run(self, final: dict[str, Any], folder: RunFolder) -> None:
        """A final.json of something else is a row without figures in `runs`, and a refusal of `status`."""
        make_folder("odd-000001").finish("finished", end_time=2.0, final=final)
        rows = {row["name"]: row for row in call_json("runs")}
        assert (rows["odd"]["state"], rows["odd"]["step"], rows["fake"]["step"]) == ("finished", None, 300)
        assert len(call("runs").stdout.splitlines()) == 3
        assert call("status", "odd").exit_code == 1
        assert "Traceback" not in call("status", "odd").stderr

    @pytest.mark.parametrize("url", ["http://[", "http://a b/", f"http://{'é' * 99}/", "http://127.0.0.1:99999", "x"])
    def test_an_address_that_is_none_hides_no_other_run(self, url: str, folder: RunFolder) -> None:
        """A run.json with an address that nothing can be at is a run that does not answer."""
        make_folder("odd-000001")
        (known,) = (run for run in list_runs() if run.name == "odd")
        content = json.loads((known.path / "run.json").read_text())
        (known.path / "run.json").write_text(json.dumps({**content, "url": url}))
        states = {row["name"]: row["state"] for row in call_json("runs")}
        assert states == {"odd": "running, no answer", "fake": "running"}

    def test_half_a_character_is_printed(self, folder: RunFolder) -> None:
        """A name in a last state that JSON can hold and a terminal cannot is printed with a question mark."""
        document = {**call_json("status"), "metrics": {"a\ud800": 1.0}, "state": "finished"}
        folder.finish("finished", end_time=2.0)
        (folder.path / "final.json").write_text(json.dumps(document))
        assert "a?  " in call("status").stdout


def no_entry(_: object) -> Any:
    raise KeyError("uid not found")

"""A run that is continued by a later session: same id, same folder, curves and events that go on, in both forms."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor._errors import StoreError
from monitor._records import FACTOR_KEY
from monitor.run import _resume
from monitor.store import KnownRun, StoreReader, list_runs, prune
from monitor.watcher import EndedRun
from tests.conftest import watchers
from tests.faults.loops import make_batches, make_model, train_plainly, weights_of
from tests.watcher.test_process import PATIENCE_SECONDS, ROOT, ask, wait_for, watcher_of

STORE_BYTES = 2**23
SESSION = """
import os, signal, sys, time
import torch
import monitor
from tests.faults.loops import make_batches, make_model, train_plainly
torch.set_num_threads(1)
torch.manual_seed(0)
model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
run = monitor.attach(optimizer, name="train", gpu=False, port=0, linger=0, store_bytes=2**23, digest_interval=0.05)
train_plainly(model, optimizer, make_batches(80))
run.reduce_lr(0.5, reason="kept")
train_plainly(model, optimizer, make_batches(1))
saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "monitor": run.state_dict()}
torch.save(saved, "saved.pt")
train_plainly(model, optimizer, make_batches(19))
run.flush()
time.sleep(1.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Training:
    """The training of SESSION, in this process."""

    def __init__(self, folder: Path | None = None) -> None:
        self.model = make_model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.saved: dict[str, Any] = {}
        if folder is not None:
            self.saved = torch.load(folder / "saved.pt", weights_only=True)
            self.model.load_state_dict(self.saved["model"])
            self.optimizer.load_state_dict(self.saved["optimizer"])

    def attach(self, **settings: Any) -> monitor.Run:
        fixed = {"name": "train", "gpu": False, "port": 0, "linger": 0, "store_bytes": STORE_BYTES}
        return monitor.attach(self.optimizer, **{**fixed, "digest_interval": 0.05, **settings})

    def train(self, steps: int) -> None:
        train_plainly(self.model, self.optimizer, make_batches(steps))


@pytest.fixture(params=["thread", "process"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The form of the watcher, of every session."""
    monkeypatch.setenv("MONITOR_WATCHER", request.param)
    monkeypatch.setattr("monitor.run._resume.CLAIM_SECONDS", PATIENCE_SECONDS)
    return str(request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where SESSION has trained and was killed, for a form of the watcher; each trains once."""
    done: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in done:
            done[form] = tmp_path_factory.mktemp(form)
            train(done[form], SESSION, form)
        return done[form]

    return make


def train(folder: Path, script: str, form: str) -> None:
    """Run a script in a folder until it kills itself and its watcher has noticed."""
    (folder / "train.py").write_text(script)
    runs = folder / "runs"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MONITOR_DIR": str(runs), "MONITOR_WATCHER": form}
    done = subprocess.run([sys.executable, "-W", "ignore", "train.py"], cwd=folder, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: not watchers(runs), "the end of the watcher")
    assert [one.state for one in list_runs(runs)] == ["vanished"]


@pytest.fixture
def killed(form: str, made: Callable[[str], Path], tmp_path: Path) -> KnownRun:
    """A run of 100 steps whose process was killed; its checkpoint is that of step 81."""
    shutil.copytree(made(form), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("socket"))
    (known,) = list_runs()
    return known


def as_of_script(monkeypatch: pytest.MonkeyPatch, known: KnownRun) -> None:
    """Have this process be the script that made a run: "auto" continues runs of the same script only."""
    monkeypatch.setattr("monitor.run._engine.script_path", lambda: known.script)


def curve(history: dict[str, Any]) -> list[int]:
    return list(history["optimizers"]["AdamW"]["step"])


def parts(history: dict[str, Any]) -> list[tuple[int, int]]:
    return [(part["step"][0], part["step"][-1]) for part in history["abandoned"]["AdamW"]]


def messages(run: Any) -> list[str]:
    return [event.message for event in run.events(0)]


# ------------------------------------------------------------------------------------------------- the same run


def test_a_saved_run_is_the_same_run_after_load_state_dict(
    killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Id, folder, start, curves, events, commands, best loss and factor are those of the earlier session; what is done
    over stands apart; one run is listed, live and then over."""
    caplog.set_level(logging.INFO, "monitor")
    training = Training(tmp_path)
    best = training.saved["monitor"]["smoothing"]["AdamW"]
    with training.attach() as run:
        before = run.id
        run.load_state_dict(training.saved["monitor"])
        assert (run.id, run.name, run.step) == (killed.run_id, "train", 81)
        assert f"run {run.id} continues at step 81: the saved state says so" in caplog.text
        assert run.snapshot().optimizers[0].global_step == 81
        assert run.lr[0].factor == 0.5
        training.train(4)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == list(range(1, 86))
        assert parts(run.history()) == [(82, 100)]
        snapshot = run.snapshot()
        assert (snapshot.run.run_id, snapshot.run.start_time) == (killed.run_id, killed.start_time)
        assert snapshot.optimizers[0].loss_best is not None
        assert snapshot.optimizers[0].loss_best <= best["best"]
        assert snapshot.errors == {}
        assert messages(run_events := run._engine.watcher)[-1] == (
            f"run {run.id} resumed at step 81 (recorded up to step 100: steps 82 to 100 are done over)"
        )
        assert [event.seq for event in run_events.events(0)] == list(range(1, len(run.events()) + 1))
        assert "kept" in " ".join(messages(run_events))
        assert ask(run, "/api/v1/run")["run"]["run_id"] == killed.run_id
        assert "training_global_step{" in ask(run, "/metrics")
        wait_for(lambda: [one.url for one in list_runs()] == [run.url], "the folder")
        (live,) = list_runs()
        assert (live.run_id, live.state, live.pid) == (killed.run_id, "running", os.getpid())
        assert live.read_token() == run.token
        assert not (tmp_path / "runs" / before).exists()
    ended = wait_for(lambda: [one for one in list_runs() if one.state == "finished"], "the end")[0]
    asked = EndedRun(ended)
    assert curve(asked.history(0, 1000)) == list(range(1, 86))
    assert parts(asked.history(0, 1000)) == [(82, 100)]
    told = [event.message for event in asked.events(0, 1000, 1000)]
    assert told[0] == f"run {ended.run_id} started"
    assert told[-1].endswith("finished at step 85")
    with StoreReader(ended.path) as store:
        assert [command["reason"] for command in store.commands()] == ["kept"]
        assert [attempt.number for attempt in store.attempts()] == [1]
        assert store.facts()["state"] == "finished"


def test_a_run_is_continued_by_its_id(killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``resume`` names it, where the optimizer counts its steps it says where; the state that is loaded after that
    belongs to the same run."""
    caplog.set_level(logging.INFO, "monitor")
    training = Training(tmp_path)
    with training.attach(resume=killed.run_id, name="another") as run:
        assert (run.id, run.name, run.step) == (killed.run_id, "train", 81)
        assert f"run {run.id} continues at step 81: the optimizer's own state says so" in caplog.text
        run.load_state_dict(training.saved["monitor"])
        assert (run.id, run.step) == (killed.run_id, 81)
        training.train(20)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == list(range(1, 102))
    assert "keeps its own id" not in caplog.text


def test_factors_that_a_checkpoint_takes_back_are_told(
    killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint from before a reduction has no factor: a line in the log and an event say what the run had, once,
    also where the state of the run is loaded afterwards."""
    training = Training(tmp_path)
    (group,) = training.optimizer.param_groups
    assert group.pop(FACTOR_KEY) == 0.5
    training.saved["monitor"]["lr_factors"] = {"AdamW": ((1.0, None),)}
    with training.attach(resume=killed.run_id) as run:
        run.load_state_dict(training.saved["monitor"])
        training.train(1)
        told = (
            f"the checkpoint has other LR factors than run {run.id} had at step 100 "
            "(AdamW group 0: 1, the run had 0.5); "
            "run.set_lr_factor() or `monitor lr set` puts one in force again"
        )
        wait_for(lambda: told in messages(run), "the event")
        assert caplog.text.count(told) == 1
        (event,) = [event for event in run.events() if event.message == told]
        assert (event.kind, event.severity, event.step) == ("state", "warning", 82)
        assert event.details["factors"] == [["AdamW", 0, 0.5, 1.0]]


def test_factors_that_a_saved_state_takes_back_are_told(
    killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same where the run is continued by ``load_state_dict`` alone, however short the session is."""
    training = Training(tmp_path)
    training.saved["monitor"]["lr_factors"] = {"AdamW": ((0.25, None),)}
    with training.attach() as run:
        run.load_state_dict(training.saved["monitor"])
        training.train(1)
    told = f"than run {killed.run_id} had at step 100 (AdamW group 0: 0.25, the run had 0.5)"
    assert caplog.text.count(told) == 1
    assert len([message for message in messages(run) if told in message]) == 1


def test_a_factor_that_this_session_was_told_to_set_is_not_the_checkpoint_s(
    killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint has that of the run; the script sets another one before its first step."""
    training = Training(tmp_path)
    with training.attach() as run:
        run.load_state_dict(training.saved["monitor"])
        run.set_lr_factor(0.25)
        training.train(1)
        assert run.lr[0].factor == 0.25
    assert run.id == killed.run_id
    assert "the checkpoint has other LR factors" not in caplog.text


@pytest.mark.parametrize(
    ("loaded", "is_told"),
    [((0.5, None), False), ((0.8, [1.0, 0.5, 10, 3]), False), ((0.8, [1.0, 0.6, 10, 3]), True), ((1.0, None), True)],
)
def test_a_factor_on_its_way_to_the_recorded_one_is_not_taken_back(loaded: Any, is_told: bool) -> None:
    """A ramp that was under way continues."""
    recorded = {"optimizers": [{"key": "SGD", "global_step": 9, "groups": [{"index": 0, "factor": 0.5}]}]}
    known = KnownRun("train-1", "train", 1, "here", "vanished", 0.0)
    message, rows = _resume.Claimed(known, recorded).other_factors({"SGD": [loaded]}, ())
    assert (bool(message), bool(rows)) == (is_told, is_told)


def test_an_optimizer_that_counts_no_steps_goes_on_where_the_record_ends(
    killed: KnownRun, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else is known of the place; the log says so."""
    caplog.set_level(logging.INFO, "monitor")
    training = Training()
    with training.attach(resume=killed.run_id) as run:
        assert run.step == 100
        training.train(2)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == list(range(1, 103))
        assert parts(run.history()) == []
    assert "continues at step 100: it was recorded up to there" in caplog.text


def test_auto_continues_what_was_cut_short(
    killed: KnownRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest run of the name and script, if the optimizer holds the state of a checkpoint; one that finished is
    not continued."""
    caplog.set_level(logging.INFO, "monitor")
    as_of_script(monkeypatch, killed)
    monkeypatch.setenv("MONITOR_RESUME", "auto")
    fresh = Training()
    with fresh.attach() as run:
        assert run.id != killed.run_id
        assert run.url
        run.close("interrupted")
    assert "the optimizer holds no state of a checkpoint; load it before attach" in caplog.text
    assert "SGD without momentum keeps none, name the run with resume=ID or call run.load_state_dict()" in caplog.text
    wait_for(lambda: sorted(one.state for one in list_runs()) == ["interrupted", "vanished"], "the end")
    (tmp_path / "runs" / run.id / "run.json").unlink()
    with Training(tmp_path).attach() as run:
        assert (run.id, run.step) == (killed.run_id, 81)
    wait_for(lambda: list_runs()[0].state == "finished", "the end")
    with Training(tmp_path).attach() as run:
        assert run.id != killed.run_id
    assert f"{killed.run_id} is finished" in caplog.text


def test_a_session_that_is_killed_is_continued_again(killed: KnownRun, tmp_path: Path, form: str) -> None:
    """Each session leaves the part that the next one does over, and the events go on in number."""
    train(tmp_path, SESSION.replace("digest_interval", f'resume="{killed.run_id}", digest_interval'), form)
    training = Training(tmp_path)  # saved at step 181, of 200
    with training.attach() as run:
        run.load_state_dict(training.saved["monitor"])
        assert (run.id, run.step) == (killed.run_id, 181)
        training.train(1)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == list(range(1, 183))
        assert parts(run.history()) == [(182, 200)]
        assert [event.seq for event in run.events()] == list(range(1, len(run.events()) + 1))


def test_a_watcher_killed_in_a_resumed_run_is_replaced(
    killed: KnownRun, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one continues in the same store, and nothing stands there twice, however early the first one fell."""
    if form == "thread":
        pytest.skip("there is no other process")
    training = Training(tmp_path)
    with training.attach(resume=killed.run_id) as run:
        first = watcher_of(run)
        training.train(3)
        first.kill()
        training.train(3)
        wait_for(lambda: watcher_of(run).pid != first.pid, "another watcher")
        training.train(3)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == list(range(1, 91))
        assert parts(run.history()) == [(82, 100)]
    ended = wait_for(lambda: [one for one in list_runs() if one.state == "finished"], "the end")[0]
    with StoreReader(ended.path) as store:
        assert [point.last_step for point in store.curve("optimizer", "AdamW", "loss")] == list(range(1, 91))
        numbers = [event["seq"] for event in store.events()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_weights_are_those_of_a_training_that_nobody_watches(killed: KnownRun, tmp_path: Path) -> None:
    """Continuing a run changes no bit."""
    watched, plain = Training(tmp_path), Training(tmp_path)
    with watched.attach() as run:
        run.load_state_dict(watched.saved["monitor"])
        run.set_lr_factor(1.0)
        watched.train(5)
    for group in plain.optimizer.param_groups:
        group.pop("monitor_lr_factor", None)
    plain.train(5)
    assert all(map(torch.equal, weights_of(watched.model), weights_of(plain.model)))


# ----------------------------------------------------------------------------------------------- what stays two runs


def test_of_two_that_continue_a_run_one_gets_it(killed: KnownRun, tmp_path: Path) -> None:
    """The other one is a new run, and trains."""
    body = SESSION.partition("train_plainly(model, optimizer, make_batches(80))")[0]
    body = body.replace("digest_interval", f'resume="{killed.run_id}", digest_interval')
    (tmp_path / "resumer.py").write_text(f"{body}\nprint(run.id, flush=True)\nsys.stdin.read()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "resumer.py"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        ids = [process.stdout.readline().strip() for process in both if process.stdout is not None]
        assert sorted(one == killed.run_id for one in ids) == [False, True]
    finally:
        for process in both:
            process.communicate("")
    wait_for(lambda: {one.state for one in list_runs()} == {"finished"}, "the ends")
    assert {one.run_id for one in list_runs()} == set(ids)


@pytest.mark.parametrize(
    ("wanted", "why"), [("unknown-123456", "no run unknown-123456 is known"), ("LIVE", "is running (process")]
)
def test_what_cannot_be_continued_is_a_line_and_a_new_run(
    wanted: str, why: str, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A training is never kept from starting; a state of such a run still gives the step."""
    with Training().attach() as live:
        assert live.url
        state = live.state_dict()
        wait_for(lambda: [one.state for one in list_runs()] == ["running"], "the start")
        wanted = wanted.replace("LIVE", live.id)
        with Training().attach(resume=wanted) as run:
            assert run.id not in (wanted, live.id)
            assert next(record for record in caplog.records if why in record.message).levelno == logging.WARNING
            run.load_state_dict({**state, "step": 7, "run_id": wanted})
            assert (run.step, run.id in (wanted, live.id)) == (7, False)
            assert "keeps its own id" in caplog.text


@pytest.mark.parametrize("value", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_malformed_id_is_refused(value: str) -> None:
    """A path leads nowhere, in a setting as in a state."""
    with pytest.raises(ValueError, match="resume must"):
        Training().attach(resume=value)
    with Training().attach() as run:
        state = run.state_dict()
        with pytest.raises(ValueError, match="run_id"):
            run.load_state_dict({**state, "run_id": value})
    with pytest.raises(TypeError, match="resume must be a string"):
        Training().attach(resume=3)


def test_states_of_before_and_steps_made_before_change_no_id(
    killed: KnownRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state without an id continues the count alone; so does any state once a step was made, and a line says so."""
    training = Training(tmp_path)
    old = {name: value for name, value in training.saved["monitor"].items() if name != "run_id"}
    with training.attach() as run:
        own = run.id
        run.load_state_dict(old)
        assert (run.id, run.step) == (own, 81)
        training.train(1)
        run.load_state_dict(training.saved["monitor"])
        assert (run.id, run.step) == (own, 81)
        training.train(2)
        assert run.flush(PATIENCE_SECONDS)
        assert curve(run.history()) == [82, 83]
        assert parts(run.history()) == [(82, 82)]
    assert "steps were made before load_state_dict" in caplog.text


def test_ranks_do_not_take_each_others_run(killed: KnownRun, caplog: pytest.LogCaptureFixture) -> None:
    """All ranks load the checkpoint of one, and each stays a run of its own."""
    content = json.loads((killed.path / "run.json").read_text())
    (killed.path / "run.json").write_text(json.dumps({**content, "rank": 3}))
    with Training().attach(resume=killed.run_id) as run:
        assert run.id != killed.run_id
    assert f"{killed.run_id} is the run of rank 3, this is rank 0" in caplog.text


@pytest.mark.parametrize(("age", "is_continued"), [(5.0, False), (90.0, True)])
def test_a_run_of_another_machine_is_over_once_it_is_silent(killed: KnownRun, age: float, is_continued: bool) -> None:
    """A job that was requeued on another node cannot see the process; what it wrote last tells."""
    content = json.loads((killed.path / "run.json").read_text())
    with suppress(FileNotFoundError):
        (killed.path / "final.json").rename(killed.path / "last.json")  # as it is in a run that still goes on
    elsewhere = {**content, "hostname": "elsewhere", "state": "running", "end_time": None}
    (killed.path / "run.json").write_text(json.dumps(elsewhere))
    then = time.time() - age
    for file in killed.path.iterdir():
        os.utime(file, (then, then))
    with Training().attach(resume=killed.run_id) as run:
        assert (run.id == killed.run_id, run.step) == (is_continued, 100 if is_continued else 0)


def test_a_folder_that_fails_after_the_claim_keeps_nothing_waiting(killed: KnownRun, tmp_path: Path) -> None:
    """What is recorded is shown at once, without the past."""
    (killed.path / "last.json").unlink(missing_ok=True)
    (killed.path / "last.json").mkdir()
    session = Training(tmp_path)
    with session.attach() as run:
        start = time.monotonic()
        run.load_state_dict(session.saved["monitor"])
        session.train(10)
        assert run.flush(PATIENCE_SECONDS)
        assert run.snapshot().optimizers[0].global_step == 91
        assert time.monotonic() - start < 5.0


def test_a_run_that_is_continued_is_not_removed(killed: KnownRun, tmp_path: Path) -> None:
    """Neither by number nor by age: it is live, and as young as its last session."""
    with Training(tmp_path).attach(resume=killed.run_id) as run:
        prune(tmp_path / "runs", 1, max_days=1e-9)
        assert [one.run_id for one in list_runs()] == [run.id]
    wait_for(lambda: list_runs()[0].state == "finished", "the end")
    assert list_runs()[0].session_time > killed.start_time
    assert list_runs()[0].start_time == killed.start_time


def test_a_disk_that_hangs_does_not_keep_the_training_waiting(
    form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folders of earlier runs are looked at on another thread, for a moment; a claim that comes late is not
    made."""
    import threading

    is_free, late = threading.Event(), []

    def hang(*_: Any, is_wanted: Any, **__: Any) -> None:
        is_free.wait(PATIENCE_SECONDS)
        late.append(is_wanted())
        raise StoreError("too late")

    monkeypatch.setattr(_resume, "CLAIM_SECONDS", 0.05)
    monkeypatch.setattr(_resume, "claim_run", hang)
    try:
        with Training().attach(resume="train-123456") as run:
            assert run.id != "train-123456"
    finally:
        is_free.set()
    assert "have not answered for 0.05 s" in caplog.text
    wait_for(lambda: late == [False], "the late claim")


def test_a_run_that_does_not_open_gives_its_claim_back(killed: KnownRun, tmp_path: Path, form: str) -> None:
    """What was claimed for a session that does not come about can be continued by the next one."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(ValueError, match="certfile"):
        Training().attach(resume=killed.run_id, certfile=str(broken), keyfile=str(broken))
    assert list_runs()[0].state == "vanished"
    with Training().attach(resume=killed.run_id) as run:
        assert run.id == killed.run_id

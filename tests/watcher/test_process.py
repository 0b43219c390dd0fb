"""A run whose watcher is a process of its own: what it shows, and what becomes of it when either process fares ill."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import monitor
from monitor.run._restarts import MAX_RESTARTS
from monitor.store import STORE_FILE, StoreReader, list_runs
from tests.conftest import watchers
from tests.faults.loops import (
    NUM_MADE,
    assert_same,
    everything,
    make_batches,
    make_model,
    train_plainly,
    unwatched,
    weights_of,
)

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0
"""What a busy machine may take for what is done in a moment."""


def wait_for(is_so: Callable[[], Any], what: str) -> Any:
    """Return what a function returns once that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s for {what}"
        time.sleep(0.02)
    return found


def watcher_of(run: monitor.Run) -> psutil.Process:
    """Return the watcher process of a run of this process."""
    (found,) = wait_for(lambda: started_for(run), "the watcher")
    return found


def started_for(run: monitor.Run) -> list[psutil.Process]:
    """Return the watcher process of a run, once it stands on its own."""
    own = os.getpid()
    return [one for one in watchers(os.environ["MONITOR_DIR"]) if run.id in cmdline(one) and parent(one) != own]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def attach(optimizer: Any, **settings: Any) -> monitor.Run:
    return monitor.attach(
        optimizer, **{"watcher": "process", "port": 0, "gpu": False, "linger": 0, "digest_interval": 0.05, **settings}
    )


class Trained:
    """A small model and its optimizer, and as many steps as one asks for."""

    def __init__(self) -> None:
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def train(self, steps: int) -> None:
        train_plainly(self.model, self.optimizer, make_batches(steps))


@pytest.fixture
def trained() -> Trained:
    return Trained()


@pytest.fixture
def run(trained: Trained) -> Iterator[monitor.Run]:
    with attach(trained.optimizer) as made:
        yield made


def ask(run: monitor.Run, path: str, body: Any = None, method: str | None = None) -> Any:
    request = urllib.request.Request(
        f"{run.url}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {run.token}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        content = response.read()
    return json.loads(content) if response.headers["Content-Type"].startswith("application/json") else content.decode()


# ---------------------------------------------------------------------------------------------------- what it shows


def test_a_loop_with_everything_in_it_gives_the_same_bits() -> None:
    """Weights are those of the loop without a monitor, every step is shown, and nothing of ours has failed."""
    runs = []

    def watched(optimizer: Any, _: Any = None) -> monitor.Run:
        runs.append(attach(optimizer, serve=False, gradient_norm=1))
        return runs[-1]

    assert_same(everything(watched), everything(unwatched))
    snapshot = runs[0].snapshot()
    assert (snapshot.state, snapshot.errors, snapshot.dropped_steps) == ("finished", {}, 0)
    assert snapshot.optimizers[0].steps == NUM_MADE


def test_the_watcher_imports_no_torch_and_is_a_process_of_its_own(run: monitor.Run) -> None:
    """It has a session of its own, no secret in its arguments or environment, and loads no torch."""
    assert run.url
    process = watcher_of(run)
    assert os.getsid(process.pid) not in (process.pid, os.getsid(0))
    told = " ".join(process.cmdline()) + " ".join(f"{key}={value}" for key, value in process.environ().items())
    assert run.token not in told
    mapped = {Path(one.path).name for one in process.memory_maps()}
    assert not [name for name in mapped if name.startswith(("libtorch", "libc10"))]


def test_an_lr_command_over_http_is_applied_at_the_next_step(run: monitor.Run, trained: Trained) -> None:
    """The command travels to the training process and its outcome back; what is shown then is what is in force."""
    trained.train(2)
    assert run.flush(PATIENCE_SECONDS)
    accepted = ask(run, "/api/v1/lr/reduce", {"factor": 0.5, "reason": "tried"})
    assert accepted["status"] == "pending"
    assert [one["id"] for one in ask(run, "/api/v1/lr")["pending"]] == [accepted["id"]]
    trained.train(1)
    outcome = wait_for(
        lambda: (found := ask(run, f"/api/v1/commands/{accepted['id']}"))["status"] != "pending" and found, "an outcome"
    )
    assert (outcome["status"], outcome["step"]) == ("applied", 3)
    assert run.flush(PATIENCE_SECONDS)
    (group,) = ask(run, "/api/v1/lr")["groups"]
    assert (group["factor"], group["applied"]) == (0.5, 0.05)
    assert run.lr[0].factor == 0.5
    assert "training_control_commands_total{" in ask(run, "/metrics")


def test_a_command_that_is_refused_says_why(run: monitor.Run, trained: Trained) -> None:
    """The refusal of the training process reaches the client with its field."""
    trained.train(1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(run, "/api/v1/lr/reduce", {"factor": 4.0})
    problem = json.loads(refused.value.read())
    assert (refused.value.code, problem["field"]) == (422, "factor")


def test_callbacks_and_policies_run_in_the_training_process_in_order(trained: Trained) -> None:
    """``on_event`` and policies hear of every step and event, and of none twice, in the order of the run."""
    seen: list[Any] = []

    class Policy:
        def start(self, submit: Any) -> Any:
            return self

        def on_event(self, event: monitor.Event) -> None:
            seen.append(("event", event.seq, os.getpid()))

        def on_step(self, step: monitor.Step) -> None:
            seen.append(("step", step.number, os.getpid()))

    heard: list[int] = []
    with attach(trained.optimizer, policies=[Policy()], on_event=lambda event: heard.append(event.seq)) as run:
        trained.train(5)
        run.reduce_lr(0.5)
        trained.train(5)
        assert run.flush(PATIENCE_SECONDS)
        assert [number for kind, number, _ in seen if kind == "step"] == list(range(1, 11))
    numbers = [number for kind, number, _ in seen if kind == "event"]
    assert numbers == heard == sorted(set(numbers))
    assert {pid for _, _, pid in seen} == {os.getpid()}


def test_what_is_asked_after_the_end_is_answered(trained: Trained) -> None:
    """A run that has been closed still has its last snapshot, its curves and its events."""
    with attach(trained.optimizer) as run:
        trained.train(3)
        run.log(accuracy=0.5)
    assert (run.state, run.snapshot().optimizers[0].steps, run.snapshot().metrics) == ("finished", 3, {"accuracy": 0.5})
    assert run.history()["optimizers"]["SGD"]["step"] == [1, 2, 3]
    assert [event.kind for event in run.events()] == ["state", "state"]


def test_a_resumed_run_continues(trained: Trained) -> None:
    """Step, best loss and detectors of ``state_dict`` are those of the next session."""
    with attach(trained.optimizer) as run:
        trained.train(4)
        state = run.state_dict()
    assert state["step"] == 4
    assert state["detectors"]["SGD"]
    with attach(trained.optimizer) as again:
        again.load_state_dict(state)
        trained.train(1)
        assert again.flush(PATIENCE_SECONDS)
        assert (again.step, again.snapshot().optimizers[0].global_step) == (5, 5)
        with pytest.raises(ValueError, match="detectors"):
            again.load_state_dict({**state, "detectors": {"SGD": {"nonsense": 1}}})
        assert again.step == 5


# ----------------------------------------------------------------------------------------------- when one fares ill


def test_a_watcher_that_is_killed_is_replaced_and_nothing_is_lost(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    """The next watcher knows what the last one had learnt and is sent what came after: no step and no event is lost."""
    with attach(trained.optimizer) as run:
        trained.train(20)
        assert run.flush(PATIENCE_SECONDS)
        first = watcher_of(run)
        wait_for(lambda: run._engine.watcher._outbox.remembered.sequence == 20, "the memory of the watcher")  # type: ignore[attr-defined]
        trained.train(5)
        first.kill()
        trained.train(5)
        wait_for(lambda: watcher_of(run).pid != first.pid, "another watcher")
        trained.train(5)
        assert run.flush(PATIENCE_SECONDS)
        snapshot = run.snapshot()
        assert (snapshot.optimizers[0].steps, snapshot.dropped_steps) == (35, 0)
        assert run.history()["optimizers"]["SGD"]["step"] == list(range(1, 36))
        assert [event.kind for event in run.events()][:1] == ["state"]
        assert ask(run, "/api/v1/run")["optimizers"][0]["steps"] == 35
    assert "another one takes over" in caplog.text
    assert run.state == "finished"


def test_a_replaced_watcher_finds_no_step_and_no_event_twice(trained: Trained, tmp_path: Path) -> None:
    """What the last watcher had reported is not called back, logged or stored again; what it had not, is."""
    steps: list[int] = []
    heard: list[monitor.Event] = []

    class Policy:
        def start(self, submit: Any) -> Any:
            return self

        def on_event(self, event: monitor.Event) -> None:
            pass

        def on_step(self, step: monitor.Step) -> None:
            steps.append(step.number)

    with attach(trained.optimizer, policies=[Policy()], on_event=heard.append, store_bytes=2**23) as run:
        trained.train(3)
        assert run.flush(PATIENCE_SECONDS)
        first = watcher_of(run)
        wait_for(lambda: run._engine.watcher._outbox.remembered.sequence == 3, "the memory of the watcher")  # type: ignore[attr-defined]
        run.reduce_lr(0.5, reason="before")
        with torch.no_grad():
            next(trained.model.parameters()).fill_(float("nan"))
        trained.train(2)
        assert run.flush(PATIENCE_SECONDS)
        first.kill()
        wait_for(lambda: watcher_of(run).pid != first.pid, "another watcher")
        run.reduce_lr(0.5, reason="after")
        trained.train(3)
        assert run.flush(PATIENCE_SECONDS)
        assert steps == list(range(1, 9))
        totals = run.snapshot().commands_total
        assert totals == {("reduce", "code", "applied"): 2}
    kinds = [event.kind for event in heard]
    assert (kinds.count("state"), kinds.count("control"), kinds.count("nonfinite")) == (2, 2, 1)
    assert [event.seq for event in heard] == list(range(1, len(heard) + 1))
    assert [event.seq for event in run.events()] == [event.seq for event in heard]
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")
    with StoreReader(list_runs(tmp_path / "runs")[0].path / STORE_FILE) as store:
        assert [event["seq"] for event in store.events()] == [event.seq for event in heard]
        assert [command["reason"] for command in store.commands()] == ["before", "after"]


def test_watchers_killed_under_load_lose_no_step(trained: Trained) -> None:
    """Entries reach the next watcher in their order, whatever the threads of the link were doing."""
    with attach(trained.optimizer) as run:
        assert run.url
        for _ in range(3):
            before = watcher_of(run)
            trained.train(50)
            before.kill()
            while [one.pid for one in started_for(run)] in ([], [before.pid]):
                trained.train(1)
            trained.train(50)
        assert run.flush(PATIENCE_SECONDS)
        snapshot = run.snapshot()
        assert (snapshot.optimizers[0].steps, snapshot.dropped_steps) == (run.step, 0)
        kinds = [event.kind for event in run.events()]
        assert (kinds.count("state"), kinds.count("internal")) == (1, 0)


def test_a_watcher_killed_at_the_very_end_is_replaced_too(trained: Trained, tmp_path: Path) -> None:
    """The end of a run is recorded although the watcher that was to record it is gone."""
    with attach(trained.optimizer) as run:
        trained.train(3)
        assert run.flush(PATIENCE_SECONDS)
        process = watcher_of(run)
        process.suspend()
    process.kill()
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")
    assert (run.snapshot().state, run.snapshot().optimizers[0].steps) == ("finished", 3)


def test_a_message_that_the_watcher_cannot_read_costs_that_message(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object of a class that only the program can load is a failure of the link, and the run is still recorded."""
    module = types.ModuleType("only_in_the_program")
    monkeypatch.setitem(sys.modules, "only_in_the_program", module)
    module.Odd = type("Odd", (Exception,), {"__module__": "only_in_the_program"})  # type: ignore[attr-defined]
    with attach(trained.optimizer) as run:
        trained.train(1)
        run._engine.watcher._send("odd", module.Odd())  # type: ignore[attr-defined]
        trained.train(1)
        assert run.flush(PATIENCE_SECONDS)
        assert (run.snapshot().optimizers[0].steps, run.snapshot().errors) == (2, {"link": 1})


def test_a_state_is_loaded_without_a_watcher(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    """A watcher that was given up costs the smoothed losses, not the step, the factors or the training."""
    with attach(trained.optimizer) as run:
        trained.train(2)
        run.reduce_lr(0.5)
        trained.train(1)
        state = run.state_dict()
    with attach(trained.optimizer) as again:
        again._engine.watcher._link.has_given_up = True  # type: ignore[attr-defined]
        again.load_state_dict(state)
        assert (again.step, again.lr[0].factor) == (3, 0.5)
        again._engine.watcher._link.has_given_up = False  # type: ignore[attr-defined]
    assert "begin anew" in caplog.text


def test_a_watcher_that_always_ends_is_given_up_with_one_line(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    """After three replacements the run goes on unrecorded: the training is as it was, every question has an answer."""
    expected = Trained()
    with attach(trained.optimizer) as run:
        killed = set()
        while not run._engine.watcher._link.has_given_up:  # type: ignore[attr-defined]
            trained.train(1)
            expected.train(1)
            for process in started_for(run):
                killed.add(process.pid)
                process.kill()
            time.sleep(0.01)
        assert len(killed) == 4
        trained.train(3)
        expected.train(3)
        assert run.snapshot().run.run_id == run.id
        assert (run.flush(1.0), run.events(), run.step) == (False, (), trained_steps(run))
        command = run.reduce_lr(0.5)
        trained.train(1)
        assert command.status == "applied"
    assert len([r for r in caplog.records if "cannot be kept alive" in r.getMessage()]) == 1
    assert run.state == "finished"


def test_watchers_that_end_now_and_then_are_replaced_without_end(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement that is long enough ago counts no more: a run of weeks is recorded to its end."""
    monkeypatch.setattr("monitor.run._link.WINDOW_SECONDS", 0.0)
    killed = set()
    with attach(trained.optimizer) as run:
        while len(killed) < MAX_RESTARTS + 2:
            trained.train(1)
            for process in started_for(run):
                killed.add(process.pid)
                process.kill()
            time.sleep(0.01)
        trained.train(1)
        assert run.flush(PATIENCE_SECONDS)
        assert run.snapshot().optimizers[0].steps == run.step


def test_a_run_begins_with_its_start(trained: Trained) -> None:
    """The first event says that the run has started, though its very first step is in trouble."""
    with attach(trained.optimizer) as run:
        for parameter in trained.model.parameters():
            parameter.data.fill_(float("nan"))
        trained.train(3)
        assert run.flush(PATIENCE_SECONDS)
        events = run.events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert (events[0].kind, events[0].details) == ("state", {"state": "starting"})
        assert "nonfinite" in [event.kind for event in events]


def trained_steps(run: monitor.Run) -> int:
    return run._engine._training.probes[0].number


def test_a_watcher_that_is_stopped_holds_nothing_up(trained: Trained) -> None:
    """With the watcher stopped the training trains, questions wait for a bounded time, and the end is not delayed."""
    expected = Trained()
    expected.train(300)
    with attach(trained.optimizer) as run:
        assert run.url
        process = watcher_of(run)
        process.suspend()
        try:
            trained.train(300)
            assert run.flush(0.2) is False
            begin = time.monotonic()
        finally:
            process.resume()
        assert run.flush(PATIENCE_SECONDS)
        assert run.snapshot().optimizers[0].steps == 300
    assert begin
    assert_same(weights_of(trained.model), weights_of(expected.model))


def test_a_pipe_that_is_full_costs_steps_that_are_counted_and_nothing_else(trained: Trained) -> None:
    """While the watcher does not read, the pipe fills, then the step buffer; what falls out of it is counted."""
    with attach(trained.optimizer, gradient_norm="off") as run:
        assert run.url
        process = watcher_of(run)
        process.suspend()
        buffer, number = run._engine._training.buffer, 0
        try:
            while buffer.last_sequence - number < 40_000:  # more than pipe and buffer hold
                trained.optimizer.step()
        finally:
            process.resume()
        assert run.flush(PATIENCE_SECONDS)
        snapshot = run.snapshot()
        assert snapshot.dropped_steps > 0
        assert snapshot.optimizers[0].steps + snapshot.dropped_steps == buffer.last_sequence == run.step


def test_a_training_process_that_is_stopped_makes_requests_fail_not_hang(tmp_path: Path) -> None:
    """A command that the training process does not take is a 503 and is withdrawn: sent again, it is applied once."""
    script = Script(
        tmp_path,
        """
        run = attach(); train(3); say(run.url, run.token)
        while not run.lr[0].factor < 1:
            train(1); time.sleep(0.01)
        train(100); run.flush()
        say(run.lr[0].factor, *run.snapshot().commands_total.values()); wait()
        """,
    )
    url, token = script.hear()
    script.process.send_signal(signal.SIGSTOP)
    stopped = psutil.Process(script.process.pid)
    try:
        wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, "the process to stop")
        request = urllib.request.Request(
            f"{url}/api/v1/lr/reduce",
            data=b'{"factor": 0.5}',
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (503, "5")
        assert "has not answered" in json.loads(refused.value.read())["detail"]
        script.process.send_signal(signal.SIGCONT)
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()
        assert script.hear() == ["0.5", "1"]
    finally:
        script.process.send_signal(signal.SIGCONT)
        script.end()


PRELUDE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
import torch
import monitor
torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def attach(**settings):
    return monitor.attach(optimizer, **{"watcher": "process", "gpu": False, "port": 0, "linger": 0, **settings})
def train(steps=3):
    for _ in range(steps):
        model(torch.ones(4, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
def say(*words):
    print(*words, flush=True)
def wait():
    time.sleep(600)
"""


HEAR_SECONDS = 300.0


class Script:
    """A script that runs beside the test."""

    def __init__(self, tmp_path: Path, body: str, **settings: Any) -> None:
        path = tmp_path / "script.py"
        path.write_text(PRELUDE + textwrap.dedent(body))
        self.runs_directory = tmp_path / "runs"
        self._heard = b""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(path)],
            **{
                "stdout": subprocess.PIPE,
                "text": True,
                "env": {**os.environ, "PYTHONPATH": str(ROOT)},
                "cwd": tmp_path,
                **settings,
            },
        )

    def hear(self) -> list[str]:
        """Return the words of the next line that the script prints, none at its end. One that says nothing for long
        fails the test, and does not hang it."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], HEAR_SECONDS)
            assert ready, f"the script says nothing for {HEAR_SECONDS:g} s"
            if not (more := os.read(self.process.stdout.fileno(), 2**16)):
                break
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode().split()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def state(self) -> str | None:
        runs = list_runs(self.runs_directory)
        return runs[0].state if runs else None

    def wait_for_state(self, state: str) -> None:
        wait_for(lambda: self.state() == state, f"state {state}")


def pid_of_watcher(script: Script) -> int:
    (found,) = (one for one in watchers(script.runs_directory) if parent(one) != script.process.pid)
    return int(found.pid)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_a_training_process_that_is_killed_has_vanished(tmp_path: Path, number: int) -> None:
    """Nothing of it is left to say so; its watcher records the end at once, with every step, and then ends itself."""
    script = Script(
        tmp_path, "run = attach(); train(3); run.flush(); say(run.url); train(4); time.sleep(0.5); say(); wait()"
    )
    script.hear(), script.hear()
    watcher = pid_of_watcher(script)
    script.process.send_signal(number)
    script.process.wait()
    begin = time.monotonic()
    script.wait_for_state("vanished")
    wait_for(lambda: (list_runs(script.runs_directory)[0].path / "final.json").exists(), "the last state")
    assert time.monotonic() - begin < PATIENCE_SECONDS
    final = json.loads((list_runs(script.runs_directory)[0].path / "final.json").read_text())
    assert (final["state"], final["optimizers"][0]["steps"]) == ("vanished", 7)
    wait_for(lambda: gone(watcher), "the end of the watcher")
    script.end()


def test_a_scrape_after_the_kill_sees_the_vanished_run(tmp_path: Path) -> None:
    """A run that was scraped before it was killed is there for one more scrape, and says what has become of it."""
    script = Script(tmp_path, "run = attach(linger=60); train(3); run.flush(); say(run.url); wait()")
    (url,) = script.hear()
    urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_SECONDS).read()
    watcher = pid_of_watcher(script)
    script.end()
    wait_for(lambda: (list_runs(script.runs_directory)[0].path / "final.json").exists(), "the last state")
    text = urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_SECONDS).read().decode()
    assert next(
        line for line in text.splitlines() if line.startswith("training_run_state{") and 'state="vanished"' in line
    ).endswith(" 1.0")
    wait_for(lambda: gone(watcher), "the end of the watcher after its last scrape")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_that_outlive_a_killed_script_do_not_hide_its_end(tmp_path: Path, method: str) -> None:
    """A worker holds no end of the link: the watcher knows at once that the training process is gone."""
    script = Script(
        tmp_path,
        f"""
        import multiprocessing
        def idle():
            time.sleep(30)
        if __name__ == "__main__":
            run = attach(); train(3)
            worker = multiprocessing.get_context({method!r}).Process(target=idle, daemon=False)
            worker.start()
            run.flush()
            say(worker.pid)
            wait()
        """,
    )
    (worker,) = script.hear()
    script.end()
    script.wait_for_state("vanished")
    with_worker = psutil.pid_exists(int(worker))
    if with_worker:
        psutil.Process(int(worker)).kill()


def test_both_killed_at_once_leave_what_was_kept(tmp_path: Path) -> None:
    """Where nobody is left to write the end, the folder still tells that the run has vanished."""
    script = Script(tmp_path, "run = attach(); train(3); run.flush(); say(run.url); wait()")
    script.hear()
    watcher = pid_of_watcher(script)
    os.kill(watcher, signal.SIGKILL)
    script.end()
    script.wait_for_state("vanished")


@pytest.mark.parametrize("name", ["monitor", "flask", "psutil"])
def test_a_module_beside_the_script_is_not_taken_for_ours(tmp_path: Path, name: str) -> None:
    """A ``monitor.py`` in the script's folder, where Python looks first, does not reach the watcher."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / f"{name}.py").write_text("raise RuntimeError('not this one')")
    script = Script(
        tmp_path,
        """
        run = attach(); train(3)
        sys.path.insert(0, "")
        say(run.flush(), run.snapshot().optimizers[0].steps)
        """,
        cwd=tmp_path / "beside",
    )
    assert script.hear() == ["True", "3"]
    script.process.wait()
    script.end()


def test_a_script_without_standard_streams_is_watched(tmp_path: Path) -> None:
    """A daemon has closed its standard input, output and error; the link uses none of their numbers by accident."""
    script = Script(
        tmp_path,
        """
        for number in (0, 1, 2):
            os.close(number)
        run = attach(); train(3); run.flush()
        open("told", "w").write(str(run.snapshot().optimizers[0].steps))
        run.close()
        """,
    )
    script.process.wait(PATIENCE_SECONDS)
    assert (tmp_path / "told").read_text() == "3"
    script.wait_for_state("finished")
    script.end()


def test_no_process_can_be_started(trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """The same run is watched on threads, and one line says why."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("monitor.link._process._start", refuse)
    with attach(trained.optimizer) as run:
        trained.train(3)
        assert run.flush()
        assert run.snapshot().optimizers[0].steps == 3
    (line,) = [r.getMessage() for r in caplog.records if "threads" in r.getMessage()]
    assert line.endswith("no process can be started for it: [Errno 1] Operation not permitted")


@pytest.mark.parametrize(
    ("executable", "is_frozen", "why"),
    [
        ("", False, "this Python does not know its own executable"),
        ("/opt/app/train", False, "/opt/app/train is not a Python interpreter"),
        (sys.executable, True, f"{sys.executable} is not a Python interpreter"),
    ],
)
def test_an_application_that_is_no_interpreter_is_watched_on_threads(
    executable: str, is_frozen: bool, why: str, trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A frozen or embedded Python has no executable that could run the watcher."""
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    monkeypatch.setattr("monitor.link._process.why_not_apart.__defaults__", (executable,))
    with attach(trained.optimizer) as run:
        trained.train(1)
        assert run.flush()
    assert why in caplog.text


def test_a_busy_port_and_a_directory_that_cannot_be(trained: Trained, tmp_path: Path) -> None:
    """A busy port costs the page; a directory that can never be one is refused at once, and nothing stays behind."""
    with attach(trained.optimizer) as first:
        port = int(first.url.rpartition(":")[2])  # type: ignore[union-attr]
        other = Trained()
        with attach(other.optimizer, port=port) as second:
            other.train(2)
            assert second.flush(PATIENCE_SECONDS)
            assert second.url is None
            assert second.snapshot().errors == {"server": 1}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be a directory"):
        attach(trained.optimizer, directory=str(tmp_path / "file"))


def test_the_end_waits_for_a_last_scrape_where_that_is_asked_for(trained: Trained) -> None:
    """``wait_for_scrape`` keeps the script until the state at the end was scraped; without it nothing is waited for."""
    with attach(trained.optimizer, wait_for_scrape=PATIENCE_SECONDS, linger=0) as run:
        trained.train(2)
        ask(run, "/metrics")
        url = run.url
        import threading

        seen: list[str] = []

        def scrape() -> None:
            text = wait_for(
                lambda: (
                    'state="finished"} 1.0' in (t := urllib.request.urlopen(f"{url}/metrics").read().decode()) and t
                ),
                "the end to be scraped",
            )
            seen.append(text)

        thread = threading.Thread(target=scrape)
        thread.start()
    thread.join()
    assert seen

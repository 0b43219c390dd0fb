"""Whole processes: how scripts end, and what workers inherit."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from monitor.store._known import KnownRun, list_runs
from tests.conftest import children, watchers
from tests.faults.loops import assert_same, make_batches, make_model, train_plainly, unwatched, watch, weights_of
from tests.requirements import need_module

pytestmark = pytest.mark.sliced(2)
ROOT = Path(__file__).parents[2]
HANG_SECONDS = 300
# Two seconds at most where nothing else runs; the limit leaves room for a busy machine, and tells a hang all the same.
LEAVE_SECONDS = 30.0

PRELUDE = """
import os, signal, sys, threading, time
import torch
import monitor
torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def attach(**settings):
    return monitor.attach(optimizer, gpu=False, port=0, **{"linger": 0, **settings})
def train(steps=3):
    for _ in range(steps):
        model(torch.ones(4, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
def last_words():
    print("END", time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True, params=["process", "thread"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the scripts and runs of this module watched by a process of its own, and on threads."""
    monkeypatch.setenv("MONITOR_WATCHER", request.param)
    monkeypatch.setenv("MONITOR_LINGER", "0")
    return str(request.param)


def runs_at_rest(directory: Path) -> list[KnownRun]:
    """Return the runs of a directory once the watchers that write there have ended."""
    deadline = time.monotonic() + HANG_SECONDS
    while watchers(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    return list_runs(directory)


class Script:
    """A script that was run to its end."""

    def __init__(self, tmp_path: Path, body: str, env: dict[str, str] | None = None) -> None:
        path = tmp_path / "script.py"
        path.write_text(PRELUDE + textwrap.dedent(body))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(path)],
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            check=False,
        )
        ended = time.monotonic()
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        said = [line for line in self.out.splitlines() if line.startswith("END ")]
        self.seconds_to_leave = ended - float(said[-1].split()[1]) if said else None
        self.runs = runs_at_rest(tmp_path / "runs")

    @property
    def run(self) -> KnownRun:
        (run,) = self.runs
        return run


@pytest.mark.parametrize(
    ("body", "state", "code"),
    [
        pytest.param("run = attach(); train(); last_words()", "finished", 0, id="never closed"),
        pytest.param("attach(); train(); last_words()", "finished", 0, id="not even kept"),
        pytest.param("attach(); train(); last_words(); raise RuntimeError('boom')", "failed", 1, id="raises"),
        pytest.param(
            "attach(); last_words(); raise KeyboardInterrupt", "interrupted", -signal.SIGINT, id="interrupted"
        ),
        pytest.param("with attach(): train(); last_words(); sys.exit(3)", "interrupted", 3, id="sys.exit in with"),
        pytest.param("with attach(): train(); last_words(); raise ValueError", "failed", 1, id="raises in with"),
        pytest.param("attach(); train(); last_words(); sys.exit(3)", "finished", 3, id="sys.exit, no with"),
    ],
)
def test_a_script_leaves_at_once_and_its_state_is_known(body: str, state: str, code: int, tmp_path: Path) -> None:
    """However a script ends, its process is gone soon and its folder tells how it ended."""
    script = Script(tmp_path, body)
    assert (script.code, script.run.state) == (code, state), script.err
    assert script.seconds_to_leave is not None
    assert script.seconds_to_leave < LEAVE_SECONDS
    assert (script.run.read_final() or {})["state"] == state
    assert not list((tmp_path / "runs" / "targets").iterdir())


@pytest.mark.parametrize(
    ("body", "state"),
    [
        pytest.param("def work():\n    attach(); train(); raise ValueError('boom')", "failed", id="no with"),
        pytest.param("def work():\n    with attach(): train(); raise ValueError('boom')", "failed", id="with"),
        pytest.param("def work():\n    attach(); train()", "finished", id="no exception"),
        pytest.param(
            "attach(); train()\ndef work():\n    raise ValueError('boom')", "finished", id="not the training thread"
        ),
    ],
)
def test_a_training_thread_that_dies_ends_its_run(body: str, state: str, tmp_path: Path) -> None:
    """An exception that ends the training thread makes the run a failed one; the process leaves all the same."""
    end = "\nthread = threading.Thread(target=work); thread.start(); thread.join(); last_words()"
    script = Script(tmp_path, body + end)
    assert (script.code, script.run.state) == (0, state), script.err
    assert script.seconds_to_leave is not None
    assert script.seconds_to_leave < LEAVE_SECONDS
    assert ("ValueError: boom" in script.err) == ("boom" in body), "the traceback is still printed"


def test_a_page_left_open_does_not_keep_the_process(tmp_path: Path) -> None:
    """A connection that a client keeps open, and one that sends nothing, do not hold the exit up."""
    body = """
    import http.client, socket
    run = attach()
    train()
    port = int(run.url.rpartition(":")[2])
    kept = http.client.HTTPConnection("127.0.0.1", port)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    silent = socket.create_connection(("127.0.0.1", port))
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET /metrics HTTP/1.1\\r\\nHos")
    time.sleep(0.2)
    last_words()
    """
    script = Script(tmp_path, body)
    assert script.code == 0, script.err
    assert script.seconds_to_leave is not None
    assert script.seconds_to_leave < LEAVE_SECONDS


def test_a_killed_process_is_known_as_vanished(tmp_path: Path) -> None:
    """SIGTERM keeps its meaning: the process ends at once, and the run is told apart from one that is running."""
    script = Script(tmp_path, "run = attach(); train(); last_words(); os.kill(os.getpid(), signal.SIGTERM)")
    assert script.code == -signal.SIGTERM
    assert script.run.state == "vanished"
    assert script.seconds_to_leave is not None
    assert script.seconds_to_leave < LEAVE_SECONDS


def test_a_handler_that_exits_on_sigterm_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    """A script that turns SIGTERM into SystemExit leaves its block as with sys.exit."""
    body = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with attach():
        train()
        last_words()
        os.kill(os.getpid(), signal.SIGTERM)
        train(100000)
    """
    script = Script(tmp_path, body)
    assert (script.code, script.run.state) == (143, "interrupted"), script.err


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("run = attach(on_sigterm='interrupt'); train(); stop(); train(100000)", id="no with"),
        pytest.param("with attach(on_sigterm='interrupt'): train(); stop(); train(100000)", id="with"),
    ],
)
def test_an_orderly_end_on_sigterm_chains_the_handler_that_was_there(body: str, tmp_path: Path) -> None:
    """The user's handler is called first; the run ends as interrupted, and the process as one that got a SIGTERM."""
    before = """
    signal.signal(signal.SIGTERM, lambda *_: print("HEARD", flush=True))
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
    """
    script = Script(tmp_path, textwrap.dedent(before) + body)
    assert (script.code, script.run.state) == (143, "interrupted"), script.err
    assert script.out.count("HEARD") == 1


def test_the_handler_of_sigterm_is_put_back(tmp_path: Path) -> None:
    """After the run the signal means what it did; one that somebody has put in meanwhile stays."""
    body = """
    before = signal.getsignal(signal.SIGTERM)
    with attach(on_sigterm="interrupt"):
        train()
    assert signal.getsignal(signal.SIGTERM) is before
    theirs = lambda *_: None
    with attach(on_sigterm="interrupt"):
        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is theirs
    """
    assert Script(tmp_path, body).code == 0


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)"])
def test_a_script_that_forks_without_exec_leaves_one_run(tmp_path: Path, leave: str) -> None:
    """A forked child that trains and exits in the usual way touches neither the run nor its folder."""
    body = """
    run = attach()
    train()
    child = os.fork()
    train()
    if child == 0:
        LEAVE
    assert os.waitpid(child, 0)[1] == 0
    run.flush()
    assert run.snapshot().optimizers[0].steps == 6, run.snapshot().optimizers[0].steps
    last_words()
    """
    script = Script(tmp_path, body.replace("LEAVE", leave))
    assert (script.code, script.run.state) == (0, "finished"), script.err


def test_full_disk_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    """When not one more byte can be written, the training ends as usual and the failures are counted."""
    body = """
    import resource
    run = attach()
    train()
    run.flush()
    import psutil
    named = psutil.process_iter(["cmdline"])
    apart = [one.pid for one in named if run.id in (one.info["cmdline"] or ())]
    resource.prlimit(*apart or [os.getpid()], resource.RLIMIT_FSIZE, (0, 0))
    train()
    run.close()
    assert run.snapshot().errors == {"folder": 1}, run.snapshot().errors
    assert run.state == "finished"
    last_words()
    """
    script = Script(tmp_path, body)
    assert script.code == 0, script.err
    assert "cannot be used ([Errno 27]" in script.err
    assert script.run.state == "vanished", "the old content stands, whole"
    assert not list((tmp_path / "runs").rglob(".*")), "no torn file is left"


def test_disk_full_from_the_start(tmp_path: Path) -> None:
    """A home where nothing can be written, not chosen by anyone, costs the folder and nothing else."""
    body = """
    run = attach()
    assert run.snapshot().errors == {"folder": 1}, run.snapshot().errors
    train()
    run.flush()
    assert run.snapshot().optimizers[0].steps == 3
    assert run.url
    last_words()
    """
    (tmp_path / "file").touch()
    home = str(tmp_path / "file")
    script = Script(tmp_path, body, {"MONITOR_DIR": "", "XDG_DATA_HOME": home, "HOME": home})
    assert script.code == 0, script.err
    assert script.runs == []


def test_disabled_by_the_environment(tmp_path: Path) -> None:
    """MONITOR_DISABLED=1 makes attach a no-op with the same methods: no thread, no folder, no patch."""
    body = """
    backward = torch.autograd.backward
    with attach() as run:
        train()
        assert torch.autograd.backward is backward
        assert threading.active_count() == 1
        run.log(loss=1.0, val_loss=0.5, samples=3, accuracy=0.1)
        assert run.flush() and run.snapshot() and run.events() == () and run.history() and run.lr == []
        assert (run.url, run.step, run.should_stop) == (None, 0, False)
        try:
            run.reduce_lr(0.5)
        except monitor.CommandRefusedError as error:
            print(error)
    last_words()
    """
    script = Script(tmp_path, body, {"MONITOR_DISABLED": "1"})
    assert script.code == 0, script.err
    assert "MONITOR_DISABLED is set: this run watches nothing and changes nothing; unset it" in script.out
    assert script.runs == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method: str, tmp_path: Path) -> None:
    """With worker processes, forked or spawned, the batches and weights are those of an unwatched run."""
    batches = make_batches()
    data = TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))

    def train(attach: object) -> list[torch.Tensor]:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with attach(optimizer):  # type: ignore[operator]
            loader = DataLoader(data, 4, shuffle=True, num_workers=2, multiprocessing_context=method)
            train_plainly(model, optimizer, loader)
        return weights_of(model)

    runs = []

    def attach(optimizer: torch.optim.Optimizer) -> object:
        runs.append(watch(optimizer, tmp_path, serve=True, port=0))
        return runs[0]

    assert_same(train(attach), train(unwatched))
    snapshot = runs[0].snapshot()
    assert snapshot.errors == {}
    assert snapshot.optimizers[0].steps == 6
    assert snapshot.phase_seconds["data"] > 0
    assert runs[0].state == "finished"
    assert len(list_runs(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    "module",
    [
        "multiprocessing.resource_tracker",
        "multiprocessing.forkserver",
        "joblib.externals.loky.backend.resource_tracker",
    ],
)
def test_a_helper_of_the_interpreter_is_none_of_our_children(module: str) -> None:
    """A process that the interpreter starts for itself may stay; the check for children left behind passes it over."""
    need_module(module.partition(".")[0])
    before = children()
    importlib.import_module(module).ensure_running()
    assert children() == before


def test_worker_does_not_keep_the_port(tmp_path: Path) -> None:
    """While forked workers still live, the run's port is free as soon as the run is closed."""
    loader = DataLoader(list(range(8)), num_workers=1, multiprocessing_context="fork", persistent_workers=True)
    run = watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path, serve=True, port=0)
    assert run.url is not None
    batches = iter(loader)
    next(batches)
    assert urllib.request.urlopen(run.url + "/healthz", timeout=60).status == 200
    port = int(run.url.rpartition(":")[2])
    run.close()
    again = watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path, serve=True, port=port)
    assert again.url == run.url
    again.close()
    batches._shutdown_workers()  # type: ignore[attr-defined]

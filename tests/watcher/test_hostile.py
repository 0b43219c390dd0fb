"""What a program may do to a run that is watched by a process of its own, and what then becomes of either."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import monitor
from monitor.link import MESSAGE, Pipe, pack_message, start_watcher
from monitor.store import STORE_FILE, StoreReader, list_runs
from tests.conftest import watchers
from tests.watcher.test_process import (
    PATIENCE_SECONDS,
    PRELUDE,
    ROOT,
    Script,
    Trained,
    attach,
    gone,
    pid_of_watcher,
    wait_for,
    watcher_of,
)

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)"""


@pytest.fixture
def trained() -> Trained:
    return Trained()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def run_to_end(tmp_path: Path, body: str, **settings: Any) -> str:
    """Return what a script prints."""
    script = Script(tmp_path, body, **settings)
    try:
        return str(script.process.communicate(timeout=PATIENCE_SECONDS)[0])
    finally:
        script.end()


# ------------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("is_reaped_by_a_handler", [False, True])
def test_a_program_that_waits_for_all_children_waits_for_no_watcher(
    tmp_path: Path, is_reaped_by_a_handler: bool
) -> None:
    """The watcher is nobody's child: ``os.wait()`` ends with the program's own children, and the run is recorded."""
    handler = """
    def reap(*_):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]: pass
        except ChildProcessError: pass
    signal.signal(signal.SIGCHLD, reap)
    """
    body = """
    run = attach(); train(3); run.flush()
    if os.fork() == 0: os._exit(0)
    try:
        while True: os.wait()
    except ChildProcessError:
        train(1); say(run.flush(), run.snapshot().optimizers[0].steps)
    """
    text = textwrap.dedent(handler) * is_reaped_by_a_handler + textwrap.dedent(body)
    assert run_to_end(tmp_path, text).split() == ["True", "4"]
    wait_for(lambda: list_runs(tmp_path / "runs")[0].state == "finished", "the end")


def test_a_program_that_ignores_its_children_has_its_watcher_replaced(tmp_path: Path) -> None:
    """With SIGCHLD ignored nothing is ever reaped; the run is recorded, and a watcher that is killed is replaced."""
    script = Script(
        tmp_path,
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        run = attach(); train(3); run.flush(); say()
        sys.stdin.readline()
        train(3); say(run.flush(), run.snapshot().optimizers[0].steps)
        """,
        stdin=subprocess.PIPE,
    )
    script.hear()
    first = pid_of_watcher(script)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: [one for one in watchers(script.runs_directory) if one.pid != first], "another watcher")
    assert script.process.stdin is not None
    with script.process.stdin as stdin:
        stdin.write("\n")
    assert script.hear() == ["True", "6"]
    script.process.wait()
    script.end()


@pytest.fixture(params=["the first process of a container", "a subreaper"])
def adopting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process one that is given every orphan below it as its child."""
    if request.param != "a subreaper":
        monkeypatch.setattr("monitor.link._process._adopts_orphans", lambda: True)
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.usefixtures("adopting")
def test_a_process_that_adopts_orphans_is_left_one_ended_watcher_at_most() -> None:
    """It would be given every orphan as its child, and nobody reaps those: each watcher is its child from the start,
    and is reaped when the next one is started."""
    before = set(psutil.Process().children())
    trained = Trained()
    for _ in range(3):
        with attach(trained.optimizer) as run:
            trained.train(1)
            assert run.flush(PATIENCE_SECONDS)
            assert len(set(psutil.Process().children()) - before) == 1
        # A process that is ending has no command line any more some time before it can be reaped.
        ended = set(psutil.Process().children()) - before
        wait_for(lambda: all(one.status() == psutil.STATUS_ZOMBIE for one in ended), "the end of the watcher")  # noqa: B023
    for one in set(psutil.Process().children()) - before:
        one.wait()


def test_a_program_that_becomes_another_one_has_vanished(tmp_path: Path) -> None:
    """After ``exec`` the process is the same and the training is gone: its watcher says so, and ends."""
    script = Script(
        tmp_path,
        """
        run = attach(); train(3); run.flush(); say(run.url)
        sys.stdin.readline()
        os.execv("/bin/sleep", ["sleep", "600"])
        """,
        stdin=subprocess.PIPE,
    )
    script.hear()
    watcher = pid_of_watcher(script)
    assert script.process.stdin is not None
    with script.process.stdin as stdin:
        stdin.write("\n")
    wait_for(lambda: gone(watcher), "the end of the watcher")
    assert script.process.poll() is None
    assert script.state() == "vanished"
    script.end()


def test_an_attach_that_is_refused_starts_no_process(trained: Trained) -> None:
    """An optimizer that another run watches is refused before there is a process or a descriptor to leave behind."""
    with attach(trained.optimizer) as run:
        assert run.url
        before = descriptors(), watchers(os.environ["MONITOR_DIR"])
        for _ in range(3):
            with pytest.raises(monitor.AlreadyAttachedError):
                attach(trained.optimizer)
        assert (descriptors(), watchers(os.environ["MONITOR_DIR"])) == before


@pytest.mark.parametrize("num_pipes", [0, 1, 2])
def test_a_watcher_that_cannot_be_started_leaves_no_descriptor(num_pipes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors or processes run out half way, those that were made are closed."""
    before = descriptors()
    make_pipe, made = os.pipe, 0

    def pipe() -> tuple[int, int]:
        nonlocal made
        made += 1
        if made > num_pipes:
            raise OSError(24, "Too many open files")
        return make_pipe()

    def refuse(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("monitor.link._process.os.pipe", pipe)
        patch.setattr("monitor.link._process._start", refuse)
        with pytest.raises(OSError, match="Too many"):
            start_watcher("run")
    assert descriptors() == before


# -------------------------------------------------------------------------------------------------------- the link


def test_a_program_that_closes_all_descriptors_keeps_its_files_and_its_run(tmp_path: Path) -> None:
    """As daemons do: files that are given the numbers of the link hold what the program wrote, and stay open; another
    watcher takes over, no step is lost, and nothing says that the run has vanished."""
    body = """
    run = attach(store_bytes=2**22); train(3); run.flush()
    os.closerange(3, 4096)
    files = [open(f"file{i}", "w+") for i in range(600)]  # up to the numbers of the link
    for file in files: print("own", file=file, flush=True)
    train(3)
    flushed = run.flush(60), run.snapshot().optimizers[0].steps
    run.close()
    for file in files:
        file.seek(0)
        assert file.read() == "own\\n", file.name
    say(*flushed, run.state, *(event.kind for event in run.events()))
    """
    limit = ["import resource", "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))"]
    assert run_to_end(tmp_path, "\n".join(limit) + textwrap.dedent(body)).split() == [
        *("True", "6", "finished", "state", "state")
    ]
    wait_for(lambda: not watchers(tmp_path / "runs"), "the end of the watchers")
    (run,) = list_runs(tmp_path / "runs")
    with StoreReader(run.path / STORE_FILE) as store:
        assert "vanished" not in str(store.events())
        assert [point.last_step for point in store.rows("optimizer", "SGD", "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_number_that_has_become_a_file_is_neither_written_nor_closed(tmp_path: Path) -> None:
    """An end of the link whose descriptor the program has closed and been given again is closed for the link alone."""
    reader, writer = os.pipe()
    pipe = Pipe(writer)
    with (tmp_path / "file").open("w+b") as file:
        os.dup2(file.fileno(), writer)
        try:
            with pytest.raises(OSError, match="closed the link"):
                pipe.write(pack_message("event", 1))
            pipe.close()
            os.fstat(writer)
        finally:
            os.close(writer)
            os.close(reader)
        assert file.read() == b""


def test_a_pipe_that_is_closed_while_it_is_read_keeps_its_number_until_then() -> None:
    """The number is free for others only once nobody is about to read from it."""
    reader, writer = os.pipe()
    incoming, outgoing = Pipe(reader), Pipe(writer)
    frames: list[Any] = []
    thread = threading.Thread(target=lambda: frames.extend([incoming.read(), incoming.read()]))
    thread.start()
    wait_for(incoming._lock.locked, "the reader")
    incoming.close()
    os.fstat(reader)
    outgoing.write(pack_message("event", 1))
    outgoing.close()
    thread.join()
    assert frames in ([None, None], [(MESSAGE, pack_message("event", 1)[5:]), None])
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(reader)


def test_a_watcher_that_is_gone_ends_no_program_that_wants_to_die_of_sigpipe(tmp_path: Path) -> None:
    """A thread that writes the link survives the write to a closed pipe where SIGPIPE has its default action."""
    body = """
    from monitor.link import hold_back_sigpipe
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    reader, writer = os.pipe()
    os.close(reader)
    def write():
        hold_back_sigpipe()
        try: os.write(writer, b"x")
        except BrokenPipeError: say("broken")
    thread = threading.Thread(target=write); thread.start(); thread.join()
    run = attach(); train(3); say(run.flush())
    for thread in threading.enumerate():
        if "link" in thread.name:
            status = open(f"/proc/self/task/{thread.native_id}/status").read()
            say(int(status.partition("SigBlk:")[2].split()[0], 16) >> signal.SIGPIPE - 1 & 1)
    """
    assert run_to_end(tmp_path, body).split() == ["broken", "True", "1", "1"]


def test_a_watcher_can_be_told_to_end_whatever_its_program_holds_back(tmp_path: Path) -> None:
    """Signals that the program has blocked before ``attach`` are not blocked in the watcher."""
    script = Script(
        tmp_path,
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        run = attach(); train(3); run.flush(); say(); wait()
        """,
    )
    script.hear()
    status = Path(f"/proc/{pid_of_watcher(script)}/status").read_text()
    script.end()
    assert int(status.partition("SigBlk:")[2].split()[0], 16) == 0
    script.wait_for_state("vanished")


def test_a_sitecustomize_that_prints_does_not_reach_the_link(tmp_path: Path) -> None:
    """What an environment's start-up files print or wait for is no business of the watcher."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "sitecustomize.py").write_text("print('hello', flush=True)\n")
    (packages / "others.pth").write_text("\n".join(one for one in sys.path if one.endswith("site-packages")) + "\n")
    (tmp_path / "script.py").write_text(
        PRELUDE + "run = attach(); train(3); say(run.flush(60), run.snapshot().optimizers[0].steps)\n"
    )
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert done.stdout.split() == ["hello", "True", "3"]
    assert "takes over" not in done.stderr


# ------------------------------------------------------------------------------------------------ nothing is lost


def test_what_was_told_a_watcher_that_is_killed_is_told_the_next_one(trained: Trained) -> None:
    """Events that the last watcher had and that were in no memory of it are there once more, under their numbers; each
    is heard once, and so is each step."""
    heard: list[int] = []
    steps: list[int] = []

    class Policy:
        def start(self, submit: Any) -> Any:
            return self

        def on_event(self, event: monitor.Event) -> None: ...

        def on_step(self, step: monitor.Step) -> None:
            steps.append(step.number)

    with attach(trained.optimizer, policies=[Policy()], on_event=lambda event: heard.append(event.seq)) as run:
        trained.train(3)
        for number in range(2):
            command = run.reduce_lr(0.5, reason=str(number))
            trained.train(1)
            assert command.status == "applied"
            assert run.flush(PATIENCE_SECONDS)
            seqs = [event.seq for event in run.events()]
            kill_and_wait(run)
            assert run.flush(PATIENCE_SECONDS)
            assert [event.seq for event in run.events()] == seqs
    assert [event.kind for event in run.events()] == ["state", "control", "control", "state"]
    assert heard == [1, 2, 3, 4][: len(heard)]
    assert len(heard) >= 3
    assert steps == [1, 2, 3, 4, 5]


def kill_and_wait(run: monitor.Run) -> None:
    first = watcher_of(run)
    first.kill()
    wait_for(lambda: watcher_of(run).pid != first.pid, "another watcher")


@pytest.mark.parametrize("moment", ["before the greeting", "after the last word"])
def test_a_watcher_that_is_killed_first_or_last_is_replaced(
    moment: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it has read its first message, or after the last one was written, it costs neither a step nor the
    end of the run."""
    before = descriptors()
    if moment == "before the greeting":
        hold_up(monkeypatch, "monitor.link._process.WatcherProcess.greet", kill_all)
    run = attach(trained.optimizer)
    trained.train(3)
    if moment == "after the last word":
        assert run.flush(PATIENCE_SECONDS)
        watcher_of(run).suspend()
        run.close()
        kill_all()
    run.close()
    assert (run.state, run.snapshot().optimizers[0].steps) == ("finished", 3)
    wait_for(lambda: not watchers(os.environ["MONITOR_DIR"]), "the end of the watchers")
    assert list_runs(tmp_path / "runs")[0].read_final()["state"] == "finished"  # type: ignore[index]
    wait_for(lambda: descriptors() == before, "the descriptors")


def kill_all() -> None:
    for one in wait_for(lambda: watchers(os.environ["MONITOR_DIR"]), "the watcher"):
        one.kill()


def hold_up(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Have something done before the first call of a method."""
    module, kind, method = name.rpartition(".")[0].rpartition(".")[0], name.split(".")[-2], name.split(".")[-1]
    owner = getattr(sys.modules[module], kind)
    usual = getattr(owner, method)
    acts = [act]

    def first(*arguments: Any) -> Any:
        while acts:
            acts.pop()()
        return usual(*arguments)

    monkeypatch.setattr(owner, method, first)

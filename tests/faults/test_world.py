"""What the world may do to a run while it runs: folders vanish, ports are taken, clients hang."""

from __future__ import annotations

import errno
import logging
import os
import pwd
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor.recorder import Recorder
from monitor.recorder._events import EventLog
from monitor.store._known import list_runs
from tests.faults.loops import assert_same, make_batches, make_model, train_plainly, watch, weights_of


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def read(run: monitor.Run, path: str) -> str:
    request = urllib.request.Request(f"{run.url}{path}", headers={"Authorization": f"Bearer {run.token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def expected_weights() -> list[torch.Tensor]:
    model = make_model()
    train_plainly(model, optimizer_of(model), make_batches())
    return weights_of(model)


@pytest.mark.parametrize("is_variable", [False, True])
def test_directory_that_can_never_be_one_is_refused(
    is_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is a regular file is the caller's mistake: refused by name, with nothing attached."""
    (tmp_path / "file").touch()
    directory = str(tmp_path / "file")
    monkeypatch.setenv("MONITOR_DIR", directory)
    optimizer = optimizer_of(make_model())
    with pytest.raises(ValueError) as refusal:
        watch(optimizer, tmp_path, directory=None if is_variable else directory)
    assert str(refusal.value).startswith(f"directory={directory!r} cannot be a directory (")
    assert dict(optimizer._optimizer_step_pre_hooks) == {}
    watch(optimizer, tmp_path).close()


def fail_under(root: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every write below a directory fail."""
    mkdir, open_file = os.mkdir, os.open

    def failing_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if root in Path(path).parents:
            raise OSError(error, os.strerror(error), str(path))
        mkdir(path, *args, **kwargs)

    def failing_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_EXCL and root in Path(f"/proc/self/fd/{kwargs.get('dir_fd')}").resolve().parents:
            raise OSError(error, os.strerror(error), str(path))
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", failing_mkdir)
    monkeypatch.setattr(os, "open", failing_open)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("is_variable", [False, True])
def test_disk_that_cannot_be_written_costs_the_folder(
    error: int, is_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full, read-only, stale or forbidden disk costs the run folder: one line with the cure, nothing left behind."""
    fail_under(tmp_path / "runs", error, monkeypatch)
    model = make_model()
    optimizer = optimizer_of(model)
    given = None if is_variable else str(tmp_path / "runs")
    with caplog.at_level(logging.WARNING, "monitor"), watch(optimizer, tmp_path, directory=given) as run:
        train_plainly(model, optimizer, make_batches())
    assert_same(weights_of(model), expected_weights())
    assert (run.state, run.snapshot().errors) == ("finished", {"folder": 1})
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"training continues without a run folder in {tmp_path / 'runs'}, and `monitor runs` and `monitor status` do "
        f"not find this run: [Errno {error}] {os.strerror(error)}"
    )
    assert line.endswith("; set MONITOR_DIR to a directory that can be written")
    assert caplog.records[0].exc_info is None
    assert not (tmp_path / "runs").exists()


def test_disk_that_fills_up_in_mid_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full from the first steps on is counted at each write, told in one line, and harms no step."""
    model = make_model()
    optimizer = optimizer_of(model)
    with caplog.at_level(logging.WARNING, "monitor"), watch(optimizer, tmp_path) as run:
        fail_under(tmp_path / "runs", errno.ENOSPC, monkeypatch)
        run._engine.watcher.watcher.publisher._disk.post(run._engine.watcher.watcher.publisher._save)
        train_plainly(model, optimizer, make_batches())
    assert_same(weights_of(model), expected_weights())
    assert run.snapshot().errors == {"folder": 2}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"the run folders in {tmp_path / 'runs'} cannot be used ([Errno 28] No space left on device")


def test_targets_that_lead_elsewhere_cost_the_target(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link in the place of the folder for Prometheus is told in one line with the remedy, and harms no step."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "runs").mkdir()
    targets = tmp_path / "runs" / "targets"
    targets.symlink_to(tmp_path / "theirs")
    model = make_model()
    optimizer = optimizer_of(model)
    with caplog.at_level(logging.WARNING, "monitor"), watch(optimizer, tmp_path, serve=True, port=0) as run:
        train_plainly(model, optimizer, make_batches())
    assert_same(weights_of(model), expected_weights())
    assert run.snapshot().errors == {"folder": 2}
    assert [record.getMessage() for record in caplog.records] == [
        f"{targets} is a link, and links are not followed; put there what it leads to; training is not affected"
    ]
    assert list((tmp_path / "theirs").iterdir()) == []
    assert [known.state for known in list_runs(tmp_path / "runs")] == ["finished"]


def no_entry(_: object) -> Any:
    raise KeyError("uid not found")


def test_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither HOME nor a passwd entry: one line with the cure, and page, steps and state as ever."""
    for name in ("HOME", "XDG_DATA_HOME", "MONITOR_DIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    model = make_model()
    optimizer = optimizer_of(model)
    home: dict[str, Any] = {"directory": None, "serve": True, "port": 0}
    with caplog.at_level(logging.WARNING, "monitor"), watch(optimizer, tmp_path, **home) as run:
        train_plainly(model, optimizer, make_batches())
        assert read(run, "/healthz")
    assert (run.step, run.state, run.snapshot().errors) == (6, "finished", {"folder": 1})
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no home directory is known for this user" in line
    assert line.endswith("set HOME, XDG_DATA_HOME or MONITOR_DIR")
    assert list(tmp_path.iterdir()) == []


def test_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script whose working directory was removed, its own name relative to it, is watched all the same."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
    shutil.rmtree(tmp_path / "gone")
    with watch(optimizer_of(make_model()), tmp_path, directory="runs") as run:
        pass
    assert (run.name, run.snapshot().errors) == ("train", {"folder": 1})


class HungDisk:
    """A disk on which every look at a file below ``root`` hangs until the test lets go."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_back = threading.Event()
        self._root = str(root)
        self.threads: set[str] = set()
        for owner, name in ((os, "stat"), (os, "lstat"), (os, "mkdir"), (os, "open"), (os, "replace"), (os, "unlink")):
            monkeypatch.setattr(owner, name, self._hanging(getattr(owner, name)))

    def _hanging(self, function: Any) -> Any:
        def hanging(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(self._root):
                self.threads.add(threading.current_thread().name)
                self.is_back.wait()
            return function(path, *args, **kwargs)

        return hanging


def test_disk_that_hangs_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hung disk holds up attach and the end by less than 2 s each, the training not at all; told once."""
    for module in ("store._disk", "watcher._publisher"):
        monkeypatch.setattr(f"monitor.{module}.PATIENCE_SECONDS", 1.5)
    disk = HungDisk(tmp_path / "runs", monkeypatch)
    model = make_model()
    optimizer = optimizer_of(model)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "monitor"):
        run = watch(optimizer, tmp_path, serve=True, port=0)
        attached = time.monotonic()
        train_plainly(model, optimizer, make_batches())
        run.flush()
        ending = time.monotonic()
        run.close()
    ended = time.monotonic()
    disk.is_back.set()
    # The wait itself is 1.5 s, as the line below says; the rest is what a busy machine takes to get there.
    assert (attached - start < 30.0, ended - ending < 30.0) == (True, True), (attached - start, ended - ending)
    assert disk.threads == {"monitor-disk"}
    assert_same(weights_of(model), expected_weights())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"the run folders in {tmp_path / 'runs'} cannot be used (the disk has not answered for 1.5")
    _wait_until_known(tmp_path / "runs", "finished")


def _wait_until_known(root: Path, state: str) -> None:
    deadline = time.monotonic() + 60
    while (found := [run.state for run in list_runs(root)]) != [state]:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def test_no_file_of_the_folder_is_touched_on_the_training_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From attach to close every look at the run folders is made on the thread for it."""
    disk = HungDisk(tmp_path / "runs", monkeypatch)
    disk.is_back.set()
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0):
        train_plainly(model, optimizer, make_batches())
    assert disk.threads == {"monitor-disk"}
    assert [run.state for run in list_runs(tmp_path / "runs")] == ["finished"]


def test_whatever_lies_among_the_runs_holds_nothing_up(tmp_path: Path) -> None:
    """FIFOs and thousands of brackets in the place of every file of older runs, and a training that notices none."""
    for name in ("a-000001", "b-000001"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "targets").mkdir()
    os.mkfifo(tmp_path / "runs" / "a-000001" / "run.json")
    os.mkfifo(tmp_path / "runs" / "targets" / "a-000001.json")
    os.mkfifo(tmp_path / "runs" / "fifo")
    (tmp_path / "runs" / "b-000001" / "run.json").write_text("[" * 200_000)
    (tmp_path / "runs" / "targets" / "b-000001.json").write_text("[" * 200_000)
    start = time.monotonic()
    with watch(optimizer_of(make_model()), tmp_path, serve=True, port=0) as run:
        pass
    assert time.monotonic() - start < 60
    assert run.snapshot().errors == {}
    assert [known.state for known in list_runs(tmp_path / "runs")] == ["finished"]


def test_folder_removed_in_mid_run(tmp_path: Path) -> None:
    """When the run's folder is taken away the training continues; the failure is counted and its component named."""
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        train_plainly(model, optimizer, make_batches()[:3])
        shutil.rmtree(tmp_path / "runs")
        train_plainly(model, optimizer, make_batches()[3:])
    assert_same(weights_of(model), expected_weights())
    assert run.snapshot().errors == {"folder": 1}
    assert run.state == "finished"
    assert list_runs(tmp_path / "runs") == []


def test_busy_fixed_port_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fixed port that is taken costs the page and the metrics: one warning with the cure, the run continues."""
    model = make_model()
    optimizer = optimizer_of(model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with caplog.at_level(logging.WARNING, "monitor"), watch(optimizer, tmp_path, serve=True, port=port) as run:
            train_plainly(model, optimizer, make_batches())
            run.flush()
    assert run.url is None
    assert run.snapshot().errors == {"server": 1}
    assert run.snapshot().optimizers[0].steps == 6
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"cannot listen on 127.0.0.1 port {port}: it is in use" in warning
    assert "give another port, or port=None for the next free one" in warning
    assert "the run continues without a page and metrics" in warning
    assert_same(weights_of(model), expected_weights())


def test_host_that_is_not_ours_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A host that is no address of this machine costs the page only."""
    optimizer = optimizer_of(make_model())
    with (
        caplog.at_level(logging.WARNING, "monitor"),
        watch(optimizer, tmp_path, serve=True, host="192.0.2.1", port=0) as run,
    ):
        assert run.url is None
    assert "the host is no address of this machine" in caplog.text


def test_bad_certificate_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    """A certificate that cannot be used is the caller's mistake: refused by name, with everything taken back."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no certificate")
    optimizer = optimizer_of(make_model())
    with pytest.raises(ValueError) as refusal:
        files = {"certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "key.pem")}
        watch(optimizer, tmp_path, serve=True, port=0, **files)
    assert "cert.pem" in str(refusal.value)
    assert "cannot be used" in str(refusal.value)
    watch(optimizer, tmp_path).close()


def test_two_scrapers_see_the_same(tmp_path: Path) -> None:
    """Nothing is reset by a scrape: two scrapers, one of them often, read the same counters."""
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        train_plainly(model, optimizer, make_batches())
        run.flush()
        answers = [read(run, "/metrics") for _ in range(4)]
    mine = [[line for line in a.splitlines() if line.startswith("training_") and _is_lasting(line)] for a in answers]
    assert mine[0] == mine[1] == mine[2] == mine[3]
    assert any(line.startswith("training_steps_total") and line.endswith(" 6.0") for line in mine[0])


def _is_lasting(line: str) -> bool:
    """Whether a series is about the training, not about the scrape, the host or the clock."""
    return not line.startswith(("training_monitor_", "training_host_", "training_process_"))


def test_scrapes_during_training_change_no_weight(tmp_path: Path) -> None:
    """Two scrapers at full speed, and one that reads nothing of what it asked for, leave the weights as they are."""
    model = make_model()
    optimizer = optimizer_of(model)
    stop = threading.Event()
    answers: list[str] = []
    errors: list[BaseException] = []
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        assert run.url is not None

        def scrape() -> None:
            try:
                while not stop.is_set():
                    answers.append(read(run, "/metrics"))
            except BaseException as error:
                errors.append(error)

        scrapers = [threading.Thread(target=scrape) for _ in range(2)]
        slow = [socket.create_connection(("127.0.0.1", int(run.url.rpartition(":")[2]))) for _ in range(8)]
        for i, client in enumerate(slow):
            client.sendall(
                b"GET /metrics HTTP/1.1\r\n" if i % 2 else b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
        for scraper in scrapers:
            scraper.start()
        while len(answers) < 4 and not errors:  # scrapes are under way
            time.sleep(0.01)
        train_plainly(model, optimizer, make_batches())
        run.flush()
        seen = len(answers)
        while len(answers) < seen + 4 and not errors:  # scrapes that began after the last step
            time.sleep(0.01)
        stop.set()
        for scraper in scrapers:
            scraper.join(60)
        for client in slow:
            client.close()
    assert errors == []
    assert "training_steps_total" in answers[-1]
    assert_same(weights_of(model), expected_weights())
    assert run.snapshot().errors == {}


@pytest.mark.parametrize("path", ["/api/v1/run", "/api/v1/history", "/api/v1/events", "/metrics"])
def test_failing_view_is_an_answer_and_a_count(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view whose reading fails answers with a status, is counted and shown; the training and the port live on."""
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "snapshot", property(_raise))
            patch.setattr(Recorder, "history", _raise)
            patch.setattr(EventLog, "since", _raise)
            if path == "/metrics":  # the rest of the scrape stays whole
                assert 'training_monitor_collect_success{collector="training"' in read(run, path)
            else:
                with pytest.raises(urllib.error.HTTPError) as error:
                    read(run, path)
                assert error.value.code == 500
                assert b"the run continues" in error.value.read()
                error.value.close()
            train_plainly(model, optimizer, make_batches())
        assert read(run, "/healthz")
    errors = run.snapshot().errors
    assert set(errors) == {"export" if path == "/metrics" else "server"}
    assert [e.details["component"] for e in run.events() if e.kind == "internal"] == list(errors)
    assert_same(weights_of(model), expected_weights())


def test_errors_are_exported(tmp_path: Path) -> None:
    """A contained failure is in training_monitor_errors_total, by component, at the next scrape."""
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0, on_event=_raise) as run:
        train_plainly(model, optimizer, make_batches())
        run.flush()
        counts = [
            line for line in read(run, "/metrics").splitlines() if line.startswith("training_monitor_errors_total")
        ]
    found = {line.partition('component="')[2].partition('"')[0]: float(line.split()[-1]) for line in counts}
    assert found["on_event"] >= 1


def _raise(*_: Any) -> Any:
    raise RuntimeError("injected")


def test_failing_sampler_is_marked_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host readings that fail are counted and marked as a failed collection; steps are recorded all the same."""
    from monitor.system import HostReader

    done = threading.Event()

    def fail(_: Any) -> Any:
        done.set()
        raise OSError("injected")

    monkeypatch.setattr(HostReader, "read", fail)
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        assert done.wait(60)
        train_plainly(model, optimizer, make_batches())
        run.flush()
        while "host" not in run.snapshot().collections:
            time.sleep(0.01)
        text = read(run, "/metrics")
    assert run.snapshot().errors["system"] >= 1
    assert not run.snapshot().collections["host"].is_success
    assert next(line for line in text.splitlines() if 'collect_success{collector="host"' in line).endswith(" 0.0")
    assert_same(weights_of(model), expected_weights())


@pytest.mark.parametrize("component", ["recorder", "system", "server", "folder"])
def test_thread_that_cannot_be_started(component: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no thread left for us costs what that thread would have done, and no step."""
    start = threading.Thread.start
    names = {
        "recorder": "monitor-recorder",
        "system": "monitor-system",
        "server": "monitor-http",
        "folder": "monitor-disk",
    }

    def refuse(thread: threading.Thread) -> None:
        if thread.name == names[component]:
            raise RuntimeError("can't start new thread")
        start(thread)

    model = make_model()
    optimizer = optimizer_of(model)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        run = watch(optimizer, tmp_path, serve=True, port=0)
    with run:
        train_plainly(model, optimizer, make_batches())
        run.flush(0.2)
    assert run.snapshot().errors[component] >= 1
    assert run.state == "finished"
    assert run.step == 6
    assert_same(weights_of(model), expected_weights())

"""What the world may do to a run while it goes on: folders vanish, ports are taken, clients hang."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor._known import list_runs
from monitor.recorder import Recorder
from monitor.recorder._events import EventLog
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


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A directory that the caller chose and that cannot be written is refused, by name, with nothing attached."""
    (tmp_path / "file").touch()
    optimizer = optimizer_of(make_model())
    with pytest.raises(ValueError) as refusal:
        watch(optimizer, tmp_path, directory=str(tmp_path / "file" / "runs"))
    assert str(refusal.value).startswith(f"directory={str(tmp_path / 'file' / 'runs')!r} cannot be written (")
    assert str(refusal.value).endswith("); give one that can, or leave it out")
    assert dict(optimizer._optimizer_step_pre_hooks) == {}
    watch(optimizer, tmp_path).close()


def test_folder_removed_in_mid_run(tmp_path: Path) -> None:
    """When the run's folder is taken away the training goes on; the failure is counted and its room told."""
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
    """A fixed port that is taken costs the page and the metrics: one warning with the cure, the run goes on."""
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
    assert "the run goes on without a page and metrics" in warning
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
                assert b"the run goes on" in error.value.read()
                error.value.close()
            train_plainly(model, optimizer, make_batches())
        assert read(run, "/healthz")
    errors = run.snapshot().errors
    assert set(errors) == {"export" if path == "/metrics" else "server"}
    assert [e.details["room"] for e in run.events() if e.kind == "internal"] == list(errors)
    assert_same(weights_of(model), expected_weights())


def test_errors_are_exported(tmp_path: Path) -> None:
    """A contained failure is in training_monitor_errors_total, by room, at the next scrape."""
    model = make_model()
    optimizer = optimizer_of(model)
    with watch(optimizer, tmp_path, serve=True, port=0, on_event=_raise) as run:
        train_plainly(model, optimizer, make_batches())
        run.flush()
        counts = [
            line for line in read(run, "/metrics").splitlines() if line.startswith("training_monitor_errors_total")
        ]
    found = {line.partition('room="')[2].partition('"')[0]: float(line.split()[-1]) for line in counts}
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


@pytest.mark.parametrize("room", ["recorder", "system", "server"])
def test_thread_that_cannot_be_started(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no thread left for us costs what that thread would have done, and no step."""
    start = threading.Thread.start
    names = {"recorder": "monitor-recorder", "system": "monitor-system", "server": "monitor-http"}

    def refuse(thread: threading.Thread) -> None:
        if thread.name == names[room]:
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
    assert run.snapshot().errors[room] >= 1
    assert run.state == "finished"
    assert run.step == 6
    assert_same(weights_of(model), expected_weights())

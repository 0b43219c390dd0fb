"""However a run ends, nothing of it stays behind."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.nn.utils import clip_grad
from torch.utils.data.dataloader import _BaseDataLoaderIter

import monitor
from monitor.probe import _patches
from monitor.run._open_runs import open_runs
from monitor.store._known import list_runs
from tests.faults.loops import assert_same, make_batches, make_model, train_plainly, watch, weights_of

CLIPS = ("clip_grad_norm_", "_clip_grads_with_norm_", "clip_grad_value_")


class Subclass(torch.optim.SGD):
    """A subclass whose step calls its parent's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def functions_of_torch() -> list[Any]:
    """Return what the monitor may replace: attributes, and the closure cells behind decorators."""
    decorated = [getattr(clip_grad, name) for name in CLIPS]
    decorated += [torch.optim.SGD.step, Subclass.step]
    return [
        torch.autograd.backward,
        torch.optim.Optimizer.__dict__["zero_grad"],
        torch.amp.GradScaler.__dict__["scale"],
        torch.amp.GradScaler.__dict__["step"],
        _BaseDataLoaderIter.__dict__["__next__"],
        threading.excepthook,
        *decorated,
        *(cell.cell_contents for function in decorated for cell in function.__closure__ or ()),
    ]


@pytest.fixture(autouse=True)
def _originals_are_back() -> Iterator[None]:
    """Every function of torch is the very object that it was before."""
    for kind in (torch.optim.SGD, Subclass):  # torch decorates the step of a class with its first instance
        kind(make_model().parameters(), lr=0.1)
    before = functions_of_torch()
    yield
    after = functions_of_torch()
    assert [id(f) for f in after] == [id(f) for f in before]
    assert _patches.PROBES == {}
    assert open_runs() == []


def assert_no_hooks(optimizer: torch.optim.Optimizer) -> None:
    assert dict(optimizer._optimizer_step_pre_hooks) == {}
    assert dict(optimizer._optimizer_step_post_hooks) == {}


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def leave_by(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (RuntimeError("boom"), "failed"),
        (MemoryError(), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "interrupted"),
        (GeneratorExit(), "interrupted"),
        (monitor.StopTraining("enough"), "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_end_is_told_and_all_is_taken_out(error: BaseException | None, state: str, tmp_path: Path) -> None:
    """Whatever leaves the block passes through, the state says how, and threads, port, hooks and patches are gone."""
    model = make_model()
    optimizer = Subclass(model.parameters(), lr=0.1)
    run = watch(optimizer, tmp_path, serve=True, port=0)
    assert run.url is not None
    run.reduce_lr(0.5)  # brings the guard of optimizer.step in
    left_by: BaseException | None = None
    try:
        with run:
            train_plainly(model, optimizer, make_batches(3))
            leave_by(error)
    except BaseException as raised:
        left_by = raised
    assert left_by is error
    assert run.state == state
    assert run.events()[-1].details["state"] == state
    cause = {RuntimeError: ": RuntimeError: boom", MemoryError: ": MemoryError"}.get(type(error), "")
    assert run.events()[-1].message == f"run {run.id} {state} at step 3{cause}"
    (known,) = list_runs(tmp_path / "runs")
    assert known.state == state
    assert (known.read_final() or {})["state"] == state
    assert known.end_time is not None
    assert_no_hooks(optimizer)
    assert is_free(int(run.url.rpartition(":")[2]))
    assert not [t for t in threading.enumerate() if t.name.startswith("monitor")]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_later_excepthook_of_somebody_else_stays(tmp_path: Path) -> None:
    """A hook for threads that the program has set while the run was open is in force after it, and works."""
    original = threading.excepthook
    optimizer = Subclass(make_model().parameters(), lr=0.1)
    heard: list[str] = []
    try:
        with watch(optimizer, tmp_path):
            assert threading.excepthook is not original
            threading.excepthook = lambda args: heard.append(str(args.exc_value))
        thread = threading.Thread(target=leave_by, args=(ValueError("boom"),))
        thread.start()
        thread.join()
        assert heard == ["boom"]
    finally:
        threading.excepthook = original


def test_stop_raises_at_the_boundary_and_ends_as_interrupted(tmp_path: Path) -> None:
    """With stop_raises a stop leaves the loop by StopTraining, before the update."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = watch(optimizer, tmp_path, stop_raises=True)
    before = weights_of(model)
    with pytest.raises(monitor.StopTraining, match="a stop was asked for"), run:
        run._engine.commands.submit("stop", source="code")
        train_plainly(model, optimizer, make_batches(3))
    assert_same(weights_of(model), before)
    assert run.state == "interrupted"
    assert_no_hooks(optimizer)


def test_generator_that_is_dropped_ends_its_run(tmp_path: Path) -> None:
    """A training loop that is a generator, dropped half-way, ends as interrupted."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runs = []

    def training() -> Iterator[int]:
        with watch(optimizer, tmp_path) as run:
            runs.append(run)
            for i, batch in enumerate(make_batches()):
                train_plainly(model, optimizer, [batch])
                yield i

    loop = training()
    assert next(loop) == 0
    loop.close()
    assert runs[0].state == "interrupted"
    assert_no_hooks(optimizer)


def test_attach_and_detach_a_hundred_times(tmp_path: Path) -> None:
    """A hundred runs leave as many threads, files, hooks and garbage as one did."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    process = psutil.Process()

    def once(serve: bool) -> None:
        with watch(optimizer, tmp_path, serve=serve, port=0):
            train_plainly(model, optimizer, make_batches(1))

    def used() -> dict[str, int]:
        gc.collect()
        files, threads = len(process.open_files()), threading.active_count()
        return {"threads": threads, "files": files, "descriptors": process.num_fds(), "tasks": process.num_threads()}

    once(True)
    before = used()
    for i in range(100):
        once(i % 10 == 0)
    deadline = time.monotonic() + 60
    while (more := {what for what, number in used().items() if number > before[what]}) and time.monotonic() < deadline:
        time.sleep(0.02)  # the system knows a thread for a moment after Python has joined it
    assert not more
    assert_no_hooks(optimizer)
    assert not [
        o for o in gc.get_objects() if type(o) is monitor.Run and o.settings.directory == str(tmp_path / "runs")
    ]


def test_two_runs_one_after_the_other_in_one_loop(tmp_path: Path) -> None:
    """The patches stay until the last of two nested runs has left, whichever leaves first."""
    first, second = (torch.optim.SGD(make_model().parameters(), lr=0.1) for _ in range(2))
    one, two = watch(first, tmp_path), watch(second, tmp_path)
    patched = torch.autograd.backward
    one.close()
    assert torch.autograd.backward is patched
    assert_no_hooks(first)
    two.close()


def test_two_runs_in_two_threads_keep_apart(tmp_path: Path) -> None:
    """Two threads train under a run each; each run has its own losses and steps, and neither has a failure."""
    numbers = {"a": 20, "b": 31}
    runs: dict[str, monitor.Run] = {}
    losses: dict[str, list[float]] = {}

    def train(key: str) -> None:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watch(optimizer, tmp_path) as run:
            runs[key], losses[key] = run, []
            for i in range(numbers[key]):
                loss = model(torch.full((2, 3), float(i))).square().mean()
                losses[key].append(loss.item())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    threads = [threading.Thread(target=train, args=(key,)) for key in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, run in runs.items():
        snapshot = run.snapshot()
        assert snapshot.errors == {}
        assert snapshot.optimizers[0].steps == numbers[key]
        assert snapshot.optimizers[0].loss == pytest.approx(losses[key][-1])
        assert run.history()["optimizers"]["SGD"]["loss"] == pytest.approx(losses[key])


def test_attaching_twice_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """A second run on the same optimizer is refused by name; the first one continues, and a third may follow."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path) as run:
        with pytest.raises(monitor.AlreadyAttachedError) as refusal:
            watch({"again": optimizer}, tmp_path)
        assert str(refusal.value) == (
            "optimizer 'again' is watched by another open run; close that one first (run.close())"
        )
        train_plainly(model, optimizer, make_batches(2))
    assert run.snapshot().optimizers[0].steps == 2
    assert len(list_runs(tmp_path / "runs")) == 1
    with watch(optimizer, tmp_path) as again:
        train_plainly(model, optimizer, make_batches(1))
    assert again.snapshot().optimizers[0].steps == 1


def test_attaching_from_many_threads_at_once_gives_one_run(tmp_path: Path) -> None:
    """Of eight threads that attach the same optimizer at the same moment one succeeds and seven are refused."""
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    start = threading.Barrier(8)
    outcomes: list[Any] = []

    def attach() -> None:
        start.wait()
        try:
            outcomes.append(watch(optimizer, tmp_path))
        except monitor.AlreadyAttachedError:
            outcomes.append(None)

    threads = [threading.Thread(target=attach) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = [run for run in outcomes if run is not None]
    assert len(outcomes) == 8
    run.close()
    assert_no_hooks(optimizer)


def test_closing_again_changes_nothing(tmp_path: Path) -> None:
    """A second close, another state included, leaves the first one's state; an unknown state is refused."""
    run = watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path)
    with pytest.raises(ValueError) as refusal:
        run.close("done")  # type: ignore[arg-type]
    assert str(refusal.value) == "state must be one of finished, failed, interrupted, got 'done'"
    run.close("failed")
    run.close()
    assert run.state == "failed"


def test_with_after_close_is_refused(tmp_path: Path) -> None:
    """A closed run cannot be entered again, takes no command, and forgets what is logged."""
    run = watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path)
    run.close()
    with pytest.raises(monitor.ClosedRunError) as refusal, run:
        pass
    assert str(refusal.value) == f"run {run.id} has been closed; attach again for a new one"
    with pytest.raises(monitor.ClosedRunError):
        run.reduce_lr(0.5)
    run.log(loss=1.0, accuracy=0.5)
    assert run.snapshot().metrics == {}


@pytest.mark.parametrize("where", ["on_event", "on_checkpoint", "closure"])
def test_closing_from_inside(where: str, tmp_path: Path) -> None:
    """A run may be closed by its own callbacks and from inside a step; the training continues unwatched."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run: monitor.Run

    def close(*_: Any) -> None:
        run.close()

    callbacks: dict[str, Any] = {"on_event": close, "on_checkpoint": close}
    run = watch(optimizer, tmp_path, **{k: v for k, v in callbacks.items() if k == where})
    others = []
    optimizer.register_step_pre_hook(lambda *_: others.append("pre"))
    optimizer.register_step_post_hook(lambda *_: others.append("post"))
    if where == "on_checkpoint":
        run._engine.commands.submit("checkpoint", source="code")
    if where == "closure":
        optimizer.step(lambda: close())
    train_plainly(model, optimizer, make_batches(2))
    run._engine.watcher.watcher.recorder._loop._thread.join(60)
    assert run.state == "finished"
    assert others.count("pre") == others.count("post") == (3 if where == "closure" else 2)
    _patches._uninstall()  # nothing to do: asserts below and in the fixture would see it
    assert [h.__name__ for h in optimizer._optimizer_step_pre_hooks.values() if "monitor" in h.__module__] in (
        [],
        ["_nothing"],
    )


def test_closing_a_paused_run_from_another_thread_lets_the_training_go_on(tmp_path: Path) -> None:
    """Closing while the training thread waits inside our hook raises nothing there, other hooks after ours or not."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    paused = threading.Event()

    def on_event(event: monitor.Event) -> None:
        if event.details.get("state") == "paused":
            paused.set()

    run = watch(optimizer, tmp_path, on_event=on_event)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    run._engine.commands.submit("pause", source="code")
    errors: list[BaseException] = []

    def train() -> None:
        try:
            train_plainly(model, optimizer, make_batches(3))
        except BaseException as error:
            errors.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert paused.wait(60)
    run.close()
    trainer.join(60)
    assert errors == []
    assert calls == ["pre", "post"] * 3
    assert run.state == "finished"


def test_closing_while_another_thread_trains(tmp_path: Path) -> None:
    """Runs come and go on another thread while a loop trains at full speed; the loop notices nothing."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    optimizer.register_step_pre_hook(lambda *_: None)
    batch = make_batches(1)
    stop, between_steps = threading.Event(), threading.Lock()
    errors: list[BaseException] = []

    def train() -> None:
        try:
            while not stop.is_set():
                with between_steps:
                    train_plainly(model, optimizer, batch)
                time.sleep(0)  # let the other thread have the lock
        except BaseException as error:
            errors.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    for _ in range(30):
        run = watch(optimizer, tmp_path)
        with between_steps:  # torch's own: a dictionary of hooks must not change while a step goes through it
            optimizer.register_step_pre_hook(lambda *_: None)  # comes after ours
        run.flush()
        run.close()
        assert run.snapshot().errors == {}
    stop.set()
    trainer.join(60)
    assert errors == []


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_ctrl_c_during_the_linger_ends_the_wait_and_nothing_else(
    state: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a run ended, it waits for its last scrape; Ctrl-C frees the port at once, and the script continues."""
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    run = watch(optimizer, tmp_path, serve=True, port=0, wait_for_scrape=3600)
    assert run.url is not None
    linger = run._engine.watcher.watcher.publisher.linger
    linger.note("scrape")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(linger._changed, "wait", interrupted)
    with caplog.at_level(logging.INFO, "monitor"):
        run.close(state)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("waiting up to 3600 s for one more scrape") for line in said), said
    assert said[-1] == "the wait at the end was cut short by Ctrl-C"
    assert run.state == state
    assert is_free(int(run.url.rpartition(":")[2]))


def test_somebody_who_patched_after_us_keeps_their_patch(tmp_path: Path) -> None:
    """A patch that another library put on top of ours stays, and keeps working after the run."""
    original = torch.autograd.backward
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    try:
        with watch(optimizer, tmp_path):
            ours = torch.autograd.backward

            def theirs(*args: Any, **kwargs: Any) -> None:
                calls.append(1)
                ours(*args, **kwargs)

            torch.autograd.backward = theirs
        assert torch.autograd.backward is theirs
        train_plainly(model, optimizer, make_batches(2))
        assert len(calls) == 2
    finally:
        torch.autograd.backward = original


def _copied(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer)


def _pickled(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("duplicate", [_copied, _pickled])
def test_copies_of_a_watched_optimizer_are_not_watched(duplicate: Callable[[Any], Any], tmp_path: Path) -> None:
    """A deep or pickled copy of the optimizer steps as the original does, and is not recorded."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path) as run:
        train_plainly(model, optimizer, make_batches(2))
        copied = duplicate(optimizer)
        assert copied.param_groups[0]["lr"] == 0.1
        for p in copied.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        copied.step()
        copied.zero_grad()
    assert run.snapshot().optimizers[0].steps == 2
    assert run.snapshot().errors == {}
    assert_no_hooks(copied)


def test_state_dict_round_trip_keeps_factor_and_training(tmp_path: Path) -> None:
    """state_dict saved while a factor is in force and loaded again, safely unpickled, trains as without the trip."""

    def train(makes_trip: bool) -> list[torch.Tensor]:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with watch(optimizer, tmp_path) as run:
            run.reduce_lr(0.5)
            train_plainly(model, optimizer, make_batches(3))
            if makes_trip:
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert optimizer.param_groups[0]["lr"] == 0.1
            assert run.lr[0].factor == 0.5
            train_plainly(model, optimizer, make_batches(3))
        assert run.snapshot().optimizers[0].groups[0].applied == 0.05
        return weights_of(model)

    assert_same(train(True), train(False))


def test_forked_child_trains_on_unwatched(tmp_path: Path) -> None:
    """A child made by os.fork finds no patch, no hook and a closed run, trains, and leaves the parent's run alone."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        run.reduce_lr(0.5)
        train_plainly(model, optimizer, make_batches(2))
        child = os.fork()
        if child == 0:
            os._exit(_train_in_child(run, model, optimizer))
        _, status = os.waitpid(child, 0)
        train_plainly(model, optimizer, make_batches(2))
    assert os.waitstatus_to_exitcode(status) == 0
    assert run.state == "finished"
    assert run.snapshot().optimizers[0].steps == 4
    assert run.snapshot().errors == {}
    (known,) = list_runs(tmp_path / "runs")
    assert known.pid == os.getpid()


def _train_in_child(run: monitor.Run, model: Any, optimizer: Any) -> int:
    """Return 0 if all is as it should be in the child, else which check failed."""
    try:
        torch.set_num_threads(1)
        if any(optimizer._optimizer_step_pre_hooks) or _patches.PROBES or open_runs():
            return 1
        train_plainly(model, optimizer, make_batches(2))
        run.log(loss=1.0)
        try:
            run.reduce_lr(0.5)
            return 2
        except monitor.ClosedRunError as error:
            if "belongs to process" not in str(error):
                return 3
        run.flush()
        run.close()
        run.__exit__(None, None, None)
        if [t for t in threading.enumerate() if t.name.startswith("monitor") and t.is_alive()]:
            return 4
    except BaseException:
        return 5
    return 0


HUNG = """
import os, sys, threading, time
real = os.replace
def hang(source, target, *args, **kwargs):
    if is_hung:
        threading.Event().wait()
    return real(source, target, *args, **kwargs)
is_hung, os.replace = False, hang
import torch
import monitor
optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
"""
LEAVING = {
    "with": "with monitor.attach(optimizer, gpu=False, serve=False):\n    is_hung = True\n    raise ValueError('boom')",
    "finally": "run = monitor.attach(optimizer, gpu=False, serve=False)\nis_hung = True\n"
    "try:\n    raise ValueError('boom')\nfinally:\n    run.close('failed')",
    "exit": "run = monitor.attach(optimizer, gpu=False, serve=False)\nis_hung = True\nraise ValueError('boom')",
}


@pytest.mark.parametrize("how", LEAVING)
def test_the_users_traceback_comes_before_the_wait_for_a_hung_disk(how: str, tmp_path: Path) -> None:
    """A script that dies of an exception prints its traceback first; then the exit waits for the disk, 2 s at most."""
    environment = {**os.environ, "MONITOR_DIR": str(tmp_path / "runs")}
    command = [sys.executable, "-c", HUNG + LEAVING[how]]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as script:
        assert script.stderr is not None
        lines = script.stderr.read().splitlines()
        status = script.wait(60)
    told = [i for i, line in enumerate(lines) if "the disk has not answered for 1.5 s" in line]
    assert (status, len(told)) == (1, 1), lines
    assert told[0] > lines.index("ValueError: boom"), lines


def test_an_exception_that_is_caught_leaves_a_healthy_disk_settled(tmp_path: Path) -> None:
    """After a block that an exception has left, the end is in the folder and its thread is gone."""
    for _ in range(3):
        with pytest.raises(ValueError, match="boom"), watch(make_optimizer(), tmp_path):
            raise ValueError("boom")
        assert not [t for t in threading.enumerate() if t.name == "monitor-disk"]
    assert [known.state for known in list_runs(tmp_path / "runs")] == ["failed"] * 3


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(make_model().parameters(), lr=0.1)

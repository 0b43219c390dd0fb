"""Forward passes excuse the lack of steps; what they cost a run that makes steps is nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monitor.detect import StallDetector, StallSettings
from monitor.probe import ForwardWatch, _forward
from tests.faults.loops import make_model, watch

CALL = nn.Module.__dict__["__call__"]
BATCH = torch.ones(4, 6)


def is_armed() -> bool:
    return nn.Module.__dict__["__call__"] is not CALL


def on_a_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


class Quiet:
    """A run that has made a step, whose recorder ticks when the test says so, at the time that it says."""

    def __init__(self, tmp_path: Path, **settings: float) -> None:
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        detector = StallDetector(StallSettings(**settings))
        self.run = watch(self.optimizer, tmp_path, detectors=(detector,), digest_interval=5)
        self.step()
        self._recorder = self.run._engine.watcher.watcher.recorder
        self._recorder.stop()
        self.catch_up()

    def catch_up(self) -> None:
        """Digest the steps made; from here on time passes as the test says."""
        self._recorder._drain()
        self._now = self._recorder._counter() + self._recorder._offset

    def step(self) -> None:
        self.model(BATCH).sum().backward()
        self.optimizer.step()

    def tick(self, seconds: float) -> list[str]:
        """Let time pass; return the events that it brings, without where the thread stands, which is told later."""
        self._now += seconds
        self.run._engine.watcher.watcher._on_tick(self._now)
        kinds = [self._recorder._inbox.popleft().kind for _ in range(len(self._recorder._inbox))]
        return [kind for kind in kinds if kind != "state"]


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Quiet]:
    made = Quiet(tmp_path, least=60.0)
    made.tick(0.0)  # the step itself is a sign of life
    yield made
    made.run.close()
    assert not is_armed()


def test_forward_passes_without_a_loader_are_no_stall(quiet: Quiet) -> None:
    """An evaluation over tensors in memory that is running for ten minutes is told from a run that stands."""
    with torch.no_grad():
        for _ in range(60):
            quiet.model(BATCH)
            assert quiet.tick(10.0) == []


def test_a_thread_that_stands_is_a_stall(quiet: Quiet) -> None:
    """No call of a module for the time of a stall is one, though there were some before."""
    for _ in range(9):
        quiet.model(BATCH)
        assert quiet.tick(10.0) == []
    assert [event for _ in range(7) for event in quiet.tick(10.0)] == ["stall"]


def test_a_forward_pass_that_hangs_is_a_stall(quiet: Quiet) -> None:
    """A call excuses once, when it begins, and not for as long as it lasts."""
    told: list[str] = []

    class Hanging(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(13):
                told.extend(quiet.tick(10.0))
            return x

    quiet.tick(31.0)
    Hanging()(BATCH)
    assert told == ["stall"]


def test_calls_on_another_thread_excuse_nothing(quiet: Quiet) -> None:
    """A thread that serves the model continues while the training thread hangs."""
    told = []
    for _ in range(7):
        on_a_thread(lambda: quiet.model(BATCH))
        told += quiet.tick(10.0)
    assert told == ["stall"]


def test_nothing_is_patched_while_steps_come(quiet: Quiet) -> None:
    """Up to half of the time of a stall nothing is in; then it is, until the first call or the next step."""
    quiet.tick(29.0)
    assert not is_armed()
    quiet.tick(2.0)
    assert is_armed()
    seen = []
    handle = quiet.model.register_forward_pre_hook(lambda *_: seen.append(is_armed()))
    quiet.model(BATCH)
    handle.remove()
    assert seen == [False]  # out before the call that set it off, so that nothing traces it


def test_a_step_takes_the_tripwire_out(quiet: Quiet) -> None:
    """Whether or not the step called a module."""
    quiet.tick(31.0)
    for parameter in quiet.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    quiet.optimizer.step()
    assert is_armed()
    quiet.catch_up()
    quiet.tick(0.0)
    assert not is_armed()


def test_the_call_is_passed_on_as_it_is(quiet: Quiet) -> None:
    """Result, arguments and exception are those of the call."""

    class Odd(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not args:
                raise KeyError("mine")
            return args, kwargs

    quiet.tick(31.0)
    assert Odd()(1, 2, a=3) == ((1, 2), {"a": 3})
    quiet.tick(31.0)
    with pytest.raises(KeyError, match="mine"):
        Odd()()


@pytest.mark.parametrize("name", ["_arm", "_go_off", "_restore", "get_ident", "perf_counter"])
def test_a_failure_of_ours_does_not_reach_the_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails about the tripwire is counted, and the call gives what it gives."""

    def fail(*_: Any) -> Any:
        raise OSError("ours")

    with Quiet(tmp_path).run as run, monkeypatch.context() as patch:
        engine, me = run._engine, {threading.get_ident()}
        patch.setattr(_forward, name, fail)
        engine._failures.contain("probe", lambda: engine._training._forward.wait_for(me))
        assert nn.Identity()(1) == 1
        assert run._engine._failures.counts["probe"] >= 1
        patch.undo()
        engine._training._forward.wait_for(me)
        assert nn.Identity()(1) == 1
    assert not is_armed()


def test_a_run_that_ends_leaves_nothing_in(tmp_path: Path) -> None:
    """Closed while armed, and asked once more by a recorder that is late, it does not arm again."""
    quiet = Quiet(tmp_path)
    quiet.tick(31.0)
    assert is_armed()
    quiet.run.close()
    assert not is_armed()
    quiet._now += 31.0
    quiet.run._engine._training.is_excused(is_stall_near=True)
    assert not is_armed()


def test_runs_share_one_tripwire() -> None:
    """One call goes off for all that wait for its thread; the end of one run does not disarm the other's for long."""
    first, second, me = ForwardWatch(), ForwardWatch(), {threading.get_ident()}
    before = first.last_call(me)
    first.wait_for(me)
    second.wait_for(me)
    nn.Identity()(1)
    assert not is_armed()
    assert first.last_call(me) == second.last_call(me) > before
    first.wait_for(me)
    second.wait_for(me)
    first.close()
    second.wait_for(me)
    assert is_armed()
    second.close()
    assert not is_armed()


def test_a_patch_made_meanwhile_is_left_alone() -> None:
    """Somebody who has wrapped the call keeps their wrapper, and the calls of both are passed on."""
    watch, me, calls = ForwardWatch(), {threading.get_ident()}, []
    watch.wait_for(me)
    ours = nn.Module.__dict__["__call__"]

    def theirs(self: Any, *args: Any) -> Any:
        calls.append(args)
        return ours(self, *args)

    try:
        nn.Module.__call__ = theirs  # type: ignore[method-assign]
        assert nn.Identity()(1) == 1
        assert nn.Module.__dict__["__call__"] is theirs
        watch.wait_for(me)
        assert nn.Identity()(2) == 2
        watch.close()
        assert nn.Module.__dict__["__call__"] is theirs
        assert calls == [(1,), (2,)]
    finally:
        nn.Module.__call__ = CALL  # type: ignore[method-assign]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_the_original() -> None:
    """A worker that is forked while the tripwire is armed calls modules as ever."""
    watch = ForwardWatch()
    watch.wait_for({threading.get_ident()})
    child = os.fork()
    if child == 0:
        os._exit(1 if is_armed() or _forward._WANTED else 0)
    assert os.waitpid(child, 0)[1] == 0
    watch.close()


@pytest.mark.parametrize("form", [torch.compile, lambda model, **how: model.compile(**how) or model])
def test_a_compiled_model_sets_it_off_and_is_not_compiled_again(form: Any) -> None:
    """What torch.compile has made, or makes while the tripwire is armed, is what it makes without."""
    from torch._dynamo.testing import CompileCounter

    watch, me, counter = ForwardWatch(), {threading.get_ident()}, CompileCounter()
    model = form(make_model(), backend=counter)
    whole = torch.compile(lambda x: nn.Sequential.forward(plain, x) + 1, backend=counter, fullgraph=True)
    plain = make_model()
    model(BATCH)
    before, num_frames = watch.last_call(me), counter.frame_count
    watch.wait_for(me)
    model(BATCH)
    assert watch.last_call(me) > before
    watch.wait_for(me)
    whole(BATCH)
    assert counter.frame_count == num_frames + 1
    watch.close()
    whole(BATCH)
    assert counter.frame_count == num_frames + 1
    torch._dynamo.reset()

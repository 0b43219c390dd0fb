"""Whatever comes through the link, neither process ends or hangs: the training makes the same weights, and the watcher
answers what it is asked."""

from __future__ import annotations

import logging
import marshal
import os
import pickle
import resource
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monitor
from monitor._records import Event, RunInfo, Snapshot
from monitor._settings import Settings
from monitor.link import ENTRIES, MESSAGE, Hello, Pipe, TrainingState, pack_message, start_watcher, unpack_message
from monitor.link._frames import _HEAD
from tests.fuzz.effort import ANYTHING, tried
from tests.watcher.test_process import PATIENCE_SECONDS

MEMORY_BYTES = 2**30
"""What a message may take at most: no length that a frame claims is believed."""
QUIET = logging.CRITICAL + 1

PARTS = ANYTHING | st.binary(max_size=20) | st.just(Event("spike", "info", 1, 1, "x")) | st.just(TrainingState())
CONTENTS = (
    PARTS | st.lists(PARTS, max_size=4).map(tuple) | st.dictionaries(st.sampled_from(["snapshot", "events"]), PARTS)
)
TO_TRAINING = ["ready", "log", "digested", "submit", "skipped", "pace", "near", "stall", "memory", "answer", "final"]
TO_WATCHER = ["hello", "state", "event", "run_state", "command", "submitted", "book", "ask", "ranks", "join"]


def framed(kind: int, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def messages(kinds: list[str]) -> st.SearchStrategy[bytes]:
    """Whole frames: of the right kinds with any content, of unknown kinds, and of bytes."""
    whole = st.builds(pack_message, st.sampled_from(kinds), CONTENTS)
    bare = st.builds(lambda content: framed(MESSAGE, pickle.dumps(content)), CONTENTS)
    entries = (ANYTHING | st.lists(st.binary(max_size=20) | ANYTHING, max_size=4)).map(
        lambda found: framed(ENTRIES, marshal.dumps(found))
    )
    return whole | bare | entries | st.builds(framed, st.integers(0, 255), st.binary(max_size=40))


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Log nothing, and let what asks for gigabytes have none."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, limits[1]))
    logging.getLogger("monitor").setLevel(QUIET)
    yield
    logging.getLogger("monitor").setLevel(logging.NOTSET)
    resource.setrlimit(resource.RLIMIT_AS, limits)


class FakeWatcher:
    """The far end of a link, in this process: it answers each question with the same, and says what it likes."""

    def __init__(self, answer: Any) -> None:
        (far_in, near_out), (near_in, far_out) = os.pipe(), os.pipe()
        self.outgoing, self.incoming = Pipe(near_out), Pipe(near_in)
        self._far_in, self._far_out = Pipe(far_in), Pipe(far_out)
        self._answer = answer
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def greet(self, frame: bytes) -> None:
        self.outgoing.write(frame)

    def reap(self) -> None:
        pass

    def say(self, frame: bytes) -> None:
        self._far_out.write(frame)

    def _listen(self) -> None:
        while (frame := self._far_in.read()) is not None:
            if frame[0] == MESSAGE:
                kind, content = unpack_message(frame[1])
                if kind == "ask":
                    self.say(pack_message("answer", (content[0], self._answer)))
        self._far_in.close()
        self._far_out.close()

    def close(self) -> None:
        self.outgoing.close()
        self.incoming.close()

    abandon = close


@contextmanager
def watched_by(fake: FakeWatcher, optimizer: Any, patch: pytest.MonkeyPatch) -> Iterator[monitor.Run]:
    """Attach a run whose watcher is a fake one; there is no other."""
    processes = iter([fake])

    def start(*_: Any, **__: Any) -> Any:
        for process in processes:
            return process
        raise OSError("there is no other")

    patch.setattr("monitor.run._watcher_form.start_watcher", start)
    with monitor.attach(optimizer, watcher="process", port=0, gpu=False, linger=0) as run:
        yield run


def trained(frames: list[bytes], fake: FakeWatcher | None, patch: pytest.MonkeyPatch) -> torch.Tensor:
    """Train for a few steps; say a frame before each, and ask the run for all that a script may ask."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def step() -> None:
        (weight**4).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    if fake is None:
        for _ in frames:
            step()
        return weight.detach()
    with watched_by(fake, optimizer, patch) as run:
        fake.say(pack_message("ready", (None, False)))
        for frame in frames:
            fake.say(frame)
            step()
        assert isinstance(run.snapshot(), Snapshot)
        assert isinstance(run.history(), dict)
        assert all(isinstance(event, Event) for event in run.events())
        assert run.step == len(frames)
        run.flush(0.1)
        run.load_state_dict(run.state_dict()) if not frames else run.state_dict()
        fake.say(pack_message("final", {}))
    return weight.detach()


@tried(60)
@given(st.lists(messages(TO_TRAINING), max_size=6), CONTENTS)
def test_a_watcher_that_says_anything_changes_no_training(
    monkeypatch: pytest.MonkeyPatch, frames: list[bytes], answer: Any
) -> None:
    """The weights are those of an unwatched loop, and what the script asks for is of its kind, or nothing."""
    expected = trained(frames, None, monkeypatch)
    assert torch.equal(trained(frames, FakeWatcher(answer), monkeypatch), expected)


class RealWatcher:
    """A watcher process, and this end of its link."""

    def __init__(self) -> None:
        hello = Hello(
            Settings(port=0, gpu=False, linger=0, digest_interval=0.05, store_bytes=0),
            RunInfo("fuzzed-000001", "fuzzed", time.time(), pid=os.getpid()),
            "t" * 32,
            {"SGD": "SGD"},
            thread=threading.get_native_id(),
        )
        self.process = start_watcher(hello.info.run_id)
        self.process.greet(pack_message("hello", hello))
        self.process.reap()
        self._number = 0

    def say(self, frame: bytes) -> None:
        self.process.outgoing.write(frame)

    def answer(self) -> Any:
        """Ask for the snapshot, and return the answer; it ends, or says nothing: the test fails."""
        self._number += 1
        self.say(pack_message("ask", (-self._number, "snapshot", ())))
        while (frame := self._read()) is not None:
            kind, content = unpack_message(frame[1])
            if kind == "answer" and content[0] == -self._number:
                return content[1]
        pytest.fail("the watcher has ended")

    def _read(self) -> tuple[int, bytes] | None:
        assert select.select([self.process.incoming._descriptor], [], [], PATIENCE_SECONDS)[0], "no answer"
        return self.process.incoming.read()


@pytest.fixture
def watcher() -> Iterator[RealWatcher]:
    watcher = RealWatcher()
    yield watcher
    watcher.say(pack_message("end", ("finished", time.time(), "")))
    watcher.say(pack_message("leave", None))
    watcher.process.close()


@tried(200)
@given(st.lists(messages(TO_WATCHER), max_size=6))
def test_a_training_process_that_says_anything_has_an_answer(watcher: RealWatcher, frames: list[bytes]) -> None:
    """Each message that is none is counted, and the next question is answered."""
    for frame in frames:
        watcher.say(frame)
    assert isinstance(watcher.answer(), Snapshot)

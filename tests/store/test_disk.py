"""The thread that does a run's file work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from monitor.store import _disk
from monitor.store._disk import DiskThread, answer_within


class Disk:
    """A disk that hangs until the test lets go, and a thread that works on it."""

    def __init__(self) -> None:
        self.is_back = threading.Event()
        self.errors: list[Exception] = []
        self.done: list[str] = []
        self.thread = DiskThread(lambda: self.done.append("save"), self.errors.append)

    def hang(self) -> None:
        self.is_back.wait()

    def fail(self) -> None:
        raise OSError("full")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Return a disk that is given a minute: it answers at once, but the machine may be busy."""
    monkeypatch.setattr(_disk, "MOMENT_SECONDS", 60.0)
    monkeypatch.setattr(_disk, "_LATE", [])
    made = Disk()
    made.thread.start()
    yield made
    made.is_back.set()
    made.thread.stop()


@pytest.fixture
def hung(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return a disk that hangs, and is given next to no time."""
    monkeypatch.setattr(_disk, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(_disk, "MOMENT_SECONDS", 0.01)
    disk.thread.post(disk.hang)
    return disk


def test_jobs_are_done_in_order_whatever_one_comes_to(disk: Disk) -> None:
    """A job that fails is told, and those after it are done; the end waits for all."""
    disk.thread.post(lambda: disk.done.append("first"))
    disk.thread.post(disk.fail)
    disk.thread.post(lambda: disk.done.append("last"))
    assert disk.thread.flush(60)
    disk.thread.stop()
    assert disk.done == ["first", "last"]
    assert [str(error) for error in disk.errors] == ["full"]


def test_the_state_is_saved_while_nothing_else_happens() -> None:
    """The state is saved at every interval, whatever one save comes to, and no longer after the end."""
    saves, has_saved_twice = [], threading.Event()
    errors: list[str] = []

    def save() -> None:
        saves.append(1)
        if len(saves) == 2:
            has_saved_twice.set()
        raise OSError("full")

    thread = DiskThread(save, lambda error: errors.append(str(error)), interval=0.001)
    thread.start()
    assert has_saved_twice.wait(60)
    thread.stop()
    number = len(saves)
    assert errors == ["full"] * number
    assert "monitor-disk" not in [thread.name for thread in threading.enumerate()]


def test_a_disk_that_hangs_is_waited_for_once(hung: Disk) -> None:
    """The end comes after the patience at most, tells it as one TimeoutError, and what was posted is done later."""
    hung.thread.post(lambda: hung.done.append("end"))
    assert not hung.thread.flush(0.01)
    hung.thread.stop()
    assert [type(error) for error in hung.errors] == [TimeoutError]
    hung.is_back.set()
    hung.thread._thread.join(60)
    assert hung.done == ["end"]


def test_an_exception_under_way_is_held_up_for_a_moment_only(hung: Disk) -> None:
    """Where a traceback waits to be printed the rest of the wait is left to the interpreter's exit, once."""
    hung.thread.stop(is_raising=True)
    assert hung.errors == []
    _disk._wait_for_late()
    assert [str(error) for error in hung.errors] == ["the disk has not answered for 0.05 s"]


def test_a_healthy_disk_leaves_nothing_for_the_exit(disk: Disk) -> None:
    """With an exception under way a disk that answers is done with when the run ends."""
    disk.thread.post(lambda: disk.done.append("end"))
    disk.thread.stop(is_raising=True)
    assert (disk.done, _disk._LATE) == (["end"], [])


def test_without_a_thread_nothing_is_waited_for() -> None:
    """Where no thread could be started neither flush nor stop waits."""
    thread = DiskThread(lambda: None, lambda error: None)
    start = time.monotonic()
    thread.post(lambda: None)
    assert thread.flush(60)
    thread.stop()
    assert time.monotonic() - start < 30


def test_an_answer_that_does_not_come_is_the_default() -> None:
    """A question that hangs costs its seconds, and the default stands."""
    is_over = threading.Event()
    assert answer_within(0.01, is_over.wait, False) is False
    assert answer_within(60.0, lambda: True, False) is True
    is_over.set()


def test_the_state_is_saved_while_jobs_keep_coming() -> None:
    """A run whose store is written each second has its state saved as well."""
    has_saved = threading.Event()
    thread = DiskThread(has_saved.set, lambda _: None, interval=0.05)
    thread.start()

    def again() -> None:
        if not has_saved.wait(0.01):
            thread.post(again)

    thread.post(again)
    assert has_saved.wait(60)
    thread.stop()

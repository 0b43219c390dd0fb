"""The stacks of training threads: what is kept of them, and what a message says of those of several ranks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from monitor._records import Event
from monitor.control import _stack_taker, _stacks
from monitor.control._stack_taker import MAX_FRAMES, MAX_STACK, StackTaker, bounded, stack_of
from monitor.control._stacks import MAX_STACKS, Stacks
from monitor.store._text import MAX_RECORD, to_text


class Standing:
    """A thread that stands still in a function of a known name, so deep in calls."""

    def __init__(self, depth: int = 0) -> None:
        self.is_there, self.may_go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._call, args=(depth,))
        self.thread.start()
        self.is_there.wait()

    def _call(self, depth: int) -> None:
        self._call_in_turn(depth - 1) if depth else self._stand_still()

    def _call_in_turn(self, depth: int) -> None:
        self._call(depth)

    def _stand_still(self) -> None:
        self.is_there.set()
        self.may_go.wait()

    def end(self) -> None:
        self.may_go.set()
        self.thread.join()


@pytest.fixture
def standing() -> Iterator[Standing]:
    made = Standing()
    yield made
    made.end()


def place(function: str, file: str = "job.py") -> str:
    return f'  File "/home/me/{file}", line 7, in {function}\n    {function}()\n'


def test_the_stack_of_another_thread_is_as_python_prints_it(standing: Standing) -> None:
    """With its source lines, outermost first."""
    stack = stack_of([standing.thread.ident or 0])
    assert stack.index("in _call\n    self._call_in_turn(depth - 1)") < stack.index(
        "in _stand_still\n    self.may_go.wait()"
    )
    message = Stacks({0: stack}).message
    assert message.startswith("the training thread is in wait (threading.py:")
    assert ", called from _stand_still (test_stacks.py:" in message


def test_several_threads_are_told_apart(standing: Standing) -> None:
    """As where several optimizers are stepped on threads of their own."""
    idents = [standing.thread.ident or 0, threading.get_ident()]
    stack = stack_of(idents)
    assert [line for line in stack.splitlines() if line.startswith("thread ")] == [f"thread {one}:" for one in idents]
    assert stack.index("_stand_still") < stack.index("test_several_threads")


def test_a_thread_that_is_gone_is_said_to_be(standing: Standing) -> None:
    """Its steps will not continue."""
    standing.end()
    stack = stack_of([standing.thread.ident or 0])
    assert Stacks({0: stack}).message == "the training thread: the thread has ended"


def test_of_a_deep_stack_the_end_is_kept() -> None:
    """Where the thread stands says more than where it began; no frame is cut in two."""
    deep = Standing(depth=400)
    stack = stack_of([deep.thread.ident or 0])
    deep.end()
    assert "_stand_still" in stack
    assert len(json.dumps(stack)) <= MAX_STACK + 100
    assert stack.count('  File "') <= MAX_FRAMES
    assert "earlier left out" in stack.splitlines()[0]


def test_no_more_frames_are_looked_at_than_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recursion without end, say; two deep threads share what one may take."""
    deep = Standing(depth=60)
    idents = [deep.thread.ident or 0] * 2
    assert len(json.dumps(stack_of(idents))) <= MAX_STACK + 200
    monkeypatch.setattr(_stack_taker, "MAX_FRAMES", 5)
    assert stack_of(idents[:1]).count('  File "') == 5
    deep.end()


@pytest.mark.parametrize("frame", ["x" * 50_000, "é" * 50_000, '"\\' * 50_000, "\x00" * 50_000])
def test_no_source_line_breaks_the_bound(frame: str) -> None:
    """It may be generated code on one line, in any script."""
    stack = bounded([f"  {frame}\n"] * 40)
    assert len(json.dumps(stack)) <= MAX_STACK + 100
    assert stack.endswith("...\n")


def test_the_event_of_many_different_stacks_fits_the_run_store() -> None:
    """The odd ones out are kept; of the rest the ranks are."""
    stacks = {rank: bounded([f'  "{rank}" \\ ' + "é" * 300 + "\n"] * 100) for rank in range(20)}
    made = Stacks({**stacks, 20: stacks[3]}, range(21, 64), 1000)
    details = made.details
    assert [one["ranks"] for one in details["stacks"]] == [[0], [1], [2], [4], [5], [6], [7], [8]][:MAX_STACKS]
    assert details["unshown"] == [3, *range(9, 21)]
    text = to_text(Event("state", "warning", 5, 5, made.message, details=details))
    assert len(text) < MAX_RECORD
    assert json.loads(text)["details"]["stacks"][0]["stack"] == stacks[0]
    assert made.message.endswith(
        "; 16 other stacks; ranks 21-63 have not answered; only the first 64 of 1000 ranks were asked"
    )
    assert "\n" not in made.message


def test_equal_stacks_of_ranks_are_one_and_the_odd_one_out_is_first() -> None:
    """It is the one for which the others wait."""
    made = Stacks({0: place("wait"), 1: place("wait"), 2: place("load", "data.py"), 3: place("wait")}, [4], 5)
    assert made.groups == [([2], place("load", "data.py")), ([0, 1, 3], place("wait"))]
    assert made.message == (
        "rank 2 is in load (data.py:7); ranks 0-1, 3 are in wait (job.py:7); rank 4 has not answered"
    )


def test_of_a_library_the_place_in_the_own_code_is_told_that_called_it() -> None:
    """That line the user knows; where none is known to be theirs, the innermost one stands alone."""
    deep = "/usr/lib/python3.12/site-packages/torch/distributed_c10d.py"
    called = Stacks({0: place("train") + place("all_reduce").replace("/home/me/job.py", deep)})
    assert called.message == (
        "the training thread is in all_reduce (distributed_c10d.py:7), called from train (job.py:7)"
    )
    ours = place("backward").replace("/home/me/job.py", _stacks.__file__)
    assert (
        ", called from train (job.py:7)"
        in Stacks({0: place("train") + ours + place("wait").replace("/home/me/job.py", deep)}).message
    )
    alone = Stacks({0: place("all_reduce").replace("/home/me/job.py", deep)})
    assert alone.message == "the training thread is in all_reduce (distributed_c10d.py:7)"


def test_what_is_no_stack_is_told_in_one_line() -> None:
    """Another rank may write anything."""
    made = Stacks({0: place("wait"), 1: "no\nstack " * 100}, [], 2)
    assert "\n" not in made.message
    assert len(made.message) < 400


def test_a_stack_is_taken_aside_and_one_at_a_time(standing: Standing) -> None:
    """Who asks waits for nothing; who asks again meanwhile is told so."""
    may_end, taken = threading.Event(), list[str]()
    taker = StackTaker(lambda: [standing.thread.ident or 0], pytest.fail)

    def take(stack: str) -> None:
        may_end.wait()
        taken.append(stack)

    assert taker.begin(take)
    assert not taker.begin(take)
    taker.join(0.01)
    assert taken == []
    may_end.set()
    taker.join(10.0)
    assert "_stand_still" in taken[0]
    assert taker.begin(taken.append)
    taker.join(10.0)
    assert len(taken) == 2


def test_what_goes_wrong_with_a_stack_is_reported() -> None:
    """The thread is ours, and so is its failure."""
    errors: list[str] = []
    taker = StackTaker(lambda: [1 // 0], lambda error: errors.append(str(error)))
    taker.begin(pytest.fail)
    taker.join(10.0)
    assert len(errors) == 1
    assert "zero" in errors[0]


def test_a_machine_without_a_thread_left_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is not harmed: the thread that agrees on commands, say."""
    errors: list[str] = []
    taker = StackTaker(lambda: [1], lambda error: errors.append(str(error)))

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert taker.begin(pytest.fail)
    taker.join(10.0)
    assert errors == ["can't start new thread"]
    taken: list[str] = []
    assert taker.begin(taken.append)
    taker.join(10.0)
    assert taken == ["  the thread has ended\n"]

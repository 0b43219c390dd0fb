"""The periodic thread: rounds, waiting for one, the end."""

from __future__ import annotations

import itertools
import threading

import pytest

from monitor.common import Loop

LONG = 60.0


def loop(run_once, interval=0.0, **settings) -> Loop:
    settings.setdefault("on_error", lambda error: pytest.fail(repr(error)))
    return Loop("monitor-test", run_once, interval, **settings)


def test_a_loop_makes_rounds_until_it_is_stopped() -> None:
    """Round follows round; the last thing done on the thread is on_end."""
    done: list[str] = []
    third = threading.Event()

    def make_round() -> None:
        done.append(threading.current_thread().name)
        if len(done) >= 3:
            third.set()

    rounds = loop(make_round, 0.001, on_end=lambda: done.append("end"))
    rounds.start()
    assert third.wait(LONG)
    assert rounds.stop(LONG)
    assert not rounds.is_alive
    assert set(done[:-1]) == {"monitor-test"}
    assert done[-1] == "end"


def test_a_round_that_raises_is_reported_and_the_next_one_made() -> None:
    """What a round raises goes to on_error; the thread continues."""
    errors: list[Exception] = []
    again = threading.Event()

    def make_round() -> None:
        if errors:
            again.set()
        else:
            raise OSError("once")

    rounds = loop(make_round, 0.001, on_error=errors.append)
    rounds.start()
    assert again.wait(LONG)
    assert rounds.stop(LONG)
    assert [str(error) for error in errors] == ["once"]


def test_a_loop_that_is_woken_waits_for_no_interval() -> None:
    """wake has the next round made at once, before the start as well."""
    made = threading.Event()
    rounds = loop(made.set, LONG)
    rounds.wake()
    rounds.start()
    assert made.wait(LONG / 2)
    assert rounds.stop(LONG)


def test_a_round_may_end_its_own_loop() -> None:
    """end, called within a round, makes it the last."""
    made: list[int] = []

    def make_round() -> None:
        made.append(1)
        rounds.end()

    rounds = loop(make_round, on_end=lambda: made.append(2))
    rounds.start()
    assert rounds.join(LONG)
    assert made == [1, 2]


def test_a_loop_that_was_never_started_ends_all_the_same() -> None:
    """stop does what is left to do on the calling thread."""
    ended: list[str] = []
    assert loop(lambda: None, on_end=lambda: ended.append(threading.current_thread().name)).stop(LONG)
    assert ended == [threading.current_thread().name]


def test_wait_is_for_a_round_that_begins_after_it() -> None:
    """The round under way may be past what was recorded: the next one is waited for, and knows that it is."""
    ended: list[bool] = []
    may_end = [threading.Event() for _ in range(3)]
    asked = itertools.count(-1)  # the clock is read once for the deadline, then once before each wait

    def make_round() -> None:
        is_awaited = rounds.is_awaited
        may_end[min(len(ended), 2)].wait(60)
        ended.append(is_awaited)

    def counter() -> float:
        number = next(asked)
        if 0 <= number < 2:
            may_end[number].set()
        return 0.0

    seen: list[int] = []
    rounds = loop(make_round, counter=counter)
    rounds.start()
    assert rounds.wait(lambda: not seen.append(len(ended)), 60)
    may_end[2].set()
    rounds.stop(60)
    assert seen == [2]
    assert ended[:2] == [False, True]

"""What the watcher knows of the training process, and how long it stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from monitor._errors import ClosedRunError, CommandRefusedError, UnreachableError
from monitor._records import MAX_COMMANDS_KEPT, CommandRecord, Event, RunInfo
from monitor.link import TrainingState
from monitor.system import OutOfMemoryCounter
from monitor.watcher._commands import CommandBook
from monitor.watcher._linger import Linger
from monitor.watcher._publisher import of_rank
from monitor.watcher._remote import MAX_DIGESTED, RemoteTraining

PENDING = CommandRecord("a1", "reduce", "api", 0.0, 0.5)
APPLIED = replace(PENDING, status="applied", finished=3.0, step=4)


class TestCommandBook:
    def test_an_outcome_that_comes_first_stands(self) -> None:
        """The training thread may be quicker than the answer to the request."""
        book = CommandBook()
        book.put(APPLIED)
        book.put(PENDING)
        assert (book.get("a1"), book.waiting()) == (APPLIED, ())

    def test_outcomes_are_counted_once(self) -> None:
        """By action, source and outcome; the time of the last applied one is kept."""
        book = CommandBook()
        book.put(PENDING)
        assert (book.totals, [one.id for one in book.waiting()]) == ({}, ["a1"])
        book.put(APPLIED)
        book.put(replace(APPLIED, id="a2", status="rejected"))
        assert book.totals == {("reduce", "api", "applied"): 1, ("reduce", "api", "rejected"): 1}
        assert book.last_applied == {"reduce": 3.0}

    def test_the_newest_are_kept(self) -> None:
        """Memory has a bound; the counts go on."""
        book = CommandBook()
        for number in range(MAX_COMMANDS_KEPT + 5):
            book.put(replace(APPLIED, id=str(number)))
        assert (book.get("4"), book.get("5") is not None) == (None, True)
        assert book.totals == {("reduce", "api", "applied"): MAX_COMMANDS_KEPT + 5}

    def test_another_watcher_takes_it_over(self) -> None:
        """What the last one had counted is not counted again."""
        book = CommandBook()
        book.restore({("reduce", "api", "applied"): 7}, {"reduce": 1.0}, [PENDING])
        book.put(APPLIED)
        assert book.totals == {("reduce", "api", "applied"): 8}


@pytest.mark.parametrize(
    ("ranks", "environment", "told"),
    [
        ((1, 0), {}, ""),
        ((1, 0), {"RANK": "0", "WORLD_SIZE": "1"}, ""),
        ((1, 0), {"RANK": "0", "WORLD_SIZE": "4"}, " of rank 0 of 4"),
        ((1, 0), {"RANK": "first", "WORLD_SIZE": "4"}, ""),
        ((2, 1), {"RANK": "7", "WORLD_SIZE": "8"}, " of rank 1 of 2"),
        ((2, 1), {}, " of rank 1 of 2"),
    ],
)
def test_the_line_with_the_address_names_the_rank(
    ranks: tuple[int, int], environment: dict[str, str], told: str
) -> None:
    """By the process group where there is one already, else by what torchrun has set for it."""
    world_size, rank = ranks
    assert of_rank(RunInfo("gan-000001", "gan", 0.0, world_size=world_size, rank=rank), environment) == told


class TestRemoteTraining:
    def answered(self, outcome: Any) -> RemoteTraining:
        """A training process that answers each command with this."""

        def send(kind: str, content: Any) -> None:
            if kind == "submit":
                training.take_submitted(content[0], outcome)

        training = RemoteTraining(send, patience=0.01)
        return training

    def test_a_command_is_answered_with_its_record(self) -> None:
        """It is known from then on."""
        training = self.answered(PENDING)
        assert training.submit("reduce", factor=0.5) == PENDING
        assert training.command("a1") == PENDING
        assert list(training.waiting()) == [PENDING]

    def test_a_refusal_is_raised_here(self) -> None:
        """As the training process has raised it, with its field."""
        with pytest.raises(CommandRefusedError, match="too high") as refused:
            self.answered(CommandRefusedError("too high", "factor")).submit("reduce", factor=4.0)
        assert refused.value.field == "factor"

    def test_no_answer_is_an_error_not_a_hang(self) -> None:
        """The command may still be applied, and the message says so."""
        training = RemoteTraining(lambda *_: None, patience=0.01)
        with pytest.raises(UnreachableError, match="has not answered for 0"):
            training.submit("reduce", factor=0.5)

    def test_a_run_that_has_ended_takes_no_command(self) -> None:
        """It is refused at once, and what waited waits no more."""
        training = self.answered(PENDING)
        training.submit("reduce", factor=0.5)
        training.is_gone = True
        with pytest.raises(ClosedRunError, match="the run has ended"):
            training.submit("pause")
        assert list(training.waiting()) == []

    def test_activity_excuses_once(self) -> None:
        """What the training thread has done since the last look excuses a lack of steps; a command under way always."""
        sent: list[Any] = []
        training = RemoteTraining(lambda *message: sent.append(message))
        training.take_state(TrainingState(activity=5.0))
        assert [training.is_excused(is_stall_near=near) for near in (False, False, True)] == [True, False, False]
        assert sent == [("near", True)]
        training.take_state(TrainingState(activity=5.0, is_busy=True))
        assert training.is_excused(is_stall_near=True)

    def test_a_round_sends_what_it_has_brought(self) -> None:
        """Events in order, in messages of a bounded size, and the count of skipped steps when it changes."""
        sent: list[Any] = []
        training = RemoteTraining(lambda *message: sent.append(message))
        events = [Event("state", "info", 0, 0, str(number)) for number in range(MAX_DIGESTED + 1)]
        for event in events:
            training.on_event(event)
        training.end_round({"SGD": 1})
        training.end_round({"SGD": 1})
        assert sent == [("digested", events[:-1]), ("skipped", {"SGD": 1}), ("digested", events[-1:])]


class Clock:
    """Time that passes when it is asked for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("seen", "seconds", "least", "most"),
    [
        ((), 60.0, 0.0, 3.0),  # nobody was there
        (("scrape",), 60.0, 60.0, 65.0),  # the last scrape does not come
        (("scrape",), 0.0, 0.0, 3.0),  # linger=0
        (("state",), 60.0, 9.0, 13.0),  # the page was closed: it is missed after ten seconds
        (("state",), 0.0, 0.0, 3.0),
    ],
)
def test_the_watcher_stays_for_who_was_there(
    seen: tuple[str, ...], seconds: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one more scrape as long as it is told, for a page as long as it is open, otherwise not at all."""
    monkeypatch.setattr("monitor.watcher._linger.LOOK_SECONDS", 0.0)
    clock = Clock()
    linger = Linger(clock)
    for what in seen:
        linger.note(what)
    begin = clock.now
    linger.stay(seconds, 600.0, lambda: False)
    assert least <= clock.now - begin <= most


@pytest.mark.parametrize("way", ["wait", "stay"])
def test_a_scrape_between_the_end_and_the_wait_is_the_one_that_was_waited_for(way: str) -> None:
    """It has shown the end: another one may be long in coming."""
    clock = Clock()
    linger = Linger(clock)
    linger.note("scrape")
    linger.note_end()
    linger.note("scrape")
    begin = clock.now
    linger.wait(60.0) if way == "wait" else linger.stay(60.0, 600.0, lambda: False)
    assert clock.now - begin < 5.0


def test_a_scrape_that_was_begun_before_the_end_has_not_shown_it() -> None:
    """It may be sent long after; another one is waited for."""
    clock = Clock()
    linger = Linger(clock)
    begun = clock()
    linger.note_end()
    linger.note("scrape", begun)
    begin = clock.now
    linger.wait(0.5)
    linger.stay(60.0, 600.0, lambda: False)
    assert clock.now - begin >= 55.0


def test_an_open_page_keeps_the_watcher_ten_minutes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again and again, and is sent away in the end."""
    monkeypatch.setattr("monitor.watcher._linger.LOOK_SECONDS", 0.0)
    clock = Clock()
    linger = Linger(clock)
    linger.note("state")
    begin = clock.now

    def ask() -> bool:
        linger.note("state")
        return False

    linger.stay(60.0, 600.0, ask)
    assert 600.0 <= clock.now - begin < 610.0


def test_whoever_tells_the_watcher_to_end_is_heeded() -> None:
    """A SIGTERM after the end of the run ends the wait."""
    linger = Linger()
    linger.note("scrape")
    linger.stay(3600.0, 3600.0, lambda: True)


class TestOutOfMemoryCounter:
    def counter(self, tmp_path: Any, text: str = "low 0\noom_kill 2\n") -> OutOfMemoryCounter:
        (tmp_path / "own").write_text("0::/job\n")
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "memory.events").write_text(text)
        return OutOfMemoryCounter(tmp_path / "own", tmp_path)

    def test_a_kill_meanwhile_is_told(self, tmp_path: Any) -> None:
        """The count of the control group has grown since."""
        counter = self.counter(tmp_path)
        assert counter.explain() is None
        (tmp_path / "job" / "memory.events").write_text("low 0\noom_kill 3\n")
        assert "out-of-memory killer" in str(counter.explain())

    @pytest.mark.parametrize("text", ["", "oom_kill x\n", "low 0\n"])
    def test_what_is_not_there_explains_nothing(self, text: str, tmp_path: Any) -> None:
        """Another version of the kernel, or no control group at all."""
        assert self.counter(tmp_path, text).explain() is None
        assert OutOfMemoryCounter(tmp_path / "missing", tmp_path).explain() is None

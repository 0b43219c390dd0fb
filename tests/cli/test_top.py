"""`monitor top`: what the screen shows, how it ends, and that it leaves the terminal as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from monitor._records import RankReading
from monitor.cli import main
from monitor.cli._client import Client, ClientError, NoAnswerError
from monitor.cli._screen import Frame, screen, sparkline
from monitor.cli._top import Feed, Keys, follow, last_state
from monitor.server import HttpServer, Security, create_app, run_document
from monitor.store._folder import RunFolder
from monitor.store._known import list_runs
from tests.cli.proving import announce, proving
from tests.server.fake_run import START, TOKEN, FakeRun

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def fake() -> FakeRun:
    run = FakeRun(clock=lambda: START + 40)
    run.advance(300)
    return run


@pytest.fixture
def server(fake: FakeRun) -> Iterator[HttpServer]:
    with HttpServer(create_app(fake, Security(token=TOKEN), prove=proving("fake-0a1b2c")), port=0) as http_server:
        yield http_server


def frame_of(fake: FakeRun, **optimizer: Any) -> Frame:
    """One look at a run, as the API gives it."""
    run = run_document(fake.snapshot())
    run["optimizers"][0].update(optimizer)
    events = [
        {"step": e.step, "kind": e.kind, "severity": e.severity, "message": e.message}
        for e in fake.events(0, 2**63, 2000)
    ]
    return Frame(run, fake.history(0, 200), events)


def drawn(frame: Frame, width: int = 100, height: int = 40, **given: Any) -> str:
    """The screen as plain text."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen(frame, START + 40, width=width, height=height, **given), crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class TestScreen:
    def test_it_shows_what_the_run_says(self, fake: FakeRun) -> None:
        """State, progress, loss, rates, gradient norm, GPU, host, cost and events stand on one screen."""
        fake.publish("divergence", "critical", "loss has doubled", optimizer="AdamW")
        frame = frame_of(fake)
        text, optimizer = drawn(frame, url="http://127.0.0.1:9477"), frame.run["optimizers"][0]
        for shown in (
            "fake-0a1b2c  running  http://127.0.0.1:9477",
            "q leaves",
            "\nstep           300 of 5,000 (6 %), 8.33 steps/s, 9 min 24 s left",
            f"{optimizer['loss']:.4g}, smoothed {optimizer['loss_ema']:.4g}, lowest smoothed loss",
            "clipped above 1",
            f"{optimizer['groups'][1]['applied']:.4g}",
            "GPU 0",
            "43 % CPU",
            "300 µs a step",
            "now            divergence",
            "divergence  loss has doubled",
        ):
            assert shown in text
        assert len([line for line in text.splitlines() if re.search("[▁▂▃▄▅▆▇█]{50}", line)]) == 2

    @pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (250, 70)])
    def test_it_fits_the_terminal(self, fake: FakeRun, width: int, height: int) -> None:
        """No line is wider than the terminal; where there is room, the newest events are on it."""
        for number in range(30):
            fake.publish("spike", "warning", f"spike {number} " + "and on " * 50)
        lines = drawn(frame_of(fake), width=width, height=height).splitlines()
        assert max(map(len, lines)) <= width
        if height >= 24:
            assert len(lines) <= height
            assert "gradient norm  " in "\n".join(lines)
        assert re.match(r" *\d+  spike +spike 29", lines[-1])

    def test_nothing_a_run_says_steers_the_terminal(self, fake: FakeRun) -> None:
        """Escape sequences and markup in names and messages come out as text."""
        fake.publish("spike", "warning", "\x1b[2J [bold]no[/bold] \r\n gone")
        text = drawn(frame_of(fake))
        assert "?[2J [bold]no[/bold] ?? gone" in text
        assert "\x1b" not in text

    def test_a_run_that_has_made_no_step_has_a_screen(self) -> None:
        """Before the first step there is nothing to draw a curve or a bar of."""
        frame = Frame(run_document(FakeRun().snapshot()))
        assert "no events yet" in drawn(frame)
        assert drawn(Frame({**frame.run, "optimizers": []})) != ""

    def test_many_groups_are_counted(self, fake: FakeRun) -> None:
        """Eight param groups are shown, the rest are counted."""
        group = frame_of(fake).run["optimizers"][0]["groups"][0]
        groups = [{**group, "index": index, "name": f"layer{index}"} for index in range(20)]
        text = drawn(frame_of(fake, groups=groups))
        assert ("7 layer7" in text, "8 layer8" in text, "and 12 more" in text) == (True, False, True)

    @pytest.mark.parametrize("num", [2, 3, 7, 20])
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
    def test_many_optimizers_fit_the_terminal(self, fake: FakeRun, num: int, width: int, height: int) -> None:
        """Where their details and curves do not fit, each has one line, and those that are not shown are counted."""
        for number in range(30):
            fake.publish("spike", "warning", f"spike {number}")
        frame = frame_of(fake)
        (one,) = frame.run["optimizers"]
        frame.run["optimizers"] = [{**one, "key": f"Adam-{index}"} for index in range(num)]
        columns = frame.history["optimizers"]["AdamW"]
        frame.history["optimizers"] = {f"Adam-{index}": columns for index in range(num)}
        lines = drawn(frame, width=width, height=height).splitlines()
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        named = {word for line in lines for word in re.findall(r"Adam-\d+", line)}
        more = sum(int(found[1]) for line in lines if (found := re.fullmatch(r"and (\d+) more *", line)))
        assert len(named) + more == num
        assert "spike 29" in lines[-1]

    @pytest.mark.parametrize("num", [2, 5, 40, 1000])
    @pytest.mark.parametrize(("width", "height"), [(40, 24), (80, 24), (120, 40)])
    def test_many_ranks_fit_the_terminal(self, fake: FakeRun, num: int, width: int, height: int) -> None:
        """Those that do not fit are counted; of those in trouble none is left out before one that is well."""
        for number in range(30):
            fake.publish("spike", "warning", f"spike {number}")
        readings = [RankReading(rank, "ok", "run", "node-a", 300, 0.12, 2.0, 0.5) for rank in range(num)]
        readings[-1] = replace(readings[-1], state="lost", last_seen_seconds=42.0)
        fake.ranks = tuple(readings)
        lines = drawn(frame_of(fake), width=width, height=height).splitlines()
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        head = next(index for index, line in enumerate(lines) if line.startswith(f"{num} ranks"))
        rows = [line.split() for line in lines[head + 1 :]]
        shown = {row[0]: row[1] for row in rows if row[1:2] in (["ok"], ["lost"])}
        more = sum(int(row[1]) for row in rows if row[:1] == ["and"])
        assert len(shown) + more == num
        assert shown[str(num - 1)] == "lost"
        assert "spike 29" in lines[-1]

    @pytest.mark.parametrize("height", [24, 40])
    def test_many_ranks_with_many_optimizers_fit_the_terminal(self, fake: FakeRun, height: int) -> None:
        """Some of both are shown, and the rest is counted."""
        fake.ranks = tuple(RankReading(rank, "ok", "run", "node-a", 300) for rank in range(40))
        frame = frame_of(fake)
        (one,) = frame.run["optimizers"]
        frame.run["optimizers"] = [{**one, "key": f"Adam-{index}"} for index in range(20)]
        lines = drawn(frame, width=80, height=height).splitlines()
        assert len(lines) <= height
        assert any(line.startswith("Adam-0 ") for line in lines)
        assert any(line.startswith("0         ok ") for line in lines)
        assert len([line for line in lines if re.fullmatch(r"and \d+ more *", line)]) == (2 if height == 24 else 1)

    def test_a_run_of_one_rank_has_no_table_of_ranks(self, fake: FakeRun) -> None:
        """Nor has one whose state an earlier version gives."""
        frame = frame_of(fake)
        assert "rank" not in drawn(frame)
        del frame.run["ranks"]
        assert "rank" not in drawn(frame)

    def test_one_line_of_an_optimizer_tells_of_groups_that_differ(self, fake: FakeRun) -> None:
        """Where the param groups of an optimizer have several learning rates, it says how many."""
        frame = frame_of(fake)
        (one,) = frame.run["optimizers"]
        groups = [{**one["groups"][0], "applied": applied} for applied in (0.1, 0.2)]
        frame.run["optimizers"] = [{**one, "key": key, "groups": groups} for key in "abcdefg"]
        line = next(line for line in drawn(frame, width=80, height=24).splitlines() if line.startswith("a "))
        assert line.split()[-3:] == ["2", "values", "1"]

    def test_a_plain_terminal_gets_plain_characters(self, fake: FakeRun) -> None:
        """Without Unicode the curves are drawn in ASCII."""
        text = drawn(frame_of(fake), is_ascii=True)
        assert not re.search("[▁▂▃▄▅▆▇█]", text)
        assert re.search(r"[_.\-=+*#@]{50}", text)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 10, ""),
        ([None, None], 10, "  "),
        ([5.0], 10, "▁"),
        ([1, 1, 1], 10, "▁▁▁"),
        ([0, 7], 10, "▁█"),
        ([8, 7, 6, 5, 4, 3, 2, 1], 8, "█▇▆▅▄▃▂▁"),
        ([0, 0, 7, 7], 2, "▁█"),
        ([0, "NaN", "+Inf", 7], 4, "▁××█"),
        ([0, 0, "NaN", 7], 2, "▁×"),
        ([0, None, 7], 3, "▁ █"),
    ],
)
def test_a_curve_in_one_line(values: list[Any], width: int, line: str) -> None:
    """The lowest value is the lowest block; what is not finite is a cross, never smoothed away."""
    assert sparkline(values, width) == line


class Script:
    """A feed and a clock that follow a script: each answer is a state, or None for no answer; a wait is a second."""

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.now, self.drawn = list(answers), 0.0, []  # type: ignore[var-annotated]

    def read(self) -> dict[str, Any]:
        state = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if state is None:
            raise NoAnswerError("http://x does not answer")
        return {"run": {"state": state}, "history": {}, "events": []}

    def draw(self, look: dict[str, Any], note: str) -> None:
        self.drawn.append((look["run"]["state"], note))

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def follow(self, last: Callable[[], Any] = lambda: None, wait: Any = None) -> Any:
        return follow(self, self.draw, wait or self.wait, last, clock=lambda: self.now)


class TestFollowing:
    def test_the_end_of_the_run_is_the_end(self) -> None:
        """Each second a look; the last one is the final state, and is returned."""
        script = Script("starting", "running", "finished")
        assert script.follow() == {"state": "finished"}
        assert script.drawn == [("starting", ""), ("running", ""), ("finished", "")]
        assert script.now == 2.0

    def test_who_leaves_gets_no_last_state(self) -> None:
        """q ends it at once."""
        script = Script("running")
        assert script.follow(wait=lambda _: True) is None
        assert len(script.drawn) == 1

    def test_a_run_that_went_silent_is_marked_and_asked_again(self) -> None:
        """What stands on the screen is called the past until the run answers again."""
        script = Script("running", None, None, "running", "finished")
        assert script.follow() == {"state": "finished"}
        assert [note.partition(";")[0] for _, note in script.drawn] == [
            "",
            "no answer for 0 s",
            "no answer for 1 s",
            "",
            "",
        ]

    def test_after_half_a_minute_of_silence_it_gives_up(self) -> None:
        """A run without a folder that does not come back is a failure, not a screen for ever."""
        script = Script("running", None)
        with pytest.raises(NoAnswerError):
            script.follow()
        assert 30.0 < script.now <= 32.0

    def test_nobody_there_is_told_at_once(self) -> None:
        """An address at which nothing ever answered is refused without waiting."""
        script = Script(None)
        with pytest.raises(NoAnswerError):
            script.follow()
        assert (script.now, script.drawn) == (0.0, [])

    def test_an_end_between_two_looks_comes_from_the_folder(self) -> None:
        """A run whose server is gone has left its last state in its folder."""
        assert Script("running", None).follow(last=lambda: {"state": "failed"}) == {"state": "failed"}

    def test_events_come_by_increments(self, fake: FakeRun, server: HttpServer) -> None:
        """The feed asks for events after those it has, and keeps the newest twenty."""
        feed = Feed(Client(server.url, TOKEN))
        first = feed.read()
        assert (first["run"]["state"], len(first["history"]["optimizers"]["AdamW"]["loss"]) > 50) == ("running", True)
        for number in range(25):
            fake.publish("spike", "warning", f"spike {number}")
        assert [e["message"] for e in feed.read()["events"]] == [f"spike {n}" for n in range(5, 25)]
        assert len(feed.read()["events"]) == 20

    def test_the_curves_are_asked_for_at_every_fifth_look(self, fake: FakeRun, server: HttpServer) -> None:
        """The course of a whole run is dear to its process and changes little in a second."""
        feed = Feed(Client(server.url, TOKEN))
        last = []
        for _ in range(6):
            last.append(feed.read()["history"]["next"])
            fake.advance(10)
        assert last == [300, 300, 300, 300, 300, 350]

    def test_the_folder_tells_how_it_ended(self) -> None:
        """Going on, ended with a last state, ended without one: None, the state, a refusal."""
        folder = RunFolder.create(None, "mine-000001", name="mine", start_time=1.0, token=TOKEN)
        announce(folder, "http://127.0.0.1:9")
        (known,) = list_runs()
        assert last_state(None, None) is None
        assert last_state(known, None) is None
        folder.finish("failed", end_time=2.0)
        with pytest.raises(ClientError, match="mine-000001 is failed and left no last state behind"):
            last_state(known, None)
        folder.finish("failed", end_time=2.0, final={"state": "failed"})
        assert last_state(known, None) == {"state": "failed"}

    def test_of_a_run_that_is_over_the_last_state_is_printed(self, fake: FakeRun) -> None:
        """No terminal is needed for it: it is what `monitor status` prints."""
        folder = RunFolder.create(None, "fake-0a1b2c", name="fake", start_time=1.0, token=TOKEN)
        final = {**run_document(fake.snapshot()), "state": "finished"}
        folder.finish("finished", end_time=2.0, final=final)
        done = CliRunner().invoke(main, ["top", "fake"])
        assert (done.exit_code, done.output) == (0, CliRunner().invoke(main, ["status", "fake"]).output)


class TestRefusals:
    def test_no_terminal(self) -> None:
        """Where nothing can be drawn, the refusal names the command to take."""
        folder = RunFolder.create(None, "mine-000001", name="mine", start_time=1.0, token=TOKEN)
        announce(folder, "http://127.0.0.1:9")
        result = CliRunner().invoke(main, ["top"])
        assert (result.exit_code, "take `monitor status --json`" in result.stderr) == (2, True)


class Terminal:
    """`monitor top` on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.main, self.side = pty.openpty()
        termios.tcsetwinsize(self.side, (40, 100)) if hasattr(termios, "tcsetwinsize") else None
        self.before = termios.tcgetattr(self.side)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "monitor", "top", *words],
            stdin=self.side,
            stdout=self.side,
            stderr=self.side,
            env=environment,
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        self.text = ""

    def read_until(self, wanted: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < deadline, f"{wanted!r} did not come:\n{self.text}"
            if select.select([self.main], [], [], 0.2)[0]:
                self.text += os.read(self.main, 65536).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self.main, keys)

    def leave(self, seconds: float = 300.0) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:  # a terminal that nobody reads would hold it up
            assert time.monotonic() < deadline, f"it does not leave:\n{self.text}"
            if select.select([self.main], [], [], 0.05)[0]:
                self.text += os.read(self.main, 65536).decode(errors="replace")
        while select.select([self.main], [], [], 0.1)[0]:
            self.text += os.read(self.main, 65536).decode(errors="replace")
        return self.process.returncode

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.main)
        os.close(self.side)


def own_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C is one."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def folder(server: HttpServer) -> RunFolder:
    made = RunFolder.create(None, "fake-0a1b2c", name="fake", start_time=START, token=TOKEN)
    announce(made, server.url)
    return made


@pytest.mark.usefixtures("folder")
class TestOnATerminal:
    @pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
    def test_a_key_leaves_and_the_terminal_is_as_it_was(self, key: bytes) -> None:
        """q and Ctrl-C leave with status 0; the screen is put back, the keyboard too, and no last state is printed."""
        with Terminal() as terminal:
            terminal.read_until("300 of 5,000")
            terminal.type(key)
            assert terminal.leave() == 0, terminal.text
            assert terminal.text.index("\x1b[?1049h") < terminal.text.index("\x1b[?1049l")
            assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")
            assert termios.tcgetattr(terminal.side) == terminal.before

    def test_it_leaves_with_the_run_and_prints_its_last_state(self, fake: FakeRun) -> None:
        """The end of the run is the end of the screen; what stays on the terminal is the final state."""
        with Terminal("fake") as terminal:
            terminal.read_until("300 of 5,000")
            fake.state = "finished"
            assert terminal.leave() == 0, terminal.text
            left = terminal.text.partition("\x1b[?1049l")[2]
            assert "fake-0a1b2c  finished" in left
            assert "took 40 s" in left


def test_without_a_keyboard_it_just_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdin is no terminal, a wait is a wait."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    slept: list[float] = []
    monkeypatch.setattr("monitor.cli._top.time.sleep", slept.append)
    with Keys() as keys:
        assert keys.wait(1.0) is False
    assert slept == [1.0]

"""The page of a run that is over, as `monitor open` serves it out of the run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

import monitor
from tests.browser.test_reading import PLOTTED, traces
from tests.watcher.ended import an_ended_run
from tests.watcher.test_process import PATIENCE_SECONDS, Trained, wait_for


@dataclass
class Opened:
    """`monitor open RUN`, running in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    token: str

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def opened() -> Iterator[list[Opened]]:
    started: list[Opened] = []
    yield started
    for one in started:
        try:
            one.stop()
        finally:
            one.process.kill()
        assert one.process.stdout is not None
        one.process.stdout.close()


def open_run(started: list[Opened], run_id: str) -> Opened:
    command = [sys.executable, "-m", "monitor", "open", run_id]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    line = process.stdout.readline()
    url, _, token = line.split()[-1].partition("/?token=")
    started.append(Opened(process, url, token))
    return started[0]


def test_the_page_of_a_run_that_is_over_shows_what_the_live_one_did(visit, opened: list[Opened]) -> None:
    """Curves, events, the outcome of a command and readings of the machine are there; nothing can be changed."""
    trained = Trained()
    with monitor.attach(trained.optimizer, store_bytes=2**23, system_interval=0.1, gpu=False, port=0) as run:
        trained.train(20)
        run.reduce_lr(0.5, reason="tried")
        trained.train(20)
        wait_for(lambda: len(run.history()["system"]["time"]) > 3, "readings of the machine")
    one = open_run(opened, run.id)
    seen = visit(server=one, token=one.token)
    page = seen.page
    expect(page.locator("#notices")).to_contain_text("Run finished")
    expect(page.locator(PLOTTED).first).to_be_attached()
    assert [len(trace["x"]) for trace in traces(seen, "loss") if trace["name"] == "loss"] == [40]
    control = page.locator("#events .event[data-kind=control]")
    expect(control).to_contain_text("tried")
    expect(page.locator("#events .event[data-kind=state]").first).to_contain_text("finished")
    for chart, curve in (("utilization", "CPU of the host"), ("memory", "training processes")):
        page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
        (drawn,) = (trace["y"] for trace in traces(seen, chart) if trace["name"] == curve)
        assert len([value for value in drawn if value]) > 1
    expect(page.locator("#control")).to_contain_text("The run has ended: there is nothing left to change.")


def test_all_events_of_a_run_that_is_over_can_be_read(visit, tmp_path: Path, opened: list[Opened]) -> None:
    """The newest are listed; earlier ones come when they are asked for, down to the first."""
    known = an_ended_run(tmp_path / "runs", num_steps=20, num_events=905)
    one = open_run(opened, known.run_id)
    page = visit(server=one, token=one.token).page
    events, note, more = page.locator("#events .event"), page.locator("#events .note"), page.locator("#events .quiet")
    expect(events).to_have_count(120)
    expect(note).to_have_text("The latest 120 of 400 or more.")
    for count in (240, 360, 480, 600, 720, 840, 905):
        more.click()
        expect(events).to_have_count(count)
    expect(more).to_be_hidden()
    expect(note).to_be_hidden()
    assert one.process.poll() is None

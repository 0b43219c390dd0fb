"""A store whose writer was killed at any moment opens again with everything that was committed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from itertools import pairwise
from pathlib import Path

from monitor.store import StoreReader, StoreWriter
from tests.store.made import a_sample, a_step, an_event, loss_at, values

ADAM = ("optimizer", "adam")
NUM_KILLS = 100


def write_until_killed(path: Path, first: int, report: int) -> None:
    """Commit a few steps at a time as fast as can be, and report the last step of each commit."""
    writer = StoreWriter(path, max_bytes=2**21)
    for step in range(first, first + 10**6):
        writer.add_step(a_step(step))
        if step % 20 == 0:
            writer.add_sample(a_sample("accuracy", float(step), step))
            writer.add_event(an_event(step))
            writer.set_fact("step", step)
            writer.commit()
            os.write(report, step.to_bytes(8, "little"))


def kill_at_random(path: Path, first: int, seconds: float) -> int:
    """Have a process write from a step on, kill it, and return the last step that it reported as committed."""
    reading, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(reading)
            write_until_killed(path, first, report)
        os._exit(1)
    os.close(report)
    try:
        time.sleep(seconds)  # the moment of the kill is what the test is about
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    reported = b""
    while chunk := os.read(reading, 2**16):
        reported += chunk
    os.close(reading)
    return int.from_bytes(reported[-8:], "little") if reported else 0


def test_a_store_survives_a_hundred_kills(tmp_path: Path) -> None:
    """Killed 100 times at random moments, from its creation on, the file opens each time, is sound, and has every step
    that was committed: the loss of each is its own, once."""
    path, source, last = tmp_path / "run.db", random.Random(0), 0
    for number in range(NUM_KILLS):
        # The first ones while the file is being made, the others anywhere in hundreds of commits.
        seconds = source.uniform(0.0, 0.01) if number < 20 else source.uniform(0.0, 0.15)
        committed = kill_at_random(path, last + 1, seconds)
        if not path.exists():
            assert committed == 0
            continue
        with StoreReader(path) as store:  # first as a reader finds it, its log not yet recovered by a writer
            points = list(store.rows(*ADAM, "loss"))
            assert not points or points[0].first_step == 1
            assert all(a.last_step + 1 == b.first_step for a, b in pairwise(points))
            last = points[-1].last_step if points else 0
            assert last >= committed
            assert last % 20 == 0  # a commit is whole or not there
            assert store.facts().get("step", 0) == last
            assert [event["step"] for event in store.events(limit=10**6)][-1:] == ([last] if last else [])
            assert all(point.value == loss_at(point.last_step) for point in points if point.num_rows == 1)
            assert store.attempts() == []
    assert last > 1000
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    writer = StoreWriter(path, max_bytes=2**21)
    writer.add_step(a_step(last + 1))
    writer.close()
    with StoreReader(path) as store:
        assert values(store.curve(*ADAM, "loss", first_step=last + 1)) == [(last + 1, loss_at(last + 1))]
    leftovers = [file.name for file in tmp_path.iterdir() if file.name != "run.db"]
    assert all(name.startswith(".run.db.") for name in leftovers)  # of kills during the creation

"""A store stays within its size, however long the run is, and keeps the whole run at some resolution."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from monitor._errors import StoreError
from monitor._records import CommandRecord
from monitor.store import StoreReader, StoreWriter
from tests.store.made import Clock, a_sample, a_step, an_event, loss_at, noise_at, values, write

ADAM = ("optimizer", "adam")
BOUND = 2**21


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def size_of(path: Path) -> int:
    """What the store takes on the disk, its log included."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if not file.name.endswith("-shm"))


def test_no_row_is_left_out_where_a_coarse_block_reaches_over_fine_ones(path: Path) -> None:
    """With commits of a few steps the levels overlap: each row is read once, the fine ones where they are there."""
    writer = StoreWriter(path, max_bytes=BOUND)
    for step in range(1, 70_001):
        writer.add_step(a_step(step))
        if step % 20 == 0:
            writer.add_event(an_event(step))
            writer.commit()
    writer.close()
    with StoreReader(path) as store:
        points = list(store.rows(*ADAM, "loss"))
        curve = store.curve(*ADAM, "loss", points=100_000)
    for found in (points, curve):
        assert (found[0].first_step, found[-1].last_step) == (1, 70_000)
        assert all(a.last_step + 1 == b.first_step for a, b in pairwise(found))
    assert sum(point.num_rows for point in points) == 70_000


def test_the_size_is_bounded_and_the_run_is_whole(path: Path) -> None:
    """Ten times what fits: the newest steps are there one by one, and before them buckets that hold every step."""
    num_steps, largest = 150_000, 0
    writer = StoreWriter(path, max_bytes=BOUND)
    for step in range(1, num_steps + 1):
        writer.add_step(a_step(step))
        if step % 250 == 0:
            writer.commit()
            largest = max(largest, size_of(path))
    writer.close()
    assert writer.num_dropped == 0
    assert largest <= BOUND
    with StoreReader(path) as store:
        points = list(store.rows(*ADAM, "loss"))
        assert points[0].first_step == 1
        assert points[-1].last_step == num_steps
        assert all(a.last_step + 1 == b.first_step for a, b in pairwise(points))
        sizes = [point.num_rows for point in points]
        assert sum(sizes) == num_steps
        assert sizes.count(1) > 4000
        assert max(sizes) >= 256
        for point in points[::97]:
            losses = [loss_at(i) for i in range(point.first_step, point.last_step + 1)]
            assert (point.minimum, point.maximum) == (min(losses), max(losses))
            assert point.mean == pytest.approx(sum(losses) / len(losses))
        assert len(store.curve(*ADAM, "loss", points=200)) >= 100


def test_a_store_that_is_continued_stays_within_its_size(path: Path) -> None:
    """A writer that is started again at every turn knows what is there."""
    for start in range(1, 100_000, 5000):
        write(path, range(start, start + 5000), max_bytes=BOUND, commit_every=500).close()
        assert size_of(path) <= BOUND
    with StoreReader(path) as store:
        points = list(store.rows(*ADAM, "loss"))
        assert all(a.last_step + 1 == b.first_step for a, b in pairwise(points))
        assert (points[0].first_step, sum(point.num_rows for point in points)) == (1, 100_000)


def test_values_that_are_logged_now_and_then_outlive_the_steps(path: Path) -> None:
    """The curve with most of the file gives way: one that is logged seldom keeps each of its values."""
    writer = StoreWriter(path, max_bytes=BOUND)
    for step in range(1, 60_001):
        writer.add_step(a_step(step))
        if step % 500 == 0:
            writer.add_sample(a_sample("validation", step / 7, step, "val_loss"))
            writer.commit()
    writer.close()
    with StoreReader(path) as store:
        expected = [(step, step / 7) for step in range(500, 60_001, 500)]
        assert values(store.rows("val_loss", "validation")) == expected


def test_many_names_stay_within_the_size(path: Path) -> None:
    """Hundreds of names stay within the bound together, each of them too short for one full block."""
    writer = StoreWriter(path, max_bytes=BOUND)
    names = [f"layer {i}" for i in range(300)]
    largest = 0
    for step in range(1, 301):
        for i, name in enumerate(names):
            writer.add_sample(a_sample(name, noise_at(step * 300 + i), step))
        if writer.is_due:
            writer.commit()
        largest = max(largest, size_of(path))
    writer.close()
    assert largest <= BOUND
    assert writer.num_dropped == 0
    with StoreReader(path) as store:
        curves = [list(store.rows("metric", name)) for name in names]
    assert {(points[0].first_step, sum(point.num_rows for point in points)) for points in curves} == {(1, 300)}
    assert max(point.num_rows for points in curves for point in points) >= 16


def test_a_file_that_has_filled_up_all_the_same_makes_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a commit ever hit the page limit, the next one gives up blocks first: the writer is not stuck."""
    monkeypatch.setattr("monitor.store._writer._FILL", 10.0)  # nothing makes room in time
    clock = Clock()
    writer = StoreWriter(path, max_bytes=BOUND, counter=clock)
    num_failures = 0
    for step in range(1, 60_001):
        writer.add_step(a_step(step))
        if step % 250 == 0:
            try:
                writer.commit()
            except StoreError:
                num_failures += 1
                clock.now += 10.0
    writer.close()
    assert 0 < num_failures < 10
    assert writer.num_dropped == 0
    with StoreReader(path) as store:
        points = list(store.rows(*ADAM, "loss"))
        assert (points[0].first_step, sum(point.num_rows for point in points)) == (1, 60_000)


def test_the_oldest_events_go_first(path: Path) -> None:
    """Events and commands have a share of the size each; the newest are kept."""
    writer = StoreWriter(path, max_bytes=BOUND)
    for number in range(5000):
        writer.add_event(an_event(number, details={"text": "x" * 200}))
        writer.add_command(CommandRecord(f"c{number}", "reduce", "api", 0.0, reason="y" * 200))
        if number % 1000 == 999:
            writer.commit()
    writer.close()
    assert size_of(path) <= BOUND
    with StoreReader(path) as store:
        events = store.events(limit=10_000)
        assert 100 < len(events) < 5000
        assert events[-1]["step"] == 4999
        assert store.commands(limit=10_000)[-1]["id"] == "c4999"


def test_a_reader_that_does_not_let_go_does_not_fill_the_disk(path: Path) -> None:
    """While a foreign reader holds an old state, the log may not be folded in: writing stops at a bound, and goes on
    when the reader has let go."""
    clock = Clock()
    writer = write(path, range(1, 251), max_bytes=BOUND, counter=clock)
    refused = 0
    with StoreReader(path) as store, store._question():
        store._connection.execute("SELECT COUNT(*) FROM block").fetchone()
        for step in range(251, 10_001):
            writer.add_step(a_step(step))
            if step % 250 == 0:
                clock.now += 10.0
                try:
                    writer.commit()
                except StoreError as error:
                    assert "a reader has held it" in str(error)  # noqa: PT017 - it is raised now and then
                    refused += 1
                assert size_of(path) <= BOUND
    assert refused
    assert writer.num_dropped
    clock.now += 10.0
    writer.commit()
    writer.add_step(a_step(30_000))
    writer.close()
    with StoreReader(path) as store:
        assert store.curve(*ADAM, "loss")[-1].last_step == 30_000
        assert store.facts()["dropped"] == writer.num_dropped


def test_a_size_that_is_too_small_is_refused(path: Path) -> None:
    """The least size is that of a few blocks of each level."""
    with pytest.raises(ValueError, match="max_bytes must be 2097152 or more, got 1000"):
        StoreWriter(path, max_bytes=1000)
    assert not os.path.lexists(path)

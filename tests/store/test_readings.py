"""Readings of the machine are a curve by time: they know no step and no attempt, and are bounded as every curve is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from monitor.store import StoreReader, StoreWriter, export, read_history
from tests.store.made import START, STEP_SECONDS, a_step, noise_at
from tests.store.test_bound import BOUND, size_of

SECONDS = 2.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def reading(place: int) -> dict[str, float | None]:
    return {"cpu_ratio": noise_at(place), "memory_used_bytes": None, "gpus/0/power_watts": 300.0 + place}


def keep(path: Path, places: Iterable[int], **options: Any) -> StoreWriter:
    writer = StoreWriter(path, **options)
    for count, place in enumerate(places, start=1):
        writer.add_reading(reading(place), time=START + place * SECONDS)
        if count % 50 == 0:
            writer.commit()
    writer.close()
    return writer


def readings_in(path: Path, **asked: Any) -> dict[str, Any]:
    with StoreReader(path) as store:
        found: dict[str, Any] = read_history(store, **asked)["system"]
    return found


def test_each_reading_is_shown_at_its_time(path: Path) -> None:
    """The columns are those of a live run's history, a GPU's below its index; what was not read is absent."""
    keep(path, range(3))
    assert readings_in(path) == {
        "time": [START, START + SECONDS, START + 2 * SECONDS],
        "cpu_ratio": [noise_at(0), noise_at(1), noise_at(2)],
        "memory_used_bytes": [None, None, None],
        "gpus": {"0": {"power_watts": [300.0, 301.0, 302.0]}},
    }


def test_a_gpu_that_comes_later_is_absent_before(path: Path) -> None:
    """Columns are equally long, whatever was read when."""
    writer = StoreWriter(path)
    writer.add_reading({"cpu_ratio": 0.5}, time=START)
    writer.add_reading({"cpu_ratio": 0.6, "gpus/1/power_watts": 10.0}, time=START + 1)
    writer.close()
    found = readings_in(path)
    assert (found["cpu_ratio"], found["gpus"]) == ([0.5, 0.6], {"1": {"power_watts": [None, 10.0]}})


def test_readings_go_on_where_an_earlier_writer_left_off(path: Path) -> None:
    """A second writer of the file appends, also where the clock was set back meanwhile."""
    keep(path, range(60))
    keep(path, range(10, 20))
    found = readings_in(path)
    assert found["time"] == [START + SECONDS * place for place in (*range(60), *range(10, 20))]


def test_a_step_back_hides_no_reading_and_a_reading_begins_no_attempt(path: Path) -> None:
    """What the machine did while steps were made that were made over later, it did."""
    writer = StoreWriter(path)
    for place, step in enumerate([*range(1, 101), *range(3, 11)]):
        writer.add_step(a_step(step))
        writer.add_reading(reading(place), time=START + place)
    writer.close()
    writer = StoreWriter(path)
    writer.add_reading(reading(108), time=START + 108)
    writer.add_step(a_step(11))
    writer.close()
    with StoreReader(path) as store:
        assert [attempt.first_step for attempt in store.attempts()] == [3]
        history = read_history(store)
    assert len(history["system"]["time"]) == 109
    assert history["optimizers"]["adam"]["step"] == list(range(1, 12))


def test_readings_after_a_cursor_are_those_since_its_step(path: Path) -> None:
    """The cursor counts steps; readings go by the time at which its step was made."""
    writer = StoreWriter(path)
    for step in range(1, 11):
        writer.add_step(a_step(step))
        writer.add_reading(reading(step), time=START + (step + 0.5) * STEP_SECONDS)
    writer.close()
    assert readings_in(path, since=7)["gpus"]["0"]["power_watts"] == [307.0, 308.0, 309.0, 310.0]


def test_a_long_run_has_its_readings_at_a_lower_resolution(path: Path) -> None:
    """Ten times as many readings as are asked for: a point is the mean of ten."""
    keep(path, range(10_000))
    found = readings_in(path, points=1000)
    assert len(found["time"]) <= 1000
    assert found["time"][-1] == START + 9999 * SECONDS
    assert found["gpus"]["0"]["power_watts"][0] == pytest.approx(300.0 + 4.5, abs=8)


def test_readings_are_bounded_with_the_rest_of_the_store(path: Path) -> None:
    """More readings than fit: the file stays within its size, and the newest are there one by one."""
    writer = keep(path, range(300_000), max_bytes=BOUND)
    assert (size_of(path) <= BOUND, writer.num_dropped) == (True, 0)
    with StoreReader(path) as store:
        points = list(store.rows("system", "host", "gpus/0/power_watts"))
    assert sum(point.num_rows for point in points) == 300_000
    assert points[0].num_rows > 1
    assert [point.value for point in points[-3:]] == [300_297.0, 300_298.0, 300_299.0]


def test_readings_are_a_table_of_their_own_in_an_export(path: Path) -> None:
    """Each value names its device; the curves of the training are in the other table."""
    writer = StoreWriter(path)
    writer.add_step(a_step(1))
    writer.add_reading(reading(1), time=START)
    writer.close()
    assert [(row["device"], row["column"], row["value"], row["time"]) for row in exported(path, "readings")] == [
        ("host", "cpu_ratio", noise_at(1), START),
        ("gpu/0", "power_watts", 301.0, START),
    ]
    assert {row["kind"] for row in exported(path, "values")} == {"optimizer"}


def exported(path: Path, table: Any) -> list[dict[str, Any]]:
    file = io.BytesIO()
    export(path, "jsonl", file, table)
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_readings_that_find_no_room_are_counted(path: Path) -> None:
    """What waits for a disk is bounded, readings too."""
    writer = StoreWriter(path, max_bytes=BOUND)
    for place in range(10_000):
        writer.add_reading(reading(place), time=START + place)
    assert writer.num_dropped > 0
    writer.close()
    with StoreReader(path) as store:
        num_kept = len(list(store.rows("system", "host", "cpu_ratio")))
        assert store.facts()["dropped"] == writer.num_dropped == 10_000 - num_kept

"""A store tells the course of its run in the form in which the run told it while it was live."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor._records import PHASES, Step
from monitor.common import BoundedHistory
from monitor.recorder._series import SeriesBucket, columns
from monitor.store import StoreReader, StoreWriter, read_history
from monitor.store._history import MAX_PARTS, PART_POINTS
from tests.store.made import START, STEP_SECONDS, a_sample, a_step, loss_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def time_of(step: Step) -> float:
    return START + step.global_step * STEP_SECONDS


def ema_of(step: Step) -> float:
    return 1.0 / (1 + step.global_step)


def keep(path: Path, steps: Iterable[Step]) -> None:
    writer = StoreWriter(path)
    for count, step in enumerate(steps, start=1):
        writer.add_step(step, loss_ema=ema_of(step), time=time_of(step))
        if count % 250 == 0:
            writer.commit()
    writer.close()


def history_of(path: Path, points: int = 1000, optimizer: str = "adam") -> dict[str, Any]:
    with StoreReader(path) as store:
        found: dict[str, Any] = read_history(store, points)["optimizers"][optimizer]
        return found


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Return the columns of a document by their path."""
    found = {}
    for name, value in document.items():
        found.update(flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value})
    return found


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare documents: durations to seven digits, times to the microsecond, anything else exactly."""
    found_columns, expected_columns = flat(found), flat(expected)
    assert list(found_columns) == list(expected_columns)
    for name, values in expected_columns.items():
        pairs = list(zip(found_columns[name], values, strict=True))
        if name == "time" or "seconds" in name or name.startswith("phases/"):
            exactness = {"rel_tol": 0.0, "abs_tol": 1e-6} if name == "time" else {"rel_tol": 1e-6}
            assert all(a is b if b is None else math.isclose(a, b, **exactness) for a, b in pairs), name
        else:
            assert [repr(a) for a, _ in pairs] == [repr(b) for _, b in pairs], name  # NaN is equal to NaN here


def test_single_steps_are_told_as_by_the_live_run(path: Path) -> None:
    """The same steps give the same document from the store and from the live history, whatever is not known."""
    steps = [a_step(number) for number in range(1, 301)]
    steps[10] = replace(steps[10], loss=math.nan)
    steps[11] = replace(steps[11], loss=None, gradient_norm=None)
    steps[12] = replace(steps[12], loss=-math.inf, gradient_norm=math.inf)
    steps[13] = replace(steps[13], duration=None, phases={}, clips=())
    steps[14] = replace(steps[14], gradient_norm=math.nan, phases={"data": 0.001})
    steps[15:20] = [replace(step, groups=step.groups[:1]) for step in steps[15:20]]
    live = BoundedHistory[SeriesBucket]()
    for cursor, step in enumerate(steps, start=1):
        live.append(SeriesBucket(step, ema_of(step), cursor, time_of(step)))
    keep(path, steps)
    same(history_of(path), columns(live.after(0, 1000)))


def test_a_long_run_is_told_in_as_many_points_as_asked_for(path: Path) -> None:
    """Every step counts in one point, whose loss is the mean of its steps, between their minimum and maximum."""
    num_steps = 40_000
    keep(path, map(a_step, range(1, num_steps + 1)))
    found = history_of(path, points=100)
    assert {len(column) for column in flat(found).values()} == {len(found["step"])}
    assert 50 <= len(found["step"]) <= 100
    assert (found["step"][-1], sum(found["count"])) == (num_steps, num_steps)
    first = 1
    for place, last in enumerate(found["step"]):
        losses = [loss_at(step) for step in range(first, last + 1)]
        assert found["count"][place] == len(losses)
        assert found["loss"][place] == pytest.approx(sum(losses) / len(losses))
        assert (found["loss_min"][place], found["loss_max"][place]) == (min(losses), max(losses))
        first = last + 1
    assert found["lr"]["1"]["applied"] == pytest.approx([2.5e-4] * len(found["step"]))


def test_a_phase_counts_in_steps_that_spent_nothing_in_it(path: Path) -> None:
    """The mean of a phase is over all steps of a point; that of the step time over those whose time is known."""
    steps = [a_step(1, phases={"data": 0.003}, duration=0.004), a_step(2, phases={}, duration=None)]
    keep(path, steps)
    found = history_of(path, points=1)
    assert found["phases"]["data"] == pytest.approx([0.0015])
    assert [found["phases"][phase] for phase in PHASES if phase != "data"] == [[0.0]] * (len(PHASES) - 1)
    assert found["step_seconds"] == pytest.approx([0.004])


def test_a_value_that_is_not_finite_shows_in_its_point(path: Path) -> None:
    """One NaN among many losses, one infinite norm among many, are what their points show; the extremes are finite."""
    steps = [a_step(number, gradient_norm=1.0) for number in range(1, 2001)]
    steps[500] = replace(steps[500], loss=math.nan, gradient_norm=math.inf)
    keep(path, steps)
    found = history_of(path, points=10)
    place = next(i for i, step in enumerate(found["step"]) if step >= 501)
    assert [i for i, loss in enumerate(found["loss"]) if math.isnan(loss)] == [place]
    assert math.isfinite(found["loss_min"][place])
    assert [i for i, norm in enumerate(found["gradient_norm"]) if math.isinf(norm)] == [place]
    assert found["gradient_norm_max"] == [1.0] * place + [math.inf] + [1.0] * (9 - place)


@pytest.mark.parametrize("points", [1000, 20])
def test_a_param_group_that_came_later_is_unknown_before(points: int, path: Path) -> None:
    """All columns have the same points; the learning rate of a group is None where there was none."""
    keep(path, [a_step(number, groups=1 if number <= 20_000 else 2) for number in range(1, 40_001)])
    found = history_of(path, points)
    assert {len(column) for column in flat(found).values()} == {len(found["step"])}
    known = [rate is not None for rate in found["lr"]["1"]["applied"]]
    assert known == sorted(known)
    assert 0.4 < known.count(True) / len(known) < 0.6
    assert None not in found["lr"]["0"]["applied"]


def test_what_was_done_over_is_left_out(path: Path) -> None:
    """After a step back the history has each step once, as it was done last."""
    keep(path, [*map(a_step, range(1, 11)), *(a_step(number, loss=9.0) for number in range(6, 9))])
    found = history_of(path)
    assert found["step"] == list(range(1, 9))
    assert found["loss"] == [*map(loss_at, range(1, 6)), 9.0, 9.0, 9.0]


def test_optimizers_stand_side_by_side(path: Path) -> None:
    """Each optimizer has its columns, logged values have none; the cursor counts the steps of all."""
    writer = StoreWriter(path)
    for step in range(1, 6):
        writer.add_step(a_step(step))
        writer.add_step(a_step(step, optimizer="critic", groups=0))
    writer.add_sample(a_sample("accuracy", 0.5, 5))
    writer.close()
    with StoreReader(path) as store:
        found = read_history(store)
    assert list(found) == ["since", "next", "resolution", "optimizers", "system", "attempt", "abandoned"]
    assert (found["since"], found["next"], found["resolution"]) == (0, 10, 1)
    assert list(found["optimizers"]) == ["adam", "critic"]
    assert found["optimizers"]["critic"]["lr"] == {}


def test_a_run_without_a_step_has_an_empty_history(path: Path) -> None:
    """A store without curves gives no optimizers; points out of range are refused with the range."""
    writer = StoreWriter(path)
    writer.set_fact("settings", {})
    writer.close()
    with StoreReader(path) as store:
        nothing = {"since": 0, "next": 0, "resolution": 1, "optimizers": {}, "attempt": 0, "abandoned": {}}
        empty = {**nothing, "system": {"time": [], "gpus": {}}}
        assert read_history(store) == empty
    keep(path, [a_step(1)])
    with StoreReader(path) as store, pytest.raises(ValueError, match="points must be between 1 and 100000, got 0"):
        read_history(store, 0)


def test_a_live_run_is_told_up_to_its_last_commit(path: Path) -> None:
    """The history is read while the writer has the file open."""
    writer = StoreWriter(path)
    writer.add_step(a_step(1))
    writer.commit()
    writer.add_step(a_step(2))
    assert history_of(path)["step"] == [1]
    writer.close()
    assert history_of(path)["step"] == [1, 2]


def test_what_was_done_over_stands_apart(path: Path) -> None:
    """The curve has the steps that count, without a step back; the newest parts that were done over have theirs."""
    keep(path, [a_step(number) for number in (*range(1, 2001), *range(1501, 1801))])
    with StoreReader(path) as store:
        found = read_history(store, 100)
        steps = found["optimizers"]["adam"]["step"]
        assert steps == sorted(steps)
        assert (steps[-1], found["attempt"]) == (1800, 1)
        (part,) = found["abandoned"]["adam"]
        assert (part["step"][-1], len(part["step"]), part["step"] == sorted(part["step"])) == (2000, PART_POINTS, True)
        assert part["lr"].keys() == {"0", "1"}
        assert read_history(store, 100, since=5)["abandoned"] == {}
    other = path.with_name("other.db")
    keep(other, [a_step(number) for _ in range(MAX_PARTS + 2) for number in range(1, 5)])
    with StoreReader(other) as store:
        assert len(read_history(store)["abandoned"]["adam"]) == MAX_PARTS

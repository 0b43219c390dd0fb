"""What is written into a store is what comes out of it, at every resolution."""

from __future__ import annotations

import math
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from monitor._records import CommandRecord, GroupChange
from monitor.store import MAX_BYTES, Series, StoreReader, StoreWriter
from tests.store.made import START, Clock, a_sample, a_step, an_event, loss_at, values, write

ADAM = ("optimizer", "adam")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def test_every_step_comes_back_as_it_was(path: Path) -> None:
    """Up to the bound, each step is there with each of its values, in order."""
    write(path, range(1, 3001)).close()
    with StoreReader(path) as store:
        assert values(store.curve(*ADAM, "loss", points=5000)) == [(i, loss_at(i)) for i in range(1, 3001)]
        assert values(store.rows(*ADAM, "lr_applied/1")) == [(i, 2.5e-4) for i in range(1, 3001)]
        point = store.curve(*ADAM, "loss", first_step=2000, last_step=2000)[0]
        assert (point.time, point.num_rows, point.attempt) == (pytest.approx(START + 8.0, abs=1e-6), 1, 0)
        assert {series.column for series in store.series()} >= {"step_seconds", "phase_seconds/data", "lr_scheduled/0"}


def test_a_reader_sees_each_commit_of_an_open_store(path: Path) -> None:
    """A reader that is open while the run goes on sees what was committed, and nothing before that."""
    writer = StoreWriter(path)
    writer.add_step(a_step(1))
    writer.commit()
    with StoreReader(path) as store:
        assert len(store.curve(*ADAM, "loss")) == 1
        writer.add_step(a_step(2))
        assert len(store.curve(*ADAM, "loss")) == 1
        writer.commit()
        assert len(store.curve(*ADAM, "loss")) == 2
    writer.close()


def test_values_that_are_not_finite_stay_what_they_are(path: Path) -> None:
    """NaN, both infinities and a value that is not known are told apart, row by row and in buckets."""
    odd = [math.nan, math.inf, -math.inf, None]
    writer = StoreWriter(path)
    for step in range(1, 41):
        writer.add_step(a_step(step, loss=odd[step - 1] if step <= 4 else 1.0))
    writer.close()
    with StoreReader(path) as store:
        found = store.curve(*ADAM, "loss", points=40)[:5]
        assert [str(point.value) for point in found] == ["nan", "inf", "-inf", "None", "1.0"]
        assert [point.nonfinite for point in found] == [("NaN",), ("+Inf",), ("-Inf",), (), ()]
        (whole,) = store.curve(*ADAM, "loss", points=1)
        assert (whole.num_rows, whole.num_finite, whole.num_nonfinite) == (40, 36, 3)
        assert (whole.mean, whole.minimum, whole.maximum) == (1.0, 1.0, 1.0)
        assert whole.nonfinite == ("NaN", "+Inf", "-Inf")


def test_few_points_are_minimum_mean_and_maximum_of_their_steps(path: Path) -> None:
    """A curve in N points has at most N, that together stand for every step, each with the figures of its own."""
    write(path, range(1, 40_001), commit_every=1000).close()
    with StoreReader(path) as store:
        for wanted in (1, 7, 100, 1000):
            points = store.curve(*ADAM, "loss", points=wanted)
            assert wanted * 0.5 <= len(points) <= wanted
            assert points[0].first_step == 1
            assert points[-1].last_step == 40_000
            assert all(a.last_step + 1 == b.first_step for a, b in pairwise(points))
            for point in points:
                losses = [loss_at(i) for i in range(point.first_step, point.last_step + 1)]
                assert (point.minimum, point.maximum) == (min(losses), max(losses))
                assert point.mean == pytest.approx(math.fsum(losses) / len(losses))


def test_a_part_of_a_curve_is_read_at_its_own_resolution(path: Path) -> None:
    """Between two steps the finest that fits is given: single steps where they are few."""
    write(path, range(1, 40_001), commit_every=1000).close()
    with StoreReader(path) as store:
        found = store.curve(*ADAM, "loss", first_step=20_000, last_step=20_499, points=500)
        assert values(found) == [(i, loss_at(i)) for i in range(20_000, 20_500)]


def test_an_integer_beyond_64_bits_is_kept(path: Path) -> None:
    """A logged value above 2**63 is the float next to it; one in an event is exact; a step is refused and counted."""
    writer = StoreWriter(path)
    writer.add_sample(a_sample("tokens", 2**70, 1))
    writer.add_sample(a_sample("tokens", 10**400, 2))
    writer.add_sample(a_sample("tokens", 1.0, 2**64))
    writer.add_event(an_event(step=2**64, details={"seen": 2**70}))
    writer.close()
    with StoreReader(path) as store:
        assert values(store.curve("metric", "tokens")) == [(1, 2.0**70), (2, None)]
        (event,) = store.events()
        assert (event["step"], event["details"]["seen"]) == (2**64, 2**70)
        assert store.facts()["dropped"] == 2
    assert writer.num_dropped == 2


def test_events_and_commands_come_back_with_their_text(path: Path) -> None:
    """Events are kept in order, commands once, with their last state; NaN in them is NaN."""
    change = GroupChange("adam", 0, "body", 1.0, 0.5, 1e-3, 5e-4)
    pending = CommandRecord("c1", "reduce", "api", START, factor=0.5, actor="ada@host", reason="too \U0001f600 high")
    applied = CommandRecord("c1", "reduce", "api", START, 0.5, status="applied", step=7, changes=(change,))
    writer = StoreWriter(path)
    for step in (1, 2, 3):
        writer.add_event(an_event(step, value=math.nan, details={"name": "a\ud800b", "best": -math.inf}))
    writer.add_command(pending)
    writer.commit()
    writer.add_command(applied)
    writer.add_command(CommandRecord("c2", "pause", "code", START))
    writer.close()
    with StoreReader(path) as store:
        first, *_ = events = store.events()
        assert [event["message"] for event in events] == [f"loss spiked at step {i}" for i in (1, 2, 3)]
        assert [event["number"] for event in store.events(after=first["number"], limit=1)] == [first["number"] + 1]
        assert math.isnan(first["value"])
        assert first["details"] == {"name": "a\ud800b", "best": -math.inf}
        commands = store.commands()
        assert [(c["id"], c["status"]) for c in commands] == [("c1", "applied"), ("c2", "pending")]
        assert commands[0]["changes"][0]["name"] == "body"


def test_facts_of_the_run_are_kept(path: Path) -> None:
    """Settings, environment and exception text are there, each with its last value."""
    writer = StoreWriter(path)
    writer.set_fact("settings", {"window": 128, "hosts": ("a", "b"), "limit": math.inf})
    writer.set_fact("state", "running")
    writer.commit()
    writer.set_fact("state", "failed")
    writer.set_fact("exception", "Traceback ...\nValueError: x")
    writer.close()
    with StoreReader(path) as store:
        assert store.facts() == {
            "exception": "Traceback ...\nValueError: x",
            "settings": {"window": 128, "hosts": ["a", "b"], "limit": math.inf},
            "state": "failed",
        }


def test_a_reason_why_there_is_no_gradient_norm_is_kept(path: Path) -> None:
    """What cannot be known is kept with its reason."""
    writer = StoreWriter(path)
    writer.add_step(a_step(1, gradient_norm=None, gradient_norm_reason="gradients are sharded"))
    writer.close()
    with StoreReader(path) as store:
        assert store.facts()["gradient_norm_reason/adam"] == "gradients are sharded"


def test_what_is_too_long_is_cut(path: Path) -> None:
    """A message of megabytes is cut and details of megabytes are left out, with a word about it."""
    writer = StoreWriter(path)
    writer.add_event(an_event(1, details={"text": "x" * 10**6}))
    writer.add_event(an_event(2, details={"numbers": list(range(100_000))}))
    writer.set_fact("digits", 10**5000)
    writer.close()
    with StoreReader(path) as store:
        one, two = store.events()
        assert len(one["details"]["text"]) == 2**14
        assert two["message"] == "loss spiked at step 2"
        assert two["left_out"].startswith("left out: ")
        assert store.facts()["digits"] == "left out: an integer of 16610 bits"


def test_ten_thousand_names_are_kept_apart(path: Path) -> None:
    """Every logged name has its own curve; names may hold any character."""
    names = [f"layer.{i}/grad\n\ud800'\"{i}" for i in range(10_000)]
    writer = StoreWriter(path)
    for step in (1, 2, 3):
        for i, name in enumerate(names):
            writer.add_sample(a_sample(name, i + step / 10, step))
        writer.commit()
    writer.close()
    assert writer.num_dropped == 0
    with StoreReader(path) as store:
        series = store.series()
        assert len(series) == 10_000
        assert values(store.curve(*series[1234])) == [(1, 1234.1), (2, 1234.2), (3, 1234.3)]


def test_names_beyond_the_bound_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than are kept cost no memory; what is left out is counted."""
    monkeypatch.setattr("monitor.store._writer.CURVE_BYTES", MAX_BYTES // 3)
    writer = StoreWriter(path)
    for i in range(5):
        writer.add_sample(a_sample(f"name {i}", 1.0, 1))
    writer.close()
    assert writer.num_dropped == 2
    with StoreReader(path) as store:
        assert store.series() == [Series("metric", f"name {i}", "value") for i in range(3)]


def test_param_groups_may_come_and_go(path: Path) -> None:
    """A group that is added has its curve from then on, beside the curves that go on."""
    writer = StoreWriter(path)
    for step in range(1, 11):
        writer.add_step(a_step(step, groups=1 if step < 6 else 3))
    writer.close()
    with StoreReader(path) as store:
        assert [point.last_step for point in store.curve(*ADAM, "lr_scheduled/2")] == list(range(6, 11))
        assert len(store.curve(*ADAM, "loss")) == 10


def test_more_param_groups_than_are_kept() -> None:
    """Of a thousand groups the first 64 are kept."""
    from monitor.store._columns import row_of, step_columns

    step = a_step(1, groups=1000)
    assert len(row_of(step, 0.0, None)) == 2 + len(step_columns(1000))
    assert "lr_factor/63" in step_columns(1000)
    assert "lr_factor/64" not in step_columns(1000)


def test_values_that_are_no_numbers_are_left_out_and_counted(path: Path) -> None:
    """What cannot be a number costs itself alone."""
    writer = StoreWriter(path)
    writer.add_step(a_step(1, loss="high", groups=0))  # type: ignore[arg-type]
    writer.add_step(a_step(2, amp_scale=65536, groups=0))
    writer.add_step(a_step(3, groups=0, time=math.nan))
    writer.close()
    with StoreReader(path) as store:
        assert values(store.curve(*ADAM, "loss")) == [(1, None), (2, loss_at(2)), (3, loss_at(3))]
        assert store.curve(*ADAM, "amp_scale")[1].value == 65536.0
    assert writer.num_dropped == 1


# ------------------------------------------------------------------------------------------------------ attempts


def test_a_step_that_goes_back_begins_a_new_attempt(path: Path) -> None:
    """What was done over is marked abandoned, and is left out unless asked for."""
    writer = write(path, range(1, 101))
    writer.add_sample(a_sample("accuracy", 0.9, 100))
    for step in range(61, 81):
        writer.add_step(a_step(step, loss=-1.0))
    writer.close()
    with StoreReader(path) as store:
        ((number, first_step, _),) = store.attempts()
        assert (number, first_step) == (1, 61)
        kept = values(store.curve(*ADAM, "loss"))
        assert kept == [*((i, loss_at(i)) for i in range(1, 61)), *((i, -1.0) for i in range(61, 81))]
        whole = store.curve(*ADAM, "loss", with_abandoned=True)
        assert [p.last_step for p in whole if p.is_abandoned] == list(range(61, 101))
        assert [p.last_step for p in whole if p.attempt == 1] == list(range(61, 81))
        assert store.curve("metric", "accuracy") == []  # logged at step 100, which was done over
        assert len(store.curve("metric", "accuracy", with_abandoned=True)) == 1


def test_a_step_that_comes_again_is_one_of_a_new_attempt(path: Path) -> None:
    """A resume from the last checkpoint but one step repeats that step: the later one counts."""
    writer = write(path, [1, 2, 3])
    writer.add_step(a_step(3, loss=0.0))
    writer.close()
    with StoreReader(path) as store:
        assert values(store.curve(*ADAM, "loss")) == [(1, loss_at(1)), (2, loss_at(2)), (3, 0.0)]


def test_a_skipped_step_is_one_of_the_same_attempt(path: Path) -> None:
    """A GradScaler that skips a step leaves it the number of the one before: nothing is done over, whichever writer it
    comes to."""
    writer = write(path, [1, 2])
    writer.add_step(a_step(2, is_skipped=True, loss=None))
    writer.close()
    again = StoreWriter(path)
    again.add_step(a_step(2, is_skipped=True, loss=None))
    again.add_step(a_step(3))
    again.close()
    with StoreReader(path) as store:
        assert store.attempts() == []
        assert [p.last_step for p in store.curve(*ADAM, "lr_applied/0")] == [1, 2, 2, 2, 3]
        assert store.abandoned("optimizer", "adam") == []


def test_parts_that_were_done_over_are_told_one_by_one(path: Path) -> None:
    """Each attempt that a later one went back behind has a part, of its own rows alone."""
    writer = write(path, [*range(1, 11), *range(8, 13), *range(6, 8)])
    writer.close()
    with StoreReader(path) as store:
        assert store.abandoned("optimizer", "adam") == [(0, 6, 10), (1, 8, 12)]
        assert store.abandoned("optimizer", "unknown") == []
        first, second = (
            store.curves("optimizer", "adam", ["loss"], part=part)[0] for part in store.abandoned("optimizer", "adam")
        )
        assert values(first) == [(step, loss_at(step)) for step in range(6, 11)]
        assert values(second) == [(step, loss_at(step)) for step in range(8, 13)]


def test_a_value_may_be_logged_twice_at_a_step(path: Path) -> None:
    """Two values of one name at one step are two values of one attempt."""
    writer = StoreWriter(path)
    writer.add_sample(a_sample("accuracy", 0.1, 5))
    writer.add_sample(a_sample("accuracy", 0.2, 5))
    writer.close()
    with StoreReader(path) as store:
        assert store.attempts() == []
        assert values(store.curve("metric", "accuracy")) == [(5, 0.1), (5, 0.2)]


def test_two_optimizers_that_go_back_together_make_one_attempt(path: Path) -> None:
    """A resume is one new attempt, however many optimizers there are."""
    writer = StoreWriter(path)
    for step in (*range(1, 11), *range(6, 9)):
        writer.add_step(a_step(step, optimizer="generator"))
        writer.add_step(a_step(2 * step, optimizer="critic"))
    writer.close()
    with StoreReader(path) as store:
        assert [attempt.number for attempt in store.attempts()] == [1]
        assert [p.last_step for p in store.curve("optimizer", "critic", "loss")] == list(range(2, 17, 2))
        assert [p.last_step for p in store.curve("optimizer", "generator", "loss")] == list(range(1, 9))


@pytest.mark.parametrize(("first", "attempts"), [(11, 0), (10, 1), (4, 1)])
def test_another_writer_continues_the_store(path: Path, first: int, attempts: int) -> None:
    """A watcher that is started again continues its store; steps that go back begin a new attempt there too."""
    write(path, range(1, 11)).close()
    writer = StoreWriter(path)
    writer.set_fact("state", "running")
    writer.commit()  # the store is open before the first step comes
    writer.add_step(a_step(first, loss=0.0))
    writer.close()
    with StoreReader(path) as store:
        assert len(store.attempts()) == attempts
        assert values(store.curve(*ADAM, "loss")) == [*((i, loss_at(i)) for i in range(1, first)), (first, 0.0)]


def test_a_step_that_waits_when_the_store_opens_is_compared_with_it(path: Path) -> None:
    """Steps that came before the store could be opened begin a new attempt if they go back behind what it has."""
    write(path, range(1, 11)).close()
    write(path, [3, 4, 5]).close()
    with StoreReader(path) as store:
        assert [point.attempt for point in store.curve(*ADAM, "loss")] == [0, 0, 1, 1, 1]


def test_a_run_that_goes_back_at_every_step_stays_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are counted up to a number; the steps of further ones are kept under the last."""
    monkeypatch.setattr("monitor.store._writer.MAX_ATTEMPTS", 5)
    writer = write(path, [2, 1] * 50)
    writer.close()
    with StoreReader(path) as store:
        assert [attempt.number for attempt in store.attempts()] == [1, 2, 3, 4, 5]
        assert sum(1 for _ in store.rows(*ADAM, "loss")) == 100


def test_attempts_never_share_a_point(path: Path) -> None:
    """However few points are asked for, none mixes two attempts while there are as many points as attempts."""
    writer = write(path, range(1, 5001))
    for step in range(3001, 6001):
        writer.add_step(a_step(step, loss=100.0))
    writer.close()
    with StoreReader(path) as store:
        for wanted in (2, 3, 50):
            points = store.curve(*ADAM, "loss", points=wanted)
            assert len(points) <= wanted
            assert all(p.maximum < 4 or p.minimum == 100.0 for p in points)


# ------------------------------------------------------------------------------------------------------ the file


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    """Nobody else may read or write the file or its log, at any time; nothing else is left beside it."""
    before = os.umask(0)
    try:
        writer = write(path, range(1, 11))
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["run.db", "run.db-shm", "run.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        writer.close()
    finally:
        os.umask(before)
    assert [file.name for file in path.parent.iterdir()] == ["run.db"]


def test_a_commit_is_due_once_a_second(path: Path) -> None:
    """A commit is due a second after the last, if anything waits, or as soon as much does."""
    clock = Clock()
    writer = StoreWriter(path, counter=clock, max_bytes=2**22)
    assert not writer.is_due
    writer.add_step(a_step(1))
    assert writer.is_due
    writer.commit()
    writer.add_step(a_step(2))
    assert not writer.is_due
    clock.now += 1.0
    assert writer.is_due
    writer.commit()
    step = 3
    while not writer.is_due:
        writer.add_step(a_step(step))
        step += 1
    assert step < 2000
    writer.close()
    writer.close()


def test_more_groups_than_a_block_holds_values(path: Path) -> None:
    """Blocks of an optimizer with many param groups have fewer rows, and hold them all."""
    writer = StoreWriter(path)
    for step in range(1, 601):
        writer.add_step(a_step(step, groups=64, loss=float(step)))
    writer.close()
    with StoreReader(path) as store:
        assert values(store.rows(*ADAM, "loss")) == [(i, float(i)) for i in range(1, 601)]

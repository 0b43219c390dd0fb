"""The sums of a step over the ranks, by hand: what is added up, what is waited for, and for how long."""

from __future__ import annotations

import itertools
import math
import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest

from monitor._records import Sample, Step
from monitor.ranks import Share, StepSums
from monitor.ranks._sums import APART, NOT_ALL, PATIENCE_SECONDS, START_SECONDS

NAN = math.nan


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def step(number: int, loss: float | None = 1.0, norm: float | None = None, **rest: Any) -> Step:
    return Step("SGD", number, number, float(number), duration=0.1, loss=loss, gradient_norm=norm, **rest)


def summed(own: Step, *others: Share) -> Step:
    """Return what becomes of a step and the shares of the other ranks, in their order."""
    sums = StepSums(1 + len(others), ["SGD"])
    for rank, share in enumerate(others, 1):
        sums.add(rank, [share])
    sums.put(own)
    (found,) = sums.take()
    assert isinstance(found, Step)
    return found


# --------------------------------------------------------------------------------------------------- what is added up


def test_the_loss_is_the_mean_over_the_ranks_that_have_one() -> None:
    assert summed(step(1, 1.0), Share(0, 1, loss=2.0), Share(0, 1, loss=6.0)).loss == 3.0
    assert summed(step(1, None), Share(0, 1, loss=2.0)).loss == 2.0
    assert summed(step(1, None), Share(0, 1)).loss is None


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_loss_of_one_rank_that_is_not_finite_is_the_runs(bad: float) -> None:
    found = summed(step(1, 1.0), Share(0, 1, loss=bad)).loss
    assert found is not None
    assert not math.isfinite(found)


def test_a_loss_that_a_rank_has_always_had_is_not_left_out() -> None:
    """The mean of the others would be that of another batch."""
    sums = StepSums(2, ["SGD"])
    sums.add(1, [Share(0, 1, loss=3.0), Share(0, 2)])
    sums.put(step(1))
    sums.put(step(2))
    assert [one.loss for one in sums.take()] == [2.0, None]


@pytest.mark.parametrize(
    ("own", "others", "norm"),
    [
        (step(1, norm=3.0), [Share(0, 1, 1.0, whole=3.0)], 3.0),  # all hold the same gradient
        (step(1, norm=NAN), [Share(0, 1, 1.0, whole=NAN)], NAN),
        (step(1, None, norm=3.0), [Share(0, 1, 1.0, whole=4.0)], 5.0),  # two stages
        (step(1, None, norm=3.0), [Share(0, 1, whole=3.0), *[Share(0, 1, 1.0, whole=4.0)] * 2], 5.0),  # each twice
        (step(1, norm_parts=(0.0, 3.0, 0.0)), [Share(0, 1, 1.0, whole=0.0, shards=4.0)], 5.0),
        (step(1, norm_parts=(2.0, 1.0, 0.0)), [Share(0, 1, 1.0, whole=2.0, shards=2.0)], 3.0),  # in part
        (step(1, norm_parts=(12.0, 0.0, 3.0)), [Share(0, 1, 1.0, 12.0, 0.0, 4.0)], 13.0),  # flat parts, and others
        (step(1, norm_parts=(0.0, 0.0, 3.0)), [Share(0, 1, 1.0, 0.0, 0.0, 3.0)], 3.0),  # a flat part twice
        (step(1, None, norm=NAN), [Share(0, 1, 1.0, whole=4.0)], NAN),
    ],
)
def test_the_norm_is_that_of_the_gradient_that_the_ranks_hold_together(
    own: Step, others: list[Share], norm: float
) -> None:
    found = summed(own, *others)
    assert found.gradient_norm == pytest.approx(norm, nan_ok=True)
    assert found.gradient_norm_reason is None


def test_a_norm_that_cannot_be_told_has_a_reason() -> None:
    """Not measured yet, ranks that train apart, and shards of which some are not told."""
    found = summed(step(1, gradient_norm_reason="partial sums over 2 ranks"), Share(0, 1, 1.0))
    assert (found.gradient_norm, found.gradient_norm_reason) == (None, "partial sums over 2 ranks")
    found = summed(step(1, norm=3.0), Share(0, 1, 1.0, whole=4.0))
    assert (found.gradient_norm, found.gradient_norm_reason) == (None, APART)
    sums = StepSums(3, ["SGD"])
    sums.leave(2)
    sums.add(1, [Share(0, 1, 1.0, whole=0.0, shards=4.0)])
    sums.put(step(1, norm_parts=(0.0, 3.0, 0.0)))
    (found,) = sums.take()  # type: ignore[assignment]
    assert (found.gradient_norm, found.gradient_norm_reason) == (None, NOT_ALL)


def test_a_stage_alone_has_not_the_norm_of_a_pipeline(clock: Clock) -> None:
    """Nor do later steps take the norm of one for that of all."""
    sums = StepSums(2, ["SGD"], clock)
    sums.add(1, [Share(0, 1, 1.0, whole=4.0)])
    for number in (1, 2):
        sums.put(step(number, None, norm=3.0))
    clock.now += PATIENCE_SECONDS
    sums.add(1, [Share(0, 3, 1.0)])
    found = sums.take()
    sums.put(step(3, None, norm=3.0))
    found += sums.take()
    told = [(one.gradient_norm, one.gradient_norm_reason) for one in found]  # type: ignore[union-attr]
    assert told == [(5.0, None), (None, NOT_ALL), (None, None)]


def test_rank_0_alone_shows_its_own(clock: Clock) -> None:
    """As without other ranks: nobody else is attached."""
    sums = StepSums(2, ["SGD"], clock)
    sums.put(step(1, norm=3.0))
    clock.now += PATIENCE_SECONDS
    assert [one.gradient_norm for one in sums.take()] == [3.0]  # type: ignore[union-attr]


def test_an_optimizer_that_a_rank_never_steps_is_waited_for_once(clock: Clock) -> None:
    sums = StepSums(2, ["SGD", "other"], clock)
    for number in (1, 2):
        sums.add(1, [Share(0, number, 1.0)])
        sums.put(replace(step(number), optimizer="other"))
        clock.now += PATIENCE_SECONDS * (number == 1)
        assert len(sums.take()) == 1


def test_sums_can_be_kept_while_shares_come_in() -> None:
    """For another watcher: the memory is taken on one thread, and shares on another."""
    sums, is_over = StepSums(64, ["SGD"]), threading.Event()

    def add() -> None:
        for number in itertools.count(1):
            for rank in range(1, 64):
                sums.add(rank, [Share(0, number, 1.0)])
            if is_over.is_set():
                return

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(20):
            pickle.dumps(sums)
    finally:
        is_over.set()
        thread.join()


def test_ranks_that_measure_seldom_do_not_hide_a_norm_that_all_share() -> None:
    sums = StepSums(2, ["SGD"])
    sums.add(1, [Share(0, 1, 1.0, whole=3.0), Share(0, 2, 1.0)])
    for own in (step(1, norm=3.0), step(2, norm=2.0)):
        sums.put(own)
    assert [one.gradient_norm for one in sums.take()] == [3.0, 2.0]  # type: ignore[union-attr]


# ----------------------------------------------------------------------------------------------- what is waited for


def test_steps_and_samples_stay_in_order(clock: Clock) -> None:
    sums = StepSums(2, ["SGD"], clock)
    sample = Sample("val_loss", "val", 1.0, 1, 1.0)
    for record in (step(1), sample, step(2)):
        sums.put(record)
    assert sums.take() == []
    sums.add(1, [Share(0, 1, 3.0)])
    assert [type(one) for one in sums.take()] == [Step, Sample]
    assert (sums.num_put, sums.num_taken) == (3, 2)


def test_a_share_that_does_not_come_is_waited_for_once(clock: Clock) -> None:
    """Later steps pass at once, and are counted; the rank is waited for again once it sends."""
    sums = StepSums(2, ["SGD"], clock)
    sums.add(1, [Share(0, 1, 3.0)])
    for number in (1, 2):
        sums.put(step(number))
    assert len(sums.take()) == 1
    clock.now += PATIENCE_SECONDS - 0.1
    assert sums.take() == []
    clock.now += 0.2
    (late,) = sums.take()
    assert (late.loss, sums.num_incomplete) == (1.0, 1)  # type: ignore[union-attr]
    sums.put(step(3))
    assert len(sums.take()) == 1
    sums.add(1, [Share(0, 2, 3.0), Share(0, 3, 3.0), Share(0, 4, 3.0)])
    for number in (4, 5):
        sums.put(step(number))
    assert [one.loss for one in sums.take()] == [2.0]  # type: ignore[union-attr]
    assert sums.num_incomplete == 2


def test_a_rank_that_is_attached_may_take_longer_to_start(clock: Clock) -> None:
    sums = StepSums(2, ["SGD"], clock)
    sums.expect([1])
    sums.put(step(1))
    clock.now += START_SECONDS - 0.1
    assert sums.take() == []
    clock.now += 0.2
    assert len(sums.take()) == 1
    assert sums.num_incomplete == 0  # nothing was ever heard of it


def test_a_rank_that_has_left_is_not_waited_for_and_what_it_sent_counts(clock: Clock) -> None:
    sums = StepSums(2, ["SGD"], clock)
    sums.add(1, [Share(0, 1, 3.0)])
    sums.leave(1)
    for number in (1, 2):
        sums.put(step(number))
    assert [one.loss for one in sums.take()] == [2.0, 1.0]  # type: ignore[union-attr]
    assert (sums.joined, sums.num_incomplete) == (frozenset(), 0)


def test_the_end_waits_for_nothing(clock: Clock) -> None:
    sums = StepSums(2, ["SGD"], clock)
    sums.put(step(1))
    assert len(sums.take(is_last=True)) == 1


def test_a_loss_that_is_logged_later_is_rank_0s_share() -> None:
    sums = StepSums(2, ["SGD"])
    sums.put(step(1, None))
    assert sums.amend("SGD", 1, 5.0)
    assert not sums.amend("SGD", 2, 5.0)
    sums.add(1, [Share(0, 1, 3.0)])
    assert [one.loss for one in sums.take()] == [4.0]  # type: ignore[union-attr]


def test_shares_far_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.ranks._sums.MAX_SHARES", 10)
    sums = StepSums(2, ["SGD"])
    sums.add(1, [Share(0, number, 1.0) for number in range(1, 2000)])
    assert len(sums._shares) == 1000


def test_another_watcher_takes_over_what_waits() -> None:
    sums = StepSums(2, ["SGD"])
    sums.put(step(1))
    again = pickle.loads(pickle.dumps(sums))
    again.add(1, [Share(0, 1, 3.0)])
    assert [one.loss for one in again.take()] == [2.0]

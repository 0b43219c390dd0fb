"""``straggler``: a rank that the others wait for, from its own times."""

from __future__ import annotations

import pytest

from monitor.detect import Stragglers

EVEN = {0: 0.010, 1: 0.011, 2: 0.010, 3: 0.012}
SLOW = {**EVEN, 2: 0.030}


def test_one_begins_after_three_windows_and_ends_after_three() -> None:
    ranks = Stragglers()
    seen = [ranks.look(times, 0.05, step) for step, times in enumerate([EVEN, *[SLOW] * 5, *[EVEN] * 4])]
    ((start,), (end,)) = [events for events in seen if events]
    assert (start.kind, start.severity, start.step, start.details["rank"]) == ("straggler", "warning", 3, 2)
    assert start.message == (
        "the other ranks wait for rank 2: apart from the backward pass it takes 19 ms of a step longer than they do "
        "(38% of the step)"
    )
    assert (end.end_step, end.start_step, end.message) == (8, 3, "the others wait no longer for rank 2")


@pytest.mark.parametrize(
    ("windows", "step_time"),
    [
        ([EVEN] * 9, 0.05),
        ([SLOW, EVEN] * 9, 0.05),  # now and then
        ([SLOW, {**EVEN, 1: 0.030}] * 9, 0.05),  # now this one, now that
        ([SLOW] * 9, 0.2),  # little of a long step
        ([{0: 0.01}] * 9, 0.05),  # nobody to compare with
        ([{}] * 9, 0.05),
        ([SLOW] * 9, 0.0),
    ],
)
def test_nothing_else_is_one(windows: list[dict[int, float]], step_time: float) -> None:
    ranks = Stragglers()
    assert [events for step, times in enumerate(windows) if (events := ranks.look(times, step_time, step))] == []


def test_another_rank_that_becomes_slow_ends_the_first_event_before_its_own_begins() -> None:
    ranks = Stragglers()
    windows = [SLOW] * 3 + [{**EVEN, 1: 0.040}] * 6
    seen = [event for step, times in enumerate(windows) for event in ranks.look(times, 0.05, step)]
    assert [(event.details["rank"], event.end_step is None) for event in seen] == [(2, True), (2, False), (1, True)]

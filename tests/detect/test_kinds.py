"""The other kinds, one record after the other."""

from __future__ import annotations

import json
import math
import random

import pytest

from monitor._records import Clip, Event, Sample, Step
from monitor.detect import (
    ClippingDetector,
    Detector,
    DetectorSet,
    GradientExplosionDetector,
    GradientVanishingDetector,
    NonfiniteDetector,
    NonfiniteMetricDetector,
    SlowdownDetector,
    StallDetector,
    StuckDetector,
)
from tests.detect.records import events_of, learning, norms, raised, step, steps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_loss_is_raised_at_its_very_record(bad: float) -> None:
    """No delay, the last good step is named, and it is one event however long it lasts."""
    events = events_of(NonfiniteDetector(), steps([2.0] * 10 + [bad] * 90))
    assert [(event.kind, event.severity, event.step, event.start_step) for event in events] == [
        ("nonfinite", "critical", 11, 11)
    ]
    assert "at step 11; last good step 10. Restore the checkpoint of step 10 or before" in events[0].message


def test_a_flickering_loss_is_one_event() -> None:
    """NaN at every third record is one condition; it ends at the first of eight finite ones in a row."""
    losses = [2.0] * 10 + [math.nan, 2.0, 2.0] * 5 + [2.0] * 20
    start, end = events_of(NonfiniteDetector(), steps(losses))
    assert (start.step, end.start_step, end.end_step) == (11, 11, 24)


def found(records: list[Step]) -> list[tuple[int, int, str]]:
    """(step, onset, of what) of each nonfinite event that begins."""
    events = events_of(NonfiniteDetector(), records)
    return [(event.step, event.start_step, event.details["of"]) for event in events if event.end_step is None]


def test_a_nan_gradient_norm_without_a_scaler_is_trouble_at_once() -> None:
    """Nobody skips that step: the weights are gone."""
    assert found(norms([1.0] * 5 + [math.nan])) == [(6, 6, "gradient")]


def test_a_lone_infinite_gradient_norm_is_no_trouble() -> None:
    """In fp16 a sum of squares overflows now and then; two in a row come and go as well, with losses or without."""
    values = [1.0] * 5 + [math.inf] + [1.0] * 5 + [math.inf] * 2 + [1.0] * 5
    assert found(norms(values)) == []
    assert found(steps([2.0] * len(values), gradient_norm=values)) == []


def test_three_infinite_gradient_norms_in_a_row_are_trouble_from_the_first_on() -> None:
    """A row is one of norms: a step at which none was measured neither adds to it nor ends it."""
    assert found(norms([1.0] * 5 + [math.inf] * 9)) == [(8, 6, "gradient")]
    values = [1.0, math.inf, None, None, math.inf, None, math.inf, None]
    assert found(steps([2.0] * 8, gradient_norm=values)) == [(7, 2, "gradient")]


@pytest.mark.parametrize("unseen", [0, 3])
def test_an_infinite_gradient_norm_that_the_loss_follows_is_the_onset(unseen: int) -> None:
    """The loss shows that the gradients were infinite indeed, at the step that spoilt the weights."""
    losses = [2.0] * 5 + [2.0] + [2.0] * unseen + [math.nan] * 4
    values = [1.0] * 5 + [math.inf] + [None] * (unseen + 4)
    assert found(steps(losses, gradient_norm=values)) == [(7 + unseen, 6, "loss")]


def test_a_skipped_step_before_a_bad_loss_is_no_onset() -> None:
    """A step that the scaler skipped has not touched the weights."""
    records = [step(1, 2.0, gradient_norm=math.inf, amp_scale=1024.0, is_skipped=True)]
    assert found([*records, step(2, math.nan, gradient_norm=1.0, amp_scale=512.0)]) == [(2, 2, "loss")]


def logged(watch: Detector, kind: str, values: list[float], name: str = "x", first: int = 1) -> list[Event]:
    samples = [Sample(kind, name, value, number, 0.0) for number, value in enumerate(values, first)]
    return [event for sample in samples if (event := watch.observe(sample)) is not None]


@pytest.mark.parametrize(("kind", "name"), [("metric", "the metric 'x'"), ("val_loss", "the validation loss 'x'")])
@pytest.mark.parametrize(("bad", "shown"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_logged_value_that_is_not_finite_is_one_event(kind: str, name: str, bad: float, shown: str) -> None:
    """A warning that names the value lasts until it is finite again, however often it is logged meanwhile."""
    start, end = logged(NonfiniteMetricDetector(), kind, [1.0, 2.0, bad, bad, bad, 1.0, 1.0])
    assert (start.kind, start.severity, start.step, start.end_step) == ("nonfinite_metric", "warning", 3, None)
    assert start.message.startswith(f"{name} is {shown} at step 3. Look at the evaluation")
    assert (end.start_step, end.end_step) == (3, 6)
    assert end.message == f"{name} is finite again from step 6; it was {shown} since step 3"


def test_each_logged_name_has_its_own_event() -> None:
    """A validation loss and a metric of one name are two things, and so are two names at one step."""
    watch = NonfiniteMetricDetector()
    assert logged(watch, "val_loss", [math.nan], "validation")[0].message.startswith(
        "the validation loss is NaN at step 1."
    )
    assert logged(watch, "metric", [math.nan], "validation")[0].details == {"of": "metric", "name": "validation"}
    assert len(logged(watch, "metric", [math.nan, math.nan], "b")) == 1
    assert [event.end_step for event in logged(watch, "metric", [1.0], "b", first=3)] == [3]


def test_a_logged_value_that_flickers_is_few_events() -> None:
    """Each event of a name asks for one finite value more before it is over."""
    watch = NonfiniteMetricDetector()
    assert len(logged(watch, "metric", [math.nan, 1.0] * 500)) == 3


def test_what_is_logged_beyond_a_bound_of_names_is_passed_over() -> None:
    """Whoever makes up names without end does not fill the memory."""
    watch = NonfiniteMetricDetector()
    events = [event for n in range(1000) for event in logged(watch, "metric", [math.nan], f"m{n}")]
    assert len(events) == NonfiniteMetricDetector.most_names


def test_the_state_of_logged_values_is_resumed() -> None:
    """An open event of a name ends in the resumed run, from a state that went through JSON."""
    watch, resumed = NonfiniteMetricDetector(), NonfiniteMetricDetector()
    logged(watch, "metric", [math.nan])
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    (end,) = logged(resumed, "metric", [1.0], first=2)
    assert (end.start_step, end.end_step) == (1, 2)


def overflows(scales: list[float]) -> list[int]:
    """Steps at which a run under a GradScaler, overflowing at every step with these scales, is reported."""
    records = [
        step(number, 2.0, gradient_norm=math.inf, amp_scale=scale, is_skipped=True)
        for number, scale in enumerate(scales, 1)
    ]
    return [event.step for event in events_of(NonfiniteDetector(), records)]


def test_a_scaler_may_overflow_seven_times_in_a_row() -> None:
    """GradScaler finds its scale by overflowing; the eighth skip in a row is trouble, from the first on."""
    assert overflows([65536.0 / 2**n for n in range(7)]) == []
    assert overflows([65536.0 / 2**n for n in range(12)]) == [8]


def test_an_overflow_at_the_floor_of_the_scale_is_trouble() -> None:
    """There is nothing left to halve."""
    assert overflows([2.0, 1.0]) == [2]


def noisy(count: int, level: float, seed: int = 0, spread: float = 0.3) -> list[float]:
    source = random.Random(seed)
    return [level * math.exp(source.gauss(0, spread)) for _ in range(count)]


def test_a_norm_that_stays_ten_times_up_is_an_explosion() -> None:
    """The event names level and height, and ends when the norm is back."""
    values = noisy(300, 0.5) + noisy(60, 50.0, 1) + noisy(100, 0.5, 2)
    start, end = events_of(GradientExplosionDetector(), norms(values))
    assert start.kind == "gradient_explosion"
    assert start.start_step == 301
    assert start.step < 320
    assert end.end_step is not None
    assert end.end_step > 360


def test_norms_of_a_healthy_run_are_no_explosion() -> None:
    """Swings of a factor of five and single peaks of a thousand are health."""
    values = noisy(2000, 0.5, spread=0.5)
    for place in range(100, 2000, 300):
        values[place] = 500.0
    assert events_of(GradientExplosionDetector(), norms(values)) == []


def test_a_norm_that_stays_below_a_thousandth_is_vanishing() -> None:
    """Zero counts; a slow decline over many doublings does not."""
    start, end = events_of(GradientVanishingDetector(), norms(noisy(300, 0.5) + [0.0] * 30 + noisy(50, 0.5, 1)))
    assert (start.kind, start.start_step, start.step, end.end_step) == ("gradient_vanishing", 301, 316, 331)
    declining = [value / (1 + n) for n, value in enumerate(noisy(5000, 0.5))]
    assert events_of(GradientVanishingDetector(), norms(declining)) == []


def clipped(shares: list[bool | None]) -> list[tuple[int, int | None]]:
    records = [
        step(number, 2.0, clips=(Clip("norm", 1.0, is_clipped, 0.5),)) for number, is_clipped in enumerate(shares, 1)
    ]
    return [(event.step, event.end_step) for event in events_of(ClippingDetector(), records)]


def test_clipping_at_nearly_every_step_is_reported_after_a_while_and_ends() -> None:
    """A hundred and twenty-eight clipped steps are saturation; the usual clipping of the first steps is not."""
    assert clipped([True] * 127) == []
    assert clipped([True] * 200 + [False] * 30)[0] == (128, None)
    assert clipped([True] * 200 + [False] * 30)[1][1] is not None
    assert clipped([True, False] * 500) == []
    assert clipped([None, True] * 127) == []
    assert clipped([None, True] * 128)[0] == (256, None)


def test_fifty_identical_losses_are_stuck() -> None:
    """The fiftieth equal loss is the event, the first other one its end."""
    losses = [3.0, 2.9] + [2.8] * 60 + [2.7]
    start, end = events_of(StuckDetector(), steps(losses))
    assert (start.kind, start.start_step, start.step, end.end_step) == ("stuck", 3, 52, 63)
    assert events_of(StuckDetector(), steps([2.8] * 49)) == []


def test_a_stall_is_told_by_the_time_that_is_passed_in() -> None:
    """Ten usual step times, but a minute at least and the set timeout at most."""
    watch = StallDetector()
    for number in range(1, 50):
        watch.update(step(number, 2.0, time=20.0 * number, duration=20.0))
    assert watch.timeout == 200.0
    last = 20.0 * 49
    assert watch.tick(last + 200.0) is None
    event = watch.tick(last + 201.0)
    assert event is not None
    assert (event.kind, event.severity, event.step) == ("stall", "critical", 49)
    assert "no step for 201 s since step 49; a step usually takes 20 s" in event.message
    assert watch.tick(last + 300.0) is None
    end = watch.update(step(50, 2.0, time=last + 400.0, duration=400.0))
    assert end is not None
    assert end.end_step == 50


def test_validation_and_checkpoints_are_no_stall() -> None:
    """While the caller excuses the silence, the time does not count; afterwards it counts from there."""
    watch = StallDetector()
    watch.update(step(1, 2.0, time=0.0, duration=1.0))
    assert watch.tick(500.0, is_excused=True) is None
    assert watch.tick(559.0) is None
    assert watch.tick(561.0) is not None


def test_there_is_no_stall_before_the_first_record() -> None:
    """Compiling and loading take what they take; so does the time between two sessions."""
    watch = StallDetector()
    assert watch.tick(1e9) is None
    watch.update(step(1, 2.0, time=0.0, duration=1.0))
    resumed = StallDetector()
    resumed.load_state_dict(watch.state_dict())
    assert resumed.tick(1e9) is None


def slowdowns(durations: list[float]) -> list[tuple[str, bool]]:
    records = [step(number, None, duration=duration) for number, duration in enumerate(durations, 1)]
    return [(event.kind, event.end_step is None) for event in events_of(SlowdownDetector(), records)]


def test_a_step_time_that_stays_up_is_a_slowdown() -> None:
    """Twice as long for two hundred steps is reported and ends; single slow steps are validations."""
    usual, slow = noisy(300, 1.0, spread=0.02), noisy(200, 2.0, 1, spread=0.02)
    assert slowdowns(usual + slow + noisy(300, 1.0, 2, spread=0.02)) == [("slowdown", True), ("slowdown", False)]
    with_validations = [20.0 if n % 50 == 49 else value for n, value in enumerate(usual)]
    assert slowdowns(with_validations) == []


def test_an_announced_change_mutes_the_rise_that_it_brings() -> None:
    """A new batch size lifts loss, norm and step time at once: nothing is raised; the same rise later is."""

    def run(announce_at: int) -> set[str]:
        watch = DetectorSet()
        found = set()
        records = steps(
            raised(learning(500), 300, 60, 0.3),
            gradient_norm=noisy(300, 0.5) + noisy(200, 20.0),
            duration=noisy(300, 1.0, spread=0.02) + noisy(200, 3.0, spread=0.02),
        )
        for record in records:
            if record.number == announce_at:
                watch.announce()
            found |= {event.kind for event in watch.update(record)}
        return found

    assert run(announce_at=301) == set()
    assert run(announce_at=100) >= {"spike", "gradient_explosion", "slowdown"}


@pytest.mark.parametrize(("factor", "is_muted"), [(2.0, True), (1.2, False), (0.1, False)])
def test_only_a_learning_rate_raised_by_half_is_an_announcement(factor: float, is_muted: bool) -> None:
    """Decay needs nothing, small steps neither."""
    rates = [1e-3] * 300 + [1e-3 * factor] * 200
    losses = raised(learning(500), 302, 30, 0.5)
    kinds = {event.kind for event in events_of(DetectorSet(), steps(losses, lr=rates))}
    assert ("spike" in kinds) is not is_muted


def test_nonfinite_is_never_muted() -> None:
    """A NaN after an announced change is a NaN."""
    watch = DetectorSet()
    watch.announce(1000)
    assert [event.kind for event in events_of(watch, steps([math.nan]))] == ["nonfinite"]

"""Spikes and outliers: persistence, not height, tells them apart."""

from __future__ import annotations

import math
import random

import pytest

from monitor.detect import DetectorSet, LossSettings, OutlierDetector, SpikeDetector, default_detectors
from tests.detect.records import events_of, learning, raised, step, steps


def test_a_sustained_rise_is_a_spike_with_onset_and_end() -> None:
    """Ten records ten scales up are a spike; its onset is the first of them, its end soon after the last."""
    start, end = events_of(SpikeDetector(), steps(raised(learning(400), 300, 10, 0.5)))
    assert (start.kind, start.severity, start.optimizer) == ("spike", "warning", "adam")
    assert start.start_step == 301
    assert 303 <= start.step <= 306
    assert start.end_step is None
    assert (end.kind, end.step, end.start_step) == (start.kind, start.step, start.start_step)
    assert end.end_step is not None
    assert 311 <= end.end_step <= 316


def test_the_message_names_levels_onset_and_last_good_step() -> None:
    """A person reads from where to where the loss rose, since when, and the step to go back to."""
    start = events_of(SpikeDetector(), steps(raised(learning(400), 300, 10, 2.5)))[0]
    assert start.message.startswith("loss rose from 2.1")
    assert "to 4.7" in start.message
    assert "since step 301; last good step 300. " in start.message
    assert start.details["last_good_step"] == 300


@pytest.mark.parametrize("count", [1, 2])
def test_an_isolated_point_of_any_height_is_no_spike(count: int) -> None:
    """One or two records a thousand scales up are an outlier, reported when they are over, and nothing else."""
    detectors = DetectorSet([d for d in default_detectors() if d.kind in ("spike", "outlier", "divergence")])
    events = events_of(detectors, steps(raised(learning(400), 300, count, 30.0)))
    assert [(event.kind, event.severity) for event in events] == [("outlier", "info")]
    assert (events[0].start_step, events[0].end_step, events[0].step) == (301, 300 + count, 301 + count)


def test_a_spike_is_no_outlier() -> None:
    """What was a spike is not counted again as an isolated point."""
    assert events_of(OutlierDetector(), steps(raised(learning(400), 300, 12, 0.5))) == []


def test_a_spike_does_not_mask_the_next_one() -> None:
    """Trouble does not enter its own baseline: three spikes in a row are three events."""
    losses = learning(600)
    for first in (300, 350, 400):
        losses = raised(losses, first, 12, 1.5)
    starts = [event for event in events_of(SpikeDetector(), steps(losses)) if event.end_step is None]
    assert [event.start_step for event in starts] == [301, 351, 401]


def test_a_falling_loss_raises_nothing() -> None:
    """A power law with noise, a drop as the rate decays, and noise that grows back slowly are health."""
    losses = learning(3000)
    losses = [loss - 0.4 if index > 1500 else loss for index, loss in enumerate(losses)]
    assert events_of(SpikeDetector(), steps(losses)) == []


def test_a_sparse_log_needs_two_records_and_not_one() -> None:
    """Where a record stands for 32 steps, two high ones are a spike; one is an outlier, as in a dense log."""

    def spikes(count: int, steps_per_record: float) -> int:
        watch = SpikeDetector(LossSettings(steps_per_record=steps_per_record))
        return sum(event.end_step is None for event in events_of(watch, steps(raised(learning(100), 80, count, 1.0))))

    assert spikes(2, 32.0) == 1
    assert spikes(1, 32.0) == 0
    assert spikes(2, 1.0) == 0


def test_one_isolated_point_does_not_blind_a_sparse_log() -> None:
    """A spike of two records is found after an isolated point as before it."""
    losses = raised(raised(learning(100), 50, 1, 1.0), 80, 2, 1.0)
    events = events_of(SpikeDetector(LossSettings(steps_per_record=32.0)), steps(losses))
    assert [event.start_step for event in events] == [81, 81]


def test_noise_that_wanders_raises_its_own_threshold() -> None:
    """A sawtooth of data in order, six times the white noise, raises nothing; a rise far above it does."""
    source = random.Random(1)
    losses = [2.0 + (0.12 if n % 100 < 25 else 0.0) + source.gauss(0, 0.02) for n in range(6000)]
    assert events_of(SpikeDetector(), steps(losses)) == []
    events = events_of(SpikeDetector(), steps(raised(losses, 5000, 20, 1.0)))
    assert [event.start_step for event in events] == [5001, 5001]


def test_printed_digits_are_no_noise() -> None:
    """A loss near the last printed digit, which flips, raises nothing; twenty digits up for a while do."""
    source = random.Random(2)
    losses = [round(2e-4 * (1 + source.gauss(0, 0.2)), 4) for _ in range(800)]
    assert events_of(SpikeDetector(), steps(losses)) == []
    events = events_of(SpikeDetector(), steps(raised(losses, 600, 12, 4e-3)))
    assert [event.start_step for event in events] == [601, 601]


def test_a_loss_that_falls_by_decades_is_judged_by_its_ratio() -> None:
    """Ten times the level is a spike where the level is a millionth of what the run began with."""
    source = random.Random(3)
    losses = [10 ** (-6 * (1 - math.exp(-n / 150))) * math.exp(source.gauss(0, 0.1)) for n in range(800)]
    assert events_of(SpikeDetector(), steps(losses)) == []
    up = [loss * (10.0 if 600 <= n < 612 else 1.0) for n, loss in enumerate(losses)]
    assert [event.start_step for event in events_of(SpikeDetector(), steps(up))] == [601, 601]


def test_a_loss_below_zero_is_judged_as_it_is() -> None:
    """An ELBO, or a loss that goes below zero in the middle of the run, has spikes as any other."""
    for shift in (-10.0, -2.4):
        losses = [loss + shift for loss in raised(learning(600), 500, 12, 1.0)]
        assert [event.start_step for event in events_of(SpikeDetector(), steps(losses))] == [501, 501]


def test_an_event_says_how_often_noise_reaches_as_high() -> None:
    """The rate is that of the run's own noise, and lies below the one that was asked for."""
    start = events_of(SpikeDetector(), steps(raised(learning(400), 300, 10, 0.5)))[0]
    assert 0.0 <= start.details["alarms_per_100k_steps"] < 1.0


def test_a_higher_rate_finds_smaller_spikes() -> None:
    """``false_alarms_per_100k_steps`` moves the threshold."""
    losses = steps(raised(learning(400), 300, 10, 0.12))
    found = [events_of(SpikeDetector(LossSettings(false_alarms_per_100k_steps=r)), losses) for r in (0.01, 100.0)]
    assert [bool(events) for events in found] == [False, True]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_asked_rate_holds_on_noise(share: float) -> None:
    """Autocorrelated noise raises at most three times the asked rate: here, at 10 in 100,000, on 40,000 records."""
    source, value, count, detector = (
        random.Random(5),
        0.0,
        0,
        SpikeDetector(LossSettings(false_alarms_per_100k_steps=10.0)),
    )
    for number in range(1, 40_001):
        value = share * value + math.sqrt(1 - share * share) * source.gauss(0, 1)
        event = detector.update(step(number, 3.0 + 0.02 * value))
        count += event is not None and event.end_step is None
    assert count <= 12


def test_the_first_records_raise_nothing() -> None:
    """A hump within the warm-up of the level is not judged."""
    assert events_of(SpikeDetector(), steps(raised(learning(60), 3, 6, 5.0))) == []


def test_a_constant_loss_that_jumps_is_a_spike() -> None:
    """A loss without any noise has a scale of its own size, not of zero."""
    events = events_of(SpikeDetector(), steps([2.0] * 100 + [3.0] * 10 + [2.0] * 50))
    assert [event.end_step is None for event in events] == [True, False]


def test_a_loss_of_zero_is_no_trouble() -> None:
    """A loss of exactly 0, then a record that is not, then 0 again, divides by nothing."""
    assert events_of(SpikeDetector(), steps([0.0] * 100 + [1e-9] + [0.0] * 100)) == []

"""What holds for every loss: scale, shift, numbering, NaN and a restart change nothing."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor._records import Step
from monitor.detect import DetectorSet, LossSettings, SignalSettings, SpikeDetector
from tests.detect.records import events_of, steps

Reported = list[tuple[str, int, int, int | None]]
few = settings(max_examples=25)


def reported(watch: DetectorSet, records: list[Step]) -> Reported:
    return [(e.kind, e.start_step, e.step, e.end_step) for e in events_of(watch, records)]


@st.composite
def curves(draw: st.DrawFn, length: int = 300) -> list[float]:
    """A falling loss with noise of any size, and up to three troubles: points, spikes, jumps."""
    source = random.Random(draw(st.integers(0, 2**32)))
    noise = draw(st.sampled_from([0.0, 0.001, 0.03, 0.3]))
    power = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    losses = [2 + 4 * (n + 1) ** -power + source.gauss(0, noise) for n in range(length)]
    for _ in range(draw(st.integers(0, 3))):
        first = draw(st.integers(20, length - 1))
        count = draw(st.sampled_from([1, 2, 10, 60, length]))
        height = draw(st.sampled_from([0.1, 1.0, 10.0, 1e4]))
        losses = [x + height if first <= n < first + count else x for n, x in enumerate(losses)]
    return losses


@few
@given(curves(), st.sampled_from([2.0**-30, 0.25, 2.0**40]))
def test_a_change_of_the_unit_changes_no_event(losses: list[float], factor: float) -> None:
    """The same loss in another unit gives the same events of every kind."""
    scaled = [factor * loss for loss in losses]
    assert reported(DetectorSet(), steps(scaled)) == reported(DetectorSet(), steps(losses))


@few
@given(curves(), st.sampled_from([-1024.0, 4096.0]))
def test_a_shift_changes_no_spike_where_the_rule_knows_no_zero(losses: list[float], shift: float) -> None:
    """Without the floor, which is a share of the level, a loss below zero may lie anywhere."""
    rule = LossSettings(signal=SignalSettings(floor=0.0))
    # Losses on a grid, so that the shifted ones are exact and noiseless stretches stay noiseless.
    grid = [round(loss * 2**20) / 2**20 for loss in losses]
    below = [loss - 2.0 * max(map(abs, grid)) - 1.0 for loss in grid]
    below = [round(loss * 2**20) / 2**20 for loss in below]
    plain = reported(DetectorSet([SpikeDetector(rule)]), steps(below))
    assert reported(DetectorSet([SpikeDetector(rule)]), steps([loss - abs(shift) for loss in below])) == plain


@few
@given(curves(), st.integers(0, 10**9), st.integers(1, 1000))
def test_a_change_of_numbering_changes_only_the_numbers(losses: list[float], offset: int, stride: int) -> None:
    """A resumed run, or one that counts samples, has the same events under its own numbers."""

    def rename(number: int | None) -> int | None:
        return None if number is None else offset + stride * number

    numbers = [offset + stride * n for n in range(1, len(losses) + 1)]
    plain = reported(DetectorSet(), steps(losses))
    renamed = [(kind, rename(start), rename(at), rename(end)) for kind, start, at, end in plain]
    assert reported(DetectorSet(), steps(losses, global_step=numbers)) == renamed


@few
@given(curves(), st.integers(0, 300), st.sampled_from([math.nan, math.inf, None, 1e200]))
def test_a_value_that_is_none_is_as_if_it_had_not_been(losses: list[float], place: int, bad: float | None) -> None:
    """Whatever stands in one place that is no usable loss, the other records give the same events."""
    with_bad = [*losses[:place], bad, *losses[place:]]
    kept = [n for n in range(1, len(with_bad) + 1) if n != place + 1]
    found = reported(DetectorSet(), steps(with_bad))
    plain = reported(DetectorSet(), steps(losses, global_step=kept))
    assert [event for event in found if event[0] != "nonfinite"] == plain


@few
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 250), st.integers(1, 60)), max_size=4))
def test_nan_at_any_place_never_blinds_for_good(seed: int, holes: list[tuple[int, int]]) -> None:
    """Stretches of NaN anywhere before it hide no later spike."""
    source = random.Random(seed)
    losses = [2 + 4 * (n + 1) ** -0.5 + source.gauss(0, 0.03) for n in range(500)]
    losses = [loss + 3.0 if 450 <= n < 470 else loss for n, loss in enumerate(losses)]
    for first, count in holes:
        losses = [math.nan if first <= n < first + count else loss for n, loss in enumerate(losses)]
    assert any(event[0] == "spike" and 451 <= event[2] <= 460 for event in reported(DetectorSet(), steps(losses)))


@few
@given(curves(), st.data())
def test_a_restart_at_any_point_gives_the_same_events(losses: list[float], data: st.DataObject) -> None:
    """State through JSON into new detectors, anywhere: what comes after is the same."""
    place = data.draw(st.integers(0, len(losses)))
    source = random.Random(place)
    fields: dict[str, Any] = {
        "gradient_norm": [math.exp(source.gauss(0, 0.5)) * (100 if 200 < n < 240 else 1) for n in range(len(losses))],
        "duration": [1 + 0.01 * source.random() + (n > 150) for n in range(len(losses))],
        "lr": [1e-3 if n < 250 else 1e-2 for n in range(len(losses))],
    }
    records = steps(losses, **fields)
    whole = reported(DetectorSet(), records)
    first = DetectorSet()
    before = reported(first, records[:place])
    second = DetectorSet()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + reported(second, records[place:]) == whole


@few
@given(st.lists(st.floats(width=64), min_size=1, max_size=120))
def test_no_float_makes_a_detector_raise(values: list[float]) -> None:
    """Any doubles at all, subnormal to infinite, in every field."""
    records = steps(values, gradient_norm=values[::-1], duration=values, lr=values)
    for event in events_of(DetectorSet(), records):
        assert event.message

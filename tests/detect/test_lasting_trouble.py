"""Divergence, plateau, overfit: conditions that last."""

from __future__ import annotations

import math
import random

import pytest

from monitor._records import Sample
from monitor.detect import DetectorSet, DivergenceDetector, OverfitDetector, PlateauDetector
from monitor.detect._plateau import mann_kendall, theil_sen
from tests.detect.records import events_of, learning, raised, step, steps


def test_a_rise_that_stays_is_a_divergence() -> None:
    """A loss that goes up by half of its progress and stays is reported once, with the last good step."""
    events = events_of(DivergenceDetector(), steps(raised(learning(800), 400, 400, 1.0)))
    assert [(event.kind, event.severity, event.start_step) for event in events] == [("divergence", "critical", 401)]
    assert events[0].details["last_good_step"] == 400
    assert 450 <= events[0].step <= 475
    assert "stays there; last good step 400" in events[0].message


def test_a_spike_that_recovers_is_no_divergence() -> None:
    """Thirty records up and back are a spike at most."""
    assert events_of(DivergenceDetector(), steps(raised(learning(800), 400, 30, 1.0))) == []


def test_a_loss_above_where_it_began_is_a_divergence_at_once() -> None:
    """A blow-up past the start is not waited for."""
    event = events_of(DivergenceDetector(), steps(raised(learning(800), 400, 400, 50.0)))[0]
    assert event.start_step == 401
    assert event.step <= 420


def test_a_divergence_ends_when_the_loss_is_back() -> None:
    """A run that comes back after hundreds of records ends the event."""
    start, end = events_of(DivergenceDetector(), steps(raised(learning(1200), 400, 300, 1.0)))
    assert start.end_step is None
    assert end.end_step is not None
    assert 701 <= end.end_step <= 720


def test_a_large_rise_on_its_way_back_is_waited_for() -> None:
    """A hundredfold loss that has come a third of the way back gets the time of a small rise; one that stays, none."""
    losses = [2.0 + n % 5 / 100 for n in range(60)]
    back = [loss * max(1.0, 100.0 * 0.7 ** (n - 60)) if n >= 60 else loss for n, loss in enumerate(losses * 3)]
    assert events_of(DivergenceDetector(), steps(back)) == []
    stays = [loss * (100.0 if n >= 60 else 1.0) for n, loss in enumerate(losses * 3)]
    assert [event.step for event in events_of(DivergenceDetector(), steps(stays))] == [70]


def test_a_plateau_that_falls_by_a_step_is_over_and_the_next_one_is_told() -> None:
    """Flat, then flat a tenth lower: two plateaus, whatever the median slope says."""
    source = random.Random(5)
    losses = [(1.0 if n < 400 else 0.9) * (1 + source.gauss(0, 0.003)) for n in range(1600)]
    events = events_of(PlateauDetector(), steps(losses))
    assert [event.end_step is None for event in events] == [True, False, True]
    assert events[1].end_step > 400


def test_a_slow_drift_back_is_a_divergence() -> None:
    """A loss that creeps up over a thousand records, too slowly for any spike, has given back what it had learned."""
    losses = [loss + min(1.5, max(0.0, (index - 500) * 0.0015)) for index, loss in enumerate(learning(4000))]
    events = events_of(DivergenceDetector(), steps(losses))
    assert [event.kind for event in events] == ["divergence"]
    assert events[0].start_step > 500


def test_a_rise_no_higher_than_the_noise_of_one_record_is_seen_in_blocks() -> None:
    """A median that moves by four deviations of very noisy single records is found."""
    source = random.Random(3)
    losses = [math.exp(source.gauss(0, 0.5)) * (4.0 if index > 300 else 1.0) for index in range(700)]
    assert [event.kind for event in events_of(DivergenceDetector(), steps(losses))] == ["divergence"]


def test_a_block_that_has_been_watched_is_not_watched_again() -> None:
    """A rise seen in blocks that came back and comes again, while the blocks still count it, is no divergence."""
    source = random.Random(4)
    high = [*range(200, 280), *range(300, 440)]
    losses = [2.0 + source.gauss(0, 0.1) + (0.2 if index in high else 0.0) for index in range(600)]
    assert events_of(DivergenceDetector(), steps(losses)) == []


def test_a_raised_learning_rate_lifts_a_healthy_loss_without_a_divergence() -> None:
    """A warm restart brings the loss to where that rate can keep it: part of the progress, and announced by the LR."""
    losses = raised(learning(1000), 500, 300, 0.3)
    rates = [1e-3 if 500 <= index < 800 else 1e-5 for index in range(1000)]
    assert events_of(DetectorSet(), steps(losses, lr=rates)) == []
    assert events_of(DetectorSet(), steps(losses)) != []


def test_a_raised_learning_rate_that_costs_the_progress_is_a_divergence() -> None:
    """Announced or not, a loss that goes back to where it began is reported."""
    losses = raised(learning(1000), 500, 500, 2.5)
    rates = [1e-3 if index >= 500 else 1e-5 for index in range(1000)]
    events = events_of(DetectorSet(), steps(losses, lr=rates))
    assert [event.kind for event in events if event.end_step is None] == ["divergence"]


def test_a_flat_loss_is_a_plateau() -> None:
    """A loss that has fallen and then stays flat for a doubling of steps and more is reported once."""
    source = random.Random(1)
    losses = [2.3 + 2 * math.exp(-index / 10) + source.gauss(0, 0.05) for index in range(2000)]
    events = events_of(PlateauDetector(), steps(losses))
    assert [event.kind for event in events] == ["plateau"]
    assert "no progress: loss stays near 2.29" in events[0].message


def test_a_power_law_is_no_plateau() -> None:
    """Progress per doubling of steps continues, however slow it looks per step."""
    source = random.Random(1)
    losses = [2.0 + 8 * (index + 1) ** -0.3 + source.gauss(0, 0.05) for index in range(20_000)]
    assert events_of(PlateauDetector(), steps(losses)) == []


def test_a_plateau_ends_when_the_loss_moves() -> None:
    """A late breakthrough ends the plateau."""
    source = random.Random(1)
    losses = [(2.3 if index < 1000 else 1.0) + source.gauss(0, 0.02) for index in range(3000)]
    events = events_of(PlateauDetector(), steps(losses))
    assert [event.end_step is None for event in events[:2]] == [True, False]
    assert events[1].end_step is not None
    assert events[1].end_step > 1000


@pytest.mark.parametrize(
    "rate", [lambda i: 1e-3 if i < 20 else 1e-5, lambda i: 1e-6 * 1.01**i], ids=["schedule at its end", "warm-up"]
)
def test_a_flat_loss_is_no_plateau_where_the_schedule_says_why(rate: object) -> None:
    """While the learning rate is warmed up, and when it has ended, a flat loss is its purpose."""
    source = random.Random(1)
    losses = [2.3 + source.gauss(0, 0.05) for _ in range(900)]
    rates = [rate(index) for index in range(900)]  # type: ignore[operator]
    assert events_of(PlateauDetector(), steps(losses, lr=rates)) == []


def test_theil_sen_and_mann_kendall_are_right_on_known_numbers() -> None:
    """The slope of a line with an outlier is the line's; the trend of 1..10 is S = 45 over sqrt(125)."""
    assert theil_sen([10.0, 8.0, 6.0, 100.0, 2.0]) == -2.0
    assert mann_kendall([float(n) for n in range(10)]) == pytest.approx(45 / math.sqrt(125))
    assert mann_kendall([3.0] * 10) == 0.0


def validated(train: list[float], validation: list[float], every: int = 10) -> list[str]:
    """The kinds of events of a run with a validation after every ``every`` steps."""
    watch = DetectorSet([OverfitDetector()])
    kinds = []
    for number, loss in enumerate(train, 1):
        assert watch.update(step(number, loss)) == []
        if number % every == 0 and number // every <= len(validation):
            events = watch.observe(Sample("val_loss", "val", validation[number // every - 1], number, float(number)))
            kinds += [event.kind if event.end_step is None else f"{event.kind} over" for event in events]
    return kinds


RISING = [3 - 0.1 * n for n in range(15)] + [1.6 + 0.04 * n for n in range(25)]


def test_validation_that_rises_while_training_falls_is_overfitting() -> None:
    """The best validation loss is the onset; the event comes once."""
    assert validated([3 - 0.005 * n for n in range(400)], RISING) == ["overfit"]


def test_validation_that_rises_with_training_is_no_overfitting() -> None:
    """When both get worse it is another trouble."""
    train = [3 - 0.01 * n for n in range(150)] + [1.5 + 0.01 * n for n in range(250)]
    assert validated(train, RISING) == []


def test_validation_that_flattens_is_no_overfitting() -> None:
    """A flat validation loss with noise is health."""
    source = random.Random(2)
    flat = [1.5 + 3 / (n + 1) + source.gauss(0, 0.02) for n in range(40)]
    assert validated([3 - 0.005 * n for n in range(400)], flat) == []


def test_overfitting_ends_at_a_new_best() -> None:
    """A validation loss that comes back ends the event."""
    back = [*RISING[:30], *[1.4 - 0.01 * n for n in range(10)]]
    assert validated([3 - 0.005 * n for n in range(400)], back) == ["overfit", "overfit over"]


def test_other_samples_are_passed_over() -> None:
    """Metrics, losses and counts that the user logs are no validation losses."""
    watch = DetectorSet()
    for number in range(200):
        assert watch.observe(Sample("metric", "accuracy", float(number), number, 0.0)) == []
    assert watch.active == ()

"""Causes of misses and of false alarms, each with a healthy twin that differs by the trouble alone."""

from __future__ import annotations

import math
import random

import pytest

from monitor._records import Sample
from monitor.detect import (
    Detector,
    DetectorSet,
    DivergenceDetector,
    LossSettings,
    MaximaSettings,
    OverfitDetector,
    PlateauDetector,
    PlateauSettings,
    SpikeDetector,
    default_detectors,
)
from monitor.detect._maxima import BlockMaxima
from monitor.detect._signal import LossSignal
from tests.detect.records import events_of, learning, steps


def curve(count: int, seed: int, noise: float = 0.01, end: float = 0.3) -> list[float]:
    """A falling power law with relative noise, like the families of the labelled curves."""
    source = random.Random(seed)
    return [(8 * end + 8 * (1 - end) * (1 + n / 15) ** -0.5) * (1 + source.gauss(0, noise)) for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_divergence_in_a_log_of_few_records_is_found(seed: int) -> None:
    """Thirty records whose loss leaves for good at the twelfth are a divergence; one high record is none."""
    losses = curve(30, seed)
    left = [loss if n < 12 else 3.0 * losses[11] for n, loss in enumerate(losses)]
    assert [event.kind for event in events_of(DivergenceDetector(), steps(left))] == ["divergence"]
    one = [loss * (1.3 if n == 12 else 1.0) for n, loss in enumerate(losses)]
    assert events_of(DivergenceDetector(), steps(one)) == []


def test_a_large_rise_that_comes_back_is_no_divergence() -> None:
    """Twice the level for three records, and again for forty of 400, is a spike."""
    losses = [loss * (2.0 if 300 <= n < 303 or 350 <= n < 390 else 1.0) for n, loss in enumerate(curve(500, 1))]
    assert events_of(DivergenceDetector(), steps(losses)) == []


def test_a_blowup_in_the_warm_up_of_the_learning_rate_is_found() -> None:
    """The first steps of a linear warm-up double the rate, and mute nothing."""
    losses = [loss * (10.0 ** (0.8 * max(0, n - 39)) if n < 50 else 1e8) for n, loss in enumerate(curve(60, 2))]
    rates = [0.001 * (n + 1) for n in range(60)]
    watch = DetectorSet([d for d in default_detectors() if d.kind in ("spike", "divergence")])
    assert any(40 <= event.step <= 46 for event in events_of(watch, steps(losses, lr=rates)))


def test_a_late_plateau_is_found_before_it_is_twice_as_long_as_the_run_before() -> None:
    """Flat from 40 % of the run on, in low noise; a twin that gains 4 % per doubling is none."""
    base = curve(1000, 3, noise=0.0)
    source = random.Random(4)
    flat = [min(loss, base[400]) if n < 400 else base[400] for n, loss in enumerate(base)]
    events = events_of(PlateauDetector(), steps([loss * (1 + source.gauss(0, 0.01)) for loss in flat]))
    assert [event.kind for event in events] == ["plateau"]
    assert events[0].step < 1000
    slow = [base[n] if n < 400 else base[400] * (1 - 0.04 * math.log2(n / 400)) for n in range(1000)]
    assert events_of(PlateauDetector(), steps([loss * (1 + source.gauss(0, 0.01)) for loss in slow])) == []


def test_a_plateau_before_the_rate_is_cut_is_not_excused_by_the_cut() -> None:
    """What is flat since a high learning rate is a plateau also when the schedule has ended meanwhile."""
    base, source = curve(1000, 5, noise=0.0), random.Random(6)
    flat = [base[min(n, 150)] * (1 + source.gauss(0, 0.01)) for n in range(1000)]
    rates = [0.1 * 0.25 ** sum(n >= cut for cut in (300, 400, 500, 600)) for n in range(1000)]
    assert [event.kind for event in events_of(PlateauDetector(), steps(flat, lr=rates))] == ["plateau"]


def test_an_expected_initial_loss_shows_a_run_that_never_learns_at_once() -> None:
    """At ln 2 from the first of 60 records on: a plateau where that is expected, nothing yet where it is not known."""
    source = random.Random(7)
    losses = [math.log(2) * (1 + source.gauss(0, 0.002)) for _ in range(60)]
    knows = PlateauSettings(expected_initial_loss=math.log(2))
    assert [event.kind for event in events_of(PlateauDetector(knows), steps(losses))] == ["plateau"]
    assert events_of(PlateauDetector(), steps(losses)) == []


def test_what_the_settings_expect_stands_against_what_is_found_out() -> None:
    """The number of classes that the loss function tells is taken only where the user has said nothing."""
    losses = [math.log(2) + 0.001 * (n % 5) for n in range(60)]
    told, says_otherwise = PlateauDetector(), PlateauDetector(PlateauSettings(expected_initial_loss=5.0))
    for detector in (told, says_otherwise):
        DetectorSet([detector]).expect(math.log(2))
    assert [event.kind for event in events_of(told, steps(losses))] == ["plateau"]
    assert events_of(says_otherwise, steps(losses)) == []


def overfits(validations: list[float]) -> list[str]:
    """What is said to validations every tenth record, while the training loss falls."""
    watch, source, kinds = DetectorSet([OverfitDetector()]), random.Random(8), []
    for n in range(10 * len(validations)):
        watch.update(steps([math.exp(-0.005 * n) * (1 + source.gauss(0, 0.02))], first=n)[0])
        if n % 10 == 9:
            kinds += [
                event.kind for event in watch.observe(Sample("val_loss", "validation", validations[n // 10], n, 0))
            ]
    return kinds


def test_six_validations_can_show_overfitting() -> None:
    """A best at the second of six, and a climb of a fifth; the same with noise alone is none."""
    assert overfits([1.0, 0.95, 1.0, 1.06, 1.12, 1.19]) == ["overfit"]
    assert overfits([1.0, 0.95, 0.96, 0.945, 0.96, 0.95]) == []


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_many_validations_is_a_lucky_one(seed: int) -> None:
    """Two hundred validations that still fall, with noise that wanders by 5 %, are no overfitting."""
    source, off, values = random.Random(seed), 0.0, []
    for n in range(200):
        off = 0.7 * off + 0.7 * source.gauss(0, 0.05)
        values.append((0.04 + 0.08 / (1 + n / 3)) * math.exp(off))
    assert overfits(values) == []


def test_the_scale_of_a_slope_is_its_noise() -> None:
    """A steep fall without noise does not widen the scale: second differences are blind to it, and so is the lag."""
    signal, source = LossSignal(), random.Random(9)
    for n in range(300):
        signal.update(math.exp(-0.02 * n + source.gauss(0, 0.01)))
    assert 0.005 < signal.scale < 0.02


def test_zero_below_the_printed_digits_keeps_the_logarithm_and_other_zeros_end_it() -> None:
    """0.0000 among 0.0001 and 0.0002 is rounding; a hinge loss of exactly zero is not."""
    rounded, hinge, source = LossSignal(), LossSignal(), random.Random(10)
    for _ in range(100):
        rounded.update(source.choice([0.0, 1e-4, 2e-4]) if rounded.count > 20 else source.choice([1e-4, 2e-4]))
        hinge.update(max(0.0, source.gauss(0.2, 0.2)))
    assert rounded.is_log
    assert not hinge.is_log


def test_block_maxima_learn_a_gumbel_distribution() -> None:
    """Height and probability are inverse, and a height fits the share of blocks that exceed it."""
    source, maxima = random.Random(11), BlockMaxima(MaximaSettings(block=20, memory=2000))
    for _ in range(40_000):
        maxima.add(source.gauss(0, 1))
    height = maxima.height(0.01)
    assert maxima.probability(height) == pytest.approx(0.01)
    tops = [max(source.gauss(0, 1) for _ in range(20)) for _ in range(4000)]
    assert 0.003 < sum(top > height for top in tops) / 4000 < 0.02


def test_a_spike_enters_the_maxima_only_clipped() -> None:
    """After a spike of a hundred scales, one of ten is still found."""
    losses = learning(3000)
    for first, by in ((1000, 3.0), (2000, 0.5)):
        losses = [loss + by if first <= n < first + 12 else loss for n, loss in enumerate(losses)]
    starts = [event.start_step for event in events_of(SpikeDetector(), steps(losses)) if event.end_step is None]
    assert starts == [1001, 2001]


def test_the_state_of_a_rise_continues_where_it_was() -> None:
    """A spike in the middle of which the run is resumed has one start and one end."""
    losses = learning(400)
    records = steps([loss + 0.5 if 300 <= n < 320 else loss for n, loss in enumerate(losses)])
    first, second = SpikeDetector(LossSettings()), SpikeDetector(LossSettings())
    found = events_of(first, records[:310])
    second.load_state_dict(first.state_dict())
    found += events_of(second, records[310:])
    assert [event.end_step is None for event in found] == [True, False]


def test_a_gradient_norm_that_rose_first_gives_the_onset() -> None:
    """The event starts with the norm, names it, and the last good step is the one before."""
    losses = [loss + 0.5 if 300 <= n < 320 else loss for n, loss in enumerate(learning(400))]
    source = random.Random(12)
    norms = [math.exp(source.gauss(0, 0.05)) * (20.0 if 295 <= n < 320 else 1.0) for n in range(400)]
    start = next(e for e in events_of(DetectorSet(), steps(losses, gradient_norm=norms)) if e.kind == "spike")
    assert (start.start_step, start.details["gradient_norm_since"], start.details["last_good_step"]) == (296, 296, 295)
    assert "since step 301; the gradient norm has risen since step 296; last good step 295" in start.message


def test_a_spike_with_a_risen_gradient_norm_is_rarer_than_one_without() -> None:
    """Two signs that agree are less probable by chance than one of them alone."""
    losses = [loss + 0.2 if 300 <= n < 320 else loss for n, loss in enumerate(learning(400))]
    source = random.Random(12)
    norms = [math.exp(source.gauss(0, 0.05)) * (20.0 if 295 <= n < 320 else 1.0) for n in range(400)]
    alone = events_of(DetectorSet(), steps(losses))[0].details["alarms_per_100k_steps"]
    both = next(e for e in events_of(DetectorSet(), steps(losses, gradient_norm=norms)) if e.kind == "spike")
    assert both.details["alarms_per_100k_steps"] < 0.1 * alone


@pytest.mark.parametrize(
    ("detector", "losses"),
    [
        (DivergenceDetector(), [2.0 + n % 5 / 100 if n < 200 else 9.0 for n in range(400)]),
        (PlateauDetector(), [2.0 * (1 + n) ** -0.5 if n < 100 else 0.2 + n % 5 / 10000 for n in range(400)]),
    ],
)
def test_what_the_validation_loss_did_is_told_beside_the_loss(detector: Detector, losses: list[float]) -> None:
    """The last one before the trouble, and the newest."""
    watch = DetectorSet([detector])
    for number, record in enumerate(steps(losses)):
        if number % 20 == 19:
            watch.observe(Sample("val_loss", "validation", 3.0 if number < 40 else 2.5, number + 1, 0.0))
        if found := watch.update(record):
            break
    assert "; the validation loss went from " in found[0].message
    assert found[0].details["validation_now"] == 2.5


def test_a_rise_after_a_raised_learning_rate_says_so() -> None:
    """The message names from where to where the rate rose, and since when."""
    losses = [loss + 0.5 if 300 <= n < 320 else loss for n, loss in enumerate(learning(400))]
    rates = [1e-3 if n < 290 else 1.4e-3 for n in range(400)]
    start = next(e for e in events_of(DetectorSet(), steps(losses, lr=rates)) if e.kind == "spike")
    assert "the learning rate rose from 0.001 to 0.0014 since step" in start.message
    assert (start.details["lr_before"], start.details["lr_now"]) == (1e-3, 1.4e-3)


def test_the_state_of_another_version_is_passed_over() -> None:
    """A checkpoint of an earlier monitor is no obstacle to a resume: the detectors warm up."""
    watch = DetectorSet()
    watch.load_state_dict({"detectors": {"spike": {"kind": "spike"}}, "lr": []})
    losses = learning(400)
    records = steps([loss + 0.5 if 300 <= n < 320 else loss for n, loss in enumerate(losses)])
    assert [event.kind for event in events_of(watch, records) if event.end_step is None] == ["spike"]


def test_a_divergence_ends_when_the_loss_goes_below_zero() -> None:
    """A loss that has no logarithm any more is judged anew, and nothing stays open from before."""
    losses = [3.0] * 40 + [9.0] * 40 + [-1.0] * 40
    watch = DetectorSet([DivergenceDetector()])
    assert [event.end_step for event in events_of(watch, steps(losses))] == [None, 81]
    assert watch.active == ()

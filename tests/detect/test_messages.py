"""What a person reads: the cause, since when, what to do; and, when it is over, what the trouble was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from monitor._records import DETECTOR_KINDS, MAX_REASON, Clip, Event, Sample, Step
from monitor.detect import DetectorSet, PlateauDetector, PlateauSettings
from tests.detect.records import learning, step, steps


def spike() -> list[Event]:
    return said([loss + 0.5 if 300 <= n < 320 else loss for n, loss in enumerate(learning(400))])


def divergence() -> list[Event]:
    return said([loss + 9.0 if 300 <= n < 400 else loss for n, loss in enumerate(learning(500))])


def divergence_below_zero() -> list[Event]:
    return said([3.0] * 40 + [9.0] * 40 + [-1.0] * 40)


def nonfinite() -> list[Event]:
    return said([math.nan if n == 20 else 2.0 + n % 7 / 100 for n in range(40)])


def nonfinite_gradients() -> list[Event]:
    records = [step(n, 2.0 + n % 7 / 100, gradient_norm=math.inf if 20 <= n < 23 else 1.0) for n in range(1, 40)]
    return of(records)


def nonfinite_under_a_scaler() -> list[Event]:
    bad = {"is_skipped": True, "amp_scale": 2.0**10, "gradient_norm": math.inf}
    good = {"amp_scale": 2.0**10, "gradient_norm": 1.0}
    return of([step(n, 2.0 + n % 7 / 100, **(bad if 20 <= n < 30 else good)) for n in range(1, 50)])


def plateau() -> list[Event]:
    source = random.Random(1)
    flat = [2.3 * (1 + source.gauss(0, 0.005)) for _ in range(400)]
    return said([*flat, *(2.3 * (1 + n / 100) ** -0.5 for n in range(400))])


def plateau_of_guesses() -> list[Event]:
    source = random.Random(1)
    losses = [math.log(10) * (1 + source.gauss(0, 0.002)) for _ in range(60)]
    settings = PlateauSettings(expected_initial_loss=math.log(10))
    return of(steps(losses), DetectorSet([PlateauDetector(settings)]))


def gradient_explosion() -> list[Event]:
    return with_norms([30.0 if 300 <= n < 330 else 1.0 + n % 5 / 50 for n in range(400)])


def gradient_vanishing() -> list[Event]:
    return with_norms([1e-5 if 300 <= n < 330 else 1.0 + n % 5 / 50 for n in range(400)])


def clipping_saturated() -> list[Event]:
    clips = [(Clip("norm", 1.0, n < 200, 0.5 if n < 200 else 1.0),) for n in range(300)]
    return of([step(n + 1, 2.0 + n % 7 / 100, clips=clips[n]) for n in range(300)])


def stuck() -> list[Event]:
    return said([2.0 + n % 7 / 100 if not 20 <= n < 80 else 2.5 for n in range(100)], "stuck")


def slowdown() -> list[Event]:
    return of([step(n + 1, 2.0 + n % 7 / 100, duration=2.0 if 100 <= n < 150 else 1.0) for n in range(250)])


def outlier() -> list[Event]:
    return said([9.0 if n == 300 else loss for n, loss in enumerate(learning(400))])


def stall() -> list[Event]:
    watch, records = DetectorSet(), [step(n + 1, 2.0 + n % 7 / 100, duration=0.3, time=0.3 * n) for n in range(40)]
    return [*of(records, watch), *watch.tick(90.0), *watch.update(step(41, 2.0, time=95.0))]


def overfit() -> list[Event]:
    watch, events = DetectorSet(), []
    for n, value in enumerate([1.0, 0.95, 1.0, 1.06, 1.12, 1.19, 0.9]):
        events += of(steps([math.exp(-0.05 * n - k / 500) for k in range(10)], first=10 * n + 1), watch)
        events += watch.observe(Sample("val_loss", "validation", value, 10 * n + 10, 0.0))
    return events


def nonfinite_metric() -> list[Event]:
    watch = DetectorSet()
    return [e for n, v in enumerate([1.0, math.nan, 1.0]) for e in watch.observe(Sample("metric", "f1", v, n, 0.0))]


def said(losses: list[float], kind: str = "") -> list[Event]:
    return [event for event in of(steps(losses)) if kind in event.kind]


def with_norms(norms: list[float]) -> list[Event]:
    return of([step(n + 1, 2.0 + n % 7 / 100, gradient_norm=norm) for n, norm in enumerate(norms)])


def of(records: list[Step], watch: DetectorSet | None = None) -> list[Event]:
    watch = watch or DetectorSet()
    return [event for record in records for event in watch.update(record)]


LOWER = "Lower the learning rate (`monitor lr reduce 0.5`)"
CASES = [
    (
        spike,
        (
            "loss rose from 2.166 to 2.726 since step 301; last good step 300. "
            f"{LOWER} if this happens again and again; one that comes back needs nothing"
        ),
        "loss is back at 2.219 at step 322; it had risen from 2.166 to 2.734 since step 301",
    ),
    (
        divergence,
        (
            "loss rose from 2.166 to 11.17 since step 301 and stays there; last good step 300. "
            f"{LOWER}; if the loss does not come back, restore the checkpoint of step 300 or before"
        ),
        "loss is back at 2.164 from step 403; it had risen from 2.166 to 11.17 since step 301",
    ),
    (
        divergence_below_zero,
        (
            "loss rose from 3 to 9 since step 41 and stays there; last good step 40. "
            f"{LOWER}; if the loss does not come back, restore the checkpoint of step 40 or before"
        ),
        "loss fell to -1 at step 81; it had risen from 3 to 9 since step 41",
    ),
    (
        nonfinite,
        (
            "loss is NaN at step 21; last good step 20. Restore the checkpoint of step 20 or before and lower "
            "the learning rate (`monitor lr reduce 0.5`)"
        ),
        "loss is finite again from step 22; it was NaN since step 21",
    ),
    (
        nonfinite_gradients,
        (
            "gradient norm is infinite at step 22 for 3 steps in a row; last good step 19. Restore the "
            "checkpoint of step 19 or before and lower the learning rate (`monitor lr reduce 0.5`)"
        ),
        "gradient norm is finite again from step 23; it was infinite since step 20",
    ),
    (
        nonfinite_under_a_scaler,
        (
            "gradient norm is infinite at step 27 for 8 steps in a row; last good step 19. The GradScaler skips these "
            "steps and the weights are unharmed: use bfloat16, clip after `scaler.unscale_`, or look for what overflows"
        ),
        "gradient norm is finite again from step 30; it was infinite since step 20",
    ),
    (
        plateau,
        (
            "no progress: loss stays near 2.3 since step 1 (0.013 % less per doubling of steps). "
            "Try a lower learning rate (`monitor lr reduce 0.3`); if the loss does not fall then, stop (`monitor stop`)"
        ),
        "loss moves again at step 545: 1.52; it had stayed near 2.3 since step 1",
    ),
    (
        plateau_of_guesses,
        (
            "loss stays near 2.304 since step 1, as that of a model that only guesses. "
            "Check that the optimizer holds the model's parameters, the labels, and the learning rate"
        ),
        None,
    ),
    (
        gradient_explosion,
        (
            "gradient norm rose from 1.041 to 30 since step 301 and stays there; last good step 300. "
            f"{LOWER}, or clip (`torch.nn.utils.clip_grad_norm_`)"
        ),
        "gradient norm is back at 1.04; it had risen from 1.041 to 30 since step 301",
    ),
    (
        gradient_vanishing,
        (
            "gradient norm fell from 1.04 to 1e-05 since step 301 and stays there. Look for a `detach` or a mask "
            "that cuts the graph, saturated activations, or underflow in half precision"
        ),
        "gradient norm is back at 1; it had fallen from 1.04 to 1e-05 since step 301",
    ),
    (
        clipping_saturated,
        (
            "100% of the recent steps are clipped at 1, so that this sets the size of the update. Raise it or "
            "lower the learning rate, unless that is meant"
        ),
        "79% of the recent steps are clipped; it was nearly every step since step 1",
    ),
    (
        stuck,
        (
            "loss is exactly 2.5 for 50 records since step 21. It learns nothing: look for frozen weights, a "
            "detached or clamped loss, or a batch that is read over and over"
        ),
        "loss moves again at step 81: 2.03; it was exactly 2.5 since step 21",
    ),
    (
        slowdown,
        (
            "step time rose from 1 s to 2 s since step 101 and stays there; last good step 100. The phases of a "
            "step say where to look: data is the DataLoader, forward and backward the device or another program "
            "on it"
        ),
        "step time is back at 1 s; it had risen from 1 s to 2 s since step 101",
    ),
    (
        stall,
        (
            "no step for 78 s since step 40; a step usually takes 0.3 s. `py-spy dump --pid PID` shows what the "
            "training waits for"
        ),
        "steps continue at step 41 after 83 s; there was none since step 40",
    ),
    (
        overfit,
        (
            "validation loss rose from 0.95 at step 20 to 1.12 while the training loss fell from 0.9427 to 0.8487. "
            "Stop (`monitor stop`) and keep the checkpoint of step 20, or regularise"
        ),
        "validation loss has a new best at step 70; it had risen from 0.95 at step 20 to 1.12",
    ),
    (
        nonfinite_metric,
        (
            "the metric 'f1' is NaN at step 1. Look at the evaluation, for a ratio over nothing or the logarithm "
            "of 0; the training itself goes on"
        ),
        "the metric 'f1' is finite again from step 2; it was NaN since step 1",
    ),
]


@pytest.mark.parametrize(("events", "start", "end"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_message_names_cause_and_remedy_and_its_end_says_what_it_was(
    events: Callable[[], list[Event]], start: str, end: str | None
) -> None:
    """The first event of the kind, and the one that ends it."""
    kind = max((kind for kind in DETECTOR_KINDS if events.__name__.startswith(kind)), key=len)
    found = [event for event in events() if event.kind == kind]
    assert [found[0].message, found[1].message if len(found) > 1 else None] == [start, end]


def test_a_short_high_loss_is_told_as_one_batch() -> None:
    """It is over when it is known, so one event says everything."""
    assert [event.message for event in outlier()] == [
        "loss was 9 at step 301 instead of 2.166, and came back. One batch of data, as a rule"
    ]


def test_a_message_fits_into_the_reason_of_a_command() -> None:
    """A policy that acts on an event gives the message as its reason, which is bounded."""
    longest = max((event.message for case in CASES for event in case[0]()), key=len)
    assert len(longest) + 50 <= MAX_REASON

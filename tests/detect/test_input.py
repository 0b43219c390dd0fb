"""What records may bring along, and what settings are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from monitor import detect
from monitor._records import Sample
from monitor.detect import DetectorSet, SpikeDetector, StuckDetector, default_detectors, rl_detectors
from monitor.detect._numbers import as_number
from tests.detect.records import events_of, learning, raised, step, steps


class OneElementTensor:
    """What a detector sees of a tensor: ``item``."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self.values[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (np.array([2.5]), 2.5),
        (np.int64(3), 3.0),
        (OneElementTensor(1.5), 1.5),
        (OneElementTensor(1.5, 2.5), None),
        (np.array([1.0, 2.0]), None),
        (None, None),
        (True, None),
        ("2.0", None),
        (2j, None),
        (np.complex128(2j), None),
        (object(), None),
        (10**400, math.inf),
    ],
)
def test_a_value_is_read_as_a_number_or_passed_over(value: Any, expected: float | None) -> None:
    """Ints, numpy scalars and one-element tensors are numbers; strings, complex and larger things are none."""
    assert as_number(value) == expected


@pytest.mark.parametrize("wrap", [np.float64, np.float32, OneElementTensor, lambda value: np.array([value])])
def test_detectors_say_the_same_to_any_kind_of_number(wrap: Any) -> None:
    """A spike in tensors is the spike in floats."""
    losses = [float(np.float32(loss)) for loss in raised(learning(300), 200, 10, 0.5)]
    expected = [(e.kind, e.step, e.end_step) for e in events_of(DetectorSet(), steps(losses))]
    assert [(e.kind, e.step, e.end_step) for e in events_of(DetectorSet(), steps(map(wrap, losses)))] == expected
    assert expected[0][0] == "spike"


BAD = [None, "loss", 1j, np.array([1.0, 2.0]), object(), True, 10**400, 1e308, -1e308, 5e-324, math.nan, -math.inf]


def test_no_record_makes_a_detector_raise_or_blind() -> None:
    """After any rubbish in any field, a spike in the good records is still found, and the state is still JSON."""
    watch = DetectorSet()
    losses = raised(learning(700), 600, 10, 0.5)
    for number, loss in enumerate(losses, 1):
        if number % 7 == 0 and number < 500:
            bad = BAD[number // 7 % len(BAD)]
            watch.update(step(number, bad, gradient_norm=bad, duration=bad, amp_scale=bad, lr=bad))
            watch.observe(Sample("val_loss", "val", bad, number, 0.0))
            json.dumps(watch.state_dict())
        events = watch.update(step(number, loss, gradient_norm=1.0, lr=1e-3))
        if number > 590 and any(event.kind == "spike" for event in events):
            break
    assert 601 <= number <= 606


def test_records_without_a_loss_change_nothing() -> None:
    """Optimizer steps whose loss is unknown are passed over by the detectors of the loss."""
    losses = raised(learning(300), 200, 10, 0.5)
    holes = [value for loss in losses for value in (loss, None)]
    found = [e.start_step for e in events_of(SpikeDetector(), steps(holes))]
    assert found == [2 * e.start_step - 1 for e in events_of(SpikeDetector(), steps(losses))]


def test_repeated_and_smaller_step_numbers_are_names_only() -> None:
    """A run that was rewound, and one that logs twice a step, give the events of their records in order."""
    losses = raised(learning(300), 200, 10, 0.5)
    expected = len(events_of(SpikeDetector(), steps(losses)))
    for numbers in ([5] * 300, list(range(300, 0, -1)), [n // 2 for n in range(300)]):
        assert len(events_of(SpikeDetector(), steps(losses, global_step=numbers))) == expected == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detect.CusumSettings(drift=-1), "CusumSettings.drift must be within 0.1 and 100, got -1"),
        (lambda: detect.CusumSettings(threshold=math.nan), "got nan"),
        (lambda: detect.CusumSettings(ceiling=5.0), "ceiling must be above threshold 7, got 5.0"),
        (lambda: detect.CusumSettings(clip=3.0), "clip must be above drift 3, got 3.0; no record could add"),
        (lambda: detect.LevelSettings(youth=0), "youth must be within 1 and 1000, got 0"),
        (lambda: detect.LossSettings(steps_per_record=0), "steps_per_record must be within"),
        (lambda: detect.PlateauSettings(lr_end=2), "lr_end must be within 0 and 1, got 2"),
        (lambda: detect.DivergenceSettings(patience=0), "patience must be within 1"),
        (lambda: detect.GradientSettings(explosion_back=20.0), "explosion_back must be at most explosion 10, got 20.0"),
        (lambda: detect.SlowdownSettings(back_ratio=2.0), "back_ratio must be at most ratio 1.3, got 2.0"),
        (lambda: detect.ClippingSettings(back_share=0.99), "back_share must be at most share 0.95, got 0.99"),
        (lambda: detect.StallSettings(factor=0.5), "factor must be within 1"),
        (lambda: default_detectors(stall_timeout=-1), "most must be within 0.001 and 1e+09, got -1"),
        (lambda: DetectorSet().announce(-1), "records must be at least 0, got -1"),
        (lambda: DetectorSet([StuckDetector(), StuckDetector()]), "different kinds, got stuck more than once"),
    ],
)
def test_settings_out_of_range_are_refused_with_value_and_range(make: Any, message: str) -> None:
    """A refusal names the setting, the value and what would do."""
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detect.StuckSettings(records=2.5), "StuckSettings.records must be an int, got 2.5"),
        (lambda: detect.CusumSettings(drift="3"), "CusumSettings.drift must be a number, got '3'"),
        (lambda: DetectorSet(["spike"]), "detectors must be Detector objects, got 'spike'"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(make: Any, message: str) -> None:
    """A wrong type is a TypeError that shows the value."""
    with pytest.raises(TypeError) as caught:
        make()
    assert message in str(caught.value)


def test_every_kind_of_the_design_has_one_detector() -> None:
    """The default set covers the kinds that the records list, each once."""
    from monitor._records import DETECTOR_KINDS

    assert sorted(detector.kind for detector in default_detectors()) == sorted(DETECTOR_KINDS)
    assert [detector.kind for detector in rl_detectors()] == [
        *("nonfinite", "nonfinite_metric", "stuck", "stall", "slowdown")
    ]


def test_the_state_of_another_kind_is_refused() -> None:
    """A state is loaded by the kind that made it, whole."""
    with pytest.raises(ValueError, match="state is of a 'stuck' detector, this one is 'spike'"):
        SpikeDetector().load_state_dict(StuckDetector().state_dict())
    state = StuckDetector().state_dict()
    del state["_equal"]
    with pytest.raises(ValueError, match="state of 'stuck' lacks _equal"):
        StuckDetector().load_state_dict(state)

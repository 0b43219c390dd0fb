"""Real runs, labelled by eye: each trouble is found within its label, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.detect import rl_detectors
from monitor.replay import replay

CURVES = Path(__file__).parent / "curves"
SILENT = ("outlier", "gradient_explosion")

# file, and for each kind that must be raised: kind, first and last step at which
LABELS = [
    ("ml51_8b_cisco8_4.csv", [("spike", 636, 695), ("spike", 1120, 1195), ("spike", 3268, 3315)]),
    ("ml51_8b_nv512_8.csv", [("spike", 2780, 2910)]),
    ("yolo_64.csv", [("overfit", 18, 64)]),
    ("small_digits_mlp_sgd_lr1_warmcos_s0.csv", [("divergence", 55, 150), ("plateau", 150, 1500)]),
    ("small_charlstm_sgd_lr10_warmcos_s0.csv", [("divergence", 190, 800)]),
    ("small_digits_cnn_adam_lr0.3_const_s0.csv", [("plateau", 30, 1500)]),
    ("small_diabetes_sgd_lr1_const_s0.csv", [("nonfinite", 8, 8)]),
    ("small_diabetes_sgd_lr0.01_warmcos_s0.csv", []),
]


@pytest.mark.parametrize(("name", "labels"), LABELS, ids=[name.removesuffix(".csv") for name, _ in LABELS])
def test_a_labelled_run_gives_the_events_of_its_labels(name: str, labels: list[tuple[str, int, int]]) -> None:
    """Every label is met in time, every event lies in a label of its kind."""
    events = [event for event in replay(CURVES / name) if event.kind not in SILENT]
    for kind, first, last in labels:
        assert any(e.kind == kind and first <= e.step <= last for e in events), (
            f"{kind} of {first} to {last} was missed"
        )
    # What follows a NaN, or a divergence while it lasts, is judged by no label.
    over = min((e.step for e in events if e.kind == "nonfinite"), default=10**9)
    allowed = [(kind, first, last + 25) for kind, first, last in labels]
    if any(kind == "divergence" for kind, _, _ in labels):
        allowed += [("spike", first, last) for kind, first, last in labels if kind == "divergence"]
    false = [
        (event.kind, event.step, event.message)
        for event in events
        if event.step < over and not any(event.kind == kind and a <= event.step <= b for kind, a, b in allowed)
    ]
    assert false == []


def test_the_detectors_for_rl_say_nothing_about_the_height_of_a_loss() -> None:
    """Of a run with spikes they report none."""
    assert replay(CURVES / "ml51_8b_cisco8_4.csv", rl_detectors()) == []

"""Steps, events and stores for the tests, from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monitor._records import PHASES, Clip, Event, ParamGroup, Sample, Step
from monitor.store import StoreWriter

START = 1.7e9
STEP_SECONDS = 0.004


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def noise_at(step: int) -> float:
    """Return a number from 0 to 1 that looks like chance, always the same for a step."""
    return (step * 2654435761 % 2**32) / 2**32


def loss_at(step: int) -> float:
    """Return the loss that :func:`a_step` has at a step."""
    return 2.0 + math.sin(step / 50.0) / (1 + step / 1000) + noise_at(step) / 10


def a_step(step: int, *, optimizer: str = "adam", groups: int = 2, **changes: Any) -> Step:
    """Return a step whose values follow from its number."""
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "number": step,
        "global_step": step,
        "time": START + step * STEP_SECONDS,
        "duration": STEP_SECONDS * (1 + noise_at(step + 1)),
        "loss": loss_at(step),
        "gradient_norm": noise_at(step + 2),
        "groups": tuple(ParamGroup(i, None, 1e-3 / (i + 1), 5e-4 / (i + 1), 0.5, 0.01) for i in range(groups)),
        "clips": (Clip("norm", 1.0, False, 1.0),),
        "phases": {phase: STEP_SECONDS * noise_at(step + i) / 8 for i, phase in enumerate(PHASES)},
        "hook_seconds": 2e-5,
    }
    return Step(**{**values, **changes})


def a_sample(name: str, value: float, step: int, kind: Any = "metric") -> Sample:
    """Return a logged value."""
    return Sample(kind, name, value, step, START + step * STEP_SECONDS)


def an_event(step: int = 1, **changes: Any) -> Event:
    """Return an event."""
    return Event("spike", "warning", step, step, f"loss spiked at step {step}", time=START, **changes)


def write(path: Path, steps: Iterable[int], *, commit_every: int = 250, **options: Any) -> StoreWriter:
    """Write steps into a store and return its writer, still open; what waits is committed."""
    writer = StoreWriter(path, **options)
    for count, step in enumerate(steps, start=1):
        writer.add_step(a_step(step))
        if count % commit_every == 0:
            writer.commit()
    writer.commit()
    return writer


def values(points: Iterable[Any]) -> list[tuple[int, float | None]]:
    """Return step and value of points."""
    return [(point.last_step, point.value) for point in points]

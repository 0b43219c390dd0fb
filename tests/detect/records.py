"""Records made by hand, and what a detector says to them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from monitor._records import Event, ParamGroup, Step
from monitor.detect import Detector, DetectorSet


def step(number: int, loss: Any = None, **fields: Any) -> Step:
    """A record with the loss and whatever else is named; ``lr`` makes one param group of it."""
    lr = fields.pop("lr", None)
    groups = () if lr is None else (ParamGroup(0, None, lr, lr),)
    values = {"duration": None, "gradient_norm": None, "global_step": number, "time": float(number), **fields}
    return Step("adam", number, loss=loss, groups=groups, **values)


def steps(losses: Iterable[Any], first: int = 1, **fields: Sequence[Any]) -> list[Step]:
    """Records of consecutive steps; each further field is a sequence as long as the losses."""
    return [
        step(first + index, loss, **{name: values[index] for name, values in fields.items()})
        for index, loss in enumerate(losses)
    ]


def norms(values: Iterable[Any]) -> list[Step]:
    """Records with a gradient norm and no loss."""
    return [step(number, None, gradient_norm=value) for number, value in enumerate(values, 1)]


def events_of(watch: Detector | DetectorSet, records: Iterable[Step]) -> list[Event]:
    """Every event, starts and ends, in order."""
    if isinstance(watch, Detector):
        watch = DetectorSet([watch])
    return [event for record in records for event in watch.update(record)]


def learning(count: int, seed: int = 0, noise: float = 0.03, start: float = 3.0, floor: float = 2.0) -> list[float]:
    """A healthy loss: a power law and noise."""
    source = random.Random(seed)
    return [floor + start * (index + 1) ** -0.5 + source.gauss(0, noise) for index in range(count)]


def raised(losses: Sequence[float], first: int, count: int, by: float) -> list[float]:
    """The losses with ``count`` of them, from place ``first`` on, raised."""
    return [loss + by if first <= index < first + count else loss for index, loss in enumerate(losses)]

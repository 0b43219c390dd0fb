"""A probe on a real optimizer, without the rest of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.optim import Optimizer

from monitor._records import Sample, Step
from monitor.control import LRScaling
from monitor.probe import StepBuffer, StepProbe
from monitor.recorder import Decoder, EntrySource


class Watched:
    """Probes that share a step buffer, as in a run."""

    def __init__(self, *optimizers: Optimizer, **settings: Any) -> None:
        self.optimizers = optimizers  # a probe keeps none alive
        self.errors: list[Exception] = []
        self.buffer = StepBuffer(on_error=self.errors.append)
        self.source = EntrySource(Decoder(), self.errors.append, self.buffer.take)
        self.scalings = [LRScaling() for _ in optimizers]
        self.probes = [
            StepProbe(
                f"{i}" if len(optimizers) > 1 else type(o).__name__,
                o,
                self.buffer,
                scaling,
                on_boundary=lambda _: None,
                on_error=lambda _, e: self.errors.append(e),
                **settings,
            )
            for i, (o, scaling) in enumerate(zip(optimizers, self.scalings, strict=True))
        ]
        for probe in self.probes:
            probe.open()

    def drain(self) -> list[Step]:
        assert self.errors == []
        out = list(self.source.drain(0.0))
        assert not any(isinstance(r, Sample) for r in out)
        return out  # type: ignore[return-value]

    def last(self) -> Step:
        return self.drain()[-1]

    def close(self) -> None:
        for probe in self.probes:
            probe.close()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    """Return a function that watches optimizers until the end of the test."""
    made: list[Watched] = []

    def make(*optimizers: Optimizer, **settings: Any) -> Watched:
        made.append(Watched(*optimizers, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()

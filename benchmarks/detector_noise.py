"""False alarms of the spike detector on noise that holds none, by kind of noise, beside the rate that was asked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from monitor._records import Step
from monitor.detect import LossSettings, SpikeDetector

RECORDS = 200_000
LEVEL, DEVIATION = 3.0, 0.02


def white(rng: random.Random) -> Iterator[float]:
    while True:
        yield rng.gauss(0.0, 1.0)


def student(rng: random.Random, degrees: int = 3) -> Iterator[float]:
    while True:
        yield rng.gauss(0.0, 1.0) / math.sqrt(sum(rng.gauss(0.0, 1.0) ** 2 for _ in range(degrees)) / degrees)


def autocorrelated(rng: random.Random, share: float) -> Iterator[float]:
    value = 0.0
    while True:
        value = share * value + math.sqrt(1.0 - share * share) * rng.gauss(0.0, 1.0)
        yield value


def periodic(rng: random.Random, period: int) -> Iterator[float]:
    """A sawtooth of data in order, six times the white noise around it."""
    index = 0
    while True:
        index += 1
        yield (6.0 if index % period < period // 4 else 0.0) + rng.gauss(0.0, 1.0)


def bursts(rng: random.Random) -> Iterator[float]:
    """Now and then three times the noise for a while."""
    left = 0
    while True:
        left = left - 1 if left else (rng.randint(20, 100) if rng.random() < 0.001 else 0)
        yield rng.gauss(0.0, 3.0 if left else 1.0)


def quantised(rng: random.Random) -> Iterator[float]:
    """Rounded to the size of the noise."""
    while True:
        yield float(round(rng.gauss(0.0, 1.0)))


def by_rate(rng: random.Random) -> Iterator[float]:
    """Noise that grows and falls fivefold with a cyclic learning rate."""
    index = 0
    while True:
        index += 1
        yield rng.gauss(0.0, 1.0) * (3.0 + 2.0 * math.sin(index / 400.0))


NOISE: dict[str, Callable[[random.Random], Iterator[float]]] = {
    "white": white,
    "Student t, 3 degrees": student,
    "AR(1) 0.5": lambda rng: autocorrelated(rng, 0.5),
    "AR(1) 0.9": lambda rng: autocorrelated(rng, 0.9),
    "AR(1) 0.95": lambda rng: autocorrelated(rng, 0.95),
    "periodic, 30 records": lambda rng: periodic(rng, 30),
    "periodic, 200 records": lambda rng: periodic(rng, 200),
    "bursts": bursts,
    "quantised": quantised,
    "by learning rate": by_rate,
}


def false_alarms(make: Callable[[random.Random], Iterator[float]], rate: float, records: int, seed: int = 1) -> float:
    """Return the spikes per 100,000 records of a level loss with this noise."""
    detector = SpikeDetector(LossSettings(false_alarms_per_100k_steps=rate))
    noise = make(random.Random(seed))
    count = 0
    for number in range(1, records + 1):
        loss = LEVEL + DEVIATION * next(noise)
        event = detector.update(Step("", number, number, 0.0, None, loss, None))
        count += event is not None and event.end_step is None
    return count * 1e5 / records


def noise_lines(records: int = RECORDS, rates: tuple[float, ...] = (1.0, 10.0)) -> list[str]:
    """Return the table: kinds of noise by asked rates."""
    lines = [
        "| noise | " + " | ".join(f"asked {rate:g}" for rate in rates) + " |",
        "|---|" + "---|" * len(rates),
    ]
    for name, make in NOISE.items():
        found = [false_alarms(make, rate, records) for rate in rates]
        lines.append(f"| {name} | " + " | ".join(f"{each:.1f}" for each in found) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(noise_lines()))

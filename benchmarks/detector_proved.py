"""E-detectors (Shin, Ramdas and Rinaldo 2024) beside the spike detector: false alarms by noise, and delay by height.

    python benchmarks/detector_proved.py

An e-detector combines the e-values of the records since every possible onset and raises an alarm at 1 / rate: on
average at most once in that many records, for any noise whose e-values have a conditional mean of at most 1. The scores
are those of ``LossSignal``, centred and scaled by their own mean and deviation over the last 500 records. Two kinds of
e-value are tried, each a mixture of three bets:

- sub-Gaussian, exp(s z - s^2 v / 2): proved where the scores are no heavier than normal noise of variance v;
- bounded, 1 + s (z - m) / (b + m) for a score clipped at b: proved where the mean of the clipped score is at most m.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from detector_noise import DEVIATION, LEVEL, NOISE  # noqa: E402

from monitor._records import Step  # noqa: E402
from monitor.detect import LossSettings, SpikeDetector  # noqa: E402
from monitor.detect._signal import LossSignal  # noqa: E402

RATE = 1e-5
"""Asked alarms a record."""
VARIANCE = 1.2
BOUND, MEAN = 4.0, 0.1
"""What each e-value allows for, as the scale and the mean of the noise are not given but estimated."""
MEMORY = 500
Make = Callable[[random.Random], Iterator[float]]


class EDetector:
    """Mix e-detectors over bets; ``adds`` makes Shiryaev-Roberts sums of them (e-SR), else maxima (e-CUSUM)."""

    def __init__(self, factor: Callable[[float, float], float], bets: tuple[float, ...], *, adds: bool) -> None:
        self._factor, self._bets, self._adds = factor, bets, adds
        self._values = [0.0] * len(bets)
        self._signal = LossSignal()
        self._count, self._mean, self._square = 0, 0.0, 1.0

    def is_alarm(self, loss: float) -> bool:
        """Take a loss; after an alarm the evidence begins anew."""
        score = self._standardised(loss)
        if score is None:
            return False
        for place, bet in enumerate(self._bets):
            before = self._values[place] + 1.0 if self._adds else max(self._values[place], 1.0)
            self._values[place] = min(1e300, before * self._factor(score, bet))
        if statistics.fmean(self._values) < 1.0 / RATE:
            return False
        self._values = [0.0] * len(self._bets)
        return True

    def _standardised(self, loss: float) -> float | None:
        score = self._signal.update(loss)
        if score is None:
            return None
        self._count += 1
        off, deviation = score - self._mean, math.sqrt(self._square)
        share = 1.0 / min(self._count + 10, MEMORY)
        clipped = max(-3.0 * deviation, min(off, 3.0 * deviation))
        self._mean += share * clipped
        self._square += share * (clipped * clipped - self._square)
        return off / deviation if self._count > 100 else None


class Ours:
    """The spike detector at the same asked rate."""

    def __init__(self) -> None:
        self._detector = SpikeDetector(LossSettings(false_alarms_per_100k_steps=RATE * 1e5))
        self._number = 0

    def is_alarm(self, loss: float) -> bool:
        """Take a loss."""
        self._number += 1
        event = self._detector.update(Step("", self._number, self._number, 0.0, None, loss, None))
        return event is not None and event.end_step is None


def sub_gaussian(score: float, bet: float) -> float:
    return math.exp(min(700.0, bet * score - 0.5 * bet * bet * VARIANCE))


def bounded(score: float, bet: float) -> float:
    return 1.0 + bet * (max(-BOUND, min(score, BOUND)) - MEAN) / (BOUND + MEAN)


NORMAL, BOUNDED = (0.5, 1.0, 2.0), (0.2, 0.5, 0.9)
MAKERS: dict[str, Callable[[], EDetector | Ours]] = {
    "ours": Ours,
    "e-SR, sub-Gaussian": lambda: EDetector(sub_gaussian, NORMAL, adds=True),
    "e-CUSUM, sub-Gaussian": lambda: EDetector(sub_gaussian, NORMAL, adds=False),
    "e-SR, bounded": lambda: EDetector(bounded, BOUNDED, adds=True),
    "e-CUSUM, bounded": lambda: EDetector(bounded, BOUNDED, adds=False),
}


def false_alarms(make: Callable[[], EDetector | Ours], noise: Make, records: int, seed: int = 1) -> float:
    """Return the alarms per 100,000 records of a level loss."""
    detector, values = make(), noise(random.Random(seed))
    return sum(detector.is_alarm(LEVEL + DEVIATION * next(values)) for _ in range(records)) * 1e5 / records


def delay(make: Callable[[], EDetector | Ours], noise: Make, height: float, runs: int = 20) -> float | None:
    """Return the median delay, in records, of a rise by so many deviations after 1000 records; None: not in 100."""
    delays = []
    for seed in range(runs):
        detector, values = make(), noise(random.Random(seed))
        for _ in range(1000):
            detector.is_alarm(LEVEL + DEVIATION * next(values))
        risen = (detector.is_alarm(LEVEL + DEVIATION * (next(values) + height)) for _ in range(100))
        delays.append(next((number for number, is_alarm in enumerate(risen, 1) if is_alarm), math.inf))
    middle = statistics.median_high(delays)
    return None if math.isinf(middle) else middle


def proved_lines(records: int = 200_000, heights: tuple[float, ...] = (3.0, 5.0, 10.0)) -> list[str]:
    """Return two tables: alarms by noise, and delays by height."""
    head = "| " + " | ".join(["", *MAKERS]) + " |"
    rule = "|---" * (len(MAKERS) + 1) + "|"
    lines = ["Alarms in 100,000 records of noise alone, asked 1:", "", head, rule]
    for name, noise in NOISE.items():
        found = (f"{false_alarms(make, noise, records):.1f}" for make in MAKERS.values())
        lines.append("| " + " | ".join([name, *found]) + " |")
    lines += ["", "Median delay in records of a rise that stays:", "", head, rule]
    for name in ("white", "AR(1) 0.9"):
        for height in heights:
            found = (delay(make, NOISE[name], height) for make in MAKERS.values())
            shown = ("-" if each is None else f"{each:g}" for each in found)
            lines.append("| " + " | ".join([f"{name}, {height:g} deviations", *shown]) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(proved_lines()))

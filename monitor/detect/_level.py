"""The level of a noisy series and the deviation around it, such that trouble hardly enters its own baseline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from monitor._checks import require, require_whole
from monitor.detect._numbers import LARGEST

_NORMAL_DIFFERENCE = 0.886
"""Standard deviation over the mean absolute difference of neighbours, for independent normal noise: sqrt(pi) / 2."""
_NORMAL_RISE = 2.507
"""Standard deviation over the mean of max(0, deviation), for normal noise: sqrt(2 pi)."""
_NORMAL_MAD = 1.4826
"""Standard deviation over the median absolute deviation, for normal noise."""


@dataclass(frozen=True, kw_only=True)
class LevelSettings:
    """Set how fast the baseline follows. All in records or in scales; none is in units of the series.

    For logarithms: of gradient norms, step times and blocks of the loss. The loss itself: ``SignalSettings``.

    Attributes:
        rise_memory: records over which the level follows upwards.
        fall_memory: records over which it follows downwards.
        scale_memory: records over which the deviation is averaged.
        youth: the level's memory never exceeds the records seen so far divided by this.
        clip: largest deviation, in scales, that enters the scale.
        rise_clip: largest rise, in scales, that enters the level.
        least_scale: smallest scale, in units of the series.
        slow_share: weight of the deviation from the level beside the neighbour differences (noise that wanders).
        start: first values, whose medians give level and scale to start from.
    """

    rise_memory: float = 24.0
    fall_memory: float = 24.0
    scale_memory: float = 64.0
    youth: float = 4.0
    clip: float = 3.0
    rise_clip: float = 1.5
    least_scale: float = 0.0
    slow_share: float = 0.5
    start: int = 8

    def __post_init__(self) -> None:
        require_whole(self, start=(3, 1000))
        require(
            self,
            rise_memory=(2, 1e6),
            fall_memory=(2, 1e6),
            scale_memory=(2, 1e6),
            youth=(1, 1e3),
            clip=(0.5, 100),
            rise_clip=(0.1, 100),
            least_scale=(0, 1e6),
            slow_share=(0, 10),
        )


class Level:
    """Follow a series and say how far above its level each value stands, in scales, before the value enters the level.

    O(1) memory, well under 2 us a value. The first values (``LevelSettings.start``) give a start; until then ``update``
    returns None. Scale-free: the same series times a power of two gives bit-identical answers.

    Attributes:
        level: where the series is; None before the start.
        scale: its noise, as a standard deviation.
        count: values taken.
    """

    def __init__(self, settings: LevelSettings | None = None) -> None:
        self.settings = settings or LevelSettings()
        self.level: float | None = None
        self.scale = 0.0
        self.count = 0
        self._fast = 0.0
        self._slow = 0.0
        self._previous = 0.0
        self._first: list[float] = []
        options = self.settings
        self._options = (
            options.rise_memory,
            options.fall_memory,
            options.scale_memory,
            options.youth,
            options.clip,
            options.rise_clip,
            options.least_scale,
            options.slow_share,
        )

    def update(self, value: float) -> float | None:
        """Take one finite value; return (value - level) / scale with level and scale as they were before it."""
        self.count = count = self.count + 1
        level = self.level
        if level is None:
            self._begin(value)
            return None
        rise_memory, fall_memory, scale_memory, youth, clip, rise_clip, least, slow_share = self._options
        fast, slow = self._fast, self._slow
        scale = max(fast, slow_share * slow, least)
        self.scale = scale
        rise = value - level
        score = rise / scale if scale > 0.0 else 0.0 if rise == 0.0 else LARGEST if rise > 0.0 else -LARGEST

        # Without any noise so far the first deviation gives the scale: nothing to clip it by.
        limit = clip * scale if scale > 0.0 else LARGEST
        share = 1.0 / (count if count < scale_memory else scale_memory)
        change = abs(value - self._previous) * _NORMAL_DIFFERENCE
        self._fast = fast + share * ((change if change < limit else limit) - fast)
        up = rise * _NORMAL_RISE if rise > 0.0 else 0.0
        self._slow = slow + share * ((up if up < limit else limit) - slow)
        self._previous = value
        memory = rise_memory if rise > 0.0 else fall_memory
        if count < memory * youth:
            memory = count / youth
        most = rise_clip * scale
        self.level = level + (rise if rise < most else most) / memory
        return score

    def _begin(self, value: float) -> None:
        first = self._first
        first.append(value)
        if len(first) == self.settings.start:
            self.level = level = statistics.median(first[-5:])
            changes = [abs(b - a) for a, b in pairwise(first)]
            self._fast = statistics.median(changes) * _NORMAL_MAD / 2**0.5
            self._slow = statistics.median(abs(x - level) for x in first) * _NORMAL_MAD
            self._previous = value
            self._first = []

    def state_dict(self) -> dict[str, Any]:
        """Return what the level knows, as plain values."""
        return {
            "level": self.level,
            "scale": self.scale,
            "count": self.count,
            "fast": self._fast,
            "slow": self._slow,
            "previous": self._previous,
            "first": list(self._first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.level, self.scale, self.count = state["level"], state["scale"], state["count"]
        self._fast, self._slow = state["fast"], state["slow"]
        self._previous, self._first = state["previous"], list(state["first"])


@dataclass(frozen=True, kw_only=True)
class CusumSettings:
    """Set when rises add up to an alarm (Page 1954, with clipped inputs).

    A rise of 5 scales or more that lasts 4 records is an alarm, isolated records of any height are not; the ceiling
    lets the sum fall to 0 again within a few records after a long rise.

    Attributes:
        drift: scales that a record must stand above the level to add to the sum.
        threshold: sum above which there is an alarm.
        ceiling: largest sum.
        clip: largest score of one record; decides how many records an alarm needs at least.
        warmup: records at the start that add nothing.
    """

    drift: float = 3.0
    threshold: float = 7.0
    ceiling: float = 14.0
    clip: float = 5.0
    warmup: int = 16

    def __post_init__(self) -> None:
        require(self, drift=(0.1, 100), threshold=(0.1, 1e6), ceiling=(0.1, 1e6), clip=(0.2, 1e6))
        require_whole(self, warmup=(0, 10**6))
        if self.ceiling <= self.threshold:
            raise ValueError(f"CusumSettings.ceiling must be above threshold {self.threshold:g}, got {self.ceiling!r}")
        if self.clip <= self.drift:
            raise ValueError(
                f"CusumSettings.clip must be above drift {self.drift:g}, got {self.clip!r}; no record could add"
            )

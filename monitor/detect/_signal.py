"""The loss as the detectors judge it: its logarithm where it is positive, with the level and the scale of its noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor._checks import require, require_whole
from monitor.detect._numbers import LARGEST, SECOND_DIFFERENCE

_NORMAL_MEAN = 1.2533
"""Standard deviation over the mean absolute deviation, for normal noise: sqrt(pi / 2)."""
_QUANTUM = 0.6
"""Scale over the step of printed digits: two neighbouring digits that alternate at random have half of it."""
_CHANGES = 8
"""Steps between neighbours of which the smallest is taken for that of printed digits."""
_RECENT = 8


@dataclass(frozen=True, kw_only=True)
class SignalSettings:
    """Set how the baseline of the loss follows. All in records or in scales; none is in units of the loss.

    Chosen by leave-one-source-out on the labelled curves and on synthetic families (docs/detection.md).

    Attributes:
        rise_memory: records over which the level follows upwards.
        fall_memory: records over which it follows downwards.
        youth: the level's memory never exceeds the records seen so far divided by this.
        scale_memory: records over which the noise is averaged.
        clip: largest deviation, in scales, that enters the scale.
        rise_clip, fall_clip: largest rise and fall, in scales, that enter the level.
        floor: smallest scale, as a share of the level.
        young_scale: the scale is at least this share of the level, divided by the records seen so far.
        wander_share: weight of deviations from the level beside second differences (noise that wanders).
        start: first values, whose median is the level to start from.
    """

    rise_memory: float = 24.0
    fall_memory: float = 10.0
    youth: float = 4.0
    scale_memory: float = 64.0
    clip: float = 3.0
    rise_clip: float = 1.5
    fall_clip: float = 10.0
    floor: float = 0.002
    young_scale: float = 0.2
    wander_share: float = 0.75
    start: int = 4

    def __post_init__(self) -> None:
        require_whole(self, start=(3, _RECENT))
        require(
            self,
            rise_memory=(2, 1e6),
            fall_memory=(2, 1e6),
            youth=(1, 1e3),
            scale_memory=(2, 1e6),
            clip=(0.5, 100),
            rise_clip=(0.1, 100),
            fall_clip=(0.1, 1e6),
            floor=(0, 1),
            young_scale=(0, 10),
            wander_share=(0, 10),
        )


class LossSignal:
    """Follow the loss and say how far above its level each value stands, in scales, before the value enters the level.

    A positive loss is judged by its logarithm, as losses fall by decades and their noise with them. The first value
    below zero, or a zero that is not the rounding of printed digits, makes it the loss itself from there on. The scale
    is the largest of what second differences say (blind to slopes), what deviations from the level say (noise that
    wanders), and the step of printed digits, which is learned from the data. O(1) memory, about 2 us a value.

    Attributes:
        value: the last value, transformed.
        level: where the series is, transformed; None before the start.
        scale: its noise, as a standard deviation.
        count: values taken.
        is_log: the transformation is the logarithm.

    >>> signal = LossSignal()
    >>> [signal.update(2.0) for _ in range(5)][-1], signal.raw(signal.level)
    (0.0, 2.0)
    """

    state_names = (
        "value",
        "level",
        "scale",
        "count",
        "is_log",
        "_age",
        "_quantum",
        "_smallest",
        "_changes",
        "_fast",
        "_slow",
        "_lag",
        "_recent",
        "_x1",
        "_x2",
    )

    def __init__(self, settings: SignalSettings | None = None) -> None:
        self.settings = settings or SignalSettings()
        self.value = 0.0
        self.level: float | None = None
        self.scale = 0.0
        self.count = 0
        self.is_log = True
        self._age = 0  # values since the level has started
        self._quantum = 0.0  # 0: not known yet
        self._smallest = LARGEST
        self._changes = 0
        self._fast = 0.0
        self._slow = 0.0
        self._lag = 0.0
        self._recent: list[float] = []
        self._x1 = self._x2 = 0.0

    def raw(self, value: float) -> float:
        """Return a transformed value in units of the loss."""
        return math.exp(min(value, 700.0)) if self.is_log else value

    def ratio(self, times: float) -> float:
        """Return the transformed distance at which the loss is ``times`` its level."""
        return math.log(times) if self.is_log else (times - 1.0) * abs(self.level or 0.0)

    def update(self, loss: float) -> float | None:
        """Take one usable value; return its height above the level in scales, or None before there is a level."""
        self.count += 1
        self._follow_quantum(loss)
        if self.is_log and loss <= 0.0:
            if loss < 0.0 or not self._is_rounded():
                self._restart(loss)
                return None
            loss = 0.5 * self._quantum
        self.value = x = math.log(loss) if self.is_log else loss
        level = self.level
        if level is None:
            if self.count >= self.settings.start:
                self._begin()
            return None
        self._age += 1
        scale = self._scale(level)
        rise = x - level
        score = rise / scale if scale > 0.0 else 0.0 if rise == 0.0 else LARGEST if rise > 0.0 else -LARGEST
        self._follow(x, rise, scale)
        return score

    def _follow_quantum(self, loss: float) -> None:
        """The smallest of many steps between neighbours is that of the printed digits, or too small to matter."""
        recent = self._recent
        if recent:
            change = abs(loss - recent[-1])
            if change > 0.0:
                self._changes += 1
                self._smallest = min(self._smallest, change)
                if self._changes >= _CHANGES:
                    self._quantum = self._smallest
        recent.append(loss)
        if len(recent) > _RECENT:
            del recent[0]

    def _is_rounded(self) -> bool:
        return self._quantum > 0.0 and (self.level is None or self._quantum > 0.02 * self.raw(self.level))

    def _scale(self, level: float) -> float:
        settings = self.settings
        if self.is_log:
            quantum = math.log1p(self._quantum / math.exp(level)) if level > -700.0 else 0.0
            floor = max(settings.floor, settings.young_scale / (self._age + settings.start))
        else:
            quantum, floor = self._quantum, settings.floor * abs(level)
        self.scale = max(self._fast, self._slow, _QUANTUM * quantum, floor)
        return self.scale

    def _follow(self, x: float, rise: float, scale: float) -> None:
        settings = self.settings
        age = self._age + settings.start
        # Without any noise so far the first deviation gives the scale: nothing to clip it by.
        limit = settings.clip * scale if scale > 0.0 else LARGEST
        share = 1.0 / (age if age < settings.scale_memory else settings.scale_memory)
        second = abs(x - 2.0 * self._x1 + self._x2) * SECOND_DIFFERENCE
        self._fast += share * (min(second, limit) - self._fast)
        off = rise - self._lag  # a level lags behind a slope; that is no noise
        self._slow += share * (min(abs(off) * _NORMAL_MEAN, limit) * settings.wander_share - self._slow)
        self._lag += 2.0 * share * max(-limit, min(off, limit))
        self._x2, self._x1 = self._x1, x
        memory = settings.rise_memory if rise > 0.0 else settings.fall_memory
        assert self.level is not None
        # Without any noise there is nothing to clip by, either.
        most = settings.rise_clip * scale
        least = -settings.fall_clip * scale if scale > 0.0 else -LARGEST
        self.level += max(least, min(rise, most)) / min(memory, max(1.0, age / settings.youth))

    def _begin(self) -> None:
        if self.is_log:
            first = [math.log(max(y, 0.5 * self._quantum)) for y in self._recent[-self.settings.start :]]
        else:
            first = self._recent[-self.settings.start :]
        self.level = statistics.median(first[-3:])
        changes = [abs(a - 2.0 * b + c) for a, b, c in zip(first, first[1:], first[2:], strict=False)]
        self._fast = statistics.median(changes) * SECOND_DIFFERENCE
        self._slow = self._lag = 0.0
        self._x2, self._x1 = first[-2:]
        self._age = 0

    def _restart(self, loss: float) -> None:
        """Judge the loss itself from here on: it has no logarithm."""
        self.is_log, self.level, self.value = False, None, loss
        if len(self._recent) >= self.settings.start:
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Return what the signal knows, as plain values."""
        return {name: list(value) if name == "_recent" else value for name, value in self._items()}

    def _items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.state_names]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        for name in self.state_names:
            setattr(self, name, list(state[name]) if name == "_recent" else state[name])

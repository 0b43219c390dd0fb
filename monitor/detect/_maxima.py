"""The height that a run's own noise reaches, and its rate: a Gumbel distribution fitted to the maxima of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor._checks import require, require_whole

_EULER = 0.5772156649
_SHAPE = math.sqrt(6.0) / math.pi
"""Gumbel's scale over the standard deviation."""


@dataclass(frozen=True, kw_only=True)
class MaximaSettings:
    """Set how the height that noise reaches is learned.

    Attributes:
        block: values whose maximum is one observation.
        memory: blocks over which mean and deviation are averaged.
        prior_blocks: blocks that the prior counts for; 4.
        prior_mean, prior_deviation: what is expected of a run before it has shown its noise, in scales; a little more
            than independent normal noise shows.
        young_blocks: the fitted scale is widened by this over the number of blocks: few blocks say little about tails.
    """

    block: int = 50
    memory: int = 40
    prior_blocks: float = 4.0
    prior_mean: float = 1.2
    prior_deviation: float = 0.6
    young_blocks: float = 2.0

    def __post_init__(self) -> None:
        require_whole(self, block=(2, 10**6), memory=(2, 10**6))
        require(
            self,
            prior_blocks=(1, 1e6),
            prior_mean=(-100, 100),
            prior_deviation=(0.01, 100),
            young_blocks=(0, 100),
        )


class BlockMaxima:
    """Learn the distribution of the maxima of blocks of a statistic; give the height reached with a probability, and
    the probability of a height (Gumbel 1958, by the method of moments, exponentially weighted).

    >>> maxima = BlockMaxima()
    >>> height = maxima.height(0.001)
    >>> round(maxima.probability(height), 6)
    0.001
    """

    state_names = ("_mean", "_variance", "_weight", "_count", "_top")

    def __init__(self, settings: MaximaSettings | None = None) -> None:
        self.settings = settings or MaximaSettings()
        self._mean = self.settings.prior_mean
        self._variance = self.settings.prior_deviation**2
        self._weight = self.settings.prior_blocks
        self._count = 0
        self._top = 0.0

    def add(self, value: float) -> bool:
        """Take a value; say whether it closes a block."""
        if value > self._top:
            self._top = value
        self._count += 1
        if self._count < self.settings.block:
            return False
        self._close()
        return True

    def witness(self, height: float) -> None:
        """Let the open block have reached this height, without counting a value."""
        self._top = max(self._top, height)

    def _close(self) -> None:
        # A maximum below the level says that the level lags behind a falling loss, nothing of how high noise reaches.
        top, self._count, self._top = self._top, 0, 0.0
        self._weight = min(self._weight + 1.0, float(self.settings.memory))
        share = 1.0 / self._weight
        off = top - self._mean
        self._mean += share * off
        self._variance += share * (off * off * (1.0 - share) - self._variance)

    def _fit(self) -> tuple[float, float]:
        scale = max(math.sqrt(self._variance) * _SHAPE, 0.05)
        return self._mean - _EULER * scale, scale * (1.0 + self.settings.young_blocks / self._weight)

    def height(self, probability: float) -> float:
        """Return the height that the maximum of a block exceeds with this probability."""
        place, scale = self._fit()
        return place - scale * math.log(-math.log1p(-probability))

    def probability(self, height: float) -> float:
        """Return the probability that the maximum of a block exceeds this height."""
        place, scale = self._fit()
        return -math.expm1(-math.exp(min(700.0, -(height - place) / scale)))

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        return {name: getattr(self, name) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        for name in self.state_names:
            setattr(self, name, state[name])

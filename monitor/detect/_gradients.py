"""``gradient_explosion`` and ``gradient_vanishing``: the norm far above, or below a thousandth of, its own level."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from monitor._checks import require, require_whole
from monitor._records import Event, Step
from monitor.detect._bins import LogBins
from monitor.detect._detector import Detector
from monitor.detect._lasting import LastingRiseDetector, positive
from monitor.detect._level import LevelSettings
from monitor.detect._numbers import as_usable
from monitor.detect._rise import RiseSettings
from monitor.detect._wording import REDUCE, show

_LOG_LEVEL = LevelSettings(least_scale=0.05)


@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """Set when the gradient norm (before clipping) is out of bounds of its own history.

    Attributes:
        explosion: norm over its level before the rise; 10: norms of healthy runs swing by 3 to 5 (measured on the
            labelled curves).
        explosion_back: the same, below which it is over.
        explosion_records: records that the median must stand above.
        vanishing: norm over the median of the last doubling of records; a thousandth, the design's.
        vanishing_records: records in a row below that.
        median: records whose median is compared.
    """

    explosion: float = 10.0
    explosion_back: float = 3.0
    explosion_records: int = 8
    vanishing: float = 1e-3
    vanishing_records: int = 16
    median: int = 5

    def __post_init__(self) -> None:
        require(self, explosion=(1.1, 1e9), explosion_back=(1, 1e9), vanishing=(1e-30, 0.9))
        require_whole(self, explosion_records=(1, 10**6), vanishing_records=(1, 10**6), median=(1, 101))
        if self.explosion_back > self.explosion:
            raise ValueError(
                f"GradientSettings.explosion_back must be at most explosion {self.explosion:g}, "
                f"got {self.explosion_back!r}"
            )


class GradientExplosionDetector(LastingRiseDetector):
    """Raise ``gradient_explosion`` when the norm's median has stood ten times above its level for some records."""

    kind = "gradient_explosion"
    quantity = "gradient norm"
    remedy = f"{REDUCE}, or clip (`torch.nn.utils.clip_grad_norm_`)"

    def __init__(self, settings: GradientSettings | None = None) -> None:
        self.settings = settings or GradientSettings()
        super().__init__(
            self.settings.explosion,
            self.settings.explosion_back,
            self.settings.explosion_records,
            self.settings.median,
            RiseSettings(level=_LOG_LEVEL),
        )

    def _value(self, step: Step) -> float | None:
        return positive(step.gradient_norm)


class GradientVanishingDetector(Detector):
    """Raise ``gradient_vanishing`` when the norm stays below a thousandth of what it was over the last doubling of
    records."""

    kind = "gradient_vanishing"
    state_names = ("_medians", "_low", "_reference", "_since")
    part_names = ("bins",)

    def __init__(self, settings: GradientSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or GradientSettings()
        self._bins = LogBins()
        self._medians: list[float] = []
        self._reference: float | None = None
        self._low = 0
        self._since: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        is_muted = self._muted > 0 and self._is_muted()
        norm = as_usable(step.gradient_norm)
        if norm is None or norm < 0.0:
            return None
        reference = self._reference
        if reference is not None and norm < reference * self.settings.vanishing:
            return self._sink(step, norm, reference, is_muted)
        self._low, self._since = 0, None
        closed = self._bins.add(norm, step.global_step)
        if closed is not None and closed.median > 0.0:
            self._medians = [*self._medians[-self._bins.settings.per_doubling :], closed.median]
            self._reference = math.exp(statistics.median(map(math.log, self._medians)))
        if self._open is None:
            return None
        was = f"it had fallen from {show(self._open.details['level'])} to {show(self._open.value or 0.0)}"
        return self._end(
            step.global_step, f"gradient norm is back at {show(norm)}; {was} since step {self._open.start_step}"
        )

    def _sink(self, step: Step, norm: float, reference: float, is_muted: bool) -> Event | None:
        """Count a low norm. It enters no bin, so that the reference stays what it was before."""
        if self._low == 0:
            self._since = step.global_step
        self._low += 1
        if self._low < self.settings.vanishing_records or self._open is not None or is_muted or self._since is None:
            return None
        message = (
            f"gradient norm fell from {show(reference)} to {show(norm)} since step {self._since} and stays there. "
            "Look for a `detach` or a mask that cuts the graph, saturated activations, or underflow in half precision"
        )
        return self._start(step.optimizer, step.global_step, self._since, message, norm, level=reference)

    def mute(self, records: int) -> None:
        """Start no event within the next ``records`` records."""
        self._muted = max(self._muted, records)

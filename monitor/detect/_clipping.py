"""``clipping_saturated``: nearly every step is clipped, so the threshold sets the size of the update."""

from __future__ import annotations

from dataclasses import dataclass

from monitor._checks import require, require_whole
from monitor._records import Event, Step
from monitor.detect._detector import Detector


@dataclass(frozen=True, kw_only=True)
class ClippingSettings:
    """Set when clipping is saturated.

    Attributes:
        share: exponentially weighted share of clipped steps above which it is; 0.95.
        back_share: the same, below which it is over.
        memory: steps over which the share is averaged; 64.
        least: evaluated steps before which nothing is said; 128: clipping in the first steps is usual.
    """

    share: float = 0.95
    back_share: float = 0.8
    memory: int = 64
    least: int = 128

    def __post_init__(self) -> None:
        require(self, share=(0.01, 0.9999), back_share=(0, 0.9999))
        require_whole(self, memory=(2, 10**6), least=(1, 10**9))
        if self.back_share > self.share:
            raise ValueError(
                f"ClippingSettings.back_share must be at most share {self.share:g}, got {self.back_share!r}"
            )


class ClippingDetector(Detector):
    """Raise ``clipping_saturated`` (information) when at least 95 % of the recent steps were clipped."""

    kind = "clipping_saturated"
    severity = "info"
    state_names = ("_share", "_count", "_since")

    def __init__(self, settings: ClippingSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or ClippingSettings()
        self._share = 0.0
        self._count = 0
        self._since: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; steps at which no clipping was evaluated are passed over."""
        known = [clip.is_clipped for clip in step.clips if clip.is_clipped is not None]
        if not known:
            return None
        is_clipped = any(known)
        self._count += 1
        self._share += ((1.0 if is_clipped else 0.0) - self._share) / min(self._count, self.settings.memory)
        if not is_clipped:
            self._since = None
        elif self._since is None:
            self._since = step.global_step
        if self._open is not None:
            if self._share >= self.settings.back_share:
                return None
            was = f"it was nearly every step since step {self._open.start_step}"
            return self._end(step.global_step, f"{self._share:.0%} of the recent steps are clipped; {was}")
        if self._share < self.settings.share or self._count < self.settings.least:
            return None
        start = self._since if self._since is not None else step.global_step
        threshold = step.clips[-1].threshold
        message = (
            f"{self._share:.0%} of the recent steps are clipped at {threshold:g}, so that this sets the size of the "
            "update. Raise it or lower the learning rate, unless that is meant"
        )
        return self._start(step.optimizer, step.global_step, start, message, self._share, threshold=threshold)

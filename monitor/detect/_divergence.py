"""``divergence``: the loss has left its level and does not come back, or has given back what it had learned."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Sample, Step
from monitor.detect._bins import Bin, BinSettings, LogBins
from monitor.detect._detector import Detector
from monitor.detect._level import CusumSettings, LevelSettings
from monitor.detect._loss import LossRise, LossSettings
from monitor.detect._rise import Rise, RiseSettings
from monitor.detect._wording import REDUCE, checkpoint, last_good, show

_MOST_LOST = 4.0
"""Bins that a single one can count for, when it has given back much more than ``lost_share``."""


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings:
    """Set when a rise is no longer a spike. "Records" are steps in a live run; shares and distances are those of the
    transformed loss (``LossSignal``): of its logarithm, where it is positive.

    Three ways lead to a divergence: (a) a large rise (``large``) that has not come half back for ``large_patience``
    records, or any rise that is not back for ``patience`` records, and in both cases for ``patience_share`` of all
    records so far; (b) a rise to clearly above where the run began, after something had been learned; (c) a slow one,
    seen in log-time bins: ``lost_share`` of the progress made has been given back for a whole doubling of records.

    Attributes:
        large: the loss over its level before, from which a rise is large.
        large_scales: the same in scales, if that is more.
        large_patience: records after which a large rise that has not come half back is a divergence.
        patience: records above the level before the onset, for other rises.
        patience_share: the same as a share of the records before the onset.
        scales: distance from the level before the onset, in scales, within which the loss is back.
        share: the same as a share of the level.
        median: records whose median is compared, and for how many in a row it must be back.
        above_start: share of the progress by which the loss must stand above where it began.
        learned: progress, in scales, from which something has been learned.
        lost_share: share of the progress that has been given back.
        lost_bins: bins in a row with that; 12, one doubling.
        lost_least: records before which nothing counts as given back: humps at the top of a warm-up.
        early: records before which nothing counts as learned.
        block: records whose median enters a CUSUM of its own: a rise no higher than the noise of single records.
        block_scales: as ``scales``, for the rises that only the blocks have seen.
        block_rise: settings of that CUSUM; it starts after 4 blocks.
        bins: the bins.
    """

    large: float = 1.5
    large_scales: float = 5.0
    large_patience: int = 5
    patience: int = 70
    patience_share: float = 0.15
    scales: float = 4.0
    share: float = 0.02
    median: int = 15
    above_start: float = 0.1
    learned: float = 4.0
    lost_share: float = 0.3
    lost_bins: int = 12
    lost_least: int = 64
    early: int = 16
    block: int = 8
    block_scales: float = 2.2
    block_rise: RiseSettings = field(
        default_factory=lambda: RiseSettings(
            level=LevelSettings(start=4, fall_memory=10.0), cusum=CusumSettings(warmup=4)
        )
    )
    bins: BinSettings = field(default_factory=BinSettings)

    def __post_init__(self) -> None:
        require_whole(
            self,
            patience=(1, 10**9),
            large_patience=(1, 10**9),
            median=(5, 1001),
            lost_bins=(1, 1000),
            lost_least=(0, 10**9),
        )
        require(self, large=(1.01, 1e6), large_scales=(0, 1e6), patience_share=(0, 10), scales=(0, 1e6))
        require(
            self, share=(0, 10), above_start=(0, 100), learned=(0, 1e6), lost_share=(0.01, 10), block_scales=(0, 1e6)
        )
        require_whole(self, block=(2, 10**4))


class DivergenceDetector(Detector):
    """Raise ``divergence`` when the loss is up for good; end it when its median is back.

    Args:
        settings: see ``DivergenceSettings``.
        rise: the loss's rise, when it is shared with other detectors.
        rise_settings: of an own rise, when none is shared.
    """

    kind = "divergence"
    severity = "critical"
    state_names = (
        "_recent",
        "_candidate",
        "_limit",
        "_peak",
        "_patience",
        "_is_large",
        "_back",
        "_back_since",
        "_start_value",
        "_best",
        "_lost",
        "_lost_since",
        "_let_go",
        "_announced_until",
        "_was_log",
        "_previous",
        "_block",
        "_scale",
        "_scale_at_onset",
        "_let_go_block",
    )
    part_names = ("rise", "bins", "blocks")

    def __init__(
        self,
        settings: DivergenceSettings | None = None,
        *,
        rise: LossRise | None = None,
        rise_settings: LossSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or DivergenceSettings()
        self._rise = rise if rise is not None else LossRise(rise_settings)
        self._was_log = True
        self._announced_until = 0
        self._previous: list[Any] = [None, None]  # level before this record, and the step of the record before
        self._let_go: int | None = None  # onset, by its count of records, of a rise that is not watched again
        self._begin()

    def _begin(self) -> None:
        self._bins = LogBins(self.settings.bins)
        self._blocks = Rise(self.settings.block_rise)
        self._block: list[float] = []
        self._scale = self._scale_at_onset = 0.0
        self._let_go_block: int | None = None
        self._recent: list[float] = []
        self._candidate: list[Any] | None = None
        self._limit = self._peak = 0.0
        self._patience = 0
        self._is_large = False
        self._back = 0
        self._back_since = 0
        self._start_value: float | None = None
        self._best: float | None = None
        self._lost = 0.0
        self._lost_since: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        signal = self._rise.signal
        (level, last_step), scale = self._previous, signal.scale
        if self._rise.take(step) is None:
            return None
        self._previous = [signal.level, step.global_step]
        if signal.is_log != self._was_log:
            return self._restart(step)
        closed = self._follow(step)
        if self._open is not None:
            return self._judge(step)
        if level is not None and not self._is_large:
            self._look_for_large(step, level, scale, last_step)
        if closed is not None and self._lost >= self.settings.lost_bins and not self._is_large:
            return self._raise_lost(step)
        if self._candidate is None:
            self._look_for_small()
            return None
        return self._judge(step)

    def observe(self, sample: Sample) -> None:
        """Take a validation loss, to be named beside a rise; no event comes of it."""
        self._rise.context.observe(sample)

    def _restart(self, step: Step) -> Event | None:
        """Begin anew: the loss has gone below zero, and what was known of its logarithm says nothing about it."""
        self._was_log = self._rise.signal.is_log
        self._begin()
        return self._close(step.global_step, f"loss fell to {show(self._rise.signal.value)} at step {step.global_step}")

    def _follow(self, step: Step) -> Bin | None:
        """Take the value into all that looks back; return the bin that it closes."""
        value = self._rise.signal.value
        self._recent.append(value)
        if len(self._recent) > self.settings.median:
            del self._recent[0]
        if self._start_value is None:
            self._start_value = value
        closed = self._bins.add(value, step.global_step)
        if closed is not None:
            self._follow_progress(closed)
        self._block.append(value)
        if len(self._block) >= self.settings.block:
            self._close_block(step)
        return closed

    def _look_for_small(self) -> None:
        """Watch a rise of the loss above its own noise; else one of its blocks, when one has just been closed."""
        onset = self._rise.onset
        if self._rise.is_up and onset is not None and onset.count != self._let_go:
            distance = max(self.settings.scales * onset.scale, self._rise.signal.ratio(1.0 + self.settings.share))
            self._watch(onset.step, onset.last_good, onset.level, onset.scale, onset.count, distance)
        elif not self._block:
            self._watch_blocks()

    def _look_for_large(self, step: Step, level: float, scale: float, last_step: int | None) -> None:
        """Watch a rise that is large by a single record; the level before a rise that is watched already holds."""
        signal = self._rise.signal
        if self._candidate is not None:
            level, scale = self._candidate[2], self._candidate[3]
        distance = max(signal.ratio(self.settings.large), self.settings.large_scales * scale)
        if signal.value <= level + distance:
            return
        if self._candidate is None:
            self._watch(step.global_step, last_step, level, scale, signal.count, 0.5 * distance)
        else:
            self._limit = max(self._limit, level + 0.5 * distance)
        self._is_large, self._patience, self._back = True, self.settings.large_patience, 0

    def _close_block(self, step: Step) -> None:
        """Take the block's median; keep the noise of single records as it was before the blocks began to rise."""
        had_onset = self._blocks.onset is not None
        self._blocks.update(statistics.median(self._block), step.global_step)
        self._block = []
        if self._blocks.onset is not None and not had_onset:
            self._scale_at_onset = self._scale
        self._scale = self._rise.signal.scale

    def _watch_blocks(self) -> None:
        onset = self._blocks.onset
        if not self._blocks.is_alarm or onset is None or onset.count == self._let_go_block:
            return
        self._let_go_block = onset.count
        scale = self._scale_at_onset
        distance = max(self.settings.block_scales * scale, self._rise.signal.ratio(1.0 + self.settings.share))
        self._watch(onset.step, onset.last_good, onset.level, scale, onset.count * self.settings.block, distance)

    def _watch(self, start: int, good: int | None, level: float, scale: float, count: int, distance: float) -> None:
        """Watch a rise. After an announced change it has to give back a good part of what had been learned, too."""
        if count < self._announced_until and self._best is not None and self._start_value is not None:
            distance = max(distance, self.settings.lost_share * (self._start_value - self._best))
        self._candidate = [start, good, level, scale, count]
        self._limit, self._back, self._patience = level + distance, 0, self.settings.patience
        self._peak = level

    def _judge(self, step: Step) -> Event | None:
        settings = self.settings
        assert self._candidate is not None
        start, good, level, scale, count = self._candidate
        length = self._rise.signal.count - count + 1
        width = 5 if self._is_large else settings.median
        median = statistics.median(self._recent[-min(width, max(1, length)) :])
        if length >= 3:
            self._peak = max(self._peak, median)
        self._back = self._back + 1 if median <= self._limit else 0
        if self._back == 1:
            self._back_since = step.global_step
        if self._back >= (3 if self._is_large and self._open is None else settings.median) and (
            length > settings.median or self._open is None
        ):
            return self._let_go_of(median, count)
        if self._open is not None or self._back or length < self._patience:
            return None
        if self._is_large and length < settings.patience and self._is_returning(level, median):
            return None
        if length >= settings.patience_share * count or self._is_above_start(scale, length):
            # It is back when it has come at least half of the way, and two thirds if it has risen by decades.
            rise = median - level
            self._limit = level + max(rise / 3.0, min(self._limit - level, rise / 2.0))
            return self._raise(step, start, good, median)
        return None

    def _is_returning(self, level: float, median: float) -> bool:
        """Say whether a large rise is on its way back, so that it is given the time of others."""
        return min(self._recent[-5:]) <= self._limit or median <= level + (self._peak - level) * 2.0 / 3.0

    def _let_go_of(self, median: float, count: int) -> Event | None:
        if self._is_large:
            self._let_go_block = None  # a smaller rise that the large one has hidden is watched again
        self._candidate, self._is_large = None, False
        if count < self._announced_until:
            self._let_go = count
        if self._open is None:
            return None
        self._lost, self._lost_since = 0.0, None
        shown = show(self._rise.signal.raw(median))
        return self._close(self._back_since, f"loss is back at {shown} from step {self._back_since}")

    def _close(self, step: int, now: str) -> Event | None:
        if self._open is None:
            return None
        before, peak = (show(self._open.details[name]) for name in ("level", "median"))
        return self._end(step, f"{now}; it had risen from {before} to {peak} since step {self._open.start_step}")

    def _is_above_start(self, scale: float, length: int) -> bool:
        if self._best is None or self._start_value is None or length < self.settings.median:
            return False
        ordered = sorted(self._recent)
        low = ordered[len(ordered) // 4]
        progress = self._start_value - self._best
        return (
            progress > self.settings.learned * scale and low > self._start_value + self.settings.above_start * progress
        )

    def _follow_progress(self, closed: Bin) -> None:
        """Note the best, and count the bins in a row in which a good part of the progress is lost."""
        if self._best is None or self._start_value is None:
            # Never above the first record: a run that blows up at once and comes down again has learned nothing.
            first = closed.median if self._start_value is None else min(self._start_value, closed.median)
            self._start_value, self._best = first, first
            return
        if closed.count > self.settings.early:
            self._best = min(self._best, closed.median)
        progress = self._start_value - self._best
        has_learned = progress > self.settings.learned * self._rise.signal.scale
        if (
            has_learned
            and closed.median - self._best > self.settings.lost_share * progress
            and closed.count > self.settings.lost_least
        ):
            if self._lost_since is None:
                self._lost_since = closed.first_step
            # What gives back more needs less time.
            self._lost += min(_MOST_LOST, (closed.median - self._best) / (self.settings.lost_share * progress))
        else:
            self._lost, self._lost_since = 0.0, None

    def _raise_lost(self, step: Step) -> Event:
        assert self._best is not None and self._start_value is not None  # noqa: PT018 - no test
        assert self._lost_since is not None
        signal = self._rise.signal
        progress = self._start_value - self._best
        self._candidate = [self._lost_since, None, self._best, signal.scale, signal.count]
        self._limit, self._back = self._best + self.settings.lost_share * progress, 0
        return self._raise(step, self._lost_since, None, statistics.median(self._recent))

    def _raise(self, step: Step, start: int, good: int | None, median: float) -> Event:
        assert self._candidate is not None
        level, scale = self._candidate[2], self._candidate[3]
        signal = self._rise.signal
        before, now = signal.raw(level), signal.raw(median)
        beside, details = self._rise.context.describe(step, start)
        message = (
            f"loss rose from {show(before)} to {show(now)} since step {start} and stays there{beside}{last_good(good)}"
            f". {REDUCE}; if the loss does not come back, restore {checkpoint(start, good)}"
        )
        return self._start(
            step.optimizer,
            step.global_step,
            start,
            message,
            step.loss,
            level=before,
            median=now,
            alarms_per_100k_steps=self._rise.alarms_per_100k_steps((median - level) / max(scale, 1e-300)),
            last_good_step=good,
            **details,
        )

    def mute(self, records: int) -> None:
        """Expect a rise that begins within the next ``records`` records.

        It is a divergence only when it gives back a good part of the progress (``lost_share``): a raised learning rate
        lifts the loss of a healthy run to where that rate can keep it.
        """
        self._announced_until = max(self._announced_until, self._rise.signal.count + records)

"""``divergence``: the loss has left its level and does not come back, or has given back what it had learned."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Step
from monitor.detect._bins import Bin, BinSettings, LogBins
from monitor.detect._detector import Detector
from monitor.detect._level import CusumSettings, LevelSettings
from monitor.detect._numbers import show
from monitor.detect._rise import LossRise, Onset, Rise, RiseSettings


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings:
    """Set when a rise is no longer a spike. "Records" are steps in a live run.

    Three ways lead to a divergence: (a) a rise that has not come back for ``patience`` records and ``patience_share``
    of all records so far (the design's measured rule); (b) a rise to clearly above where the run began, after something
    had been learned; (c) a slow one, seen in log-time bins: ``lost_share`` of the progress made has been given back for
    a whole doubling of records. (c) catches drifts that a level follows; leave-one-source-out chose a doubling over
    shorter spans, because humps at the top of a warm-up last up to two thirds of one.

    Attributes:
        patience: records above the level before the onset.
        patience_share: the same as a share of the records before the onset.
        scales: distance from the level before the onset, in scales, within which the loss is back.
        share: the same as a share of the level's size.
        median: records whose median is compared, and for how many in a row it must be back.
        above_start: share of the progress by which the loss must stand above where it began.
        learned: progress, in scales, from which something has been learned.
        lost_share: share of the progress that has been given back.
        lost_bins: bins in a row with that; 12, one doubling.
        early: records before which nothing counts as learned; 16, the warm-up of the level.
        block: records whose median enters a second, slower CUSUM: a rise that is no higher than the noise of single
            records.
        block_scales: as ``scales``, for the rises that only the blocks have seen.
        block_rise: settings of that one; it starts after 4 blocks.
        bins: the bins.
    """

    patience: int = 50
    patience_share: float = 0.15
    scales: float = 4.0
    share: float = 0.02
    median: int = 15
    above_start: float = 0.1
    learned: float = 4.0
    lost_share: float = 0.3
    lost_bins: int = 12
    early: int = 16
    block: int = 8
    block_scales: float = 2.5
    block_rise: RiseSettings = field(
        default_factory=lambda: RiseSettings(level=LevelSettings(start=4), cusum=CusumSettings(warmup=4))
    )
    bins: BinSettings = field(default_factory=BinSettings)

    def __post_init__(self) -> None:
        require_whole(self, block=(2, 10**4), patience=(1, 10**9), median=(1, 1001), lost_bins=(1, 1000))
        require(
            self, patience_share=(0, 10), scales=(0, 1e6), share=(0, 10), block_scales=(0, 1e6), above_start=(0, 100)
        )
        require(self, learned=(0, 1e6), lost_share=(0.01, 10))


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
        "_back",
        "_back_since",
        "_start_value",
        "_best",
        "_lost",
        "_lost_since",
        "_block",
        "_scale",
        "_scale_at_onset",
        "_let_go",
        "_let_go_block",
        "_announced_until",
    )
    part_names = (
        "rise",
        "bins",
        "blocks",
    )

    def __init__(
        self,
        settings: DivergenceSettings | None = None,
        *,
        rise: LossRise | None = None,
        rise_settings: RiseSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or DivergenceSettings()
        self._rise = rise if rise is not None else LossRise(rise_settings)
        self._bins = LogBins(self.settings.bins)
        self._blocks = Rise(self.settings.block_rise)
        self._block: list[float] = []
        self._scale = 0.0
        self._scale_at_onset = 0.0
        # Onsets (by their count of records) of rises that have been watched and are not watched again.
        self._let_go: int | None = None
        self._let_go_block: int | None = None
        self._announced_until = 0
        self._recent: list[float] = []
        self._candidate: list[Any] | None = None
        self._limit = 0.0
        self._back = 0
        self._back_since = 0
        self._start_value: float | None = None
        self._best: float | None = None
        self._lost = 0
        self._lost_since: int | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        rise = self._rise
        loss = rise.take(step)
        if loss is None:
            return None
        recent = self._recent
        recent.append(loss)
        if len(recent) > self.settings.median:
            del recent[0]
        if self._start_value is None:
            self._start_value = loss
        closed = self._bins.add(loss, step.global_step)
        if closed is not None:
            self._follow_progress(closed)
        blocks = self._blocks
        self._block.append(loss)
        is_block = len(self._block) >= self.settings.block
        if is_block:
            self._close_block(step)
        if self._candidate is None:
            if rise.is_alarm and rise.onset is not None and rise.onset.count != self._let_go:
                self._watch(rise.onset, rise.onset.scale, self.settings.scales, rise.onset.count)
            elif is_block and blocks.is_alarm and blocks.onset is not None:
                self._watch_block(blocks.onset)
            elif closed is not None and self._lost >= self.settings.lost_bins:
                return self._raise_lost(step, loss)
            return None
        return self._judge(step, loss)

    def _watch(self, onset: Onset, scale: float, scales: float, count: int) -> None:
        """Watch a rise. After an announced change it has to give back a good part of what had been learned, too."""
        allowed = max(scales * scale, self.settings.share * abs(onset.level))
        if count < self._announced_until and self._best is not None and self._start_value is not None:
            allowed = max(allowed, self.settings.lost_share * (self._start_value - self._best))
        self._candidate = [onset.step, onset.last_good, onset.level, scale, count]
        self._limit, self._back = onset.level + allowed, 0

    def _close_block(self, step: Step) -> None:
        """Take the block's median; keep the noise of single records as it was before the blocks began to rise."""
        had_onset = self._blocks.onset is not None
        self._blocks.update(statistics.median(self._block), step.global_step)
        self._block = []
        if self._blocks.onset is not None and not had_onset:
            self._scale_at_onset = self._scale
        self._scale = self._rise.level.scale * self._rise.level.tail

    def _watch_block(self, onset: Onset) -> None:
        if onset.count == self._let_go_block:
            return
        self._let_go_block = onset.count
        self._watch(onset, self._scale_at_onset, self.settings.block_scales, onset.count * self.settings.block)

    def _judge(self, step: Step, loss: float) -> Event | None:
        settings = self.settings
        assert self._candidate is not None
        start, last_good, level, scale, count = self._candidate
        length = self._rise.level.count - count
        ordered = sorted(self._recent)
        median = ordered[len(ordered) // 2]
        self._back = self._back + 1 if median <= self._limit else 0
        if self._back == 1:
            self._back_since = step.global_step
        if length > settings.median and self._back >= settings.median:
            self._candidate, self._lost, self._lost_since = None, 0, None
            if count < self._announced_until:
                self._let_go = count
            if self._open is None:
                return None
            return self._end(self._back_since, f"loss is back at {show(median)} from step {self._back_since}")
        if self._open is not None or self._back or length < settings.median:
            return None
        is_long = length >= max(settings.patience, settings.patience_share * count)
        if not (is_long or self._is_above_start(ordered[len(ordered) // 4], scale)):
            return None
        return self._raise(step, start, last_good, level, median, length, loss)

    def _is_above_start(self, low: float, scale: float) -> bool:
        if self._best is None or self._start_value is None:
            return False
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
        has_learned = progress > self.settings.learned * self._rise.level.scale
        if has_learned and closed.median - self._best > self.settings.lost_share * progress and closed.count > 24:
            if self._lost == 0:
                self._lost_since = closed.first_step
            self._lost += 1
        else:
            self._lost, self._lost_since = 0, None

    def _raise_lost(self, step: Step, loss: float) -> Event:
        assert self._best is not None and self._start_value is not None  # noqa: PT018 - no test
        assert self._lost_since is not None
        progress = self._start_value - self._best
        self._limit, self._back = self._best + self.settings.lost_share * progress, 0
        self._candidate = [self._lost_since, None, self._best, self._rise.level.scale, self._rise.level.count]
        ordered = sorted(self._recent)
        return self._raise(step, self._lost_since, None, self._best, ordered[len(ordered) // 2], None, loss)

    def _raise(
        self,
        step: Step,
        start: int,
        last_good: int | None,
        level: float,
        median: float,
        length: int | None,
        loss: float,
    ) -> Event:
        within = "" if length is None else f" within {length} records"
        good = "" if last_good is None else f"; last good step {last_good}"
        message = f"loss rose from {show(level)} to {show(median)}{within} from step {start} and stays there{good}"
        return self._start(
            step.optimizer, step.global_step, start, message, loss, level=level, median=median, last_good_step=last_good
        )

    def mute(self, records: int) -> None:
        """Expect a rise that begins within the next ``records`` records.

        It is a divergence only when it gives back a good part of the progress (``lost_share``): a raised learning rate
        lifts the loss of a healthy run to where that rate can keep it.
        """
        self._announced_until = max(self._announced_until, self._rise.level.count + records)

"""``plateau``: no progress per doubling of steps while the learning rate could still do something."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from monitor._checks import require, require_whole
from monitor._records import Event, Sample, Step
from monitor.detect._bins import BinSettings, LogBins
from monitor.detect._detector import Detector
from monitor.detect._loss import LossRise
from monitor.detect._numbers import as_usable, tail
from monitor.detect._wording import show

_SETTLED = "Try a lower learning rate (`monitor lr reduce 0.3`); if the loss does not fall then, stop (`monitor stop`)"
_GUESSES = "Check that the optimizer holds the model's parameters, the labels, and the learning rate"
_MOST_BINS = 128
"""Bins kept: more than ten doublings."""


@dataclass(frozen=True, kw_only=True)
class PlateauSettings:
    """Set what counts as no progress. Not shift-free: progress is a share of the level (of its logarithm, a
    difference).

    Measured on the labelled curves, chosen by leave-one-source-out (docs/detection.md). Healthy language models still
    fall by more than 1 % per doubling at their end.

    Two rules lead to a plateau. It is *shown*: over the last ``shown_bins`` or more, the gain per doubling is below
    ``drop`` with its whole confidence interval (an equivalence test, Schuirmann 1987). Or it is *likely*: over the last
    doubling and half a doubling more the estimated gain is below ``drop`` and there is no trend, several times in a
    row.

    Attributes:
        drop: share of the level per doubling of records below which there is no progress.
        shown_bins: bins of the shortest span that can show it; 8, the last 37 % of the records.
        confidence: of the one-sided interval, in standard errors of a normal distribution; 1.3 (10 %).
        shown_patience: bins in a row that show it.
        shown_least: records before which nothing is shown.
        shown_steps: steps before which nothing is shown, as very large models begin flat.
        guess_steps: the same where the loss stands at ``expected_initial_loss``; 40, from which on no labelled curve
            would be reported falsely if its first loss were that.
        expected_initial_loss: loss of a model that has learned nothing (ln of the number of classes), if known.
        trend: Mann-Kendall z at or below minus this is a fall, however small; 1.64 (5 %, one-sided).
        step_down: share of the plateau's level by which a loss that has fallen at once, and is flat again, ends it.
        rise: share of the level per doubling above which it is no plateau either.
        patience: bins in a row without progress, and with progress that end it; 5 (4 to 6 score alike, 7 finds less).
        least: records before which none is likely (warm-up; the flat start of very large models).
        lr_rise: learning rate over its value at the start of the span above which it is being warmed up, and bins do
            not count.
        lr_end: learning rate over its maximum at or below which the schedule is at its end, and a plateau that begins
            there is its purpose; 0.1, where cosine schedules of language models end by convention.
        lr_share: share of the records of a span in which it must have been above that.
        bins: the bins.
    """

    drop: float = 0.01
    shown_bins: int = 8
    confidence: float = 1.3
    shown_patience: int = 4
    shown_least: int = 20
    shown_steps: int = 100
    guess_steps: int = 40
    expected_initial_loss: float | None = None
    trend: float = 1.64
    step_down: float = 0.05
    rise: float = 0.2
    patience: int = 5
    least: int = 100
    lr_rise: float = 1.1
    lr_end: float = 0.1
    lr_share: float = 0.33
    bins: BinSettings = field(default_factory=BinSettings)

    def __post_init__(self) -> None:
        require(
            self,
            drop=(0, 1),
            trend=(0, 100),
            step_down=(0, 1),
            rise=(0, 1e6),
            lr_rise=(1, 1e6),
            lr_end=(0, 1),
            lr_share=(0, 1),
            confidence=(0, 100),
        )
        require_whole(
            self,
            patience=(1, 1000),
            least=(1, 10**9),
            shown_patience=(1, 1000),
            shown_least=(1, 10**9),
            shown_steps=(1, 10**9),
            guess_steps=(1, 10**9),
        )
        require_whole(self, shown_bins=(4, _MOST_BINS))


class _Bin(NamedTuple):
    """``place``: the middle of the bin, in doublings of the records; ``weight``: its records."""

    place: float
    median: float
    weight: float
    first_step: int
    lr: float | None


class PlateauDetector(Detector):
    """Raise ``plateau`` when the loss has stopped falling on the scale of its own history; end it when it falls again.

    Costs an append a record; the statistics run when a bin closes, 12 times per doubling.

    Args:
        settings: see ``PlateauSettings``.
        rise: the loss's rise, whose transformed loss is looked at, when it is shared with other detectors.
    """

    kind = "plateau"
    state_names = ("_history", "_flat", "_shown", "_moving", "_flat_since", "_lr", "_top_lr", "_was_log", "_count")
    part_names = ("bins",)

    def __init__(self, settings: PlateauSettings | None = None, *, rise: LossRise | None = None) -> None:
        super().__init__()
        self.settings = settings or PlateauSettings()
        self._rise = rise if rise is not None else LossRise()
        self._steps_per_record = self._rise.settings.steps_per_record
        self._lr: float | None = None
        self._top_lr = 0.0
        self._expected = self.settings.expected_initial_loss
        self._was_log = True
        self._begin()

    def _begin(self) -> None:
        self._bins = LogBins(self.settings.bins)
        self._history: list[Sequence[Any]] = []
        self._flat = 0
        self._shown = 0
        self._moving = 0
        self._count = 0
        self._flat_since: int | None = None

    def expect(self, initial_loss: float) -> None:
        """Take the loss of a model that has learned nothing, unless the settings say it."""
        if self.settings.expected_initial_loss is None:
            self._expected = initial_loss

    def update(self, step: Step) -> Event | None:
        """Take the next record; see ``Detector.update``."""
        rise = self._rise
        if rise.take(step) is None:
            return None
        if rise.signal.is_log != self._was_log:
            self._was_log = rise.signal.is_log
            self._begin()
        closed = self._bins.add(rise.signal.value, step.global_step)
        if closed is None:
            return None
        self._follow_lr(step)
        weight = closed.count - self._count
        place = math.log2(closed.count - 0.5 * (weight - 1))
        self._count = closed.count
        self._history.append((place, closed.median, weight, closed.first_step, self._lr))  # plain: it is saved
        if len(self._history) > _MOST_BINS:
            del self._history[0]
        return self._judge(step)

    def observe(self, sample: Sample) -> None:
        """Take a validation loss, to be named beside a plateau; no event comes of it."""
        self._rise.context.observe(sample)

    def _follow_lr(self, step: Step) -> None:
        rates = [rate for group in step.groups if (rate := as_usable(group.applied)) is not None]
        if rates:
            self._lr = max(rates)
            self._top_lr = max(self._top_lr, self._lr)

    def _judge(self, step: Step) -> Event | None:
        settings = self.settings
        likely, is_moving = self._look_back() if self._count >= settings.least else (False, False)
        shown = self._shown_since() if self._is_old_enough() else None
        if self._open is not None:
            # Either alone, or both once, flicker with the noise; as long as it took to believe them is progress.
            is_over = (is_moving and shown is None) or self._is_below()
            self._moving = self._moving + 1 if is_over else 0
            if self._moving < settings.patience:
                return None
            self._flat, self._shown, self._flat_since, self._moving = 0, 0, None, 0
            now = f"loss moves again at step {step.global_step}: {show(self._rise.signal.raw(self._history[-1][1]))}"
            was = f"it had stayed near {show(self._open.details['level'])} since step {self._open.start_step}"
            return self._end(step.global_step, f"{now}; {was}")
        self._flat = self._flat + 1 if likely else 0
        self._shown = self._shown + 1 if shown is not None else 0
        if self._flat == 1 and likely:
            self._flat_since = self._span(settings.bins.per_doubling + 1)[0].first_step
        if self._shown >= settings.shown_patience:
            return self._raise(step, shown)
        return self._raise(step, self._flat_since) if self._flat >= settings.patience else None

    def _is_below(self) -> bool:
        """Say whether the newest bin lies clearly below the level of the plateau: it has fallen by a step."""
        assert self._open is not None
        raw = self._rise.signal.raw(self._history[-1][1])
        level = self._open.details["level"]
        return bool(raw < level - self.settings.step_down * abs(level))

    def _is_old_enough(self) -> bool:
        settings = self.settings
        if self._count < settings.shown_least:
            return False
        least = settings.shown_steps
        if self._is_expected(self._rise.signal.raw(self._history[-1][1])):
            least = settings.guess_steps
        return self._count * self._steps_per_record >= least

    def _is_expected(self, loss: float) -> bool:
        """Say whether this is the loss of a model that has learned nothing, as far as that is known."""
        expected = self._expected
        return expected is not None and abs(loss - expected) < 0.02 * abs(expected)

    def _span(self, bins: int) -> list[_Bin]:
        return [_Bin(*each) for each in self._history[-bins:]]

    def _size(self, span: Sequence[_Bin]) -> float:
        """What a share of the level is measured by: 1 for a logarithm."""
        return 1.0 if self._was_log else max(abs(statistics.median(each.median for each in span)), 1e-300)

    def _look_back(self) -> tuple[bool, bool]:
        """Look at the last doubling: whether a plateau is likely, and whether the loss moves."""
        settings = self.settings
        per_doubling = settings.bins.per_doubling
        span = self._span(per_doubling + 1)
        if len(span) <= per_doubling:
            return False, False
        medians = [each.median for each in span]
        size = self._size(span)
        fall = -theil_sen(medians) * per_doubling
        longer = [each.median for each in self._span(per_doubling * 3 // 2 + 1)]
        is_falling = max(fall, -theil_sen(longer) * per_doubling) >= settings.drop * size
        is_trend = mann_kendall(medians) <= -settings.trend
        is_elsewhere = fall <= -settings.rise * size or not self._is_lr_at_work(span)
        return not (is_elsewhere or is_falling or is_trend), is_elsewhere or (is_falling and is_trend)

    def _shown_since(self) -> int | None:
        """Return the first step of the longest span that shows that there is no progress, or None."""
        settings = self.settings
        found, bins, most = None, settings.shown_bins, len(self._history)
        while bins <= most:
            span = self._span(bins)
            size = self._size(span)
            gain, error = gain_per_doubling(span)
            margin = settings.confidence * (1.0 + 1.2 / (bins - 2)) * error
            is_flat = gain + margin < settings.drop * size and gain - margin > -settings.rise * size
            if is_flat and self._is_lr_at_work(span):
                found = span[0].first_step
            bins = bins * 3 // 2 if bins * 3 // 2 <= most or bins == most else most
        return found

    def _raise(self, step: Step, start: int | None) -> Event:
        assert start is not None
        span = [each for each in self._span(_MOST_BINS) if each.first_step >= start]
        raw = self._rise.signal.raw
        level = raw(statistics.median(each.median for each in span))
        gain, error = gain_per_doubling(span)
        size = self._size(span)
        beside, details = self._rise.context.describe_validation(start)
        p_value = tail((self.settings.drop * size - gain) / max(error, 1e-300))
        if self._is_expected(level):
            message = (
                f"loss stays near {show(level)} since step {start}, as that of a model that only guesses. {_GUESSES}"
            )
        else:
            less = f"{100 * max(0.0, gain) / size:.2g} % less per doubling of steps"
            message = f"no progress: loss stays near {show(level)} since step {start} ({less}){beside}. {_SETTLED}"
        return self._start(
            step.optimizer,
            step.global_step,
            start,
            message,
            raw(span[-1].median),
            level=level,
            p_value=p_value,
            **details,
        )

    def _is_lr_at_work(self, span: Sequence[_Bin]) -> bool:
        """Say whether the learning rate was at work for a good part of the span, and is not being warmed up."""
        begin = span[0].lr
        if self._lr is None or begin is None:
            return self._lr is None or self._lr > self.settings.lr_end * self._top_lr
        least = self.settings.lr_end * self._top_lr
        at_work = sum(each.weight for each in span if each.lr is not None and each.lr > least)
        is_enough = begin > least and at_work >= self.settings.lr_share * sum(each.weight for each in span)
        return is_enough and self._lr <= begin * self.settings.lr_rise


def gain_per_doubling(span: Sequence[_Bin]) -> tuple[float, float]:
    """Return how much less the loss is after a doubling of the records, and the standard error of that: a line through
    the bins, weighted by their records."""
    total = math.fsum(each.weight for each in span)
    x = math.fsum(each.weight * each.place for each in span) / total
    y = math.fsum(each.weight * each.median for each in span) / total
    spread = math.fsum(each.weight * (each.place - x) ** 2 for each in span)
    slope = math.fsum(each.weight * (each.place - x) * (each.median - y) for each in span) / spread
    rest = math.fsum(each.weight * (each.median - y - slope * (each.place - x)) ** 2 for each in span)
    return -slope, math.sqrt(rest / (len(span) - 2) / spread)


def theil_sen(values: Sequence[float]) -> float:
    """Return the median of all pairwise slopes, per place (Theil 1950, Sen 1968).

    >>> theil_sen([4.0, 3.5, 3.0, 100.0, 2.0])
    -0.5
    """
    slopes = [(b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values[i + 1 :], i + 1)]
    return statistics.median(slopes)


def mann_kendall(values: Sequence[float]) -> float:
    """Return the Mann-Kendall trend as a standard normal score, ties corrected; 0 where all are equal.

    >>> mann_kendall([3.0, 2.0, 1.0]) < 0 == mann_kendall([1.0, 1.0, 1.0])
    True
    """
    count = len(values)
    total = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    return total / math.sqrt(variance) if variance > 0 else 0.0

"""The rise of the loss, which spike, outlier and divergence share: digested once a record, judged by the run's own
noise at an asked rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Step
from monitor.detect._context import Context
from monitor.detect._maxima import BlockMaxima, MaximaSettings
from monitor.detect._numbers import as_usable
from monitor.detect._rise import Onset
from monitor.detect._signal import LossSignal, SignalSettings

_RECORDS = 4
"""Records in a row that must stand high in a dense log."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Set what counts as a rise of the loss above its own noise.

    In a log that keeps one record for several steps, each record is an independent look at the loss: two in a row are
    as good as four neighbours.

    Attributes:
        false_alarms_per_100k_steps: the rate at which the noise of the run itself may raise a spike; 1. What it is in
            truth, by kind of noise: docs/detection.md.
        steps_per_record: optimizer steps that one record stands for; 1 in a live run, the logging interval of a file.
        sparse_from: steps per record from which a log is sparse; 4, the records that a rise needs in a dense one.
        most_probability: largest probability of a false alarm in one block of records of a sparse log.
        least: smallest height, in scales, that is a rise.
        warmup: records at the start that raise nothing.
        back: the rise is over when two records in a row are below this share of the height that raised it.
        merge: records after a rise in which the next one continues it.
        isolated: scales above the level from which a short rise is an isolated point.
        signal: level and scale.
        maxima: how the height that noise reaches is learned.
    """

    false_alarms_per_100k_steps: float = 1.0
    steps_per_record: float = 1.0
    sparse_from: float = 4.0
    most_probability: float = 0.002
    least: float = 2.0
    warmup: int = 12
    back: float = 0.3
    merge: int = 10
    isolated: float = 6.0
    signal: SignalSettings = field(default_factory=SignalSettings)
    maxima: MaximaSettings = field(default_factory=MaximaSettings)

    def __post_init__(self) -> None:
        require(
            self,
            false_alarms_per_100k_steps=(1e-6, 1e4),
            steps_per_record=(1e-9, 1e15),
            sparse_from=(1, 1e15),
            most_probability=(1e-9, 0.5),
            least=(0.1, 1e6),
            back=(0, 1),
            isolated=(1, 1e6),
        )
        require_whole(self, warmup=(0, 10**6), merge=(0, 10**6))


class LossRise:
    """Digest the loss of each record once, whoever asks first.

    The height is the least of the last four scores: four records in a row must stand that high, so that isolated
    points of any height are none. In a sparse log it is the geometric mean of the last two. A rise is a height that
    the run's own noise reaches more rarely than asked (``BlockMaxima``), learned while there is none.

    Args:
        settings: default: as measured (docs/detection.md).
        context: what is known beside the loss.

    Attributes:
        signal: the loss, transformed, with level and scale.
        score: of the last value, in scales; None before the level has started.
        height: of the last records, in scales.
        threshold: height above which it is a rise.
        is_up: a rise continues.
        onset: where the loss left its level; None while it is there.
        peak: largest loss since the onset.
        length: records since the onset.
        isolated: (first step, last step, loss, score, level) of an isolated point that the last value has ended, or
            None.
    """

    state_names = (
        "score",
        "height",
        "threshold",
        "is_up",
        "is_new",
        "peak",
        "length",
        "_last_step",
        "_low",
        "_since",
        "_calm",
    )

    def __init__(self, settings: LossSettings | None = None, *, context: Context | None = None) -> None:
        self.settings = settings = settings or LossSettings()
        self.context = context or Context()
        self.signal = LossSignal(settings.signal)
        self.is_sparse = settings.steps_per_record >= settings.sparse_from
        self._maxima = BlockMaxima(replace(settings.maxima, young_blocks=0.0) if self.is_sparse else settings.maxima)
        steps = settings.steps_per_record if self.is_sparse else 1.0
        self._block_steps = settings.maxima.block * steps
        asked = settings.false_alarms_per_100k_steps * self._block_steps / 1e5
        self._probability = min(asked, settings.most_probability if self.is_sparse else 0.5)
        self.score: float | None = None
        self.height = 0.0
        self.threshold = self._maxima.height(self._probability)
        self.is_up = False
        self.is_new = False
        self.onset: Onset | None = None
        self.peak = 0.0
        self.length = 0
        self.isolated: tuple[int, int, float, float, float] | None = None
        self._record: Step | None = None
        self._value: float | None = None
        self._last: list[float] = []
        self._last_step: int | None = None
        self._low = 0
        self._since = settings.merge + 1
        self._calm = 0
        self._high: list[Any] = []

    def take(self, step: Step) -> float | None:
        """Digest ``step`` unless that has been done; return its loss, or None where it has no usable one."""
        if step is self._record:
            return self._value
        self._record = step
        self._value = loss = as_usable(step.loss)
        self.isolated = None
        self.is_new = False
        self.context.follow(step)
        if loss is not None:
            self._update(loss, step.global_step)
            self._last_step = step.global_step
        return loss

    def alarms_per_100k_steps(self, height: float) -> float:
        """Return how often the noise of this run reaches a height, by what it has shown so far."""
        return self._maxima.probability(height) * 1e5 / self._block_steps

    def _update(self, loss: float, step: int) -> None:
        signal = self.signal
        before = signal.level
        self.score = score = signal.update(loss)
        if score is None or before is None:
            return
        self._follow_onset(loss, step, score, before)
        if score > 0.5 * self.settings.isolated or self._high:
            self._follow_isolated(loss, step, score, before)
        last = self._last
        last.append(score)
        if len(last) < _RECORDS:
            return
        if len(last) > _RECORDS:
            del last[0]
        if signal.count >= self.settings.warmup:
            self._judge(score)

    def _judge(self, score: float) -> None:
        settings = self.settings
        self.height = height = self._sparse_height() if self.is_sparse else min(self._last)
        self._since += 1
        if self.is_up:
            self._low = self._low + 1 if score < max(1.0, settings.back * self.threshold) else 0
            if self._low >= 2:
                self.is_up, self._low, self._since, self.onset = False, 0, 0, None
                # Noise that raises alarms must raise the threshold in the end; a real spike enters only clipped.
                self._maxima.witness(self.threshold)
        elif height > self.threshold and height > settings.least and self.onset is not None:
            self.is_up = True
            self.is_new = self._since > settings.merge
        elif self._maxima.add(height):
            self.threshold = self._maxima.height(self._probability)

    def _sparse_height(self) -> float:
        before, now = self._last[-2:]
        return math.sqrt(before * now) if before > 0.0 and now > 0.0 else min(before, now)

    def _follow_onset(self, loss: float, step: int, score: float, level: float) -> None:
        """Keep where the loss left its level: the first of records in a row that stand nearly as high as a rise."""
        if score > max(1.0, 0.7 * self.threshold):
            if self.onset is None:
                self.onset = Onset(step, self._last_step, level, self.signal.scale, self.signal.count)
                self.peak, self.length = loss, 0
            self._calm = 0
        elif self.onset is not None and not self.is_up:
            self._calm += 1
            if self._calm >= (2 if self.is_sparse else 1):
                self.onset = None
                return
        if self.onset is not None:
            self.length += 1
            self.peak = max(self.peak, loss)

    def _follow_isolated(self, loss: float, step: int, score: float, level: float) -> None:
        """Keep [length, first step, last step, highest loss, its score, level] of records in a row that stand high."""
        run = self._high
        if score > 0.5 * self.settings.isolated:
            if not run:
                self._high = [1, step, step, loss, score, level]
                return
            run[0] += 1
            run[2] = step
            if score > run[4]:
                run[3], run[4] = loss, score
            return
        if run and run[0] < _RECORDS and run[4] > self.settings.isolated and not self.is_up:
            self.isolated = (run[1], run[2], run[3], run[4], run[5])
        self._high = []

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self.state_names}
        state.update(
            last=list(self._last), high=list(self._high), onset=None if self.onset is None else astuple(self.onset)
        )
        return {
            **state,
            "signal": self.signal.state_dict(),
            "maxima": self._maxima.state_dict(),
            "context": self.context.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        for name in self.state_names:
            setattr(self, name, state[name])
        self._last, self._high = list(state["last"]), list(state["high"])
        self.onset = None if state["onset"] is None else Onset(*state["onset"])
        self.signal.load_state_dict(state["signal"])
        self._maxima.load_state_dict(state["maxima"])
        self.context.load_state_dict(state["context"])

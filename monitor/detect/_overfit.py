"""``overfit``: the validation loss rises from its best while the training loss keeps falling."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Sample, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import as_usable, show


@dataclass(frozen=True, kw_only=True)
class OverfitSettings:
    """Set when a rise of the validation loss is overfitting. Not shift-free: the rise is measured against the best's
    size.

    The design's measured rule; 7 % lies in the middle of the range (6 to 9 %) in which the labelled curves give the
    same answers.

    Attributes:
        rise: share of the best validation loss by which it must have risen.
        noise: the same in scales of the validation loss's own noise, if that is more.
        median: validations whose median is compared.
        patience: validations in a row with that.
        window: most recent training losses whose median is compared with the one at the best validation.
    """

    rise: float = 0.07
    noise: float = 2.0
    median: int = 5
    patience: int = 5
    window: int = 64

    def __post_init__(self) -> None:
        require(self, rise=(0, 100), noise=(0, 1e6))
        require_whole(self, median=(1, 101), patience=(1, 10**6), window=(1, 10**5))


class OverfitDetector(Detector):
    """Raise ``overfit`` when validation gets worse while training gets better; end it at a new best or when it is back.

    Feed training losses through ``update`` and validation losses through ``observe`` (``Sample(kind="val_loss")``);
    every dataset name is followed by itself (16 at most), and the first that overfits speaks.

    Args:
        settings: see ``OverfitSettings``.
    """

    kind = "overfit"
    state_names = ("_train", "_datasets", "_by", "_optimizer")
    most_datasets = 16

    def __init__(self, settings: OverfitSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or OverfitSettings()
        self._train: list[float] = []
        self._datasets: dict[str, dict[str, Any]] = {}
        self._by: str | None = None
        self._optimizer: str | None = None

    def update(self, step: Step) -> Event | None:
        """Take the next training record; no event comes of it."""
        loss = as_usable(step.loss)
        self._optimizer = step.optimizer
        if loss is not None:
            self._train.append(loss)
            if len(self._train) > 2 * self.settings.window:
                del self._train[: self.settings.window]
        return None

    def observe(self, sample: Sample) -> Event | None:
        """Take a validation loss; other kinds of samples are passed over."""
        if sample.kind != "val_loss":
            return None
        value = as_usable(sample.value)
        if value is None:
            return None
        known = self._datasets.get(sample.name)
        if known is None:
            if len(self._datasets) >= self.most_datasets:
                return None
            known = {
                "recent": [],
                "best": None,
                "best_step": None,
                "best_train": None,
                "noise": 0.0,
                "count": 0,
                "bad": 0,
            }
            self._datasets[sample.name] = known
        self._follow(known, value)
        return self._judge(known, sample)

    def _follow(self, known: dict[str, Any], value: float) -> None:
        recent = known["recent"]
        if recent:
            known["count"] += 1
            change = abs(value - recent[-1]) * 0.886
            limit = 3 * known["noise"] if known["noise"] > 0 else change
            known["noise"] += (min(change, limit) - known["noise"]) / min(16, known["count"])
        recent.append(value)
        if len(recent) > self.settings.median:
            del recent[0]

    def _train_median(self) -> float | None:
        """Return the median of the last training losses: half of them at most, to compare later with earlier ones."""
        if len(self._train) < 5:
            return None
        return statistics.median(self._train[-max(5, min(self.settings.window, len(self._train) // 2)) :])

    def _judge(self, known: dict[str, Any], sample: Sample) -> Event | None:
        if len(known["recent"]) < self.settings.median:
            return None
        median, train = statistics.median(known["recent"]), self._train_median()
        best = known["best"]
        if best is None or median < best:
            known.update(best=median, best_step=sample.step, best_train=train, bad=0)
            return self._finish(sample, "validation loss has a new best")
        rise = median - best
        limit = max(self.settings.rise * abs(best), self.settings.noise * known["noise"])
        is_worse = rise > limit
        is_falling = train is not None and known["best_train"] is not None and train < known["best_train"]
        if not (is_worse and is_falling):
            known["bad"] = 0
            # Half of the rise, so that what hovers about the limit is one event.
            return self._finish(sample, "validation loss is back") if rise <= limit / 2 else None
        known["bad"] += 1
        if known["bad"] < self.settings.patience or self._open is not None:
            return None
        return self._raise(known, sample, median, train)

    def _raise(self, known: dict[str, Any], sample: Sample, median: float, train: float | None) -> Event:
        self._by = sample.name
        message = (
            f"validation loss rose from {show(known['best'])} at step {known['best_step']} to {show(median)} "
            f"while the training loss fell from {show(known['best_train'])} to {show(train or 0.0)}"
        )
        return self._start(
            self._optimizer, sample.step, known["best_step"], message, median, dataset=sample.name, best=known["best"]
        )

    def _finish(self, sample: Sample, reason: str) -> Event | None:
        if self._open is None or self._by != sample.name:
            return None
        return self._end(sample.step, f"{reason} at step {sample.step}")

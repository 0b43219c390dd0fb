"""``overfit``: the validation loss rises from its best while the training loss keeps falling."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monitor._checks import require, require_whole
from monitor._records import Event, Sample, Step
from monitor.detect._detector import Detector
from monitor.detect._numbers import SECOND_DIFFERENCE, as_usable, tail
from monitor.detect._wording import show

_MOST = 256
"""Validations kept; beyond, neighbours are put together."""
_NORMAL_MEDIAN = 0.605
"""Standard deviation over the median absolute second difference, for independent normal noise."""
_MEAN_SHARE = 0.8
_MOST_WANDER = 4.0
"""Noise of blocks over what single validations show, at most: beyond, it is the bend of a curve."""


@dataclass(frozen=True, kw_only=True)
class OverfitSettings:
    """Set when a rise of the validation loss is overfitting. Shares are those of the validation loss (of its logarithm,
    differences, where it is positive).

    Validations are put together into blocks: single ones when they are few. A block that is the best of many is a lucky
    one, so the limit grows with their number.

    Attributes:
        rise: least share of the best validation loss by which it must have risen.
        noise: the same in deviations of a block, besides the luck of the best.
        young: deviation of a validation that is assumed while few have been seen; its weight falls with their number.
        patience: blocks in a row above the limit, the last of them the newest.
        least: validations before which nothing is said.
        few: validations below which each is judged by itself.
        blocks: blocks that many validations are put into, at least; where there are fewer, as many as there are in one.
        window: most recent training losses whose median is compared with the one at the best validation.
    """

    rise: float = 0.05
    noise: float = 3.0
    young: float = 0.02
    patience: int = 2
    least: int = 5
    few: int = 12
    blocks: int = 8
    window: int = 64

    def __post_init__(self) -> None:
        require(self, rise=(0, 100), noise=(0, 1e6), young=(0, 10))
        require_whole(self, blocks=(4, 100), least=(3, 10**6), few=(2, 10**6), patience=(1, 10**6), window=(1, 10**5))


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
            # Each of "seen": [first step, validation loss, training loss, validations put together].
            known = self._datasets[sample.name] = {"seen": [], "per": 1, "open": []}
        self._keep(known, sample.step, value)
        return self._judge(known, sample)

    def _keep(self, known: dict[str, Any], step: int, value: float) -> None:
        known["open"].append([step, value, self._train_median()])
        if len(known["open"]) < known["per"]:
            return
        known["seen"].append(_together(known["open"]))
        known["open"] = []
        if len(known["seen"]) >= _MOST:
            seen = known["seen"]
            known["seen"] = [_together(seen[i : i + 2]) for i in range(0, len(seen), 2)]
            known["per"] *= 2

    def _train_median(self) -> float | None:
        """Return the median of the last training losses: half of them at most, to compare later with earlier ones."""
        if len(self._train) < 5:
            return self._train[-1] if self._train else None
        return statistics.median(self._train[-max(5, min(self.settings.window, len(self._train) // 2)) :])

    def _judge(self, known: dict[str, Any], sample: Sample) -> Event | None:
        seen = known["seen"]
        if known["open"] or len(seen) < self.settings.least:
            return None
        settings = self.settings
        # The limit is the rise that neither noise nor the luck of the best of so many blocks explains.
        is_log = all(value > 0.0 for _, value, _ in seen)
        width = 1 if len(seen) < settings.few else max(math.isqrt(len(seen)), len(seen) // settings.blocks)
        blocks = _blocks(seen, width, is_log=is_log)
        place = min(range(len(blocks)), key=lambda index: blocks[index][1])
        best, last = blocks[place], blocks[-1]
        size = 1.0 if is_log else max(abs(best[1]), 1e-300)
        single = _deviation([math.log(value) if is_log else value for _, value, _ in seen])
        noise = min(_deviation([value for _, value, _ in blocks]), _MOST_WANDER * single)
        noise = max(noise, settings.young * size / len(seen))
        luck = math.sqrt(2.0 * math.log(len(blocks)))
        limit = max(settings.rise * size, noise * (settings.noise + luck))
        if self._open is not None:
            return self._finish(sample, last[1] - best[1], limit) if self._by == sample.name else None
        recent = [value - best[1] for _, value, _ in blocks[place + 1 :]][-settings.patience :]
        # Single validations show a rise on its way; a block must stand above.
        least = 0.5 * limit if width == 1 else limit
        is_up = len(recent) == settings.patience and recent[-1] > limit and min(recent) > least
        if not is_up or best[2] is None or last[2] is None or not last[2] < best[2]:
            return None
        raw = math.exp if is_log else float
        p_value = tail((last[1] - best[1]) / max(noise, 1e-300) - luck)
        return self._raise(sample, best[0], raw(best[1]), raw(last[1]), best[2], last[2], p_value)

    def _finish(self, sample: Sample, rise: float, limit: float) -> Event | None:
        if rise <= 0.0:
            return self._close(sample.step, f"validation loss has a new best at step {sample.step}")
        # Half of the rise, so that what hovers about the limit is one event.
        if rise <= limit / 2.0:
            return self._close(sample.step, f"validation loss is half way back at step {sample.step}")
        return None

    def _close(self, step: int, now: str) -> Event | None:
        assert self._open is not None
        best, peak = show(self._open.details["best"]), show(self._open.value or 0.0)
        return self._end(step, f"{now}; it had risen from {best} at step {self._open.start_step} to {peak}")

    def _raise(
        self, sample: Sample, step: int, best: float, now: float, before: float, train: float, p_value: float
    ) -> Event:
        self._by = sample.name
        message = (
            f"validation loss rose from {show(best)} at step {step} to {show(now)} "
            f"while the training loss fell from {show(before)} to {show(train)}. "
            f"Stop (`monitor stop`) and keep the checkpoint of step {step}, or regularise"
        )
        return self._start(
            self._optimizer, sample.step, step, message, now, dataset=sample.name, best=best, p_value=p_value
        )


def _together(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Make one validation of several: the first step, the mean, and the last training loss."""
    trains = [train for _, _, train in parts if train is not None]
    return [parts[0][0], statistics.fmean(value for _, value, _ in parts), trains[-1] if trains else None]


def _blocks(seen: Sequence[Sequence[Any]], width: int, *, is_log: bool) -> list[tuple[int, float, float | None]]:
    """Put validations into blocks of ``width``, from the newest backwards: step of the best, mean, training loss."""
    blocks: list[tuple[int, float, float | None]] = []
    for end in range(len(seen), 0, -width):
        part = seen[max(0, end - width) : end]
        if len(part) < width and blocks:
            break
        values = [math.log(value) if is_log else value for _, value, _ in part]
        blocks.append((min(part, key=lambda each: each[1])[0], statistics.fmean(values), part[-1][2]))
    return blocks[::-1]


def _deviation(values: Sequence[float]) -> float:
    """Return the noise of blocks around their trend, by second differences: the median, or most of the mean where it is
    more (few blocks that wander)."""
    seconds = [abs(a - 2.0 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    if not seconds:
        return 0.0
    return max(_NORMAL_MEDIAN * statistics.median(seconds), _MEAN_SHARE * SECOND_DIFFERENCE * statistics.fmean(seconds))

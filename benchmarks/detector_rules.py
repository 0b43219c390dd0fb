"""The rules that people use today to find trouble in a loss, each as its project defines it, on plain lists of numbers.

A rule takes a ``Series`` and returns, by kind, the steps at which its condition begins. Nothing is tuned: every
parameter is the project's default.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Events = dict[str, list[float]]


@dataclass(frozen=True)
class Series:
    """A curve: steps and losses of its records, steps and values of its validation losses."""

    steps: list[float]
    losses: list[float]
    val_steps: list[float]
    val_losses: list[float]


Rule = Callable[[Series], Events]


def _edges(steps: list[float], flags: Iterator[bool]) -> list[float]:
    """Steps at which a condition begins."""
    out, was = [], False
    for step, flag in zip(steps, flags, strict=True):
        if flag and not was:
            out.append(step)
        was = flag
    return out


def _moments(losses: list[float], window: int, sigmas: float) -> Iterator[bool]:
    """Loss above mean + sigmas x deviation of the ``window`` losses before it (O(1): running sums)."""
    kept: deque[float] = deque()
    total = squares = 0.0
    for loss in losses:
        if not math.isfinite(loss):
            yield False
            continue
        count = len(kept)
        mean = total / count if count else 0.0
        deviation = math.sqrt(max(0.0, squares / count - mean * mean)) if count else 0.0
        yield count == window and loss > mean + sigmas * deviation
        kept.append(loss)
        total += loss
        squares += loss * loss
        if len(kept) > window:
            old = kept.popleft()
            total -= old
            squares -= old * old


def rolling_z(series: Series) -> Events:
    """z > 3 over a window of 100: the textbook's."""
    return {"spike": _edges(series.steps, _moments(series.losses, 100, 3.0))}


def olmo_core(series: Series) -> Events:
    """OLMo-core's SkipStepOptimizer: mean + 6 deviations of the last 128."""
    return {"spike": _edges(series.steps, _moments(series.losses, 128, 6.0))}


def metaseq(series: Series) -> Events:
    """metaseq's form: 1.25 x the exponentially weighted mean, span 9."""

    def flags() -> Iterator[bool]:
        mean: float | None = None
        for loss in series.losses:
            if not math.isfinite(loss):
                yield False
                continue
            yield mean is not None and loss > 1.25 * mean
            mean = loss if mean is None else mean + (loss - mean) * 2 / (9 + 1)

    return {"spike": _edges(series.steps, flags())}


def megatron(series: Series) -> Events:
    """Megatron-LM's form of "unexpectedly large": 10 x the maximum of the first 100."""

    def flags() -> Iterator[bool]:
        top, count = 0.0, 0
        for loss in series.losses:
            if count < 100:
                if math.isfinite(loss):
                    top, count = max(top, loss), count + 1
                yield False
            else:
                yield loss > 10 * top

    return {"spike": _edges(series.steps, flags())}


def zclip(series: Series) -> Events:
    """ZClip with its defaults, fed with the loss: z > 2.5 on moments of memory 0.97, clipped updates, warm-up 25."""

    def flags() -> Iterator[bool]:
        first: list[float] = []
        mean = variance = 0.0
        for loss in series.losses:
            if not math.isfinite(loss):
                yield False
                continue
            if len(first) < 25:
                first.append(loss)
                mean, variance = statistics.fmean(first), statistics.pvariance(first)
                yield False
                continue
            deviation = math.sqrt(variance) + 1e-6
            z = (loss - mean) / deviation
            yield z > 2.5
            taken = mean + 2.5 * 2.5 / z * deviation if z > 2.5 else loss
            mean = 0.97 * mean + 0.03 * taken
            variance = 0.97 * variance + 0.03 * (taken - mean) ** 2

    return {"spike": _edges(series.steps, flags())}


def page_hinkley(series: Series) -> Events:
    """Page-Hinkley from river, its defaults, upwards."""
    from river.drift import PageHinkley

    return {"spike": _drifts(series, PageHinkley(mode="up"))}


def adwin(series: Series) -> Events:
    """ADWIN from river, its defaults; a change counts where the mean has risen."""
    from river.drift import ADWIN

    return {"spike": _drifts(series, ADWIN())}


def _drifts(series: Series, detector: object) -> list[float]:
    out, before = [], None
    for step, loss in zip(series.steps, series.losses, strict=True):
        if not math.isfinite(loss):
            continue
        detector.update(loss)  # type: ignore[attr-defined]
        mean = getattr(detector, "estimation", None)
        if detector.drift_detected and (mean is None or before is None or mean > before):  # type: ignore[attr-defined]
            out.append(step)
        before = mean
    return out


def loss_not_decreasing(series: Series) -> Events:
    """SageMaker Debugger's LossNotDecreasing: less than 0.1 % down over 10 steps."""

    def flags() -> Iterator[bool]:
        reference: float | None = None
        is_on = False
        for index, loss in enumerate(series.losses):
            if index % 10 == 0:
                is_on = reference is not None and not loss < reference * (1 - 0.001)
                reference = loss
            yield is_on

    return {"plateau": _edges(series.steps, flags())}


def debugger_overfit(series: Series) -> Events:
    """SageMaker Debugger's Overfit: validation loss more than 10 % above the training loss."""
    flags, steps, at = [], [], 0
    for step, value in zip(series.val_steps, series.val_losses, strict=True):
        while at + 1 < len(series.steps) and series.steps[at + 1] <= step:
            at += 1
        if series.steps:
            steps.append(step)
            flags.append(value - series.losses[at] > 0.1 * abs(series.losses[at]))
    return {"overfit": _edges(steps, iter(flags))}


def _watched(series: Series) -> tuple[list[float], list[float]]:
    """What an epoch-wise callback is given: validation losses, else the training losses."""
    if len(series.val_losses) >= 10:
        return series.val_steps, series.val_losses
    return series.steps, series.losses


def reduce_on_plateau(series: Series) -> Events:
    """torch's ReduceLROnPlateau: no relative improvement of 1e-4 for more than 10 epochs; each time one event."""
    steps, values = _watched(series)
    best, bad, out = math.inf, 0, []
    for step, value in zip(steps, values, strict=True):
        if value < best * (1 - 1e-4 if best > 0 else 1 + 1e-4):
            best, bad = value, 0
        else:
            bad += 1
        if bad > 10:
            out.append(step)
            bad = 0
    return {"plateau": out}


def early_stopping(series: Series) -> Events:
    """Lightning's EarlyStopping: no improvement for 3 checks; it stops the run, so it speaks once."""
    steps, values = _watched(series)
    best, bad = math.inf, 0
    for step, value in zip(steps, values, strict=True):
        if value < best:
            best, bad = value, 0
        else:
            bad += 1
        if bad >= 3:
            is_validation = steps is series.val_steps
            return {"plateau": [step], **({"overfit": [step]} if is_validation else {})}
    return {}


def terminate_on_nan(series: Series) -> Events:
    """Keras's TerminateOnNaN: the first loss that is NaN or infinite."""
    at = next((step for step, loss in zip(series.steps, series.losses, strict=True) if not math.isfinite(loss)), None)
    return {} if at is None else {"nonfinite": [at]}


RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "rolling z > 3, window 100": (rolling_z, ("spike",)),
    "mean + 6 sigma over 128 (OLMo-core's form)": (olmo_core, ("spike",)),
    "1.25 x EW mean, span 9 (metaseq's form)": (metaseq, ("spike",)),
    "10 x maximum of the first 100 (Megatron's form)": (megatron, ("spike",)),
    "ZClip on the loss": (zclip, ("spike",)),
    "Page-Hinkley (river)": (page_hinkley, ("spike",)),
    "ADWIN, upwards (river)": (adwin, ("spike",)),
    "LossNotDecreasing (SageMaker Debugger)": (loss_not_decreasing, ("plateau",)),
    "ReduceLROnPlateau (torch)": (reduce_on_plateau, ("plateau",)),
    "EarlyStopping, patience 3 (Lightning)": (early_stopping, ("plateau", "overfit")),
    "Overfit (SageMaker Debugger)": (debugger_overfit, ("overfit",)),
    "TerminateOnNaN (Keras)": (terminate_on_nan, ("nonfinite",)),
}

"""The search for the learning rate that a fresh run can bear: climb from far below, step back at the first sign."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from statistics import median
from typing import NamedTuple

START = 1e-3
"""The factor that the climb begins at."""
SLOW = 0.2
"""Share of the climbing speed once the loss falls: an LR that learns is seldom far from one that is too high."""
FELL = 0.05
"""Share of the first losses by which the loss must have fallen for that."""
STEP_BACK, STEP_DOWN = 0.3, 0.1
"""What a sign, and a clear one, multiply the factor by. A tenth of the LR at which the loss blows up is the usual
reading of a range test (Smith, Cyclical Learning Rates for Training Neural Networks, 2017)."""
REST_STEPS = 8
WATCH = 10
"""The signs are heeded for so many times the steps of the climb; the detectors have warmed up by then."""
CONFIRMED = 3
"""So many signs of a single step each are a ceiling; of two steps or more, two: a hard batch is no sign of the LR."""
NEAR = 2.0
"""Signs confirm each other at up to so many times the LR of the one before."""
RISING = (3.0, 1.2)
STEEP = (6.0, 1.5)
"""A sign: the gradient norm, and the loss, over their medians in one step. Steep ones twice are clear."""
TREND = (2.0, 1.3)
"""The same of their running medians over the lowest that these have been on the way up."""
ALONE = 1.5
"""The same of the loss where there is no gradient norm."""
NOISE = 0.05
"""Share of the first losses by which the loss must rise besides: near zero, a multiple of it is nothing."""
MEDIAN_STEPS, LEVEL_STEPS, FIRST_STEPS = 16, 6, 5


class Move(NamedTuple):
    """A factor to be set, over so many steps, and why."""

    factor: float
    over_steps: int
    reason: str


class _Phase(Enum):
    CLIMB = "climb"
    REST = "rest"
    SETTLED = "settled"
    OVER = "over"


class _Sign(NamedTuple):
    what: str
    is_clear: bool
    is_single: bool = False


class Search:
    """Say how the LR factor of one optimizer is to move, step by step. It is never asked to rise above 1.

    The edge shows itself before it does harm: where the LR times the curvature passes 2, the gradient norm grows
    first, the loss after it. A sign is a step down, and the climb continues from there, slowly. What confirms it is the
    ceiling of the climb, and a clear sign is at once.

    Args:
        steps: from the first factor to the schedule, where nothing happens.
        min_factor: the factor is not lowered below this.
    """

    def __init__(self, steps: int, min_factor: float) -> None:
        self._speed = -math.log(START) / steps
        self._is_slow = False
        self._watch = WATCH * steps
        self._min_factor = min_factor
        self._phase = _Phase.CLIMB
        self._num_steps = 0
        self._rest_until = 0
        self._ceiling = 1.0
        self._sign_at = 0.0
        self._num_doubts = 0
        self._is_doubtful = False
        self._asked = START
        self._level_before = math.inf
        self._firsts: list[float] = []
        self._clear()

    @property
    def is_moving(self) -> bool:
        """Tell whether the factor is this search's alone: it climbs, or rests after a step back."""
        return self._phase in (_Phase.CLIMB, _Phase.REST)

    @property
    def _is_searching(self) -> bool:
        """Tell whether an LR is tried that was not borne yet, and no ceiling is known."""
        return self._phase is _Phase.CLIMB and self._ceiling == 1.0

    @property
    def is_over(self) -> bool:
        """Tell whether the signs are heeded no more."""
        return self._phase is _Phase.OVER

    def stop(self) -> None:
        """Heed nothing more: somebody else has set the factor."""
        self._phase = _Phase.OVER

    def climb(self, factor: float, reason: str = "warm-up") -> Move:
        """Return the way up from a factor."""
        self._phase = _Phase.CLIMB
        speed = self._speed * (SLOW if self._is_slow else 1.0)
        return Move(self._ceiling, max(1, math.ceil(math.log(self._ceiling / factor) / speed)), reason)

    def step(self, loss: float | None, norm: float | None, factor: float) -> Move | None:
        """Take a step and the factor that it used; return what is to be done now."""
        self._num_steps += 1
        if self._phase is _Phase.SETTLED and self._num_steps > self._watch:
            self._phase = _Phase.OVER
        if self._phase is _Phase.OVER:
            return None
        sign = None if loss is None else self._take(loss if math.isfinite(loss) else math.inf, norm)
        if self._phase is _Phase.REST:
            return self._rest(factor)
        if sign is not None:
            return self._step_back(factor, sign)
        if self._phase is _Phase.CLIMB:
            return self._go_on(factor)
        return None

    # ------------------------------------------------------------------------------------------------ moves

    def _go_on(self, factor: float) -> Move | None:
        if factor >= self._ceiling:
            self._phase = _Phase.SETTLED
        elif not self._is_slow and len(self._level) == LEVEL_STEPS:
            first = median(self._firsts)
            if median(self._level) < first - FELL * abs(first):
                self._is_slow = True
                return self.climb(factor, "the loss falls: warm-up at a slower pace")
        return None

    def _step_back(self, factor: float, sign: _Sign) -> Move:
        share = STEP_DOWN if sign.is_clear else STEP_BACK
        is_climbing = self._is_searching
        if is_climbing:
            self._num_doubts += 1 if sign.is_single else CONFIRMED
        is_confirmed = is_climbing and factor <= NEAR * self._sign_at and self._num_doubts >= CONFIRMED
        if sign.is_clear or is_confirmed:
            self._ceiling = min(self._ceiling, max(share * factor, self._min_factor))
        self._sign_at = factor
        self._level_before = median(self._level)
        self._is_doubtful = not sign.is_clear
        return self._lower(factor * (STEP_DOWN if is_climbing else share), f"{sign.what} at factor {factor:.3g}")

    def _lower(self, factor: float, reason: str) -> Move:
        self._clear()
        self._phase, self._is_slow = _Phase.REST, True
        self._rest_until = self._num_steps + REST_STEPS
        self._asked = max(factor, self._min_factor)
        return Move(self._asked, 0, reason)

    def _rest(self, factor: float) -> Move | None:
        """After a step back: lower still where the loss has gone on rising, else climb again, or stay."""
        if factor > self._asked and self._is_doubtful and self._is_high():  # before the step back was in force
            self._is_doubtful = False
            self._ceiling = min(self._ceiling, max(STEP_DOWN * self._sign_at, self._min_factor))
            return self._lower(self._asked * STEP_DOWN, f"loss has gone on rising, to {self._level[-1]:.4g}")
        if self._num_steps < self._rest_until or not self._level:
            return None
        level = median(self._level)
        if level == math.inf:  # the weights are lost: no LR brings them back
            self.stop()
            return None
        if level > 2 * self._level_before + self._noise() and factor > self._min_factor:
            self._level_before = level
            return self._lower(factor * STEP_DOWN, f"loss has gone on rising, to {level:.4g}")
        if factor >= self._ceiling:
            self._phase = _Phase.SETTLED
            return None
        return self.climb(factor, "warm-up continues")

    # ------------------------------------------------------------------------------------------------ signs

    def _clear(self) -> None:
        """Forget the levels: they are those of another LR."""
        self._losses: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._norms: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._level: deque[float] = deque(maxlen=LEVEL_STEPS)
        self._norm_level: deque[float] = deque(maxlen=LEVEL_STEPS)
        self._marks: deque[int] = deque(maxlen=3)
        self._lowest = math.inf, math.inf

    def _noise(self) -> float:
        return NOISE * abs(median(self._firsts))

    def _take(self, loss: float, norm: float | None) -> _Sign | None:
        if len(self._firsts) < FIRST_STEPS:
            self._firsts.append(loss)
        self._level.append(loss)
        sign = self._judge(loss, norm)
        if sign is None and loss < math.inf:
            self._losses.append(loss)
            if norm is not None and math.isfinite(norm):
                self._norms.append(norm)
        return sign

    def _judge(self, loss: float, norm: float | None) -> _Sign | None:
        if loss == math.inf:
            return _Sign("loss is not finite", True)
        if len(self._losses) < FIRST_STEPS:
            return None
        reason = f"loss {loss:.4g} over {median(self._losses):.4g}"
        if norm is not None:
            reason = f"gradient norm {norm:.3g} and {reason}"
        self._marks.append(2 if self._is_over(STEEP, loss, norm) else int(self._is_over(RISING, loss, norm)))
        is_high = self._is_high()
        if sum(mark == 2 for mark in self._marks) >= 2:
            return _Sign(reason, True)
        if norm is not None and self._has_trend(norm):
            return _Sign("gradient norm and loss have come to rise", is_high)
        needed = 1 if self._is_searching and norm is not None else 2
        num_marks = sum(mark > 0 for mark in self._marks)
        return _Sign(reason, is_high, num_marks == 1) if num_marks >= needed else None

    def _is_high(self) -> bool:
        """Tell whether the last two losses stand far above the first ones."""
        return len(self._level) > 1 and min(self._level[-1], self._level[-2]) > ALONE * max(self._firsts)

    def _is_over(self, limits: tuple[float, float], loss: float, norm: float | None) -> bool:
        level = median(self._losses)
        if norm is None or not self._norms:
            return loss > level + (ALONE * limits[1] / RISING[1] - 1) * abs(level) + self._noise()
        is_rising = not math.isfinite(norm) or norm > limits[0] * median(self._norms)
        return is_rising and loss > level + (limits[1] - 1) * abs(level) + self._noise()

    def _has_trend(self, norm: float) -> bool:
        """Tell whether the levels of loss and norm have left their lowest: only while the LR itself goes up."""
        self._norm_level.append(norm)
        if self._phase is not _Phase.CLIMB or len(self._norm_level) < LEVEL_STEPS:
            return False
        norm, loss = median(self._norm_level), median(self._level)
        lowest_norm, lowest_loss = self._lowest
        self._lowest = min(norm, lowest_norm), min(loss, lowest_loss)
        limit = lowest_loss + (TREND[1] - 1) * abs(lowest_loss) + self._noise()
        return norm > TREND[0] * lowest_norm and loss > limit

"""One optimizer's gradient norm before clipping: what clips have measured, else a pass of its own, at its own pace."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, Literal, NamedTuple

from torch import Tensor

from monitor.link import Norms, RawClip, SpreadNorms
from monitor.probe._gradients import MAX_CLIPS, SHARDED, absence_of, norms_of, spread_norms_of
from monitor.probe._scaling import ScaledBy, scale_of
from monitor.probe._trace import current
from monitor.probe._values import Value, divided, take

MAX_STRIDE = 1000
PUT_TOGETHER = "changed by hand after a clip"
CLIPPED_TWICE = "clipped in parts that overlap"
L2 = 2.0


def _power_from(number: int) -> int:
    """Return the least power of two that is not less.

    >>> [_power_from(number) for number in (0, 1, 3, 4)]
    [1, 1, 4, 4]
    """
    return 1 << max(0, number - 1).bit_length()


class Coverage(NamedTuple):
    """Which parameters of an optimizer a clip covers, by id, None for all of them; and whether it covers no others."""

    ids: frozenset[int] | None
    is_alone: bool


class NormMeter:
    """Keep the clips since the last step, and measure the norm where none did.

    Args:
        optimizer: whose gradients are measured. Held weakly: ``optimizer()`` is None once it is gone.
        every: "auto", "off" or a stride in steps.
        budget: share of the step time that "auto" may use.
        max_stride: the most steps that "auto" leaves between two measurements.
        on_error: takes ``(component, exception)`` of a measurement that failed.
    """

    def __init__(
        self,
        optimizer: Any,
        every: str | int = "auto",
        budget: float = 0.01,
        max_stride: int = MAX_STRIDE,
        on_error: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        self.clips: list[RawClip] = []
        self.number = 0
        self.optimizer: Callable[[], Any] = weakref.ref(optimizer)
        self.num_groups = self.num_clipped = self.first_id = self.last_id = -1
        """``num_clipped`` parameters from ``first_id`` to ``last_id`` are all of this optimizer's, and no others: for
        the hot path, which has no time to look at each."""
        self.absence: str | None = None
        """Why totals that torch works out from these gradients are not those of all ranks; None: they are."""
        self.scaled_by: ScaledBy | None = None
        self.configure(every, budget, max_stride)
        self._on_error = on_error
        self._next = 0
        self._seconds = 0.0
        self._at, self._time = -1, 0.0
        self._listed: list[int] = []
        self._lost = -1
        self._ids: frozenset[int] = frozenset()

    def configure(self, every: str | int, budget: float, max_stride: int) -> None:
        """Measure at this pace from here on; the arguments are those of the constructor."""
        self.is_on = every != "off"
        self._is_auto = every == "auto"
        self._stride = int(every) if isinstance(every, int) else 1
        self._budget = budget
        self._max_stride = max_stride

    # ------------------------------------------------------------------------------------------------- clips

    def note(
        self,
        kind: Literal["norm", "value"],
        threshold: float,
        norms: Norms,
        measure: Norms,
        covered: frozenset[int] | None,
    ) -> None:
        """Keep a clip of this optimizer's gradients, made now. It belongs to the coming step."""
        if len(self.clips) >= MAX_CLIPS:  # nobody steps: what is kept must not grow without end
            self.clips = []
        since = current().last_backward
        for i in reversed(range(len(self.clips))):
            clip = self.clips[i]
            if clip[5] >= since or clip[2] is None:
                break
            self.clips[i] = (*clip[:2], None, *clip[3:])  # the backward in between has added to the gradient
        now = perf_counter()
        self.clips.append((kind, threshold, norms, measure, covered, now, now))

    def lose(self) -> None:
        """Know of the coming step's clips no more than that the gradients were put together by hand since."""
        if self.clips:
            self.clips, self._lost = [], self.number

    def coverage(self, params: Sequence[Tensor]) -> Coverage:
        """Return which of the optimizer's parameters are among ``params``, and whether others are that may have
        a gradient."""
        self._count()
        if params and (len(params), id(params[0]), id(params[-1])) == (self.num_clipped, self.first_id, self.last_id):
            return Coverage(None, True)
        ids = self._ids
        covered = ids.intersection(map(id, params))
        is_alone = all(id(p) in ids or not p.requires_grad for p in params)
        if len(covered) < len(ids):
            return Coverage(covered, is_alone)
        if params and is_alone:
            self.num_clipped, self.first_id, self.last_id = len(params), id(params[0]), id(params[-1])
        return Coverage(None, is_alone)

    @property
    def usual(self) -> NormMeter | None:
        """These norms, where a total that torch works out from the gradients is that of all ranks, else None."""
        if self.num_groups < 0:
            self._count()
        return self if self.absence is None else None

    def recount(self) -> None:
        """Take the optimizer for a changed one: a param group was added."""
        self.num_groups = self.num_clipped = -1

    def _count(self) -> None:
        groups = self.optimizer().param_groups
        params = [p for g in groups for p in g["params"]]
        self.num_groups = len(groups)
        listed = list(map(id, params))
        if listed == self._listed:
            return
        self._listed, self._ids, self.num_clipped = listed, frozenset(listed), -1
        self.absence = absence_of(params)

    # ------------------------------------------------------------------------------------------------- norms

    def take(self) -> Norms:
        """Return the parts of the gradient norm before clipping: what clips measured, and the rest measured now."""
        if self._lost == self.number and not self.clips:
            return PUT_TOGETHER
        covered: frozenset[int] = frozenset()
        parts: list[Value] = []
        for _, _, norms, _, ids, _, _ in self.clips:
            clipped = self._ids if ids is None else ids
            if norms is None or (covered and clipped <= covered):
                continue
            if not covered.isdisjoint(clipped):
                return CLIPPED_TWICE  # the norm of the others alone is not known
            if ids is None or not norms or isinstance(norms, str):
                return norms
            covered |= ids
            parts += norms
        if covered and covered == self._ids:
            return parts
        if not self.is_due:
            return ()
        groups = self.optimizer().param_groups
        if len(groups) != self.num_groups:
            self._count()
        rest = (p for g in groups for p in g["params"])
        (norms,) = self._measure((p for p in rest if id(p) not in covered) if covered else rest, L2)
        if not isinstance(norms, str):
            return [*parts, *norms]
        return norms if covered or not norms.startswith(SHARDED) else self._spread(norms)

    def of_clipped(self, covered: frozenset[int] | None, params: Iterable[Tensor], *norm_types: float) -> list[Norms]:
        """Measure this optimizer's share of what is clipped; nothing where this step's norm is not due."""
        if not self.is_due:
            return [()] * len(norm_types)
        ids = self._ids if covered is None else covered
        return self._measure((p for p in params if id(p) in ids), *norm_types)

    def unscaled(self, norms: Norms) -> Norms:
        """Return L2 norms of the gradients as they are now without the scale that a GradScaler has given them."""
        scale = scale_of(self.optimizer(), self.scaled_by, self.number)
        if scale is None or isinstance(norms, str):
            return norms
        by = take(scale.detach())
        return () if by is None else [divided(norm, by) for norm in norms]

    @property
    def is_due(self) -> bool:
        """Tell whether the coming step is one whose gradient norm is measured."""
        return self.is_on and (self.number >= self._next or self.number == self._at)

    def _measure(self, params: Iterable[Tensor], *norm_types: float) -> list[Norms]:
        """Compute norms of the gradients there are, one for each type. A failure costs the norm, and nothing else."""
        if self.absence is not None:
            return [self.absence] * len(norm_types)
        start = perf_counter()
        try:
            norms = [
                self.unscaled(found) if norm_type == L2 else found
                for found, norm_type in zip(norms_of(params, *norm_types), norm_types, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self._on_error("probe", error)
            self._next = self.number + self._max_stride
            return [f"measuring it failed: {type(error).__name__}"] * len(norm_types)
        self._seconds += perf_counter() - start
        if self.number != self._at:
            self._pace(start)
        return norms

    def _spread(self, reason: str) -> Norms:
        """Measure this rank's part of gradients that are spread over ranks; where it cannot be, say why."""
        params = (p for g in self.optimizer().param_groups for p in g["params"])
        start = perf_counter()
        try:
            found = spread_norms_of(params, reason)
            if isinstance(found, str):
                return reason
            found = (reason, *(tuple(self.unscaled(tuple(part))) for part in SpreadNorms._make(found)[1:]))
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self._on_error("probe", error)
            self._next = self.number + self._max_stride
            return reason
        self._seconds += perf_counter() - start
        if self.number != self._at:
            self._pace(start)
        return found

    def _pace(self, now: float) -> None:
        """Choose when to measure next. "auto" holds the passes' time within its share of that of the steps since the
        last one; the very first pass may still load its kernels, and says nothing. Strides are powers of two, and steps
        multiples of them: ranks that choose for themselves still measure the same steps, those of the largest stride.
        """
        stride = self._stride
        if self._is_auto and self._at >= 0:
            allowed = self._budget * (now - self._time) / (self.number - self._at)
            needed = math.ceil(self._seconds / allowed) if allowed > 0 else self._max_stride
            stride = min(_power_from(needed), _power_from(self._max_stride // 2 + 1))
        self._next = (self.number // stride + 1) * stride if self._is_auto else self.number + stride
        self._at, self._time, self._seconds = self.number, now, 0.0

"""One optimizer's gradient norm before clipping: what clips have measured, else a pass of its own, at its own pace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any, Literal

from torch import Tensor

from monitor.probe._gradients import MAX_CLIPS, ClipNote, RawClip, gradients_of, total_norms
from monitor.probe._ledger import current
from monitor.probe._values import Value

MAX_STRIDE = 1000


class NormMeter:
    """Keep the clips since the last step, and measure the norm where none did.

    Args:
        optimizer: whose gradients are measured.
        every: "auto", "off" or a stride in steps.
        budget: share of the step time that "auto" may use.
        max_stride: the most steps that "auto" leaves between two measurements.
    """

    def __init__(
        self, optimizer: Any, every: str | int = "auto", budget: float = 0.01, max_stride: int = MAX_STRIDE
    ) -> None:
        self.clips: list[RawClip] = []
        self.number = 0
        self.is_on = every != "off"
        self.optimizer = optimizer
        self.num_groups = self.num_params = -1
        self._is_auto = every == "auto"
        self._stride = int(every) if isinstance(every, int) else 1
        self._budget = budget
        self._max_stride = max_stride
        self._next = 0
        self._seconds = 0.0
        self._at, self._time = -1, 0.0
        self._ids: frozenset[int] = frozenset()
        self._count()

    # ------------------------------------------------------------------------------------------------- clips

    def note(
        self,
        kind: Literal["norm", "value"],
        threshold: float,
        norms: Sequence[Value],
        measure: Sequence[Value],
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

    def coverage(self, params: Sequence[Tensor], is_shared: bool) -> frozenset[int] | None:
        """Return which of the optimizer's parameters are among ``params``, by id; None for all of them."""
        if len(self.optimizer.param_groups) != self.num_groups:
            self._count()
        if len(params) >= self.num_params and not is_shared:
            return None
        covered = self._ids.intersection(map(id, params))
        return None if len(covered) == len(self._ids) else covered

    def _count(self) -> None:
        self.num_groups = len(self.optimizer.param_groups)
        self._ids = frozenset(id(p) for g in self.optimizer.param_groups for p in g["params"])
        self.num_params = len(self._ids)

    # ------------------------------------------------------------------------------------------------- norms

    def take(self) -> Sequence[Value]:
        """Return the parts of the gradient norm before clipping: what a clip measured, and the rest measured now."""
        covered: set[int] = set()
        parts: list[Value] = []
        clips = [ClipNote._make(clip) for clip in self.clips]
        for note in clips:
            if note.norms is None:
                continue
            if note.param_ids is None:
                if not parts:
                    return note.norms
                break
            if covered.isdisjoint(note.param_ids):
                if not note.norms:
                    return ()
                covered |= note.param_ids
                parts += note.norms
        if not self.is_due:
            return ()
        rest = (p for g in self.optimizer.param_groups for p in g["params"])
        (norms,) = self._measure((p for p in rest if id(p) not in covered) if covered else rest, 2.0)
        return parts + norms

    def of_clipped(
        self, covered: frozenset[int] | None, params: Iterable[Tensor], *norm_types: float
    ) -> list[list[Value]]:
        """Measure this optimizer's share of what is clipped; nothing where this step's norm is not due."""
        if not self.is_due:
            return [[] for _ in norm_types]
        ids = self._ids if covered is None else covered
        return self._measure((p for p in params if id(p) in ids), *norm_types)

    @property
    def is_due(self) -> bool:
        """Tell whether the coming step is one whose gradient norm is measured."""
        return self.is_on and (self.number >= self._next or self.number == self._at)

    def _measure(self, params: Iterable[Tensor], *norm_types: float) -> list[list[Value]]:
        """Compute norms of the gradients there are, one list of values (by device) for each type of norm."""
        start = perf_counter()
        grads = gradients_of(params)
        norms = [total_norms(grads, norm_type) for norm_type in norm_types]
        self._seconds += perf_counter() - start
        if self.number != self._at:
            self._pace(start)
        return norms

    def _pace(self, now: float) -> None:
        """Choose when to measure next. "auto" holds the passes' time within its share of that of the steps since the
        last one; the very first pass may still load its kernels, and says nothing."""
        stride = self._stride
        if self._is_auto and self._at >= 0:
            allowed = self._budget * (now - self._time) / (self.number - self._at)
            stride = min(self._max_stride, math.ceil(self._seconds / allowed)) if allowed > 0 else self._max_stride
        self._next = self.number + stride
        self._at, self._time, self._seconds = self.number, now, 0.0

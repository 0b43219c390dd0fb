"""Optimizers that evaluate a closure, LBFGS above all: what counts is the point that the step starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monitor.link import Norms, Pass, RawClip
from monitor.probe._attribution import LossAttribution
from monitor.probe._norms import NormMeter


class FirstEvaluation:
    """Measure what is in the gradients after the first evaluation of a closure within a step: losses, norm and clips.

    Micro-batches that were back-propagated before the step are in them too, unless the closure has cleared them.
    """

    def __init__(
        self, attribution: LossAttribution, norms: NormMeter, on_error: Callable[[str, Exception], None]
    ) -> None:
        self.losses: Sequence[Pass] = ()
        self.norms: Norms = ()
        self.clips: list[RawClip] = []
        self._attribution, self._meter, self._on_error = attribution, norms, on_error
        self._is_pending = True

    def wrap(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of ``step`` with the closure wrapped; None if there is none."""
        closure: Any = args[1] if len(args) > 1 else kwargs.get("closure")

        def measured(*a: Any, **k: Any) -> Any:
            result = closure(*a, **k)
            if self._is_pending:
                self._measure()
            return result

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    def _measure(self) -> None:
        self._is_pending = False
        try:
            self.losses = self._attribution.take()
            self.norms = self._meter.take()
            self.clips, self._meter.clips = self._meter.clips, []
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self._on_error("probe", error)

    def leave(self) -> None:
        """Drop what the later evaluations have noted. Measure now if the step has not called its closure."""
        if self._is_pending:
            self._measure()
        self._attribution.drop()
        self._meter.clips = []


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether ``step`` was given a closure."""
    return callable(args[1] if len(args) > 1 else kwargs.get("closure"))

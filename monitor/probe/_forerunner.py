"""What is noted of an optimizer before a probe watches its steps: the losses in its gradients, and their clips."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from monitor.probe import _patches
from monitor.probe._attribution import LossAttribution
from monitor.probe._norms import NormMeter
from monitor.probe._watched import PROBES, Probe


class Forerunner:
    """Look at an optimizer's gradients until a probe stands in this one's place.

    Only where runs begin by themselves it is registered with the patches, and then from the optimizer's construction
    on: a run that begins at the first step has the loss, the norm and the clips of that step.

    Args:
        optimizer: held by a weak reference.
        on_first: called with the optimizer when a GradScaler skips what would have been its first step.
        on_error: takes ``(component, exception)`` of a failure of ours, until there is a probe.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        on_first: Callable[[Optimizer], None] = lambda _: None,
        on_error: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        self._reference = weakref.ref(optimizer)
        self._on_first = on_first
        self._on_error = on_error
        self._successor: Probe | None = None
        self.norms = NormMeter(optimizer, on_error=self.on_error)
        self.attribution = LossAttribution(self._groups, self._drop_clips, self.norms.lose)

    def open(self) -> None:
        """Register with the patches."""
        _patches.add(self)

    def close(self) -> None:
        """Leave the patches, unless a probe has taken this one's place. A second call does nothing."""
        _patches.remove(self)

    def hand_over(self, successor: Probe) -> tuple[NormMeter, LossAttribution]:
        """Return what was noted, for the probe that stands in this one's place from now on."""
        self._successor = successor
        return self.norms, self.attribution

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer; None once it is gone."""
        return self._reference()

    @property
    def number(self) -> int:
        """Steps that were made."""
        return 0 if self._successor is None else self._successor.number

    def on_error(self, component: str, error: Exception) -> None:
        """Pass on a failure of ours."""
        report = self._on_error if self._successor is None else self._successor.on_error
        report(component, error)

    def abandon(self) -> None:
        """Do nothing: no step is under way."""

    def on_skipped(self, scaler: Any, optimizer: Any) -> None:
        """Have the run begin, and record there a step that the GradScaler did not make."""
        try:
            self._on_first(optimizer)
            if self._successor is not None:
                self._successor.on_skipped(scaler, optimizer)
                return
            self._drop_clips()
            self.attribution.take()
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self.on_error("probe", error)

    def on_new_parameters(self) -> None:
        """Have the parameters that a new param group has brought looked at as well."""
        self.norms.recount()
        self.attribution.relearn()

    def _groups(self) -> Sequence[dict[str, Any]]:
        optimizer = self._reference()
        return optimizer.param_groups if optimizer is not None else ()

    def _drop_clips(self) -> None:
        self.norms.clips = []


def forerunner_of(optimizer: Optimizer) -> Forerunner | None:
    """Return the forerunner that looks at an optimizer, if one does."""
    found = PROBES.get(id(optimizer))
    return found if isinstance(found, Forerunner) and found.optimizer is optimizer else None

"""The optimizers that are watched. Read by every patch, written by ``_patches.add`` and ``_patches.remove``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from monitor.probe._attribution import LossAttribution
from monitor.probe._compilation import untraced
from monitor.probe._norms import NormMeter


class Probe(Protocol):
    """What the patches use of a :class:`~._steps.StepProbe`, which installs them."""

    number: int
    norms: NormMeter
    attribution: LossAttribution
    on_error: Callable[[str, Exception], None]

    @property
    def optimizer(self) -> Any:
        """The optimizer; None once it is gone."""

    def abandon(self) -> None:
        """Forget the step that has just failed and put the LRs back."""

    def on_skipped(self, scaler: Any, optimizer: Any) -> None:
        """Record a step that the GradScaler did not make because of an overflow."""


PROBES: dict[int, Probe] = {}
"""Every attached optimizer's probe by ``id(optimizer)``."""

ATTRIBUTIONS: list[LossAttribution] = []
"""Of the same probes: which losses are in their gradients."""

SOLE: list[NormMeter | None] = [None]
"""The gradient norms of the only one there is, else None: one look where the hot path has no time for more."""


def probe_of(optimizer: Any) -> Probe | None:
    """Return the probe that watches an optimizer. An id may be a dead optimizer's before it is another's."""
    probe = PROBES.get(id(optimizer))
    return probe if probe is not None and probe.optimizer is optimizer else None


@untraced
def note_changed() -> None:
    """Have the gradients that torch has just changed, by a clip or an unscaling, known for the same ones."""
    try:
        for attribution in ATTRIBUTIONS:
            attribution.refresh()
    except Exception as error:  # noqa: BLE001
        report(error)


def report(error: Exception) -> None:
    """Hand a failure of ours to every run: a patch cannot tell whose it is."""
    for probe in list(PROBES.values()):
        probe.on_error("probe", error)

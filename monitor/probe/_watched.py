"""The optimizers that are watched. Read by every patch, written by ``_patches.add`` and ``_patches.remove``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, Protocol

from monitor.probe._attribution import USUAL, LossAttribution
from monitor.probe._compilation import untraced
from monitor.probe._norms import NormMeter
from monitor.probe._scaling import SCALING
from monitor.probe._trace import TRACES, current, is_alone, underway


class Probe(Protocol):
    """What the patches use of a :class:`~._steps.StepProbe`, which installs them."""

    norms: NormMeter
    attribution: LossAttribution

    @property
    def number(self) -> int:
        """Steps that were made."""

    @property
    def on_error(self) -> Callable[[str, Exception], None]:
        """Takes ``(component, exception)`` of a failure of ours."""

    @property
    def optimizer(self) -> Any:
        """The optimizer; None once it is gone."""

    def abandon(self) -> None:
        """Forget the step that has just failed and put the LRs back."""

    def on_skipped(self, scaler: Any, optimizer: Any) -> None:
        """Record a step that the GradScaler did not make because of an overflow."""

    def on_new_parameters(self) -> None:
        """Have the parameters that a new param group has brought looked at as well."""


PROBES: dict[int, Probe] = {}
"""Every attached optimizer's probe by ``id(optimizer)``."""

ATTRIBUTIONS: list[LossAttribution] = []
"""Of the same probes: which losses are in their gradients."""


def probe_of(optimizer: Any) -> Probe | None:
    """Return the probe that watches an optimizer. An id may be a dead optimizer's before it is another's."""
    probe = PROBES.get(id(optimizer))
    return probe if probe is not None and probe.optimizer is optimizer else None


@untraced
def expect_usual() -> None:
    """Have the hot path look at one parameter of an optimizer and no more, where one thread trains and nothing is to be
    put right."""
    USUAL[:] = None, None, False
    try:
        if len(TRACES) == 1 and len(PROBES) == 1:
            for probe in list(PROBES.values()):
                USUAL[:2] = probe.attribution.usual, None if SCALING else probe.norms.usual
        elif len(TRACES) == 1:
            USUAL[2] = True
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


Looks = Sequence[Callable[[], None]]


@untraced
def before_change() -> Looks:
    """Look at the gradients before torch changes them, by a clip or an unscaling; ``look_again`` afterwards.
    Neither raises."""
    return looks(lambda attribution: attribution.watch_change(underway()))


@untraced
def looks(look_at: Callable[[LossAttribution], Callable[[], None]]) -> Looks:
    """Look at the gradients of every optimizer, those that another thread trains left out. Does not raise."""
    try:
        mine = ATTRIBUTIONS
        if not is_alone(current()):
            thread = get_ident()
            mine = [attribution for attribution in ATTRIBUTIONS if attribution.is_trained_by(thread)]
        return [look_at(attribution) for attribution in mine]
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
        return ()


@untraced
def look_again(afterwards: Looks) -> None:
    """Look at the same gradients after the change. Does not raise."""
    try:
        for look in afterwards:
            look()
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


def report(error: Exception) -> None:
    """Hand a failure of ours to every run: a patch cannot tell whose it is."""
    for probe in list(PROBES.values()):
        probe.on_error("probe", error)

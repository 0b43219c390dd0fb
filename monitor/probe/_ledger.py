"""What has happened on this thread since the last optimizer step. One ledger a thread; no lock, no other reader.

Which loss belongs to a step: the scalars back-propagated since the previous step of any optimizer (each network of a
GAN gets its
own), cut at that optimizer's own ``zero_grad`` (what was cleared is not applied). Two optimizers that step one after
the
other share the loss that was back-propagated before both.
"""

from __future__ import annotations

import os
import threading
import weakref
from threading import get_ident
from time import perf_counter
from typing import Any

from monitor.probe._compilation import untraced
from monitor.probe._values import Value

MAX_LOSSES = 65536
"""Losses that a step may add up. Beyond, the loss of that step counts as unknown."""
MAX_UNSCALED = 256


class Ledger:
    """The open account of one thread. Durations are seconds of host wall time since the last step."""

    __slots__ = (
        "backward",
        "data",
        "depth",
        "forward",
        "is_spent",
        "losses",
        "mark",
        "marks",
        "monitor",
        "other",
        "override",
        "scaler",
        "takers",
        "unscaled",
    )

    def __init__(self) -> None:
        self.losses: list[Value | None] = []
        self.is_spent = False
        self.takers: list[int] = []
        self.marks: dict[int, int] = {}
        self.override: Value | None = None
        self.data = self.forward = self.backward = self.monitor = self.other = 0.0
        self.mark = perf_counter()
        self.depth = 0
        self.scaler: Any = None
        self.unscaled: dict[int, tuple[weakref.ref[Any], Value | None]] = {}

    @untraced
    def add_loss(self, value: Value | None) -> None:
        """Note one back-propagated scalar; None if it cannot be known."""
        if self.is_spent:
            self.losses = [value]
            self.is_spent = False
            self.takers = []
            self.override = None
            if self.marks:
                self.marks.clear()
            return
        if len(self.losses) >= MAX_LOSSES:  # nobody steps: what is kept must not grow without end
            self.clear_losses()
            value = None
        self.losses.append(value)

    def clear_losses(self) -> None:
        """Start a new account of losses."""
        self.losses = []
        self.is_spent = False
        self.takers = []
        self.override = None
        if self.marks:
            self.marks.clear()

    def note_zero_grad(self, probe: int) -> None:
        """Forget what was back-propagated so far, for one optimizer."""
        if self.losses and not self.is_spent:
            self.marks[probe] = len(self.losses)

    def take_losses(self, probe: int) -> list[Value | None]:
        """Return the parts of the loss whose gradient this optimizer applies now: empty if unknown."""
        if probe in self.takers:
            return []
        self.takers.append(probe)
        self.is_spent = True
        if self.override is not None:
            return [self.override]
        start = self.marks.get(probe, 0)
        return self.losses[start:] if start else self.losses

    def note_unscaled(self, scaled: Any, value: Value | None) -> None:
        """Remember a loss as it was before a GradScaler scaled it. Beside the tensor, not on it: what hangs on a tensor
        is saved with it."""
        if len(self.unscaled) >= MAX_UNSCALED:
            self.unscaled.clear()
        self.unscaled[id(scaled)] = (weakref.ref(scaled), value)

    def unscaled_of(self, scaled: Any) -> Value | None:
        """Return what was remembered of this tensor, or None."""
        reference, value = self.unscaled.get(id(scaled), (None, None))
        return value if reference is not None and reference() is scaled else None

    @property
    def has_open_loss(self) -> bool:
        """Tell whether something was back-propagated that no step has applied yet."""
        return bool(self.losses) and not self.is_spent


LEDGERS: dict[int, Ledger] = {}
"""The ledger of each thread by its ident: with cold caches a cheaper look than one into ``threading.local``."""


class _Tenure:
    """Lives as long as its thread, and takes the thread's ledger away with it: the ident will be another's."""

    def __init__(self) -> None:
        self._ident = get_ident()

    def __del__(self, ledgers: dict[int, Ledger] = LEDGERS) -> None:
        ledgers.pop(self._ident, None)


_LOCAL = threading.local()


@untraced
def open_ledger() -> Ledger:
    """Make the calling thread's ledger."""
    _LOCAL.tenure = _Tenure()
    ledger = LEDGERS[get_ident()] = Ledger()
    return ledger


def current() -> Ledger:
    """Return the ledger of the calling thread."""
    return LEDGERS.get(get_ident()) or open_ledger()


def _after_fork_in_child() -> None:
    for ident in set(LEDGERS) - {get_ident()}:  # those threads have stayed behind
        del LEDGERS[ident]


os.register_at_fork(after_in_child=_after_fork_in_child)

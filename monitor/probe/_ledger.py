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
from monitor.probe._notes import Kind, Logged, Note, losses_of
from monitor.probe._values import Value

MAX_NOTES = 65536
"""Notes, and so losses, that a step may have. Beyond, its loss counts as unknown."""
MAX_UNSCALED = 256


class Ledger:
    """The open account of one thread: what has happened since the last step, and which losses that one has applied.

    ``notes`` are handed on when a step begins, and never written to from then on. ``last_backward`` is when the last
    back-propagation began.
    """

    __slots__ = (
        "applied",
        "is_inside",
        "is_open",
        "last_backward",
        "mark",
        "marks",
        "notes",
        "scaler",
        "takers",
        "unscaled",
    )

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.mark = perf_counter()
        self.last_backward = 0.0
        self.is_open = False
        self.is_inside = False
        self.applied: list[Note] = []
        self.takers: tuple[int, ...] = ()
        self.marks: dict[int, tuple[list[Note], int]] = {}
        self.scaler: Any = None
        self.unscaled: dict[int, tuple[weakref.ref[Any], Value | None]] = {}

    def note(self, what: Any, start: float, begin: float) -> Note:
        """Note a thing that begins now; its end is the mark that is set later."""
        if len(self.notes) >= MAX_NOTES:  # nobody steps: what is kept must not grow without end
            self.notes = [(self.mark, self.mark, self.mark, None)]
        note = (self.mark, start, begin, what)
        self.notes.append(note)
        self.mark = begin
        return note

    def note_loss(self, what: Any, start: float, begin: float) -> Note:
        """Note a back-propagation."""
        self.is_open = True
        self.last_backward = start
        return self.note(what, start, begin)

    def note_logged(self, value: Value) -> None:
        """Note the loss that the user has given."""
        self.is_open = True
        self.note(Logged(value), self.mark, self.mark)

    def note_waiting(self, start: float, end: float) -> None:
        """Note that the thread has waited for a batch. Waits without anything between them make one: an evaluation may
        go through any number of batches."""
        if self.notes and self.notes[-1][3] is Kind.WAIT:
            before, first, _, _ = self.notes.pop()
            start, self.mark = start - self.mark + first, before
        self.note(Kind.WAIT, start, start)
        self.mark = end

    def take_back(self, notes: list[Note]) -> None:
        """Put notes that were handed on before those made since: the step that they were for has failed."""
        self.notes[:0] = notes
        for key, (of, first) in self.marks.items():
            if of is self.notes:
                self.marks[key] = of, first + len(notes)

    def clear_losses(self) -> None:
        """Start a new account of losses."""
        self.is_open = False
        self.applied = []
        self.takers = ()

    def note_zero_grad(self, probe: int) -> None:
        """Forget what was back-propagated so far, for one optimizer."""
        if self.is_open:
            self.marks[probe] = self.notes, len(self.notes)

    def take_losses(self, probe: int) -> list[Value | None]:
        """Return the parts of the loss whose gradient this optimizer applies now: empty if unknown."""
        if self.is_open:
            self.is_open = False
            self.applied = list(self.notes)
            self.takers = ()
            self.marks = {key: (self.applied, first) for key, (of, first) in self.marks.items() if of is self.notes}
            self.notes.append(
                (self.mark, self.mark, self.mark, Kind.STEP)
            )  # more may be noted before they are handed on
        elif probe in self.takers:
            return []
        self.takers += (probe,)
        notes, first = self.marks.pop(probe, (None, 0))
        return losses_of(self.applied, first if notes is self.applied else 0)

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

"""The optimizer's step hooks: close the ledger, apply the LR factor, append one entry to the tape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from time import perf_counter, sleep
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from monitor._errors import StopTraining
from monitor.probe import _patches
from monitor.probe._closures import FirstEvaluation, has_closure
from monitor.probe._compilation import untraced
from monitor.probe._gradients import RawClip
from monitor.probe._ledger import LEDGERS, Ledger, current, open_ledger
from monitor.probe._norms import MAX_STRIDE, NormMeter
from monitor.probe._notes import Kind, Note
from monitor.probe._scaler import amp_values, taken
from monitor.probe._tape import Details, StepEntry, Tape
from monitor.probe._values import Value, product

FACTOR = "monitor_lr_factor"
"""Key of a param group under which a loaded state has left a factor other than 1."""
LEAVE_SECONDS = 1.0
"""How long a close on another thread waits for the step under way before it takes the hooks out all the same."""


class Door(Protocol):
    """What stands between the schedule and the update. The real one is ``control``'s; it is handed in."""

    def held(self, optimizer: Any) -> Mapping[int, Any]:
        """Return what is in force, empty while every factor is 1: the same object for as long as the run."""

    def scales(self, optimizer: Any) -> Sequence[Any] | None:
        """Return what the optimizer itself multiplies the LR of each group by in its next update; None: by nothing."""

    def enter(self, optimizer: Any) -> Sequence[float]:
        """Multiply every group's LR by its factor; return the factors."""

    def leave(self) -> None:
        """Put the scheduled LRs back. Safe to call when nothing was applied."""

    @property
    def is_entered(self) -> bool:
        """Tell whether LRs are multiplied at this moment."""


class StepProbe:
    """Watch one optimizer. The hooks are the hot path: plain attribute stores, no lock, no I/O, no device sync.

    Args:
        key: name under which the optimizer is reported.
        optimizer: the optimizer itself; nothing of it is replaced.
        tape: where entries go.
        door: applies LR factors (see ``control``).
        on_boundary: called first at each step boundary when :attr:`has_errand` is set; may raise StopTraining.
        on_error: takes ``(room, exception)`` of a failure of ours.
        gradient_norm: "auto", "off" or a stride.
        budget: share of the step time that "auto" may use.
        max_stride: the most steps that "auto" leaves between two measurements.
    """

    def __init__(
        self,
        key: str,
        optimizer: Optimizer,
        tape: Tape,
        door: Door,
        *,
        on_boundary: Callable[[StepProbe], None],
        on_error: Callable[[str, Exception], None],
        gradient_norm: str | int = "auto",
        budget: float = 0.01,
        max_stride: int = MAX_STRIDE,
    ) -> None:
        self.key = key
        self.optimizer = optimizer
        self.door = door
        self.on_error = on_error
        self.number = 0
        self.has_errand = False
        self.is_at_boundary = False
        self.wants_details = True
        self._tape = tape
        self._on_boundary = on_boundary
        self.norms = NormMeter(optimizer, gradient_norm, budget, max_stride)
        self._handles: list[Any] = []
        self.thread = 0
        self._ledger = Ledger()
        self._open: tuple[Any, ...] | None = None
        """What the pre-hook of the step under way leaves for its post-hook; empty while it has not come to its end."""
        self.last_end = 0.0
        self._has_guard = False
        self._is_nested = _num_steps(type(optimizer)) > 1

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> None:
        """Register the hooks and the patches."""
        _patches.add(self)
        pre, post = self._make_hooks()
        self._handles = [
            self.optimizer.register_step_pre_hook(pre),
            self.optimizer.register_step_post_hook(post),
        ]
        if self._is_nested:  # the guard tells a step that has failed from one inside another
            self._has_guard = _patches.guard(type(self.optimizer))

    def close(self) -> None:
        """Remove everything; a second call does nothing. From another thread than the one that trains it waits, a
        second at most, until no step is under way."""
        handles, self._handles = self._handles, []
        try:
            is_safe = not handles or self._is_between_steps()
            for handle in handles:
                _remove_hook(handle, is_safe)
            self.door.leave()
        finally:
            _patches.remove(self)

    def _is_between_steps(self) -> bool:
        if get_ident() != self.thread:
            deadline = perf_counter() + LEAVE_SECONDS
            while (self._open is not None or self.is_at_boundary) and perf_counter() < deadline:
                sleep(0.001)
        return self._open is None and not self.is_at_boundary

    def abandon(self) -> None:
        """Forget the step that has just failed and put the LRs back."""
        self.door.leave()
        opened, self._open = self._open, None
        if opened:  # its time counts, and its losses do not
            self._ledger.take_back([*opened[0], opened[1]])

    # ------------------------------------------------------------------------------------------------ hooks

    def _make_hooks(self) -> tuple[Any, Any]:
        """Build the hooks as closures: each name that they use costs no attribute look-up on the hot path."""
        optimizer, door, tape, append, key = self.optimizer, self.door, self._tape, self._tape.append, self.key
        clock, ident, ledgers, numbers, meter, me = perf_counter, get_ident, LEDGERS, tape.numbers, self.norms, id(self)
        mine, step = (me,), Kind.STEP
        held, is_scaled = door.held(optimizer), door.scales(optimizer) is not None

        def pre_hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                start = clock()
                if self.has_errand:
                    self._pass_boundary()
                    start = clock()
                if self._open is not None:
                    if self._is_nested:
                        return None
                    self.abandon()  # the last step raised
                self._open = ()
                ledger = ledgers.get(ident()) or open_ledger()
                if ledger is not self._ledger:
                    self.thread, self._ledger = get_ident(), ledger
                scheduled, is_plain = [], not (held or is_scaled)
                for group in optimizer.param_groups:
                    lr = group.get("lr")
                    scheduled.append(lr)
                    if lr.__class__ is not float or FACTOR in group:
                        is_plain = False
                applied = factors = None
                if not is_plain:
                    scheduled, applied, factors = self._enter(scheduled)
                replaced = evaluation = losses = details = None
                norms: Sequence[Value] = ()
                if (len(args) > 1 or kwargs) and has_closure(args, kwargs):
                    evaluation = FirstEvaluation(me, ledger, meter, self.on_error)
                    replaced = evaluation.wrap(args, kwargs)
                else:
                    if ledger.is_open and not ledger.marks:  # take_losses for the usual case: they are in the notes
                        ledger.is_open = False
                        ledger.applied = ledger.notes
                        ledger.takers = mine
                    else:
                        losses = ledger.take_losses(me)
                    clips = meter.clips
                    if len(clips) == 1 and clips[0][4] is None:
                        norms = clips[0][2] or ()
                    elif clips or meter.is_on:
                        norms = meter.take()
                if self.wants_details:
                    details = self._details()
                begin = clock()
                stepped = (ledger.mark, start, begin, step)
                self._open = (
                    ledger.notes, stepped, scheduled, applied, factors, losses, norms, details, evaluation,
                )  # fmt: skip
                ledger.notes = []
                ledger.mark = begin
                return replaced
            except StopTraining:
                raise
            except Exception as error:  # noqa: BLE001
                spoilt = self._ledger
                notes = spoilt.notes
                spoilt.notes = [*notes, (spoilt.mark, spoilt.mark, spoilt.mark, step)]
                if spoilt.is_open:  # else the losses of this step would count for the next one
                    spoilt.applied, spoilt.takers, spoilt.is_open = notes, (), False
                self.on_error("probe", error)
                return None

        def post_hook(_: Any, _args: Any, _kwargs: Any) -> None:
            try:
                done = clock()
                opened = self._open
                if not opened:
                    self.abandon()
                    return
                if opened[3] is not None:
                    door.leave()
                self._open = None  # only now: a close on another thread waits for it, to leave the door as well
                ledger = self._ledger
                clips: Sequence[RawClip] = ()
                if meter.clips:
                    clips, meter.clips = meter.clips, []
                if opened[8] is not None:
                    opened, clips = _first_evaluation(opened)
                amp = None
                if ledger.scaler is not None:
                    amp = amp_values(ledger, optimizer)
                    ledger.scaler = None  # the next loss may be an unscaled one
                self.number = meter.number = number = self.number + 1
                tape.last_sequence = sequence = next(numbers)
                mark = ledger.mark
                notes: Sequence[Note] = ()
                if ledger.notes:
                    notes, ledger.notes = ledger.notes, []
                ledger.mark = self.last_end = end = clock()
                append((sequence, key, number, end, notes, mark, done, clips, amp, False, opened))
            except Exception as error:  # noqa: BLE001
                self.on_error("probe", error)

        return untraced(pre_hook), untraced(post_hook)

    def _pass_boundary(self) -> None:
        self.is_at_boundary = True
        try:
            self._on_boundary(self)
        finally:
            self.is_at_boundary = False

    def _enter(self, scheduled: list[Any]) -> tuple[list[Any], list[Any] | None, Sequence[float] | None]:
        """Apply the factors, if there are any; return the LRs as scheduled and as applied, and the factors."""
        groups, scales = self.optimizer.param_groups, self.door.scales(self.optimizer)
        scheduled = _lr_values(scheduled, scales)
        if not self.door.held(self.optimizer) and not any(FACTOR in group for group in groups):
            return scheduled, None, None
        if not self._has_guard:
            self._has_guard = _patches.guard(type(self.optimizer))
        factors = self.door.enter(self.optimizer)
        applied = _lr_values([g.get("lr") for g in groups], scales)
        return scheduled, applied, factors

    def _details(self) -> Details:
        self.wants_details = False
        groups = self.optimizer.param_groups
        return Details(
            [None if (n := g.get("name")) is None else str(n) for g in groups],
            [_plain(g.get("weight_decay")) for g in groups],
            [_momentum(g) for g in groups],
        )

    def on_skipped(self, scaler: Any) -> None:
        """Record a step that the GradScaler did not make because of an overflow."""
        try:
            if self._open is not None:
                self.abandon()  # the last step raised
            ledger = current()
            self.norms.clips = []
            losses = ledger.take_losses(id(self))
            groups = self.optimizer.param_groups
            scheduled = _lr_values([g.get("lr") for g in groups], self.door.scales(self.optimizer))
            amp = (None, None, taken(scaler._scale))
            ledger.scaler = None
            end = perf_counter()
            ledger.note(Kind.STEP, end, end)
            notes, ledger.notes = ledger.notes, []
            opened = ((), None, scheduled, None, None, losses, (), None, None)
            self._tape.append(
                StepEntry(
                    self._tape.next_sequence(), self.key, self.number, end, notes, end, end, (), amp, True, opened
                )
            )
        except Exception as error:  # noqa: BLE001
            self.on_error("probe", error)

    def on_zero_grad(self) -> None:
        """Forget losses and clips whose gradients are being cleared."""
        try:
            current().note_zero_grad(id(self))
            self.norms.clips = []
        except Exception as error:  # noqa: BLE001
            self.on_error("probe", error)

    @property
    def last_activity(self) -> float:
        """When the training thread was last seen to step, to back-propagate or to get a batch (``perf_counter``)."""
        return self._ledger.mark


def _remove_hook(handle: Any, is_safe: bool) -> None:
    """Take a hook out. While torch goes through the hooks, one that others follow cannot be taken out without an error
    in the training loop: there it is replaced by one that does nothing."""
    hooks = handle.hooks_dict_ref()
    if is_safe or not hooks or next(reversed(hooks)) == handle.id:
        handle.remove()
    elif handle.id in hooks:
        hooks[handle.id] = _nothing


def _nothing(*_: Any) -> None:
    """Stand where a hook of ours stood."""


def _num_steps(kind: type) -> int:
    """Count the different ``step`` functions that run when a subclass calls its parent's: each one would run the
    hooks."""
    steps = [vars(c)["step"] for c in kind.__mro__ if "step" in vars(c) and c is not Optimizer]
    return len({inspect.unwrap(s) for s in steps})


def _first_evaluation(opened: tuple[Any, ...]) -> tuple[tuple[Any, ...], Sequence[RawClip]]:
    """Return what counts of a step with a closure: the loss, the norm and the clips of its first evaluation."""
    evaluation: FirstEvaluation = opened[8]
    evaluation.leave()
    return (*opened[:5], evaluation.losses, evaluation.norms, opened[7], None), evaluation.clips


def _lr_values(lrs: Sequence[Any], scales: Sequence[Any] | None) -> list[Any]:
    values = [taken(lr) if isinstance(lr, Tensor) else lr for lr in lrs]
    if scales is None:
        return values
    own = [taken(scale) if isinstance(scale, Tensor) else scale for scale in scales]
    return [product(lr, scale) for lr, scale in zip(values, own, strict=True)]


def _plain(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _momentum(group: dict[str, Any]) -> float | None:
    betas = group.get("betas")
    first = betas[0] if isinstance(betas, tuple | list) and betas else group.get("momentum")
    return _plain(first)

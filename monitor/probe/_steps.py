"""The optimizer's step hooks: close the ledger, apply the LR factor, append one entry to the tape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from time import perf_counter, sleep
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from monitor._errors import StopTraining
from monitor.probe import _patches
from monitor.probe._compilation import untraced
from monitor.probe._gradients import ClipNote, gradients_of, total_norms
from monitor.probe._ledger import Ledger, current
from monitor.probe._tape import Details, StepEntry, Tape
from monitor.probe._values import Value, take

FACTOR = "monitor_lr_factor"
"""Key of a param group under which a factor other than 1 is kept."""
MAX_CLIPS = 4096
LEAVE_SECONDS = 1.0
"""How long a close on another thread waits for the step under way before it takes the hooks out all the same."""


class Door(Protocol):
    """What stands between the schedule and the update. The real one is ``control``'s; it is handed in."""

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
        self._stride = 0 if gradient_norm == "off" else 1 if gradient_norm == "auto" else int(gradient_norm)
        self._is_auto = gradient_norm == "auto"
        self._budget = budget
        self._norm_at = 0
        self._clips: list[ClipNote] = []
        self._handles: list[Any] = []
        self.thread = 0
        self._ledger = Ledger()
        self._is_stepping = False
        self._open: tuple[Any, ...] | None = None
        self._in_closure: list[Value | None] | None = None
        self._closure_norms: Sequence[Value] = ()
        self.last_end = 0.0
        self._step_seconds = 0.0
        self._norm_seconds = 0.0
        self._ids: frozenset[int] = frozenset()
        self._num_groups = -1
        self._has_guard = False
        self._open_clips: list[ClipNote] = []
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
            while (self._is_stepping or self.is_at_boundary) and perf_counter() < deadline:
                sleep(0.001)
        return not self._is_stepping and not self.is_at_boundary

    def abandon(self) -> None:
        """Forget the step that has just failed and put the LRs back."""
        self.door.leave()
        self._is_stepping = False
        self._open = None
        self._in_closure = None
        self._open_clips = []

    # ------------------------------------------------------------------------------------------------ hooks

    def _make_hooks(self) -> tuple[Any, Any]:
        """Build the hooks as closures: each name that they use costs no attribute look-up on the hot path."""
        optimizer, door, tape, append, key = self.optimizer, self.door, self._tape, self._tape.append, self.key
        clock, thread_id = perf_counter, get_ident

        def pre_hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                start = clock()
                if self.has_errand:
                    self._pass_boundary()
                    start = clock()
                if self._is_stepping:
                    if self._is_nested:
                        return None
                    self.abandon()  # the last step raised
                self._is_stepping = True
                thread = thread_id()
                if thread != self.thread:
                    self.thread, self._ledger = thread, current()
                ledger = self._ledger
                groups = optimizer.param_groups
                scheduled = [g.get("lr") for g in groups]
                applied = factors = None
                for g in groups:
                    if FACTOR in g:
                        scheduled, applied, factors = self._enter(scheduled)
                        break
                else:
                    for lr in scheduled:
                        if lr.__class__ is not float:
                            scheduled = _lr_values(scheduled)
                            break
                replaced = None
                if len(args) > 1 or kwargs:
                    replaced = self._wrap_closure(args, kwargs)
                losses = ledger.take_losses(id(self)) if replaced is None else ()
                norms: Sequence[Value] = ()
                if replaced is None and (self._stride or self._clips):
                    norms = self._norms()
                details = None
                if self.wants_details:
                    details = self._details()
                ledger.other += start - ledger.mark
                ledger.mark = begin = clock()
                self._open = (start, losses, norms, scheduled, applied, factors, details, begin)
                return replaced
            except StopTraining:
                raise
            except Exception as error:  # noqa: BLE001
                self._ledger.is_spent = True  # else the losses of this step would count for the next one
                self.on_error("probe", error)
                return None

        def post_hook(*_: Any) -> None:
            try:
                if door.is_entered:
                    door.leave()
                done = clock()
                opened = self._open
                if opened is None:
                    self.abandon()
                    return
                self._open = None
                self._is_stepping = False
                start, losses, norms, scheduled, applied, factors, details, begin = opened
                ledger = self._ledger
                if self._in_closure is not None:
                    losses, norms = self._leave_closure()
                clips: Sequence[ClipNote] = ()
                if self._clips:
                    clips, self._clips = self._clips, []
                amp = None
                if ledger.scaler is not None:
                    amp = self._amp_values()
                    ledger.scaler = None  # the next loss may be an unscaled one
                self.number = number = self.number + 1
                end = clock()
                phases = (
                    ledger.data,
                    ledger.forward,
                    ledger.backward,
                    done - ledger.mark,
                    ledger.monitor + (begin - start) + (end - done),
                    ledger.other,
                )
                ledger.data = ledger.forward = ledger.backward = ledger.monitor = ledger.other = 0.0
                ledger.mark = end
                self.last_end, last = end, self.last_end
                self._step_seconds += 0.05 * (end - last - self._step_seconds) if last else 0.0
                append(
                    StepEntry(
                        tape.next_sequence(), key, number, end, losses, norms, scheduled, applied, factors,
                        clips, amp, False, phases, details,
                    )
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001
                self.on_error("probe", error)

        return untraced(pre_hook), untraced(post_hook)

    def _pass_boundary(self) -> None:
        self.is_at_boundary = True
        try:
            self._on_boundary(self)
        finally:
            self.is_at_boundary = False

    def _enter(self, scheduled: list[Any]) -> tuple[list[Any], list[Any], Sequence[float]]:
        if not self._has_guard:
            self._has_guard = _patches.guard(type(self.optimizer))
        scheduled = _lr_values(scheduled)
        factors = self.door.enter(self.optimizer)
        applied = _lr_values([g.get("lr") for g in self.optimizer.param_groups])
        return scheduled, applied, factors

    def _details(self) -> Details:
        self.wants_details = False
        groups = self.optimizer.param_groups
        return Details(
            [None if (n := g.get("name")) is None else str(n) for g in groups],
            [_plain(g.get("weight_decay")) for g in groups],
            [_momentum(g) for g in groups],
        )

    def _amp_values(self) -> tuple[Value | None, Value | None, Value | None]:
        scaler = self._ledger.scaler
        found_inf = getattr(self.optimizer, "found_inf", None)
        grad_scale = getattr(self.optimizer, "grad_scale", None)
        scale = scaler._scale if isinstance(scaler._scale, Tensor) else None
        return (_taken(found_inf), _taken(grad_scale), _taken(scale))

    def on_skipped(self, scaler: Any) -> None:
        """Record a step that the GradScaler did not make because of an overflow."""
        try:
            ledger = current()
            self._clips = []
            end = perf_counter()
            losses = ledger.take_losses(id(self))
            scheduled = _lr_values([g.get("lr") for g in self.optimizer.param_groups])
            phases = (
                ledger.data,
                ledger.forward,
                ledger.backward,
                0.0,
                ledger.monitor,
                ledger.other + end - ledger.mark,
            )
            ledger.data = ledger.forward = ledger.backward = ledger.monitor = ledger.other = 0.0
            ledger.mark = end
            amp = (None, None, _taken(scaler._scale))
            ledger.scaler = None
            self._tape.append(
                StepEntry(
                    self._tape.next_sequence(), self.key, self.number, end, losses, (), scheduled, None, None, (),
                    amp, True,
                    phases, None,
                )
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001
            self.on_error("probe", error)

    def on_zero_grad(self) -> None:
        """Forget losses and clips whose gradients are being cleared."""
        try:
            current().note_zero_grad(id(self))
            if self._clips:
                self._clips = []
        except Exception as error:  # noqa: BLE001
            self.on_error("probe", error)

    # ---------------------------------------------------------------------------------------------- closures

    def _wrap_closure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the first evaluation of a closure measured: its loss and gradient are those of the point the step
        starts from."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None
        self._in_closure, self._closure_norms = [], ()
        ledger, pending = self._ledger, [True]
        ledger.clear_losses()

        def measured(*a: Any, **k: Any) -> Any:
            result = closure(*a, **k)
            if pending:
                pending.clear()
                try:
                    self._in_closure = list(ledger.take_losses(id(self)))
                    self._closure_norms = self._norms()
                    self._open_clips, self._clips = self._clips, []
                except Exception as error:  # noqa: BLE001
                    self.on_error("probe", error)
            return result

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    def _leave_closure(self) -> tuple[Sequence[Value | None], Sequence[Value]]:
        losses, self._in_closure = self._in_closure or (), None
        self._ledger.clear_losses()
        self._clips, self._open_clips = self._open_clips, []
        return losses, self._closure_norms

    # ------------------------------------------------------------------------------------------------- norms

    @property
    def last_activity(self) -> float:
        """When the training thread was last seen to step, to back-propagate or to get a batch (``perf_counter``)."""
        return self._ledger.mark

    def wants_norm(self) -> bool:
        """Tell whether the coming step is one whose gradient norm is measured."""
        return self._stride > 0 and self.number >= self._norm_at

    def coverage(self, params: Sequence[Tensor], is_shared: bool) -> frozenset[int] | None:
        """Return which of this optimizer's parameters are among ``params``, by id; None for all of them."""
        ids = self.param_ids
        if not is_shared and len(params) >= len(ids):
            return None
        covered = ids.intersection(map(id, params))
        return None if len(covered) == len(ids) else covered

    @property
    def param_ids(self) -> frozenset[int]:
        """Every parameter of the optimizer, by id."""
        groups = self.optimizer.param_groups
        if len(groups) != self._num_groups:
            self._num_groups = len(groups)
            self._ids = frozenset(id(p) for g in groups for p in g["params"])
        return self._ids

    def add_clip(self, note: ClipNote) -> None:
        """Note a clip of this optimizer's gradients; it belongs to the coming step."""
        note.num_losses = len(current().losses)
        if len(self._clips) >= MAX_CLIPS:  # nobody steps: what is kept must not grow without end
            self._clips = []
        self._clips.append(note)

    def _norms(self) -> Sequence[Value]:
        """Return the parts of the gradient norm before clipping: what a clip measured, and the rest measured now."""
        covered: set[int] = set()
        parts: list[Value] = []
        newest = self._clips[-1].num_losses if self._clips else 0
        for note in self._clips:
            if note.num_losses < newest:
                continue  # clipped before the last backward, which has added to the gradient since
            if note.param_ids is None:
                if not parts:
                    return note.norms
                break
            if covered.isdisjoint(note.param_ids):
                if not note.norms:
                    return ()
                covered |= note.param_ids
                parts += note.norms
        if not self.wants_norm():
            return ()
        rest = _params(self.optimizer)
        (norms,) = self.measure((p for p in rest if id(p) not in covered) if covered else rest, 2.0)
        return parts + norms

    def measure(self, params: Iterable[Tensor], *norm_types: float) -> list[list[Value]]:
        """Compute norms of the gradients there are, one list of values (by device) for each type of norm."""
        start = perf_counter()
        grads = gradients_of(params)
        norms = [total_norms(grads, norm_type) for norm_type in norm_types]
        if self._is_auto:
            self._pace(perf_counter() - start)
        else:
            self._norm_at = self.number + self._stride
        return norms

    def _pace(self, seconds: float) -> None:
        """Choose when to measure next so that the pass stays within its share of the step time."""
        self._norm_seconds += 0.2 * (seconds - self._norm_seconds) if self._norm_seconds else seconds
        allowed = self._budget * self._step_seconds
        stride = 1 if not allowed else min(1000, -(-self._norm_seconds // allowed))
        self._norm_at = self.number + max(1, int(stride))


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


def _params(optimizer: Optimizer) -> Iterable[Tensor]:
    return (p for g in optimizer.param_groups for p in g["params"])


def _lr_values(lrs: Sequence[Any]) -> list[Any]:
    return [_taken(lr) if isinstance(lr, Tensor) else lr for lr in lrs]


def _taken(value: Any) -> Value | None:
    return take(value.detach()) if isinstance(value, Tensor) else None


def _plain(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _momentum(group: dict[str, Any]) -> float | None:
    betas = group.get("betas")
    first = betas[0] if isinstance(betas, tuple | list) and betas else group.get("momentum")
    return _plain(first)

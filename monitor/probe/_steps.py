"""The optimizer's step hooks: take the trace, apply the LR factor, append one entry to the step buffer."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from time import perf_counter, sleep
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from monitor._errors import StopTraining
from monitor._records import FACTOR_KEY
from monitor.common import group_names
from monitor.link import Details, Kind, Norms, Pass, RawClip, Span
from monitor.probe import _patches
from monitor.probe._attribution import ASSUMED, USUAL, is_zeroed
from monitor.probe._closures import FirstEvaluation, has_closure
from monitor.probe._compilation import untraced
from monitor.probe._forerunner import Forerunner, forerunner_of
from monitor.probe._norms import MAX_STRIDE
from monitor.probe._scaler import amp_values, taken
from monitor.probe._step_buffer import StepBuffer
from monitor.probe._trace import TRACES, Trace, current, is_alone, open_trace, underway
from monitor.probe._values import product
from monitor.probe._watched import expect_usual

LEAVE_SECONDS = 1.0
"""How long a close on another thread waits for the step under way before it takes the hooks out all the same."""
NEVER = sys.maxsize
"""Stands for a step that is never made."""
_MAX_FRAMES = 16
_HOOK_ATTRIBUTES = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_INITIAL: tuple[Any, ...] = ("initial",)
"""Stands for a step that only makes the optimizer's state: see :meth:`StepProbe._is_initial`."""


class Scaling(Protocol):
    """What stands between the schedule and the update. The real one is ``control``'s; it is handed in."""

    def held(self, optimizer: Any) -> Mapping[int, Any]:
        """Return what is in force, empty while every factor is 1: the same object for as long as the run."""

    def scales(self, optimizer: Any) -> Sequence[Any] | None:
        """Return what the optimizer itself multiplies the LR of each group by in its next update; None: by nothing."""

    def apply(self, optimizer: Any) -> Sequence[float]:
        """Multiply every group's LR by its factor; return the factors."""

    def restore(self) -> None:
        """Put the scheduled LRs back. Safe to call when nothing was applied."""

    @property
    def is_applied(self) -> bool:
        """Tell whether LRs are multiplied at this moment."""


class StepProbe:
    """Watch one optimizer. The hooks are the hot path: plain attribute stores, no lock, no I/O, no device sync.

    Args:
        key: name under which the optimizer is reported.
        optimizer: the optimizer itself; nothing of it is replaced. Held by a weak reference.
        buffer: where entries go.
        scaling: applies LR factors (see ``control``).
        on_boundary: called first at each step boundary once :attr:`boundary_at` steps are made; may raise StopTraining.
        on_error: takes ``(component, exception)`` of a failure of ours.
        gradient_norm: "auto", "off" or a stride.
        budget: share of the step time that "auto" may use.
        max_stride: the most steps that "auto" leaves between two measurements.
    """

    def __init__(
        self,
        key: str,
        optimizer: Optimizer,
        buffer: StepBuffer,
        scaling: Scaling,
        *,
        on_boundary: Callable[[StepProbe], None],
        on_error: Callable[[str, Exception], None],
        gradient_norm: str | int = "auto",
        budget: float = 0.01,
        max_stride: int = MAX_STRIDE,
    ) -> None:
        self.key = key
        self._reference = weakref.ref(optimizer)
        self.scaling = scaling
        self.on_error = on_error
        self.number = 0
        self.boundary_at = NEVER
        self.is_at_boundary = False
        self.wants_details = True
        self._buffer = buffer
        self._on_boundary = on_boundary
        forerunner = forerunner_of(optimizer) or Forerunner(optimizer)
        self.norms, self.attribution = forerunner.hand_over(self)
        self.norms.configure(gradient_norm, budget, max_stride)
        self._handles: list[Any] = []
        self._restore: Callable[[Optimizer | None], None] = _nothing
        self.thread = 0
        self._trace = Trace()
        self._open: tuple[Any, ...] | None = None
        """What the pre-hook of the step under way leaves for its post-hook; empty while it has not come to its end."""
        self._vacancy = [None]
        """Holds its one item while no step is under way: to take it is atomic, so of several threads one gets it."""
        self._beside: set[int] = set()
        """The threads whose steps overlap the one under way. They are counted as dropped, and not shown."""
        self.last_end = 0.0
        self._has_guard = False
        self._is_nested = _num_steps(type(optimizer)) > 1

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer; None once it is gone."""
        return self._reference()

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> None:
        """Register the hooks and the patches."""
        optimizer = self._reference()
        if optimizer is None:
            return
        _patches.add(self)
        self._restore = _make_hookable(optimizer)
        pre, post = self._make_hooks(optimizer)
        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]
        if self._is_nested:  # the guard tells a step that has failed from one inside another
            self._has_guard = _patches.guard(type(optimizer))

    def close(self) -> None:
        """Remove everything; a second call does nothing. From another thread than the one that trains it waits, a
        second at most, until no step is under way."""
        handles, self._handles = self._handles, []
        try:
            is_safe = not handles or self._is_between_steps()
            for handle in handles:
                _remove_hook(handle, is_safe)
            self._restore(self._reference())
            self.scaling.restore()
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
        if self._beside and self._part():
            return
        self.scaling.restore()
        opened, self._open = self._open, None
        self._vacancy[:] = [None]
        if opened and opened is not _INITIAL:  # its time counts, and its losses do not
            self._trace.take_back([*opened[0], opened[1]])
            if opened[8] is not None:
                self.attribution.drop()

    # ------------------------------------------------------------------------------------------------ hooks

    def _make_hooks(self, optimizer: Optimizer) -> tuple[Any, Any]:
        """Build the hooks as closures: each name that they use costs no attribute look-up on the hot path. None of
        these is the optimizer: its hooks would keep it alive."""
        scaling, buffer, append, key = self.scaling, self._buffer, self._buffer.append, self.key
        clock, ident, traces, numbers, meter = perf_counter, get_ident, TRACES, buffer.numbers, self.norms
        attribution, vacancy, step, usual = self.attribution, self._vacancy, Kind.STEP, USUAL
        held, is_scaled = scaling.held(optimizer), scaling.scales(optimizer) is not None

        def pre_hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                start = clock()
                if self.number >= self.boundary_at:
                    self._pass_boundary()
                    start = clock()
                try:
                    vacancy.pop()
                except IndexError:
                    if not self._makes_way():
                        return None
                    vacancy.clear()
                self._open = ()
                trace = traces.get(ident()) or open_trace()
                if trace is not self._trace:
                    self.thread, self._trace = get_ident(), trace
                scheduled, is_plain = [], not (held or is_scaled)
                groups = optimizer.param_groups
                for group in groups:
                    lr = group.get("lr")
                    scheduled.append(lr)
                    if lr.__class__ is not float or FACTOR_KEY in group:
                        is_plain = False
                replaced = evaluation = details = None
                losses: Sequence[Pass] = ()
                norms: Norms = ()
                if (len(args) > 1 or kwargs) and has_closure(args, kwargs):
                    evaluation = FirstEvaluation(attribution, meter, self.on_error)
                    replaced = evaluation.wrap(args, kwargs)
                else:
                    sole = usual[0]
                    if sole is None and usual[2]:
                        sole = attribution.usual
                        if sole is not None and trace.underway is not None and not sole.passes:
                            sole.notice(trace.underway)  # a step made inside the backward pass
                    try:
                        is_usual = (
                            sole is not None
                            and id(parameter := groups[sole.group]["params"][sole.index]) == sole.parameter_id
                            and (gradient := parameter.grad) is not None
                            and gradient._version == sole.version
                            and (sole.grad_id == ASSUMED or not sole.has_changed(gradient))
                        )
                    except (IndexError, RuntimeError):  # fewer parameters than there were; made in inference mode
                        is_usual = False
                    if is_usual and sole.passes:
                        losses, sole.passes = sole.passes, []
                        if sole.grad_id == ASSUMED:
                            sole.grad_id = 0
                    else:
                        if attribution.witnesses:  # else there was no backward pass yet
                            losses = attribution.take(underway())
                            expect_usual()
                        if not losses and not (is_plain and scheduled[0]) and _is_initial(optimizer):
                            self._open = _INITIAL
                            return None
                    clips = meter.clips
                    if len(clips) == 1 and clips[0][4] is None:
                        norms = clips[0][2] or ()
                    elif clips or meter.is_on:
                        norms = meter.take()
                applied = factors = None
                if not is_plain:
                    scheduled, applied, factors = self._enter(optimizer, scheduled)
                if self.wants_details:
                    details = self._details(optimizer)
                begin = clock()
                stepped = (trace.mark, start, begin, step)
                self._open = (
                    trace.spans, stepped, scheduled, applied, factors, losses, norms, details, evaluation,
                )  # fmt: skip
                trace.spans = []
                trace.mark = begin
                return replaced
            except StopTraining:
                raise
            except Exception as error:  # noqa: BLE001 - must not reach the training loop
                usual[:] = None, None, False
                self._spoil()
                self.on_error("probe", error)
                return None

        def post_hook(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            try:
                done = clock()
                if self._beside and self._part():
                    return
                opened = self._open
                if not opened or opened is _INITIAL:
                    self.abandon()
                    return
                if opened[3] is not None and not self._beside:
                    scaling.restore()
                self._open = None  # only now: a close on another thread waits for it, to restore the LRs as well
                trace = self._trace
                clips: Sequence[RawClip] = ()
                if meter.clips:
                    clips, meter.clips = meter.clips, []
                if opened[8] is not None:
                    opened, clips = _first_evaluation(opened)
                amp = None
                if trace.scaler is not None:
                    amp = amp_values(trace, optimizer)
                    trace.scaler = None  # the next loss may be an unscaled one
                self.number = meter.number = number = self.number + 1
                buffer.last_sequence = sequence = next(numbers)
                mark = trace.mark
                spans: Sequence[Span] = ()
                if trace.spans:
                    spans, trace.spans = trace.spans, []
                trace.mark = self.last_end = end = clock()
                append((sequence, key, number, end, spans, mark, done, clips, amp, False, opened))
                vacancy.append(None)
            except Exception as error:  # noqa: BLE001 - must not reach the training loop
                self.on_error("probe", error)

        return untraced(pre_hook), untraced(post_hook)

    def _makes_way(self) -> bool:
        """Tell whether a step may begin while another has not ended: one of this thread that has failed makes way."""
        if self._open is None:  # it has ended, and a failure of ours has kept it from saying so
            return True
        if get_ident() != self.thread:
            next(self._buffer.numbers)  # one number without an entry: the recorder counts it as a dropped step
            self._beside.add(get_ident())
            return False
        if self._is_nested:
            return False
        self.abandon()
        return True

    def _part(self) -> bool:
        """End a step that has overlapped another, if this thread has made one; the last to end puts the LRs back."""
        if get_ident() not in self._beside:
            return False
        self._beside.discard(get_ident())
        if self._open is None and not self._beside:
            self.scaling.restore()
        return True

    def _spoil(self) -> None:
        """Have a step of which nothing is known leave its time to the next one, and take its losses along."""
        try:
            trace = self._trace
            trace.spans = [*trace.spans, (trace.mark, trace.mark, trace.mark, Kind.STEP)]
            self.attribution.drop()
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self.on_error("probe", error)

    def _pass_boundary(self) -> None:
        self.is_at_boundary = True
        try:
            self._on_boundary(self)
        finally:
            self.is_at_boundary = False

    def _enter(
        self, optimizer: Any, scheduled: list[Any]
    ) -> tuple[list[Any], list[Any] | None, Sequence[float] | None]:
        """Apply the factors, if there are any; return the LRs as scheduled and as applied, and the factors."""
        if self._beside:
            self.scaling.restore()  # what a step on another thread still uses is put back before it is multiplied again
            scheduled = [g.get("lr") for g in optimizer.param_groups]
        groups, scales = optimizer.param_groups, self.scaling.scales(optimizer)
        scheduled = _lr_values(scheduled, scales)
        if not self.scaling.held(optimizer) and not any(FACTOR_KEY in group for group in groups):
            return scheduled, None, None
        if not self._has_guard:
            self._has_guard = _patches.guard(type(optimizer))
        factors = self.scaling.apply(optimizer)
        applied = _lr_values([g.get("lr") for g in groups], scales)
        return scheduled, applied, factors

    def _details(self, optimizer: Any) -> tuple[Any, ...]:
        self.wants_details = False
        groups = optimizer.param_groups
        details = Details(
            group_names(groups),
            [_plain(g.get("weight_decay")) for g in groups],
            [_momentum(g) for g in groups],
        )
        return tuple(details)

    def on_skipped(self, scaler: Any, optimizer: Any) -> None:
        """Record a step that the GradScaler did not make because of an overflow."""
        try:
            if self._open is not None:
                self.abandon()  # the last step raised
            trace = current()
            self.norms.clips = []
            losses = self.attribution.take()
            scheduled = _lr_values([g.get("lr") for g in optimizer.param_groups], self.scaling.scales(optimizer))
            amp = (None, None, taken(scaler._scale))
            trace.scaler = None
            end = perf_counter()
            trace.add(Kind.STEP, end, end)
            spans, trace.spans = trace.spans, []
            opened = ((), None, scheduled, None, None, losses, (), None, None)
            sequence = self._buffer.next_sequence()
            self._buffer.append((sequence, self.key, self.number, end, spans, end, end, (), amp, True, opened))
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self.on_error("probe", error)

    def on_new_parameters(self) -> None:
        """Have the parameters that a new param group has brought looked at as well."""
        self.norms.recount()
        self.attribution.relearn()

    @property
    def is_pending(self) -> bool:
        """Tell whether there are gradients that no step has applied, as far as the calling thread may look at them."""
        found, thread = self.attribution, get_ident()
        return found.is_pending if is_alone(TRACES.get(thread)) or found.is_trained_by(thread) else found.has_passes

    @property
    def last_activity(self) -> float:
        """When the training thread was last seen to step, to back-propagate or to get a batch (``perf_counter``)."""
        return self._trace.mark


def _make_hookable(optimizer: Optimizer) -> Callable[[Optimizer | None], None]:
    """Give an optimizer that has not called ``Optimizer.__init__`` what its hooks need; return the way back."""
    kind = type(optimizer)
    own, original = vars(optimizer), vars(kind).get("step")
    missing = [name for name in (*_HOOK_ATTRIBUTES, "_zero_grad_profile_name") if name not in own]
    for name in missing:
        setattr(optimizer, name, OrderedDict())
    optimizer._patch_step_function()  # does nothing where the class's step runs hooks already
    wrapped = vars(kind).get("step")

    def restore(optimizer: Optimizer | None) -> None:
        for name in missing if optimizer is not None else ():
            delattr(optimizer, name)
        if wrapped is not original and vars(kind).get("step") is wrapped:
            if original is None:
                del kind.step
            else:
                kind.step = original  # type: ignore[method-assign]

    return restore


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
    """Count the different ``step`` functions that run when a subclass calls its parent's: each one would run
    the hooks."""
    steps = [vars(c)["step"] for c in kind.__mro__ if "step" in vars(c) and c is not Optimizer]
    return len({inspect.unwrap(s) for s in steps})


def _first_evaluation(opened: tuple[Any, ...]) -> tuple[tuple[Any, ...], Sequence[RawClip]]:
    """Return what counts of a step with a closure: the loss, the norm and the clips of its first evaluation."""
    evaluation: FirstEvaluation = opened[8]
    evaluation.leave()
    return (*opened[:5], evaluation.losses, evaluation.norms, opened[7], None), evaluation.clips


def _is_initial(optimizer: Any) -> bool:
    """Tell whether a step without a loss is only to make the optimizer's state, as torch.distributed.checkpoint makes
    one: before there is any state, with learning rates of 0 and gradients of 0 for all parameters."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    if getattr(optimizer, "state", None) or any(isinstance(lr, Tensor) and not lr.is_cpu for lr in rates) or any(rates):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return _is_made_by_checkpoint() or all(
        g is not None and is_zeroed(getattr(g, "_local_tensor", g)) for g in gradients
    )


def _is_made_by_checkpoint() -> bool:
    """Tell whether torch.distributed.checkpoint is making the step: gradients on a device are not looked at."""
    frame = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        if frame is None or frame.f_code.co_name == "_init_optim_state":
            return frame is not None
        frame = frame.f_back  # type: ignore[assignment]
    return False


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

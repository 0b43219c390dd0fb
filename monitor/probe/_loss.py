"""Backward passes, as ``torch.autograd.backward`` sees them, and gradients that are zeroed in place.

``backward`` runs at every micro-batch with cold caches: it is one function without detours in the usual case.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from monitor.link import Kind, Pass
from monitor.probe._attribution import NUM_ASSUMED, NUM_LOOKS, USUAL, LossAttribution
from monitor.probe._compilation import untraced
from monitor.probe._gradients import local_of
from monitor.probe._graph import Restricted
from monitor.probe._trace import MAX_SPANS, TRACES, Trace, is_alone, open_trace
from monitor.probe._values import Value, has_no_accelerator, take
from monitor.probe._watched import ATTRIBUTIONS, Looks, look_again, looks, report
from monitor.probe._witness import ASSUMED, Witness


def watch_backward(original: Any) -> Any:
    """Note every backward pass: its loss, what it did to the gradients, and the time it took."""
    clock, traces, ident, is_host_only = perf_counter, TRACES, get_ident, has_no_accelerator()
    usual, kind = USUAL, Kind.BACKWARD

    def backward(
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        grad_variables: Any = None,
        inputs: Any = None,
        **more: Any,
    ) -> None:
        trace = spans = one = sole = None
        roots = tensors if inputs is None else restricted(tensors, inputs)
        try:
            start = clock()
            account = traces.get(ident()) or open_trace()
            if account.underway is None:
                spans = account.spans
                if (
                    grad_tensors is None
                    and type(tensors) is Tensor
                    and (is_host_only or tensors.is_cpu)
                    and account.scaler is None
                    and grad_variables is None
                ):
                    try:
                        value = tensors.item()
                    except Exception:  # noqa: BLE001 - must not reach the training loop
                        value = back_propagated(account, tensors, None)
                else:
                    value = back_propagated(account, tensors, grad_variables if grad_tensors is None else grad_tensors)
                one = start, value
                sole = usual[0]
                if sole is None or len(spans) >= MAX_SPANS:
                    sole = None
                    begin_pass(account, roots)
                    spans = account.spans
                elif sole.passes:  # a micro-batch, unless what is in the gradients has been thrown away
                    ATTRIBUTIONS[0].begin(roots)
                begin = clock()
                spans.append((account.mark, start, begin, kind))
                account.mark = begin
                account.last_backward = start
                trace = account  # first: whatever ends this pass, Ctrl-C included, has it end for us too
                account.underway = one
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            report(error)
        try:
            if more or grad_variables is not None:
                original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs, **more)
            else:  # as Tensor.backward calls it: without a dictionary to make and to unpack
                original(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        except BaseException:
            roots = None
            raise
        finally:
            if trace is not None:
                try:
                    if trace.spans is not spans:  # a step was made meanwhile
                        sole = None
                        trace.add(kind, trace.mark, trace.mark)
                    trace.mark = clock()
                    if sole is None or roots is None or sole.passes:
                        end_pass(trace, one, roots)  # type: ignore[arg-type]
                    elif sole.num_assumed:
                        sole.num_assumed -= 1
                        sole.grad_id, sole.version = ASSUMED, sole.fresh
                        sole.passes.append(one)
                    else:
                        end_first_pass(trace, one, roots, sole)
                except Exception as error:  # noqa: BLE001 - must not reach the training loop
                    report(error)
                finally:  # only now: a pass that ends on another thread is not to take this one's work for its own
                    trace.underway = None

    return backward


@untraced
def restricted(tensors: Any, inputs: Any) -> Any:
    """Return what is back-propagated to some inputs only."""
    try:
        return Restricted(tensors, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs))
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
        return tensors


@untraced
def begin_pass(trace: Trace, roots: Any) -> None:
    """Look at the gradients of every optimizer before a backward pass."""
    if len(trace.spans) >= MAX_SPANS:  # nobody steps: what is kept must not grow without end
        trace.spans = []
    for attribution in _concerned(trace, roots):
        sole = attribution.sole
        if sole is None or sole.passes:
            attribution.begin(roots)


@untraced
def end_pass(trace: Trace, one: Pass, roots: Any) -> None:
    """Look at the gradients of every optimizer after a backward pass; ``roots`` is None if it has failed."""
    start = trace.mark
    if roots is None:
        one = one[0], None
    is_seen = roots is None
    for attribution in _concerned(trace, roots):
        sole = attribution.sole
        is_noticed = sole is not None and (sole.newest is one or sole.notice(one))
        is_seen = is_noticed or attribution.end(one, roots) or is_seen
    if not is_seen:
        sharded = [attribution for attribution in ATTRIBUTIONS if attribution.is_sharded]
        for attribution in sharded:
            attribution.withhold(one, roots, len(sharded) == 1)
    trace.add(Kind.OURS, start, perf_counter())


@untraced
def end_first_pass(trace: Trace, one: Any, roots: Any, sole: Witness) -> None:
    """Look at the only witness after the first backward pass of a step. The version of its gradient is looked at when
    the step begins."""
    gradient = sole.gradient()
    if gradient is None:
        end_pass(trace, one, roots)
        return
    sole.see(gradient)
    sole.version = sole.fresh
    sole.passes.append(one)
    sole.newest = one
    sole.num_looks += 1
    if sole.num_looks > NUM_LOOKS:
        sole.num_assumed = NUM_ASSUMED


def _concerned(trace: Trace, roots: Any) -> list[LossAttribution]:
    """Return the optimizers that a backward pass may have reached: all of them, unless other threads train too."""
    if is_alone(trace):
        return ATTRIBUTIONS
    thread = get_ident()
    return [attribution for attribution in ATTRIBUTIONS if attribution.is_reached_by(thread, roots)]


@untraced
def back_propagated(trace: Trace, tensors: Any, grad_tensors: Any) -> Any:
    """Return the loss of a backward pass; a tuple of several; None where one of them cannot be known."""
    try:
        if isinstance(tensors, Tensor):
            tensors = (tensors,)
        gradients = (grad_tensors,) if isinstance(grad_tensors, Tensor) else grad_tensors or (None,) * len(tensors)
        values = tuple(loss_value(trace, *pair) for pair in zip(tensors, gradients, strict=True))
        return None if None in values else values
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
        return None


@untraced
def loss_value(trace: Trace, tensor: Any, gradient: Any = None) -> Value | None:
    """Return a loss as it was before a GradScaler scaled it, times the gradient that it was given: a gradient of a
    scalar multiplies it. None where it cannot be known, as for a vector that is given a gradient."""
    with torch.no_grad():
        plain = local_of(tensor)
        if isinstance(plain, str) or plain.numel() != 1 or plain.is_complex():
            return None
        if gradient is None:
            return take(plain.detach()) if trace.scaler is None else _unscaled(trace, tensor, plain)
        factor = local_of(gradient)
        if isinstance(factor, str) or trace.scaler is not None:
            return None
        return take((plain.detach() * factor).reshape(()))


@untraced
def _unscaled(trace: Trace, tensor: Tensor, plain: Tensor) -> Value | None:
    raw = trace.unscaled_of(tensor)
    if raw is not None:
        return raw
    scale = trace.scaler._scale
    detached = plain.detach()
    return take(detached if scale is None else detached / scale.to(detached.device, non_blocking=True))


def watch_zero_grad(original: Any) -> Any:
    """Notice gradients that an optimizer or a module zeroes in place. One that is set to None is seen to be None."""

    def zero_grad(self: Any, set_to_none: Any = True, **more: Any) -> None:
        if set_to_none and not more:
            original(self, set_to_none)
            return
        look = before_zeroing()
        original(self, set_to_none, **more)
        look_again(look)

    return zero_grad


@untraced
def before_zeroing() -> Looks:
    """Look at the gradients before they are zeroed; ``look_again`` afterwards. Neither raises."""
    return looks(LossAttribution.watch_zeroing)

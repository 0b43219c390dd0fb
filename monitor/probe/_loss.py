"""What is back-propagated, as ``torch.autograd.backward`` sees it, and what ``zero_grad`` throws away.

``backward`` runs at every micro-batch with cold caches: it is one function without detours in the usual case.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from typing import Any

from torch import Tensor

from monitor.probe._compilation import untraced
from monitor.probe._ledger import LEDGERS, MAX_NOTES, Ledger, open_ledger
from monitor.probe._notes import Kind
from monitor.probe._values import Value, has_no_accelerator, take
from monitor.probe._watched import PROBES, SOLE, report


def watch_backward(original: Any) -> Any:
    """Note every scalar that is back-propagated without an explicit gradient, and the time it took."""
    clock, ledgers, ident, is_host_only = perf_counter, LEDGERS, get_ident, has_no_accelerator()

    def backward(
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        grad_variables: Any = None,
        inputs: Any = None,
        **more: Any,
    ) -> None:
        ledger = notes = note = None
        try:
            start = clock()
            account = ledgers.get(ident()) or open_ledger()
            if not account.is_inside:
                notes = account.notes
                if (
                    grad_tensors is None
                    and type(tensors) is Tensor
                    and (is_host_only or tensors.is_cpu)
                    and account.scaler is None
                    and grad_variables is None
                    and len(notes) < MAX_NOTES
                ):
                    try:
                        what = tensors.item()
                    except Exception:  # noqa: BLE001
                        what = back_propagated(account, tensors, None)
                    begin = clock()
                    note = (account.mark, start, begin, what)
                    notes.append(note)
                    account.mark = begin
                    account.last_backward = start
                    account.is_open = True
                else:
                    what = back_propagated(account, tensors, grad_variables if grad_tensors is None else grad_tensors)
                    note = account.note_loss(what, start, clock())
                    notes = account.notes
                account.is_inside = True
                ledger = account
        except Exception as error:  # noqa: BLE001
            report(error)
        try:
            if more or grad_variables is not None:
                original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs, **more)
            else:  # as Tensor.backward calls it: without a dictionary to make and to unpack
                original(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        except BaseException:
            if notes and note and note in notes:
                notes[notes.index(note)] = (*note[:3], Kind.BACKWARD)
            raise
        finally:
            if ledger is not None:
                ledger.is_inside = False
                try:
                    if ledger.notes is not notes:  # a step was made meanwhile
                        ledger.note(Kind.BACKWARD, ledger.mark, ledger.mark)
                    ledger.mark = clock()
                except Exception as error:  # noqa: BLE001
                    report(error)

    return backward


@untraced
def back_propagated(ledger: Ledger, tensors: Any, grad_tensors: Any) -> Any:
    """Return, for a note, the scalars that are back-propagated without an explicit gradient."""
    if isinstance(tensors, Tensor):
        tensors = (tensors,)
    elif not isinstance(tensors, tuple | list):
        return Kind.BACKWARD
    gradients = (grad_tensors,) if isinstance(grad_tensors, Tensor) else grad_tensors or (None,) * len(tensors)
    return tuple(
        loss_value(ledger, tensor)
        for tensor, gradient in zip(tensors, gradients, strict=False)
        # One of several elements without a gradient is the caller's mistake, which torch is about to name.
        if gradient is None and isinstance(tensor, Tensor) and tensor.numel() == 1
    )


@untraced
def loss_value(ledger: Ledger, tensor: Tensor) -> Value | None:
    """Return the loss; None, which leaves this step's loss unknown, where looking at it fails."""
    try:
        return take(tensor) if ledger.scaler is None else _unscaled(ledger, tensor)
    except Exception as error:  # noqa: BLE001
        report(error)
        return None


@untraced
def _unscaled(ledger: Ledger, tensor: Tensor) -> Value | None:
    raw = ledger.unscaled_of(tensor)
    if raw is not None:
        return raw
    scale = ledger.scaler._scale
    return take(tensor.detach() if scale is None else tensor.detach() / scale.to(tensor.device, non_blocking=True))


def watch_zero_grad(original: Any) -> Any:
    """Forget losses and clips whose gradients an optimizer clears; those that a step has applied are spent anyway."""
    ledgers, probes, ident, sole = LEDGERS, PROBES, get_ident, SOLE

    def zero_grad(self: Any, set_to_none: Any = True, **more: Any) -> None:
        meter, ledger = sole[0], ledgers.get(ident())
        if meter is None or meter.clips or ledger is None or ledger.is_open:  # else there is nothing to forget
            probe = probes.get(id(self))
            if probe is not None:
                probe.on_zero_grad()
        if more:
            original(self, set_to_none, **more)
        else:
            original(self, set_to_none)

    return zero_grad

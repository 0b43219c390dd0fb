"""What is back-propagated, as ``torch.autograd.backward`` sees it, and what ``zero_grad`` throws away.

``backward`` runs at every micro-batch with cold caches: it is one function without detours in the usual case.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from typing import Any

from torch import Tensor

from monitor.probe._compilation import untraced
from monitor.probe._ledger import LEDGERS, Ledger, open_ledger
from monitor.probe._values import Value, take
from monitor.probe._watched import PROBES, report


def watch_backward(original: Any) -> Any:
    """Write every scalar that is back-propagated without an explicit gradient into the ledger, and the time it took."""
    clock, ledgers, ident = perf_counter, LEDGERS, get_ident

    def backward(
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        grad_variables: Any = None,
        inputs: Any = None,
        **more: Any,
    ) -> None:
        ledger, noted = None, 0
        start = begin = 0.0
        try:
            start = clock()
            account = ledgers.get(ident()) or open_ledger()
            if account.depth == 0:
                if grad_tensors is None and type(tensors) is Tensor and grad_variables is None:
                    if tensors.is_cpu and account.scaler is None:
                        value: Value | None
                        try:
                            value = tensors.item()
                        except Exception as error:  # noqa: BLE001
                            value = None
                            if tensors.numel() == 1:  # else it is no loss, as torch is about to say
                                report(error)
                    else:
                        value = loss_value(account, tensors) if tensors.numel() == 1 else None
                    account.add_loss(value)
                    noted = 1
                else:
                    noted = note_losses(account, tensors, grad_variables if grad_tensors is None else grad_tensors)
            begin = clock()
            account.depth += 1
            ledger = account
        except Exception as error:  # noqa: BLE001
            report(error)
        try:
            if more or grad_variables is not None:
                original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs, **more)
            else:  # as Tensor.backward calls it: without a dictionary to make and to unpack
                original(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        except BaseException:
            if ledger is not None and noted:
                del ledger.losses[-noted:]
            raise
        finally:
            if ledger is not None:
                ledger.depth -= 1
                try:
                    if ledger.depth == 0:
                        end = clock()
                        ledger.forward += start - ledger.mark
                        ledger.monitor += begin - start
                        ledger.backward += end - begin
                        ledger.mark = end
                except Exception as error:  # noqa: BLE001
                    report(error)

    return backward


@untraced
def note_losses(ledger: Ledger, tensors: Any, grad_tensors: Any) -> int:
    """Write the scalars that are back-propagated without an explicit gradient into the ledger; return how many."""
    if isinstance(tensors, Tensor):
        tensors = (tensors,)
    elif not isinstance(tensors, tuple | list):
        return 0
    gradients = (grad_tensors,) if isinstance(grad_tensors, Tensor) else grad_tensors or (None,) * len(tensors)
    noted = 0
    for tensor, gradient in zip(tensors, gradients, strict=False):
        # One of several elements without a gradient is the caller's mistake, which torch is about to name.
        if gradient is None and isinstance(tensor, Tensor) and tensor.numel() == 1:
            ledger.add_loss(loss_value(ledger, tensor))
            noted += 1
    return noted


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
    ledgers, probes, ident = LEDGERS, PROBES, get_ident

    def zero_grad(self: Any, set_to_none: Any = True, **more: Any) -> None:
        probe = probes.get(id(self))
        if probe is not None:
            ledger = ledgers.get(ident())
            if ledger is None or not ledger.is_spent or probe.norms.clips:
                probe.on_zero_grad()
        if more:
            original(self, set_to_none, **more)
        else:
            original(self, set_to_none)

    return zero_grad

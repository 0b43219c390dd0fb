"""The patches of torch, scoped: installed with the first run, removed with the last, the originals back by identity.

A decorated function (the clipping functions, ``Optimizer.step``) is patched in the closure of its decorator, so that
a reference imported before
``attach`` is caught too and the public function object never changes. What a patch itself does is contained: an
exception
of ours is reported, never raised, and the original is always called exactly once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pkgutil import resolve_name
from time import perf_counter
from types import CellType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from monitor.probe._compilation import skipped, untraced
from monitor.probe._gradients import ClipNote
from monitor.probe._ledger import Ledger, current
from monitor.probe._values import Value, take

if TYPE_CHECKING:
    from monitor.probe._steps import StepProbe

PROBES: dict[int, StepProbe] = {}
"""Every attached optimizer's probe by ``id(optimizer)``. Read by the patches, written by :func:`add` and
:func:`remove`."""

_LOCK = threading.Lock()
_UNDO: list[Callable[[], None]] = []
_GUARDED: set[type] = set()


def add(probe: StepProbe) -> None:
    """Register a probe; install the patches with the first one."""
    with _LOCK:
        is_first = not PROBES
        PROBES[id(probe.optimizer)] = probe
        if is_first:
            _install()


def remove(probe: StepProbe) -> None:
    """Take a probe out; put the originals back with the last one."""
    with _LOCK:
        if PROBES.get(id(probe.optimizer)) is probe:
            del PROBES[id(probe.optimizer)]
        if not PROBES:
            _uninstall()


def _report(error: Exception) -> None:
    for probe in list(PROBES.values()):
        probe.on_error("probe", error)


def _install() -> None:
    """Put every patch in. One that this torch has no place for is reported, and the others go in all the same."""
    from torch.nn.utils import clip_grad

    for name, make in (
        ("torch.autograd.backward", _backward),
        ("torch.optim.Optimizer.zero_grad", _zero_grad),
        ("torch.amp.GradScaler.scale", _scale),
        ("torch.amp.GradScaler.step", _scaler_step),
        ("torch.utils.data.dataloader._BaseDataLoaderIter.__next__", _next),
    ):
        owner, _, attribute = name.rpartition(".")
        try:
            _set(resolve_name(owner), attribute, make)
        except Exception as error:  # noqa: BLE001
            _report(error)
    for name, make in (
        ("clip_grad_norm_", _clip_norm),
        ("_clip_grads_with_norm_", _clip_with_norm),
        ("clip_grad_value_", _clip_value),
    ):
        function = getattr(clip_grad, name, None)
        cell = inner_cell(function)
        if cell is not None:
            _swap(cell, make(cell.cell_contents))


def _uninstall() -> None:
    while _UNDO:
        _UNDO.pop()()
    _GUARDED.clear()


def guard(kind: type) -> bool:
    """Make sure that an exception inside ``step`` of an optimizer class leaves no scaled LR behind: torch does not
    run the
    post-hook then. Wraps the class's own ``step`` inside torch's decorator; False where that cannot be reached."""
    with _LOCK:
        if kind in _GUARDED:
            return True
        cell = _step_cell(kind.step)  # type: ignore[attr-defined]
        if cell is None:
            return False
        _GUARDED.add(kind)
        original = cell.cell_contents

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(self, *args, **kwargs)
            except BaseException:
                _abandon(self)
                raise

        _swap(cell, step)
        return True


@untraced
def _abandon(optimizer: Any) -> None:
    probe = PROBES.get(id(optimizer))
    if probe is not None:
        try:
            probe.abandon()
        except Exception as error:  # noqa: BLE001
            probe.on_error("probe", error)


def _set(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = owner.__dict__[name]
    patched = skipped(_wearing(make(original), original))
    setattr(owner, name, patched)

    def undo() -> None:
        if owner.__dict__.get(name) is patched:  # somebody who patched after us keeps their patch
            setattr(owner, name, original)

    _UNDO.append(undo)


def _swap(cell: CellType, replacement: Any) -> None:
    original = cell.cell_contents
    replacement = skipped(_wearing(replacement, original))
    cell.cell_contents = replacement

    def undo() -> None:
        if cell.cell_contents is replacement:
            cell.cell_contents = original

    _UNDO.append(undo)


def inner_cell(function: Any) -> CellType | None:
    """Find the closure cell in which a decorator keeps the function that it decorates, or None."""
    code = getattr(function, "__code__", None)
    if code is None or "func" not in code.co_freevars or function.__closure__ is None:
        return None
    cell: CellType = function.__closure__[code.co_freevars.index("func")]
    return cell if isinstance(cell.cell_contents, FunctionType) else None


def _step_cell(function: Any) -> CellType | None:
    """Find the cell of torch's own decorator of ``step`` under others: torch.compile puts one on some optimizers when
    it is first used."""
    while function is not None:
        cell = inner_cell(function)
        if cell is not None:
            return cell
        function = getattr(function, "__wrapped__", None)
    return None


def _wearing(function: Any, original: Any) -> Any:
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(function, name, getattr(original, name))
    function.__wrapped__ = original
    return function


# ---------------------------------------------------------------------------------------------------------------- loss


def _backward(original: Any) -> Any:
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        account = _begin_backward(tensors, grad_tensors, kwargs)
        try:
            original(tensors, grad_tensors, *args, **kwargs)
        except BaseException:
            if account is not None and (noted := account[1]):
                del account[0].losses[-noted:]
            raise
        finally:
            if account is not None:
                _end_backward(*account)

    return backward


@untraced
def _begin_backward(tensors: Any, grad_tensors: Any, kwargs: dict[str, Any]) -> tuple[Ledger, int, float, float] | None:
    """Note what is about to be back-propagated: (ledger, number of losses, start, begin); None: account for nothing."""
    try:
        start = perf_counter()
        ledger = current()
        if ledger.depth:
            noted = 0
        elif grad_tensors is None and not kwargs.get("grad_variables") and type(tensors) is Tensor:
            noted = 1  # the usual case, loss.backward(), without the detours
            ledger.add_loss(_loss_value(ledger, tensors) if tensors.numel() == 1 else None)
        else:
            noted = _note_losses(ledger, tensors, grad_tensors, kwargs)
        begin = perf_counter()
        ledger.depth += 1
        return ledger, noted, start, begin
    except Exception as error:  # noqa: BLE001
        _report(error)
        return None


@untraced
def _end_backward(ledger: Ledger, _: int, start: float, begin: float) -> None:
    ledger.depth -= 1
    try:
        if ledger.depth == 0:
            end = perf_counter()
            ledger.forward += start - ledger.mark
            ledger.monitor += begin - start
            ledger.backward += end - begin
            ledger.mark = end
    except Exception as error:  # noqa: BLE001
        _report(error)


@untraced
def _note_losses(ledger: Ledger, tensors: Any, grad_tensors: Any, kwargs: dict[str, Any]) -> int:
    """Write the scalars that are back-propagated without an explicit gradient into the ledger; return how many."""
    if isinstance(tensors, Tensor):
        tensors = (tensors,)
    elif not isinstance(tensors, tuple | list):
        return 0
    if grad_tensors is None:
        grad_tensors = kwargs.get("grad_variables")
    gradients = (grad_tensors,) if isinstance(grad_tensors, Tensor) else grad_tensors or (None,) * len(tensors)
    noted = 0
    for tensor, gradient in zip(tensors, gradients, strict=False):
        # One of several elements without a gradient is the caller's mistake, which torch is about to name.
        if gradient is None and isinstance(tensor, Tensor) and tensor.numel() == 1:
            ledger.add_loss(_loss_value(ledger, tensor))
            noted += 1
    return noted


@untraced
def _loss_value(ledger: Ledger, tensor: Tensor) -> Value | None:
    """Return the loss; None, which leaves this step's loss unknown, where looking at it fails."""
    try:
        return take(tensor) if ledger.scaler is None else _unscaled(ledger, tensor)
    except Exception as error:  # noqa: BLE001
        _report(error)
        return None


@untraced
def _unscaled(ledger: Ledger, tensor: Tensor) -> Value | None:
    raw = ledger.unscaled_of(tensor)
    if raw is not None:
        return raw
    scale = ledger.scaler._scale
    return take(tensor.detach() if scale is None else tensor.detach() / scale.to(tensor.device, non_blocking=True))


def _zero_grad(original: Any) -> Any:
    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
        probe = PROBES.get(id(self))
        if probe is not None:
            probe.on_zero_grad()
        original(self, *args, **kwargs)

    return zero_grad


# -------------------------------------------------------------------------------------------------------------- scaler


def _scale(original: Any) -> Any:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if scaled is not outputs:
            _note_scaler(self, outputs, scaled)
        return scaled

    return scale


@untraced
def _note_scaler(scaler: Any, outputs: Any = None, scaled: Any = None) -> None:
    try:
        ledger = current()
        ledger.scaler = scaler
        if isinstance(outputs, Tensor) and outputs.numel() == 1:
            ledger.note_unscaled(scaled, take(outputs))
    except Exception as error:  # noqa: BLE001
        _report(error)


def _scaler_step(original: Any) -> Any:
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        probe = PROBES.get(id(getattr(optimizer, "optimizer", optimizer)))
        if probe is None or not self._enabled:
            return original(self, optimizer, *args, **kwargs)
        number = probe.number
        _note_scaler(self)
        result = original(self, optimizer, *args, **kwargs)
        if probe.number == number:
            probe.on_skipped(self)
        return result

    return step


# ---------------------------------------------------------------------------------------------------------------- data


def _next(original: Any) -> Any:
    def __next__(self: Any) -> Any:  # noqa: N807
        start = _begin_data()
        try:
            return original(self)
        finally:
            if start is not None:
                _end_data(start)

    return __next__


@untraced
def _begin_data() -> float | None:
    try:
        return perf_counter()
    except Exception as error:  # noqa: BLE001
        _report(error)
        return None


@untraced
def _end_data(start: float) -> None:
    try:
        ledger = current()
        end = perf_counter()
        ledger.other += start - ledger.mark
        ledger.data += end - start
        ledger.mark = end
    except Exception as error:  # noqa: BLE001
        _report(error)


# ------------------------------------------------------------------------------------------------------------ clipping


def _as_list(parameters: Any) -> tuple[list[Tensor], Any]:
    """Return the parameters to look at, and what to hand on in their place (a generator can be read only once)."""
    if isinstance(parameters, Tensor):
        return [parameters], parameters
    if isinstance(parameters, list):
        return parameters, parameters
    items = list(parameters)
    is_empty = not items and isinstance(parameters, GeneratorType)
    return items, (p for p in items) if is_empty else items  # torch warns of an empty generator, and is to do so still


Owners = list[tuple["StepProbe", frozenset[int] | None]]


def _owners(params: list[Tensor]) -> Owners:
    """Tell whose gradients these are: each probe with the ids of its own parameters among them, None for all of
    them."""
    is_shared = len(PROBES) > 1
    return [(p, covered) for p in list(PROBES.values()) if (covered := p.coverage(params, is_shared)) != frozenset()]


def _clip_norm(original: Any) -> Any:
    def clip_grad_norm_(parameters: Any, max_norm: Any, norm_type: Any = 2.0, *args: Any, **kwargs: Any) -> Any:
        params, parameters = _as_list(parameters)
        owners, norms = _measure_before(params, norm_type)
        _set_clipping(True)
        try:
            total = original(parameters, max_norm, norm_type, *args, **kwargs)
        finally:
            _set_clipping(False)
        _note_norm_clip(owners, max_norm, total, norms)
        return total

    return clip_grad_norm_


@untraced
def _set_clipping(is_clipping: bool) -> None:
    try:
        current().is_clipping = is_clipping
    except Exception as error:  # noqa: BLE001
        _report(error)


@untraced
def _is_clipping() -> bool:
    """Tell whether the call comes from inside ``clip_grad_norm_``, which is noted already."""
    try:
        return current().is_clipping
    except Exception as error:  # noqa: BLE001
        _report(error)
        return True


def _clip_with_norm(original: Any) -> Any:
    def _clip_grads_with_norm_(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> None:
        if not _is_clipping():
            params, parameters = _as_list(parameters)
            owners, norms = _measure_before(params, 2.0)
            _note_norm_clip(owners, max_norm, total_norm, norms)
        original(parameters, max_norm, total_norm, *args, **kwargs)

    return _clip_grads_with_norm_


@untraced
def _measure_before(params: list[Tensor], norm_type: Any) -> tuple[Owners, list[list[Value]] | None]:
    """Find the owners, and measure each one's own L2 norm where the clip's total norm will not do: another norm type,
    or one call for several optimizers. None: the clip's own norm serves."""
    try:
        owners = _owners(params)
        if float(norm_type) == 2.0 and len(owners) < 2:
            return owners, None
        return owners, [_own_norms(probe, covered, params, 2.0)[0] for probe, covered in owners]
    except Exception as error:  # noqa: BLE001
        _report(error)
        return [], None


@untraced
def _own_norms(
    probe: StepProbe, covered: frozenset[int] | None, params: list[Tensor], *norm_types: float
) -> list[list[Value]]:
    """Measure one optimizer's share of what is clipped; nothing where this step's norm is not wanted."""
    if not probe.wants_norm():
        return [[] for _ in norm_types]
    ids = probe.param_ids if covered is None else covered
    return probe.measure((p for p in params if id(p) in ids), *norm_types)


@untraced
def _note_norm_clip(owners: Owners, max_norm: Any, total: Any, norms: list[list[Value]] | None) -> None:
    try:
        value = take(total) if isinstance(total, Tensor) else float(total)
        measure = [] if value is None else [value]
        for i, (probe, covered) in enumerate(owners):
            own = measure if norms is None else norms[i]
            probe.add_clip(ClipNote("norm", float(max_norm), own, measure, covered))
    except Exception as error:  # noqa: BLE001
        _report(error)


def _clip_value(original: Any) -> Any:
    def clip_grad_value_(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> None:
        params, parameters = _as_list(parameters)
        _note_value_clip(params, clip_value)
        original(parameters, clip_value, *args, **kwargs)

    return clip_grad_value_


@untraced
def _note_value_clip(params: list[Tensor], clip_value: Any) -> None:
    try:
        for probe, covered in _owners(params):
            norms, extreme = _own_norms(probe, covered, params, 2.0, float("inf"))
            probe.add_clip(ClipNote("value", float(clip_value), norms, extreme, covered))
    except Exception as error:  # noqa: BLE001
        _report(error)


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The patches of torch, scoped: installed with the first run, removed with the last, the originals back by identity.

A decorated function (the clipping functions, ``Optimizer.step``) is patched in the closure of its decorator, so that
a reference imported before
``attach`` is caught too and the public function object never changes. What a patch itself does is contained: an
exception
of ours is reported, never raised, and the original is always called exactly once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pkgutil import resolve_name
from types import CellType, FunctionType
from typing import Any

from monitor.probe import _clipping, _loading, _loss, _made, _scaler
from monitor.probe._compilation import skipped, untraced
from monitor.probe._trace import TRACES
from monitor.probe._values import has_no_accelerator
from monitor.probe._watched import ATTRIBUTIONS, PROBES, Probe, expect_usual, probe_of, report

_LOCK = threading.Lock()
_UNDO: list[Callable[[], None]] = []
_GUARDED: set[type] = set()
_SHARDED: set[str] = set()
"""The patches of FSDP that are in."""
_FSDP = "torch.distributed.fsdp"


def add(probe: Probe) -> None:
    """Register a probe; install the patches with the first one."""
    with _LOCK:
        is_first = not PROBES
        PROBES[id(probe.optimizer)] = probe
        if probe.attribution not in ATTRIBUTIONS:  # else that of a forerunner, in whose place the probe stands now
            ATTRIBUTIONS.append(probe.attribution)
        expect_usual()
        if is_first:
            _install()
        else:
            _install_sharded()


def remove(probe: Probe) -> None:
    """Take a probe out; put the originals back with the last one."""
    with _LOCK:
        for key in [key for key, one in PROBES.items() if one is probe]:
            del PROBES[key]
            ATTRIBUTIONS.remove(probe.attribution)
        expect_usual()
        if not PROBES:
            _uninstall()


def _install() -> None:
    """Put every patch in. One that this torch has no place for is reported, and the others go in all the same."""
    from torch.nn.utils import clip_grad

    zeroing = (
        ("torch.optim.Optimizer.zero_grad", _loss.watch_zero_grad),
        ("torch.nn.Module.zero_grad", _loss.watch_zero_grad),
    )
    for name, make in (
        ("torch.autograd.backward", _loss.watch_backward),
        ("torch.optim.Optimizer.__init__", _made.watch_init),
        ("torch.optim.Optimizer.add_param_group", _made.watch_add_param_group),
        *(() if has_no_accelerator() else zeroing),  # on the CPU a gradient that was zeroed can be read
        ("torch.amp.GradScaler.scale", _scaler.watch_scale),
        ("torch.amp.GradScaler.step", _scaler.watch_scaler_step),
        ("torch.amp.GradScaler.unscale_", _scaler.watch_unscale),
        ("torch.utils.data.dataloader._BaseDataLoaderIter.__next__", _loading.watch_next),
    ):
        _try_to_set(name, make)
    _install_sharded()
    for name, make in (
        ("clip_grad_norm_", _clipping.watch_clip_norm),
        ("_clip_grads_with_norm_", _clipping.watch_clip_with_norm),
        ("clip_grad_value_", _clipping.watch_clip_value),
    ):
        function = getattr(clip_grad, name, None)
        cell = inner_cell(function)
        if cell is not None:
            _swap(cell, make(cell.cell_contents))


def _install_sharded() -> None:
    """Put in those patches of FSDP that are not in yet. Who has not imported it does not use it."""
    for name, make in (
        (f"{_FSDP}.fully_sharded_data_parallel.FullyShardedDataParallel.clip_grad_norm_", _clipping.watch_sharded_clip),
        (f"{_FSDP}.sharded_grad_scaler.ShardedGradScaler.scale", _scaler.watch_scale),
    ):
        if name not in _SHARDED and name.rsplit(".", 2)[0] in sys.modules:
            _SHARDED.add(name)
            _try_to_set(name, make)


def _try_to_set(name: str, make: Callable[[Any], Any]) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        _set(resolve_name(owner), attribute, make)
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


def _uninstall() -> None:
    _made.MADE.clear()
    _SHARDED.clear()
    while _UNDO:
        _UNDO.pop()()
    _GUARDED.clear()
    for trace in list(TRACES.values()):
        trace.release()


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
    try:
        probe = probe_of(optimizer)
        if probe is not None:
            probe.abandon()
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


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


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)

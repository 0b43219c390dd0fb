"""The clipping functions of ``torch.nn.utils``: the norm before a clip, its threshold, and whose gradients it was.

``clip_grad_norm_`` hands everything on to ``_clip_grads_with_norm_`` except the type of norm. So the wrapper of the
inner one does the work for L2 norms, in one function without detours for one optimizer whose gradients are all there.
"""

from __future__ import annotations

import sys
from threading import get_ident
from time import perf_counter
from types import GeneratorType
from typing import Any

from torch import Tensor

from monitor.link import Kind, Norms
from monitor.probe._attribution import USUAL
from monitor.probe._compilation import untraced
from monitor.probe._gradients import local_of
from monitor.probe._norms import Coverage, NormMeter
from monitor.probe._trace import current
from monitor.probe._values import has_no_accelerator, take
from monitor.probe._watched import PROBES, before_change, look_again, report

_INSIDE: set[int] = set()
"""The threads that are inside a ``clip_grad_norm_`` that notes itself."""

Owners = list[tuple[NormMeter, Coverage]]
Owned = list[tuple[NormMeter, frozenset[int] | None, Norms | None]]


def watch_clip_norm(original: Any) -> Any:
    """Note clips by another norm than L2; the wrapper of ``_clip_grads_with_norm_`` sees the others."""
    alone = _alone(original)

    def clip_grad_norm_(
        parameters: Any,
        max_norm: Any,
        norm_type: Any = 2.0,
        error_if_nonfinite: Any = False,
        foreach: Any = None,
        **more: Any,
    ) -> Any:
        if (norm_type == 2.0 and not more) or get_ident() in _INSIDE:
            return original(parameters, max_norm, norm_type, error_if_nonfinite, foreach, **more)
        params, parameters = _as_list(parameters)
        look = before_change()
        owned = _measure_before(params)
        total = alone(parameters, max_norm, norm_type, error_if_nonfinite, foreach, **more)
        look_again(look)
        _note_norm_clip(owned, max_norm, total)
        return total

    return clip_grad_norm_


def watch_sharded_clip(original: Any) -> Any:
    """Note clips by FullyShardedDataParallel's own method: its total is that of all ranks."""
    alone = _alone(original)

    def clip_grad_norm_(self: Any, max_norm: Any, norm_type: Any = 2.0) -> Any:
        look = before_change()
        owned = _measure_before(list(self.parameters()), is_total=norm_type == 2.0)
        total = alone(self, max_norm, norm_type)
        look_again(look)
        _note_norm_clip(owned, max_norm, total)
        return total

    return clip_grad_norm_


def _alone(original: Any) -> Any:
    """Make the clips that a clipping function calls part of its own."""

    def clip(*args: Any, **kwargs: Any) -> Any:
        _INSIDE.add(get_ident())
        try:
            return original(*args, **kwargs)
        finally:
            _INSIDE.discard(get_ident())

    return clip


def watch_clip_with_norm(original: Any) -> Any:
    """Note clips by the L2 norm that the function is given."""
    clock, ident, inside, usual, is_host_only = perf_counter, get_ident, _INSIDE, USUAL, has_no_accelerator()

    def _clip_grads_with_norm_(
        parameters: Any, max_norm: Any, total_norm: Any, foreach: Any = None, **more: Any
    ) -> None:
        witness = look = None
        if not inside or ident() not in inside:
            params = parameters
            if type(params) is not list:
                params, parameters = _as_list(parameters)
            try:
                start = clock()
                witness, meter, _ = usual
                if (
                    witness is not None
                    and meter is not None
                    and type(total_norm) is Tensor
                    and (is_host_only or total_norm.is_cpu)
                    and len(params) == meter.num_clipped
                    and id(params[0]) == meter.first_id
                    and id(params[-1]) == meter.last_id
                    and not meter.clips
                ):
                    measure = (total_norm.item(),)
                    meter.clips.append(("norm", float(max_norm), measure, measure, None, start, clock()))
                    witness.version += 1  # every gradient is about to be multiplied in place, once
                else:
                    witness, look = None, before_change()
                    _note_shared_clip(params, max_norm, total_norm)
                    current().add(Kind.OURS, start, clock())
            except Exception as error:  # noqa: BLE001 - must not reach the training loop
                report(error)
        if more:
            original(parameters, max_norm, total_norm, foreach, **more)
        else:
            original(parameters, max_norm, total_norm, foreach)
        if look is not None:
            look_again(look)

    return _clip_grads_with_norm_


def watch_clip_value(original: Any) -> Any:
    """Note clips by value."""

    def clip_grad_value_(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> None:
        params, parameters = _as_list(parameters)
        look = before_change()
        _note_value_clip(params, clip_value)
        original(parameters, clip_value, *args, **kwargs)
        look_again(look)

    return clip_grad_value_


def _as_list(parameters: Any) -> tuple[list[Tensor], Any]:
    """Return the parameters to look at, and what to hand on in their place (a generator can be read only once)."""
    if isinstance(parameters, Tensor):
        return [parameters], parameters
    if isinstance(parameters, list):
        return parameters, parameters
    items = list(parameters)
    is_empty = not items and isinstance(parameters, GeneratorType)
    return items, (p for p in items) if is_empty else items  # torch warns of an empty generator, and is to do so still


@untraced
def _owners(params: list[Tensor]) -> Owners:
    """Tell whose gradients these are: the norms of each optimizer that has some, with what of its own is covered."""
    found = [(probe.norms, probe.norms.coverage(params)) for probe in list(PROBES.values())]
    return [(norms, covered) for norms, covered in found if covered.ids != frozenset()]


@untraced
def _measure_before(params: list[Tensor], is_total: bool = False) -> Owned:
    """Measure each optimizer's own L2 norm before a clip whose total norm will not do; None: it will."""
    try:
        owners = _owners(params)
        return [
            (m, covered.ids, None if is_total and covered.is_alone else m.of_clipped(covered.ids, params, 2.0)[0])
            for m, covered in owners
        ]
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
        return []


@untraced
def _note_norm_clip(owned: Owned, max_norm: Any, total: Any) -> None:
    try:
        measure = _measured(total)
        for meter, covered, own in owned:
            meter.note("norm", float(max_norm), meter.unscaled(measure) if own is None else own, measure, covered)
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)


@untraced
def _note_shared_clip(params: list[Tensor], max_norm: Any, total: Any) -> None:
    """Note one clip for several optimizers, each with its own norm; for one alone the total norm serves."""
    owners = _owners(params)
    measure = _measured(total)
    for meter, covered in owners:
        if covered.is_alone and ((covered.ids is None and len(PROBES) == 1) or _is_torchs_own()):
            own = meter.absence or meter.unscaled(measure)
        else:
            own = meter.of_clipped(covered.ids, params, 2.0)[0]
        meter.note("norm", float(max_norm), own, measure, covered.ids)


def _is_torchs_own() -> bool:
    """Tell whether ``clip_grad_norm_`` made the total that a clip was given: a total worked out by hand may be that of
    more parameters than are clipped with it."""
    caller = sys._getframe(4)  # under this, _note_shared_clip, the wrapper, and torch's decorator
    return caller.f_globals.get("__name__") == "torch.nn.utils.clip_grad"


def _measured(total: Any) -> Norms:
    """Take the total norm of a clip; of a distributed one what this rank holds, if that is all."""
    if not isinstance(total, Tensor):
        return [float(total)]
    local = local_of(total)
    value = local if isinstance(local, str) else take(local)
    return value if isinstance(value, str) else [] if value is None else [value]


@untraced
def _note_value_clip(params: list[Tensor], clip_value: Any) -> None:
    try:
        for meter, covered in _owners(params):
            own, extreme = meter.of_clipped(covered.ids, params, 2.0, float("inf"))
            meter.note("value", float(clip_value), own, extreme, covered.ids)
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)

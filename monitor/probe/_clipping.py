"""The clipping functions of ``torch.nn.utils``: the norm before a clip, its threshold, and whose gradients it was.

``clip_grad_norm_`` hands everything on to ``_clip_grads_with_norm_`` except the type of norm. So the wrapper of the
inner one does the work for L2 norms, in one function without detours for one optimizer whose gradients are all there.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from monitor.probe._compilation import untraced
from monitor.probe._ledger import current
from monitor.probe._notes import Kind
from monitor.probe._values import Value, has_no_accelerator, take
from monitor.probe._watched import ATTRIBUTIONS, PROBES, SOLE, report

if TYPE_CHECKING:
    from monitor.probe._norms import NormMeter

_INSIDE: set[int] = set()
"""The threads that are inside a ``clip_grad_norm_`` that notes itself."""

Owners = list[tuple["NormMeter", frozenset[int] | None]]


def watch_clip_norm(original: Any) -> Any:
    """Note clips by another norm than L2; the wrapper of ``_clip_grads_with_norm_`` sees the others."""

    def clip_grad_norm_(
        parameters: Any,
        max_norm: Any,
        norm_type: Any = 2.0,
        error_if_nonfinite: Any = False,
        foreach: Any = None,
        **more: Any,
    ) -> Any:
        if norm_type == 2.0 and not more:
            return original(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        params, parameters = _as_list(parameters)
        owned = _measure_before(params)
        _INSIDE.add(get_ident())
        try:
            total = original(parameters, max_norm, norm_type, error_if_nonfinite, foreach, **more)
        finally:
            _INSIDE.discard(get_ident())
        _note_norm_clip(owned, max_norm, total)
        return total

    return clip_grad_norm_


def watch_clip_with_norm(original: Any) -> Any:
    """Note clips by the L2 norm that the function is given."""
    clock, ident, inside, sole, is_host_only = perf_counter, get_ident, _INSIDE, SOLE, has_no_accelerator()

    def _clip_grads_with_norm_(
        parameters: Any, max_norm: Any, total_norm: Any, foreach: Any = None, **more: Any
    ) -> None:
        witness = None
        if not inside or ident() not in inside:
            params = parameters
            if type(params) is not list:
                params, parameters = _as_list(parameters)
            try:
                start = clock()
                meter = sole[0]
                if (
                    meter is not None
                    and type(total_norm) is Tensor
                    and (is_host_only or total_norm.is_cpu)
                    and len(params) >= meter.num_params
                    and len(meter.optimizer.param_groups) == meter.num_groups
                    and not meter.clips
                ):
                    measure = (total_norm.item(),)
                    meter.clips.append(("norm", float(max_norm), measure, measure, None, start, clock()))
                    witness = ATTRIBUTIONS[0].sole
                else:
                    _note_shared_clip(params, max_norm, total_norm)
                    current().note(Kind.OURS, start, clock())
            except Exception as error:  # noqa: BLE001
                report(error)
        if more:
            original(parameters, max_norm, total_norm, foreach, **more)
        else:
            original(parameters, max_norm, total_norm, foreach)
        if witness is None:
            note_clipped()
        else:
            witness.version += 1  # every gradient has been multiplied in place, once

    return _clip_grads_with_norm_


@untraced
def note_clipped() -> None:
    """Have the gradients that a clip has just changed known for the same ones."""
    try:
        for attribution in ATTRIBUTIONS:
            attribution.refresh()
    except Exception as error:  # noqa: BLE001
        report(error)


def watch_clip_value(original: Any) -> Any:
    """Note clips by value."""

    def clip_grad_value_(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> None:
        params, parameters = _as_list(parameters)
        _note_value_clip(params, clip_value)
        original(parameters, clip_value, *args, **kwargs)
        note_clipped()

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
    """Tell whose gradients these are: each optimizer's norms with the ids of its own parameters among them, None for
    all of them."""
    probes = list(PROBES.values())
    is_shared = len(probes) > 1
    found = [(probe.norms, probe.norms.coverage(params, is_shared)) for probe in probes]
    return [(norms, covered) for norms, covered in found if covered != frozenset()]


@untraced
def _measure_before(params: list[Tensor]) -> list[tuple[NormMeter, frozenset[int] | None, list[Value]]]:
    """Measure each optimizer's own L2 norm before a clip whose total norm will not do."""
    try:
        return [(norms, covered, norms.of_clipped(covered, params, 2.0)[0]) for norms, covered in _owners(params)]
    except Exception as error:  # noqa: BLE001
        report(error)
        return []


@untraced
def _note_norm_clip(
    owned: list[tuple[NormMeter, frozenset[int] | None, list[Value]]], max_norm: Any, total: Any
) -> None:
    try:
        value = take(total) if isinstance(total, Tensor) else float(total)
        measure = [] if value is None else [value]
        for norms, covered, own in owned:
            norms.note("norm", float(max_norm), own, measure, covered)
    except Exception as error:  # noqa: BLE001
        report(error)


@untraced
def _note_shared_clip(params: list[Tensor], max_norm: Any, total: Any) -> None:
    """Note one clip for several optimizers, each with its own norm; for one alone the total norm serves."""
    owners = _owners(params)
    value = take(total) if isinstance(total, Tensor) else float(total)
    measure = [] if value is None else [value]
    for norms, covered in owners:
        own = measure if len(owners) == 1 else norms.of_clipped(covered, params, 2.0)[0]
        norms.note("norm", float(max_norm), own, measure, covered)


@untraced
def _note_value_clip(params: list[Tensor], clip_value: Any) -> None:
    try:
        for norms, covered in _owners(params):
            own, extreme = norms.of_clipped(covered, params, 2.0, float("inf"))
            norms.note("value", float(clip_value), own, extreme, covered)
    except Exception as error:  # noqa: BLE001
        report(error)

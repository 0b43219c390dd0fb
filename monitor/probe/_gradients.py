"""Gradient norms before clipping, and what clipping did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from monitor.probe._values import Value, take

MAX_CLIPS = 4096
"""Clips that are kept while nobody steps."""


RawClip = tuple[
    Literal["norm", "value"], float, Sequence[Value] | None, Sequence[Value], "frozenset[int] | None", float, float
]
"""A :class:`ClipNote` as the training thread writes it: to make a named tuple costs it a microsecond."""


class ClipNote(NamedTuple):
    """One call of a clipping function, as seen on the training thread.

    ``norms`` are L2 norms by device, taken before clipping (empty: not measured; None: of a gradient to which a later
    backward has added); ``measure`` is what the threshold
    was held
    against: the total norm of the call's own type, or the largest absolute gradient; ``param_ids`` says whose gradients
    were clipped, None for all of the optimizer's; ``start`` and ``end`` are when it was noted (``perf_counter``).
    """

    kind: Literal["norm", "value"]
    threshold: float
    norms: Sequence[Value] | None
    measure: Sequence[Value]
    param_ids: frozenset[int] | None = None
    start: float = 0.0
    end: float = 0.0


def gradients_of(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that are there, sparse ones as their summed values."""
    grads = [p.grad for p in params if p.grad is not None]
    return [g.coalesce()._values() if g.is_sparse else g for g in grads]


def total_norms(grads: Sequence[Tensor], norm_type: float = 2.0) -> list[Value]:
    """Compute the norm of all gradients together, one value for each device that holds some (no copy between devices).

    The total L2 norm is the root of the sum of their squares. Source: torch.nn.utils.get_total_norm.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        by_device.setdefault(g.device, []).append(g)
    values = []
    with torch.no_grad():
        for group in by_device.values():
            value = take(torch.nn.utils.get_total_norm(group, norm_type))
            if value is not None:
                values.append(value)
    return values

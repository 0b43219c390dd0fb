"""Gradient norms before clipping, and what clipping did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from monitor.link import Norms, SpreadNorms
from monitor.probe._values import divided, take

SHARDED = "sharded"
"""How a reason begins that the parts of all ranks make up for."""
MAX_CLIPS = 4096
"""Clips that are kept while nobody steps."""


def norms_of(params: Iterable[Tensor], *norm_types: float) -> list[Norms]:
    """Compute norms of all the gradients that are there together, one for each type, without communication."""
    with torch.no_grad():
        grads = _gradients_of(params)
        return [grads if isinstance(grads, str) else _total_norm(grads, norm_type) for norm_type in norm_types]


def spread_norms_of(params: Iterable[Tensor], reason: str) -> Norms:
    """Compute the L2 norms of what this rank holds of gradients that are spread over ranks, without communication.

    The squares of the shards of all ranks, each weighted by one over the number of ranks that hold the same, add up to
    the square of the norm: a mesh dimension that replicates holds each as often as it is large. Returns a text where
    that does not hold: for partial sums, and for a mesh of some of the ranks, of which no rank knows what the others
    hold.
    """
    whole: list[Tensor] = []
    flat: list[Tensor] = []
    shards: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for p in params:
            grad: Any = p.grad
            if grad is None:
                continue
            copies, local = _shard_of(grad)
            if isinstance(local, str):
                return local
            if local.numel():
                kind = flat if getattr(p, "_fsdp_flattened", False) else whole
                (shards.setdefault(copies, []) if copies else kind).append(local)
        parts = [_weighted(grads, copies) for copies, grads in shards.items()]
        others = _total_norm(whole, 2.0), _total_norm(flat, 2.0)
    for found in (*others, *parts):
        if isinstance(found, str):
            return found
    return tuple(SpreadNorms(reason, others[0], [value for part in parts for value in part], others[1]))


def _shard_of(grad: Any) -> tuple[int, Tensor | str]:
    """Return how many ranks hold the same shard, 0 for a gradient that is no shard, and what this rank holds of it."""
    placements = getattr(grad, "placements", None)
    if placements is None:
        plain = grad if type(grad) is Tensor and grad.layout is torch.strided else _plain(grad)
        return 0, plain
    sizes = grad.device_mesh.shape
    if any(one.is_partial() and size > 1 for one, size in zip(placements, sizes, strict=True)):
        return 0, "partial sums"
    if math.prod(sizes) != torch.distributed.get_world_size():
        return 0, f"sharded over {math.prod(sizes)} of {torch.distributed.get_world_size()} ranks"
    copies = math.prod(size for one, size in zip(placements, sizes, strict=True) if one.is_replicate())
    local = grad.to_local()
    return copies, local if type(local) is Tensor else f"{type(local).__name__} cannot be read"


def _weighted(grads: Sequence[Tensor], copies: int) -> Norms:
    norms = _total_norm(grads, 2.0)
    return norms if isinstance(norms, str) else [divided(norm, math.sqrt(copies)) for norm in norms]


def _gradients_of(params: Iterable[Tensor]) -> list[Tensor] | str:
    """Return the gradients as plain tensors, or why one of them cannot be read. Empty ones add nothing, and have no
    infinity norm."""
    found = []
    for p in params:
        grad: Any = p.grad
        if grad is None:
            continue
        if type(grad) is not Tensor or grad.layout is not torch.strided:
            grad = _plain(grad)
            if isinstance(grad, str):
                return grad
        if grad.numel():
            found.append(grad)
    return found


def _total_norm(grads: Sequence[Tensor], norm_type: float) -> Norms:
    """Compute one norm for each device that holds gradients (no copy between devices).

    The total L2 norm is the root of the sum of their squares. Source: torch.nn.utils.get_total_norm.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        by_device.setdefault(g.device, []).append(g)
    values = []
    for device, group in by_device.items():
        value = take(torch.nn.utils.get_total_norm(group, norm_type))
        if value is None:
            return f"not readable on {device}"
        values.append(value)
    return values


def _plain(grad: Any) -> Tensor | str:
    """Return the values of a gradient that is sparse, distributed or of another class, or why they cannot be read."""
    local = local_of(grad)
    if isinstance(local, str) or local.layout is torch.strided:
        return local
    if local.layout is not torch.sparse_coo:
        return f"layout {local.layout}"
    if not local.is_coalesced() and not local.is_cpu:  # adding up the duplicates makes the host wait for the device
        return f"sparse and not coalesced on {local.device.type}"
    return local.coalesce()._values()


def local_of(tensor: Any) -> Tensor | str:
    """Return what this rank holds of a tensor, if that is all of it, as a plain tensor; else why it cannot be read.

    Reads local shards only: an operation on a distributed tensor may be a collective, and the other ranks may not be
    watched. To be called where gradients are off.
    """
    if type(tensor) is Tensor or type(tensor) is torch.nn.Parameter:
        return tensor
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:  # its storage is an ordinary one
        plain: Tensor = tensor.as_subclass(Tensor)
        return plain
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return f"{type(tensor).__name__} cannot be read"
    spread = [(p, size) for p, size in zip(placements, tensor.device_mesh.shape, strict=True) if size > 1]
    spread = [(p, size) for p, size in spread if not p.is_replicate()]
    if spread:
        kind = "partial sums" if any(p.is_partial() for p, _ in spread) else SHARDED
        return f"{kind} over {math.prod(size for _, size in spread)} ranks"
    local = tensor.to_local()
    return local if type(local) is Tensor else f"{type(local).__name__} cannot be read"


def absence_of(params: Sequence[Tensor]) -> str | None:
    """Say why the gradients of these parameters are shards that do not show it; None: they are whole.

    FullyShardedDataParallel leaves plain tensors behind: one flat parameter of a part of the length, or flat pieces of
    the parameters; with NO_SHARD and on one rank they keep their shape.
    """
    flattened: list[Any] = [p for p in params if getattr(p, "_fsdp_flattened", False)]
    if not flattened or torch.distributed.get_world_size() == 1:
        return None
    is_whole = any(p.ndim > 1 or p.shape == getattr(p, "_unpadded_unsharded_size", None) for p in flattened)
    return None if is_whole else f"{SHARDED} by FullyShardedDataParallel"

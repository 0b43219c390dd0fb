"""Torch's knowledge of its CUDA devices, asked for so that nothing is initialised that was not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_STATISTICS = {
    "cuda_allocated_bytes": "allocated_bytes.all.current",
    "cuda_reserved_bytes": "reserved_bytes.all.current",
    "cuda_allocation_retries": "num_alloc_retries",
    "cuda_out_of_memory": "num_ooms",
}


def read_torch_devices(torch: Any = None) -> tuple[str, ...] | None:
    """List the UUIDs of the torch devices in order; None while CUDA is not initialised, () without CUDA in torch.

    Initialising CUDA from here would take device memory and break a later fork, so it is never done.
    """
    torch = sys.modules.get("torch") if torch is None else torch
    if torch is None or torch.version.cuda is None:
        return ()
    if not torch.cuda.is_initialized():
        return None
    count = torch.cuda.device_count()
    return tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(count))


def read_allocator(index: int, torch: Any = None) -> Mapping[str, float]:
    """Read the caching allocator of one torch device, by the field names of ``GpuReading``; empty without CUDA.

    >>> read_allocator(0)  # CUDA is not initialised here
    {}
    """
    torch = sys.modules.get("torch") if torch is None else torch
    if torch is None or not torch.cuda.is_initialized():
        return {}
    statistics = torch.cuda.memory_stats(index)
    return {name: float(statistics[key]) for name, key in _STATISTICS.items() if key in statistics}

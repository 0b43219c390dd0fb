"""Scalars on their way from a tensor to a float without the host ever waiting for the device.

On the CPU a value is read at once. On CUDA it is copied asynchronously, in stream order, into a cell of pinned host
memory. An
empty cell holds a signalling NaN, which no arithmetic produces (IEEE 754-2019, 6.2: operations quiet it); once the
pattern is
gone, the value has landed. So the reader needs no event, no stream and no CUDA call at all: nothing of ours can wait
for the
device, and nothing can disturb a CUDA graph capture in another thread. Elsewhere (MPS, XPU) the value is cloned on the
device and fetched by the recorder thread.
"""

from __future__ import annotations

import ctypes
import math
import operator
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

EMPTY_32 = 0x7FA5A5A5
EMPTY_64 = 0x7FF4A5A5A5A5A5A5
_NUM_CELLS = 16384


class Pending(Protocol):
    """A value that is on its way."""

    def poll(self) -> float | None:
        """Return the value if it has arrived, else None. Asking again gives the same value."""


Value = float | Pending


class _Cell:
    """One place of pinned memory that a value was sent to."""

    __slots__ = ("_index", "_lane", "_value")

    def __init__(self, lane: PinnedLane, index: int) -> None:
        self._lane = lane
        self._index = index
        self._value: float | None = None

    def poll(self) -> float | None:
        if self._value is None:
            self._value = self._lane.read(self._index)
        return self._value

    def __del__(self) -> None:
        if self._value is None:  # nobody asked: a loss that was cleared or overridden, an entry that was dropped
            self._lane.disown(self._index)


class PinnedLane:
    """A fixed set of pinned cells. The training thread sends, the recorder thread reads and gives the cells back.

    ``host`` is the memory, float32 or float64, one element a cell: pinned, where a device writes to it. A full lane
    drops the value. A cell that nobody reads any more is free again once its value has landed, not before: the copy
    under way would be taken for the next value.
    """

    def __init__(self, host: Tensor) -> None:
        is_wide = host.dtype == torch.float64
        self._cells = list(host.unbind())
        self._empty = EMPTY_64 if is_wide else EMPTY_32
        num, address = len(self._cells), host.data_ptr()
        self._words = ((ctypes.c_uint64 if is_wide else ctypes.c_uint32) * num).from_address(address)
        self._floats = ((ctypes.c_double if is_wide else ctypes.c_float) * num).from_address(address)
        self._host = host
        self._free: deque[int] = deque(range(num))
        self._disowned: deque[int] = deque()
        for i in range(num):
            self._words[i] = self._empty

    def send(self, tensor: Tensor) -> Pending | None:
        """Start the copy of a one-element tensor; None when every cell is on its way."""
        if not self._free:
            self._reclaim()
        try:
            index = self._free.popleft()
        except IndexError:
            return None
        self._cells[index].copy_(tensor.reshape(()), non_blocking=True)
        return _Cell(self, index)

    def disown(self, index: int) -> None:
        """Take back a cell that will not be read."""
        self._disowned.append(index)

    def _reclaim(self) -> None:
        for _ in range(len(self._disowned)):
            index = self._disowned.popleft()
            if self.read(index) is None:
                self._disowned.append(index)

    def read(self, index: int) -> float | None:
        """Return what has landed in a cell and free it, or None."""
        if self._words[index] == self._empty:
            return None
        value = float(self._floats[index])
        self._words[index] = self._empty
        self._free.append(index)
        return value


class _Clone:
    """A value cloned on its device, fetched by whoever polls (never the training thread)."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach().clone()

    def poll(self) -> float | None:
        return float(self._tensor)


class _Combined:
    """Two values multiplied or divided, once both have arrived."""

    __slots__ = ("_combine", "_first", "_second")

    def __init__(self, combine: Callable[[float, float], float], first: Value, second: Value) -> None:
        self._combine, self._first, self._second = combine, first, second

    def poll(self) -> float | None:
        first, second = (v if isinstance(v, int | float) else v.poll() for v in (self._first, self._second))
        return None if first is None or second is None else self._combine(first, second)


def _combined(combine: Callable[[float, float], float], first: Value, second: Value) -> Value:
    if isinstance(first, int | float) and isinstance(second, int | float):
        return combine(first, second)
    return _Combined(combine, first, second)


def product(first: Value | None, second: Value | None) -> Value | None:
    """Multiply two values, of which either may still be on its way; None if one is not known."""
    return None if first is None or second is None else _combined(operator.mul, first, second)


def divided(value: Value, by: Value) -> Value:
    """Divide a value by another, of which either may still be on its way."""
    return _combined(_ratio, value, by)


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan


_LANES: dict[torch.dtype, PinnedLane] = {}


def has_no_accelerator() -> bool:
    """Tell whether every tensor is on the CPU, because this torch was built for nothing else. Asks no driver."""
    accelerator = getattr(torch, "accelerator", None)
    return accelerator is not None and accelerator.current_accelerator() is None


def take(tensor: Tensor) -> Value | None:
    """Note the present value of a one-element tensor; a later change in place does not alter it.

    Returns a float for a CPU tensor, something to poll for a device tensor, and None where the value cannot be had
    without disturbing the run: during a CUDA graph capture, for a tensor subclass (a distributed tensor would
    communicate), for a meta tensor.
    """
    is_plain = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    if is_plain and tensor.is_cpu:
        return float(tensor.item())
    if not is_plain or tensor.is_meta:
        return None
    if not tensor.is_cuda:
        return _Clone(tensor)
    if torch.cuda.is_current_stream_capturing():
        return None
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    lane = _LANES.get(dtype)
    if lane is None:
        lane = _LANES[dtype] = PinnedLane(torch.empty(_NUM_CELLS, dtype=dtype, pin_memory=True))
    with torch.no_grad():
        return lane.send(tensor.detach())

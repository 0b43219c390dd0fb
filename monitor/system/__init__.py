"""Readings of the host (psutil) and of the GPUs (NVML), and the thread that makes them."""

from ._gpu import GpuReader, GpuRound
from ._history import SystemHistory
from ._host import HostReader, read_host
from ._sampler import SystemSampler

__all__ = ["GpuReader", "GpuRound", "HostReader", "SystemHistory", "SystemSampler", "read_host"]

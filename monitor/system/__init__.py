"""Readings of the host (psutil) and of the GPUs (NVML), and the thread that makes them."""

from monitor.system._gpu import GpuReader, GpuRound
from monitor.system._history import SystemHistory
from monitor.system._host import HostReader, read_host
from monitor.system._sampler import SystemSampler

__all__ = ["GpuReader", "GpuRound", "HostReader", "SystemHistory", "SystemSampler", "read_host"]

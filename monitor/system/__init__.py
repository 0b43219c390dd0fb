"""Readings of the host (psutil) and of the GPUs (NVML), and the thread that makes them."""

from monitor.system._gpu import GpuReader, GpuRound
from monitor.system._host import HostReader, read_host
from monitor.system._sampler import SystemSampler
from monitor.system._system_history import SystemHistory

__all__ = ["GpuReader", "GpuRound", "HostReader", "SystemHistory", "SystemSampler", "read_host"]

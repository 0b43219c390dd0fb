"""Readings of the host (psutil) and of the GPUs (NVML), and the thread that makes them."""

from monitor.system._debug_page import read_debug_page
from monitor.system._gpu import GpuReader, GpuRound
from monitor.system._host import HostReader, read_host
from monitor.system._oom import OutOfMemoryCounter
from monitor.system._sampler import SystemSampler
from monitor.system._system_history import SystemHistory, values_of
from monitor.system._torch import read_allocator, read_torch_devices
from monitor.system._users import other_users

__all__ = [
    "GpuReader",
    "GpuRound",
    "HostReader",
    "OutOfMemoryCounter",
    "SystemHistory",
    "SystemSampler",
    "other_users",
    "read_allocator",
    "read_debug_page",
    "read_host",
    "read_torch_devices",
    "values_of",
]

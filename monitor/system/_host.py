"""Readings of the machine and of the trainer's process tree, by psutil."""

from __future__ import annotations

from typing import Any

import psutil

from monitor._records import HostReading


def read_host(psutil_module: Any = psutil, process: psutil.Process | None = None) -> HostReading:
    """Read the machine and the process tree once.

    ``process`` is the root of the tree, by default this process. The CPU utilization is a difference between two
    readings and therefore absent here; a :class:`HostReader` has it from its second reading on.

    >>> read_host().memory_total_bytes > 0
    True
    """
    return HostReader(psutil_module, process).read()


class HostReader:
    """Read the machine and the process tree, again and again.

    It remembers the machine's CPU times (the utilization is a difference) and the last CPU time of every process
    of the tree: the tree's CPU seconds never fall, although the time of a child that has ended is gone from /proc.
    What a process used after its last reading is not seen. Processes that vanish meanwhile are left out.

    >>> reader = HostReader()
    >>> reader.read().tree_resident_bytes > 0
    True
    """

    def __init__(self, psutil_module: Any = psutil, process: psutil.Process | None = None) -> None:
        self._psutil = psutil_module
        self._root = psutil_module.Process() if process is None else process
        self._cpu_times: tuple[float, float] | None = None
        self._cpu_seconds: dict[psutil.Process, float] = {}
        self._ended_cpu_seconds = 0.0

    def read(self) -> HostReading:
        """Read once. The cost grows with the number of processes on the machine: some 15 us each."""
        memory = self._psutil.virtual_memory()
        resident = self._read_tree()
        return HostReading(
            cpu_utilization_ratio=self._read_cpu_utilization(),
            memory_used_bytes=float(memory.total - memory.available),
            memory_total_bytes=float(memory.total),
            tree_resident_bytes=resident,
            tree_cpu_seconds=sum(self._cpu_seconds.values()) + self._ended_cpu_seconds,
        )

    def _read_cpu_utilization(self) -> float | None:
        times = self._psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts the time of guests within user and nice as well.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before, self._cpu_times = self._cpu_times, (idle, total)
        if before is None or total <= before[1]:
            return None
        return float(min(1.0, max(0.0, 1.0 - (idle - before[0]) / (total - before[1]))))

    def _read_tree(self) -> float:
        processes = self._list_tree()
        resident = 0.0
        for process in processes:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    resident += process.memory_info().rss
            except self._psutil.Error:
                continue
            seconds = times.user + times.system
            self._cpu_seconds[process] = max(seconds, self._cpu_seconds.get(process, 0.0))
        for process in self._cpu_seconds.keys() - set(processes):
            self._ended_cpu_seconds += self._cpu_seconds.pop(process)
        return resident

    def _list_tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except self._psutil.Error:
            return [self._root]

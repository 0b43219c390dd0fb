from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest

from monitor.system import HostReader, read_host

LinuxTimes = namedtuple("LinuxTimes", "user nice system idle iowait irq softirq steal guest guest_nice")
PlainTimes = namedtuple("PlainTimes", "user nice system idle")


class FakeProcess:
    """A process with settable times; ``error`` is what any reading of it raises."""

    def __init__(self, pid, user=0.0, system=0.0, rss=0, error=None):
        self.pid, self.user, self.system, self.rss, self.error = pid, user, system, rss, error
        self.descendants = []

    def oneshot(self):
        return contextlib.nullcontext()

    def cpu_times(self):
        if self.error:
            raise self.error
        return SimpleNamespace(user=self.user, system=self.system, children_user=99.0, children_system=99.0)

    def memory_info(self):
        return SimpleNamespace(rss=self.rss)

    def children(self, recursive):
        assert recursive
        if self.error:
            raise self.error
        return list(self.descendants)


class FakePsutil:
    """As much of psutil as the package uses, with its real error classes."""

    Error = psutil.Error

    def __init__(self, times=PlainTimes(0, 0, 0, 0), total=1000, available=400):
        self.times = times
        self.memory = SimpleNamespace(total=total, available=available, used=1, free=1)

    def cpu_times(self):
        return self.times

    def virtual_memory(self):
        return self.memory


def test_memory_in_use_is_what_is_not_available():
    """Caches that can be given up are not in use."""
    reading = read_host(FakePsutil(total=1000, available=400), FakeProcess(1))
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (600.0, 1000.0)


def test_cpu_utilization_is_a_difference():
    """The first reading has none; then it is the busy share of the time since the one before."""
    machine = FakePsutil(PlainTimes(10, 0, 10, 80))
    reader = HostReader(machine, FakeProcess(1))
    assert reader.read().cpu_utilization_ratio is None
    machine.times = PlainTimes(12, 0, 11, 87)
    assert reader.read().cpu_utilization_ratio == pytest.approx(0.3)


def test_waiting_for_disks_is_idle_and_guests_count_once():
    """iowait is no work; Linux counts guest time in user time already."""
    machine = FakePsutil(LinuxTimes(0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    reader = HostReader(machine, FakeProcess(1))
    reader.read()
    machine.times = LinuxTimes(
        user=5, nice=0, system=0, idle=3, iowait=2, irq=0, softirq=0, steal=0, guest=4, guest_nice=0
    )
    assert reader.read().cpu_utilization_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("after", "expected"),
    [(PlainTimes(10, 0, 10, 80), None), (PlainTimes(20, 0, 20, 70), 1.0), (PlainTimes(9, 0, 10, 90), 0.0)],
    ids=["no time has passed", "idle went back", "busy went back"],
)
def test_clocks_of_the_kernel_that_go_back_stay_in_range(after, expected):
    """The utilization is a ratio from 0 to 1, whatever the kernel's rounding does."""
    machine = FakePsutil(PlainTimes(10, 0, 10, 80))
    reader = HostReader(machine, FakeProcess(1))
    reader.read()
    machine.times = after
    assert reader.read().cpu_utilization_ratio == expected


def test_the_tree_is_the_trainer_and_its_descendants():
    """Resident memory and CPU time are sums over the tree."""
    root = FakeProcess(1, user=1.0, system=0.5, rss=100)
    root.descendants = [FakeProcess(2, user=2.0, rss=10), FakeProcess(3, system=4.0, rss=1)]
    reading = read_host(FakePsutil(), root)
    assert (reading.tree_resident_bytes, reading.tree_cpu_seconds) == (111.0, 7.5)


def test_cpu_seconds_never_fall_when_children_exit():
    """What a worker has used stays counted after its end, and a new one adds to it."""
    root, worker = FakeProcess(1, user=1.0), FakeProcess(2, user=5.0)
    root.descendants = [worker]
    reader = HostReader(FakePsutil(), root)
    seen = [reader.read().tree_cpu_seconds]
    worker.user = 7.0
    seen.append(reader.read().tree_cpu_seconds)
    root.descendants = []
    seen.append(reader.read().tree_cpu_seconds)
    root.descendants = [FakeProcess(2, user=0.5)]
    seen.append(reader.read().tree_cpu_seconds)
    assert seen == [6.0, 8.0, 8.0, 8.5]


@pytest.mark.parametrize("error", [psutil.NoSuchProcess(2), psutil.ZombieProcess(2), psutil.AccessDenied(2)])
def test_a_child_that_vanishes_meanwhile_is_left_out(error):
    """A child that ends between being listed and being read costs nothing but its own memory."""
    root, worker = FakeProcess(1, user=1.0, rss=100), FakeProcess(2, user=5.0, rss=10)
    root.descendants = [worker]
    reader = HostReader(FakePsutil(), root)
    reader.read()
    worker.error = error
    reading = reader.read()
    assert (reading.tree_resident_bytes, reading.tree_cpu_seconds) == (100.0, 6.0)


def test_a_tree_that_cannot_be_listed_keeps_its_cpu_seconds():
    """Where the system refuses to list or read the processes, the counter stands still."""
    root = FakeProcess(1, user=3.0, rss=100)
    reader = HostReader(FakePsutil(), root)
    reader.read()
    root.error = psutil.AccessDenied(1)
    reading = reader.read()
    assert (reading.tree_resident_bytes, reading.tree_cpu_seconds) == (0.0, 3.0)


def test_the_real_machine_is_read():
    """With the real psutil, the figures of this process and this machine come out."""
    reader = HostReader()
    first, second = reader.read(), reader.read()
    assert 0 < first.memory_used_bytes < first.memory_total_bytes
    assert first.memory_total_bytes == psutil.virtual_memory().total
    assert 0 < first.tree_resident_bytes < first.memory_total_bytes
    assert 0 < first.tree_cpu_seconds <= second.tree_cpu_seconds


def test_real_children_come_and_go():
    """A real child adds its memory while it lives; its CPU time stays when it is gone."""
    reader = HostReader()
    alone = reader.read()
    code = "import sys; sum(range(10**6)); x = bytes(50_000_000); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        used = sum(psutil.Process(child.pid).cpu_times()[:2])
        together = reader.read()
    after = reader.read()
    assert together.tree_resident_bytes > alone.tree_resident_bytes + 5_000_000
    assert together.tree_cpu_seconds >= alone.tree_cpu_seconds + used
    assert after.tree_cpu_seconds >= together.tree_cpu_seconds
    assert psutil.Process().pid == os.getpid()

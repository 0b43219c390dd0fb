"""One daemon thread that reads the host and the GPUs every few seconds and publishes what it read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from monitor._records import Collection, HostReading, SystemReading
from monitor.common import Loop, contained
from monitor.system._gpu import GpuRound
from monitor.system._system_history import SystemHistory

_LOG = logging.getLogger("monitor")
_T = TypeVar("_T")


class HostSource(Protocol):
    """What reads the host."""

    def read(self) -> HostReading:
        """Read once."""
        ...


class GpuSource(Protocol):
    """What reads the GPUs."""

    def read(self) -> GpuRound:
        """Read once."""
        ...

    def close(self) -> None:
        """Give the library back."""
        ...


class SystemSampler:
    """Read host and GPUs every ``interval`` seconds on a thread of its own.

    ``gpu`` is None where GPUs are not to be read. A reading that fails goes to ``on_error(error)``, once a
    round, and is marked in the round's ``collections``; the other readings continue. ``on_reading`` takes each
    round. A driver that hangs keeps the
    thread, and nothing else: ``latest()`` then says so and ``stop()`` leaves the thread behind, which is a daemon.

    >>> from monitor.system import HostReader
    >>> sampler = SystemSampler(2.0, HostReader(), None, on_error=print)
    >>> sampler.sample().host.memory_used_bytes > 0
    True
    >>> sampler.latest().gpus
    ()
    """

    def __init__(
        self,
        interval: float,
        host: HostSource,
        gpu: GpuSource | None,
        on_error: Callable[[BaseException], None],
        *,
        on_reading: Callable[[SystemReading], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
        history: SystemHistory | None = None,
    ) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be greater than 0 seconds, got {interval}")
        self._interval = interval
        self._host = host
        self._gpu = gpu
        self._on_error = on_error
        self._on_reading = on_reading
        self._clock = clock
        self._timer = timer
        self._history = SystemHistory() if history is None else history
        self._patience = max(10.0, 5 * interval)
        self._reading = SystemReading(time=0.0)
        self._under_way: tuple[str, float] | None = None
        self._loop = Loop("monitor-system", self.sample, interval, on_error=self._contain, on_end=self._close)

    def start(self) -> None:
        """Start the thread; its first round follows at once. Raises RuntimeError the second time."""
        self._loop.wake()
        self._loop.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """End the thread; wait ``timeout`` seconds at most. Return whether it has ended (a hung driver keeps it)."""
        return self._loop.stop(timeout)

    def latest(self) -> SystemReading:
        """Give the last round; before the first one, a reading at time 0 that holds nothing.

        When a reading has been under way for five intervals (10 s at least), what is shown would be the past: it is
        left out, and its collector is marked as failed.
        """
        reading, under_way = self._reading, self._under_way
        if under_way is None:
            return reading
        name, started = under_way
        elapsed = self._timer() - started
        if elapsed <= self._patience:
            return reading
        failed = Collection(elapsed, False, f"{name}: no answer for {elapsed:.0f} s")
        return replace(
            reading, host=None, gpus=(), collections={**dict.fromkeys(reading.collections, failed), name: failed}
        )

    def history(self, since: float = 0.0, points: int = 1000) -> dict[str, Any]:
        """Give the rounds after ``since``, in seconds of ``timer``, as columns, ready for JSON, at most ``points``
        of them.

        ``{"time": [...], "cpu_ratio": [...], "memory_used_bytes": [...], "tree_resident_bytes": [...], "gpus":
        {"0": {"utilization_ratio": [...], "memory_used_bytes": [...], "temperature_celsius": [...],
        "power_watts": [...]}}}``; None where there was no reading.
        """
        return self._history.columns(since, points)

    def memory(self) -> SystemHistory:
        """Return the rounds so far, for another sampler of the same run."""
        return self._history

    def remember(self, memory: SystemHistory) -> None:
        """Take over the rounds of another sampler, before the first one."""
        self._history = memory

    def sample(self) -> SystemReading:
        """Make one round now, on the calling thread, and publish it."""
        collections: dict[str, Collection] = {}
        host = self._collect("host", self._host.read, collections)
        gpus = GpuRound()
        if self._gpu is not None:
            gpus = self._collect("gpu", self._gpu.read, collections) or gpus
        if gpus.failure is not None:
            collections["gpu"] = replace(collections["gpu"], is_success=False, message=str(gpus.failure))
            self._contain(gpus.failure)
        reading = SystemReading(self._clock(), host, gpus.gpus, collections, self._timer())
        self._history.append(reading)
        self._reading = reading
        self._on_reading(reading)
        return reading

    def _collect(self, name: str, read: Callable[[], _T], collections: dict[str, Collection]) -> _T | None:
        started = self._timer()
        self._under_way = (name, started)
        errors: list[Exception] = []
        result: _T | None = contained(errors.append, read)
        self._under_way = None
        message = "".join(f"{type(error).__name__}: {error}" for error in errors)
        collections[name] = Collection(self._timer() - started, result is not None, message)
        for error in errors:
            self._contain(error)
        return result

    def _close(self) -> None:
        if self._gpu is not None:
            self._gpu.close()

    def _contain(self, error: Exception) -> None:
        try:
            self._on_error(error)
        except Exception:  # noqa: BLE001 - the last line of defence
            _LOG.exception("The report of a failure failed")

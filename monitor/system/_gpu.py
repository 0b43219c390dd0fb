"""Readings of the GPUs that torch sees, by NVML."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor._records import GpuReading
from monitor.system._devices import Card, torch_uuids, visible_uuids
from monitor.system._nvml import (
    Asker,
    GpuReadingError,
    is_library_gone,
    read_ecc_errors,
    read_memory,
    read_process_memory,
    read_temperature,
    read_throttle_reasons,
)
from monitor.system._torch import read_allocator, read_torch_devices

_LOG = logging.getLogger("monitor")


@dataclass(frozen=True, slots=True)
class GpuRound:
    """What one round gave: the GPUs that answered, and what went wrong with the others, if anything did."""

    gpus: tuple[GpuReading, ...] = ()
    failure: GpuReadingError | None = None


@dataclass(frozen=True, slots=True)
class _Device:
    """A torch device. ``card`` is the physical GPU: the same handle, or for a MIG instance its parent's."""

    index: int
    uuid: str
    model: str
    driver_version: str
    handle: Any
    card: Any


class GpuReader:
    """Read the GPUs that torch sees, by torch device index.

    ``nvml`` is the module pynvml (default: imported at the first reading). Without it, or without a driver, there
    are no GPUs: one line says so, at level info where torch uses CUDA or ``is_asked`` (GPUs were asked for by name), at
    level debug on a machine that just has none. ``torch_devices`` gives the UUIDs of the torch devices in order, or
    None while CUDA is not initialised; ``allocator_stats`` the caching allocator's fields of a device;
    ``pid`` (default: this process) is the one whose memory is read.

    >>> GpuReader().read().gpus  # on a machine without a GPU
    ()
    """

    def __init__(
        self,
        nvml: Any = None,
        *,
        torch_devices: Callable[[], Sequence[str] | None] = read_torch_devices,
        allocator_stats: Callable[[int], Mapping[str, float]] = read_allocator,
        environ: Mapping[str, str] = os.environ,
        pid: int | None = None,
        is_asked: bool = False,
    ) -> None:
        self._nvml = nvml
        self._is_asked = is_asked
        self._torch_devices = torch_devices
        self._allocator_stats = allocator_stats
        self._environ = environ
        self._pid = os.getpid() if pid is None else pid
        self._is_open = False
        self._has_been_open = False
        self._is_absent = False
        self._torch_uuids: Sequence[str] | None = None
        self._devices: tuple[_Device, ...] | None = None

    def read(self) -> GpuRound:
        """Read all GPUs once: some milliseconds, in which the driver is asked about 15 things per GPU.

        Never raises for what a card or the driver does: a card that is lost is missing from the round and named in
        its ``failure``; a driver that was reloaded is opened again.
        """
        if self._is_absent or not self._open():
            return GpuRound()
        try:
            return self._read_devices()
        except self._nvml.NVMLError_Uninitialized:
            return self._read_reopened()
        except self._nvml.NVMLError as error:
            return self._forget(error)

    def close(self) -> None:
        """Give the library back."""
        if self._is_open:
            self._is_open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                _LOG.debug("nvmlShutdown: %s", error)

    def _open(self) -> bool:
        if self._is_open:
            return True
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError as error:
                return self._note_absence(error)
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            # Where it has worked before, the driver may come back; where it never did, there is none.
            return True if self._has_been_open else self._note_absence(error)
        self._is_open = self._has_been_open = True
        return True

    def _note_absence(self, error: Exception) -> bool:
        self._is_absent = True
        level = logging.INFO if self._is_asked or self._torch_devices() else logging.DEBUG
        _LOG.log(level, "GPUs are not read: %s", error)
        return False

    def _read_reopened(self) -> GpuRound:
        self._devices = None
        try:
            self._nvml.nvmlInit()
            return self._read_devices()
        except self._nvml.NVMLError as error:
            return self._forget(error)

    def _forget(self, error: Exception) -> GpuRound:
        self._devices = None
        self.close()
        failure = GpuReadingError(f"NVML: {error}")
        failure.__cause__ = error
        return GpuRound((), failure)

    def _read_devices(self) -> GpuRound:
        asker = Asker(self._nvml)
        readings = [self._try_device(asker, device) for device in self._find_devices(asker)]
        return GpuRound(tuple(reading for reading in readings if reading), asker.failure)

    def _try_device(self, asker: Asker, device: _Device) -> GpuReading | None:
        try:
            return self._read_device(asker, device)
        except self._nvml.NVMLError as error:
            if is_library_gone(self._nvml, error):
                raise
            # The list of devices is kept: found anew without this card, the others might move up.
            asker.fail(f"GPU {device.index} ({device.uuid})", error)
            return None

    def _read_device(self, asker: Asker, device: _Device) -> GpuReading:
        ask, card = asker.ask, device.card
        utilization = ask("nvmlDeviceGetUtilizationRates", card)
        memory = read_memory(asker, device.handle)
        return GpuReading(
            index=device.index,
            uuid=device.uuid,
            model=device.model,
            driver_version=device.driver_version,
            utilization_ratio=_scale(getattr(utilization, "gpu", None), 1, 100),
            memory_activity_ratio=_scale(getattr(utilization, "memory", None), 1, 100),
            memory_used_bytes=_scale(getattr(memory, "used", None)),
            memory_total_bytes=_scale(getattr(memory, "total", None)),
            process_memory_bytes=read_process_memory(asker, device.handle, self._pid),
            temperature_celsius=_scale(read_temperature(asker, card)),
            power_watts=_scale(ask("nvmlDeviceGetPowerUsage", card), 1, 1000),
            power_limit_watts=_scale(ask("nvmlDeviceGetEnforcedPowerLimit", card), 1, 1000),
            sm_clock_hertz=_scale(ask("nvmlDeviceGetClockInfo", card, self._nvml.NVML_CLOCK_SM), 1_000_000),
            energy_joules=_scale(ask("nvmlDeviceGetTotalEnergyConsumption", card), 1, 1000),
            throttle_reasons=read_throttle_reasons(asker, card),
            ecc_errors=read_ecc_errors(asker, card),
            **self._read_allocator(asker, device.index),
        )

    def _read_allocator(self, asker: Asker, index: int) -> Mapping[str, float]:
        try:
            return self._allocator_stats(index)
        except (RuntimeError, AssertionError, ValueError) as error:  # after a CUDA error torch refuses
            asker.fail(f"caching allocator of GPU {index}", error)
            return {}

    def _find_devices(self, asker: Asker) -> tuple[_Device, ...]:
        """Give the devices found before; find them anew when CUDA has been initialised or one was missing."""
        torch_devices = self._torch_devices() if self._torch_uuids is None else self._torch_uuids
        if self._devices is not None and torch_devices == self._torch_uuids:
            return self._devices
        self._torch_uuids = torch_devices
        cards, handles = self._list_cards(asker)
        variable = self._environ.get("CUDA_VISIBLE_DEVICES")
        uuids = visible_uuids(variable, cards)
        if torch_devices is not None:
            uuids = torch_uuids(torch_devices, variable, cards)
        for index, uuid in enumerate(uuids):
            if uuid not in handles:
                asker.fail(f"GPU {index}", LookupError("torch sees it and NVML does not"))
        driver_version = str(asker.ask("nvmlSystemGetDriverVersion") or "")
        devices = tuple(
            _Device(index, uuid, str(asker.ask("nvmlDeviceGetName", handle) or ""), driver_version, handle, card)
            for index, uuid in enumerate(uuids)
            for handle, card in [handles.get(uuid, (None, None))]
            if handle is not None
        )
        # A list that lacks a card is not kept: the next round looks again.
        self._devices = devices if asker.failure is None else None
        return devices

    def _list_cards(self, asker: Asker) -> tuple[list[Card], dict[str, tuple[Any, Any]]]:
        """List the physical GPUs in NVML's order and the handles of all UUIDs, MIG instances included."""
        cards: list[Card] = []
        handles: dict[str, tuple[Any, Any]] = {}
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                card, own = self._look_up(asker, index)
            except self._nvml.NVMLError as error:
                if is_library_gone(self._nvml, error):
                    raise
                asker.fail(f"GPU at NVML index {index}", error)
                card, own = Card(""), {}
            cards.append(card)
            handles.update(own)
        return cards, handles

    def _look_up(self, asker: Asker, index: int) -> tuple[Card, dict[str, tuple[Any, Any]]]:
        handle = asker.ask("nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            return Card(""), {}
        uuid = str(asker.ask("nvmlDeviceGetUUID", handle) or "")
        own = {uuid: (handle, handle)} if uuid else {}
        mode = asker.ask("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return Card(uuid), own
        instances: list[str] = []
        for slot in range(asker.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = asker.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
            if instance is not None and (name := asker.ask("nvmlDeviceGetUUID", instance)):
                instances.append(name)
                own[name] = (instance, handle)
        return Card(uuid, True, tuple(instances)), own


def _scale(value: float | None, numerator: int = 1, denominator: int = 1) -> float | None:
    return None if value is None else float(value) * numerator / denominator

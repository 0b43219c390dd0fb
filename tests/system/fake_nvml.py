"""A fake of the module pynvml: its functions by name and signature, its own constants, structs and error classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pynvml

_REAL_NAMES = ("NVML_", "NVMLError", "NVMLLibraryMismatchError", "nvmlClocks", "nvmlMemory_v2")


@dataclass
class FakeProcess:
    """A process on a card; ``memory`` None is what Windows and some drivers answer."""

    pid: int
    memory: int | None


@dataclass
class FakeInstance:
    """A MIG instance of a card."""

    uuid: str
    name: str = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    memory_total: int = 5 * 2**30
    memory_used: int = 2**30
    memory_reserved: int = 2**20
    processes: list[FakeProcess] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeCard:
    """A physical GPU. ``errors`` maps a function's name to the NVML error code that it answers with."""

    uuid: str
    name: str = "NVIDIA H200"
    utilization: int = 97
    memory_activity: int = 40
    memory_total: int = 2**37
    memory_used: int = 2**36
    memory_reserved: int = 2**29
    temperature: int = 61
    power_milliwatts: int = 540_500
    power_limit_milliwatts: int = 700_000
    sm_clock_megahertz: int = 1980
    energy_millijoules: int = 123_456_789
    clock_reasons: int = pynvml.nvmlClocksEventReasonSwPowerCap
    ecc: dict[int, int] = field(default_factory=lambda: {0: 3, 1: 0})
    processes: list[FakeProcess] = field(default_factory=list)
    instances: list[FakeInstance | None] | None = None
    errors: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """The library over some cards. ``missing`` names functions that this version of module or driver lacks."""

    def __init__(
        self, cards: list[FakeCard], missing_in_module: tuple[str, ...] = (), missing_in_driver: tuple[str, ...] = ()
    ) -> None:
        self.cards = cards
        self.init_error: int | None = None
        self.num_inits = 0
        self.calls: list[str] = []
        self._missing_in_module = missing_in_module
        self._missing_in_driver = missing_in_driver

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvmlDevice") and name in self._missing_in_module:
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_REAL_NAMES):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def unload(self, error: int = pynvml.NVML_ERROR_DRIVER_NOT_LOADED) -> None:
        """Unload the driver: nothing works, and neither does opening again."""
        self.num_inits = 0
        self.init_error = error

    def reload(self) -> None:
        """Reload the driver: what was opened is no longer, and opening works again."""
        self.num_inits = 0
        self.init_error = None

    def nvmlInit(self):
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.num_inits += 1

    def nvmlShutdown(self):
        self._enter("nvmlShutdown")
        self.num_inits -= 1

    def nvmlSystemGetDriverVersion(self):
        self._enter("nvmlSystemGetDriverVersion")
        return "580.10"

    def nvmlDeviceGetCount(self):
        self._enter("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        self._enter("nvmlDeviceGetHandleByIndex", self.cards[index])
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle):
        self._enter("nvmlDeviceGetUUID", handle)
        return handle.uuid

    def nvmlDeviceGetName(self, handle):
        self._enter("nvmlDeviceGetName", handle)
        return handle.name

    def nvmlDeviceGetMigMode(self, device):
        self._enter("nvmlDeviceGetMigMode", device)
        if device.instances is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        self._enter("nvmlDeviceGetMaxMigDeviceCount", device)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        self._enter("nvmlDeviceGetMigDeviceHandleByIndex", device)
        slots = device.instances + [None] * 7
        if slots[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return slots[index]

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._enter_card("nvmlDeviceGetUtilizationRates", handle)
        if handle.instances is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return pynvml.c_nvmlUtilization_t(gpu=handle.utilization, memory=handle.memory_activity)

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        name = "nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo"
        self._enter(name, handle)
        free = handle.memory_total - handle.memory_used - handle.memory_reserved
        if version:
            assert version == pynvml.nvmlMemory_v2
            return pynvml.c_nvmlMemory_v2_t(
                version=version,
                total=handle.memory_total,
                reserved=handle.memory_reserved,
                free=free,
                used=handle.memory_used,
            )
        used = handle.memory_used + handle.memory_reserved
        return pynvml.c_nvmlMemory_t(total=handle.memory_total, free=free, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self._enter("nvmlDeviceGetComputeRunningProcesses", handle)
        found = []
        for process in handle.processes:
            struct = pynvml.c_nvmlProcessInfo_v2_t(pid=process.pid, usedGpuMemory=process.memory or 0)
            found.append(pynvml.nvmlStructToFriendlyObject(struct))
            if process.memory is None:
                found[-1].usedGpuMemory = None
        return found

    def nvmlDeviceGetTemperatureV(self, handle, sensor, version=pynvml.nvmlTemperature_v1):
        self._enter_card("nvmlDeviceGetTemperatureV", handle)
        assert (sensor, version) == (pynvml.NVML_TEMPERATURE_GPU, pynvml.nvmlTemperature_v1)
        return handle.temperature

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._enter_card("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return handle.temperature

    def nvmlDeviceGetPowerUsage(self, handle):
        self._enter_card("nvmlDeviceGetPowerUsage", handle)
        return handle.power_milliwatts

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        self._enter_card("nvmlDeviceGetEnforcedPowerLimit", handle)
        return handle.power_limit_milliwatts

    def nvmlDeviceGetClockInfo(self, handle, type):  # noqa: A002 - pynvml's name
        self._enter_card("nvmlDeviceGetClockInfo", handle)
        assert type == pynvml.NVML_CLOCK_SM
        return handle.sm_clock_megahertz

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._enter_card("nvmlDeviceGetTotalEnergyConsumption", handle)
        return handle.energy_millijoules

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self._enter_card("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return handle.clock_reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._enter_card("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return handle.clock_reasons

    def nvmlDeviceGetTotalEccErrors(self, handle, errorType, counterType):
        self._enter_card("nvmlDeviceGetTotalEccErrors", handle)
        assert counterType == pynvml.NVML_VOLATILE_ECC
        return handle.ecc[errorType]

    def _enter(self, name, handle=None):
        self.calls.append(name)
        if self.num_inits < 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if name in self._missing_in_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        errors = {} if handle is None else handle.errors
        code = errors.get(name, errors.get("*"))
        if code is not None:
            raise pynvml.NVMLError(code)

    def _enter_card(self, name, handle):
        """Enter a function that knows physical cards only."""
        self._enter(name, handle)
        if isinstance(handle, FakeInstance):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

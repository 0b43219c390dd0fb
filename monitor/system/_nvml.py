"""Answers of NVML: absent, failed, or gone with the card or with the whole library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABSENT = (
    *("NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "INVALID_ARGUMENT", "NOT_FOUND", "NO_DATA"),
    *("ARGUMENT_VERSION_MISMATCH", "DEPRECATED", "VGPU_ECC_NOT_SUPPORTED", "FREQ_NOT_SUPPORTED"),
)
_CARD_GONE = ("GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")
_LIBRARY_GONE = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "LIBRARY_NOT_FOUND", "LIB_RM_VERSION_MISMATCH")

# Idle clocks are no clocks held back: that bit is left out.
_THROTTLE_REASONS = {
    "applications_clocks_setting": "ApplicationsClocksSetting",
    "sw_power_cap": "SwPowerCap",
    "hw_slowdown": "HwSlowdown",
    "sync_boost": "SyncBoost",
    "sw_thermal_slowdown": "SwThermalSlowdown",
    "hw_thermal_slowdown": "HwThermalSlowdown",
    "hw_power_brake_slowdown": "HwPowerBrakeSlowdown",
    "display_clock_setting": "DisplayClockSetting",
}


class GpuReadingError(Exception):
    """A GPU, or all of them, could not be read; the message says which and why."""


class Asker:
    """Ask NVML for one round. ``failure`` is the first thing in it that went wrong, if one did.

    A reading that the card does not offer is None. An error that means no more than one lost reading is None as
    well, and noted as failure. When the card or the library is gone, the NVMLError is raised.
    """

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.failure: GpuReadingError | None = None
        self._absent = _codes(nvml, _ABSENT)
        self._gone = _codes(nvml, _CARD_GONE + _LIBRARY_GONE)

    def ask(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Call the NVML function of this name; None where it or its answer does not exist."""
        function = getattr(self.nvml, name, None)
        if function is None:
            return None
        try:
            return function(*arguments, **keywords)
        except self.nvml.NVMLLibraryMismatchError:
            return None
        except self.nvml.NVMLError as error:
            if error.value in self._gone:
                raise
            if error.value not in self._absent:
                self.fail(name, error)
            return None

    def fail(self, what: str, error: Exception) -> None:
        """Note a failure; the first of a round is kept."""
        if self.failure is None:
            self.failure = GpuReadingError(f"{what}: {error}")
            self.failure.__cause__ = error


def is_library_gone(nvml: Any, error: Any) -> bool:
    """Tell an error of the whole library (driver unloaded, reloaded, replaced) from one of a card."""
    return error.value in _codes(nvml, _LIBRARY_GONE)


def read_temperature(asker: Asker, handle: Any) -> int | None:
    """Read the die temperature in degrees Celsius, by the versioned call where library and driver have it."""
    sensor = asker.nvml.NVML_TEMPERATURE_GPU
    celsius: int | None = asker.ask("nvmlDeviceGetTemperatureV", handle, sensor)
    return asker.ask("nvmlDeviceGetTemperature", handle, sensor) if celsius is None else celsius


def read_memory(asker: Asker, handle: Any) -> Any:
    """Read used and total bytes; version 2 does not count what the driver reserves as used."""
    version = getattr(asker.nvml, "nvmlMemory_v2", None)
    memory = asker.ask("nvmlDeviceGetMemoryInfo", handle, version=version) if version else None
    return asker.ask("nvmlDeviceGetMemoryInfo", handle) if memory is None else memory


def read_process_memory(asker: Asker, handle: Any, pid: int) -> float | None:
    """Read the bytes that a process holds; None if NVML does not list it, as in a container with own pids."""
    processes = asker.ask("nvmlDeviceGetComputeRunningProcesses", handle) or ()
    used = [process.usedGpuMemory for process in processes if process.pid == pid]
    return float(sum(used)) if used and None not in used else None


def read_throttle_reasons(asker: Asker, handle: Any) -> Mapping[str, bool] | None:
    """Read by name which reasons hold the clocks back now."""
    for kind in ("Event", "Throttle"):
        bits = asker.ask(f"nvmlDeviceGetCurrentClocks{kind}Reasons", handle)
        if bits is not None:
            prefix = f"nvmlClocks{kind}Reason"
            return {
                name: bool(bits & getattr(asker.nvml, prefix + word))
                for name, word in _THROTTLE_REASONS.items()
                if hasattr(asker.nvml, prefix + word)
            }
    return None


def read_ecc_errors(asker: Asker, handle: Any) -> Mapping[str, float] | None:
    """Read the memory errors since the driver was loaded."""
    nvml = asker.nvml
    kinds = {
        "corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        "uncorrected": nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    }
    counts = {
        name: asker.ask("nvmlDeviceGetTotalEccErrors", handle, kind, nvml.NVML_VOLATILE_ECC)
        for name, kind in kinds.items()
    }
    known = {name: float(count) for name, count in counts.items() if count is not None}
    return known or None


def _codes(nvml: Any, names: tuple[str, ...]) -> frozenset[int]:
    # An older library lacks the newer codes; its driver cannot answer with them either.
    return frozenset(getattr(nvml, f"NVML_ERROR_{name}") for name in names if hasattr(nvml, f"NVML_ERROR_{name}"))

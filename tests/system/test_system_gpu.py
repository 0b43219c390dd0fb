from __future__ import annotations

import inspect
import logging
from dataclasses import fields
from types import SimpleNamespace

import pynvml
import pytest

from monitor.system import GpuReader
from tests.system.fake_nvml import FakeCard, FakeInstance, FakeNvml, FakeProcess

A = "GPU-aa11aa11-0000-0000-0000-000000000000"
B = "GPU-bb11bb11-0000-0000-0000-000000000000"
M0 = "MIG-00000000-1111-1111-1111-111111111111"
M1 = "MIG-10000000-1111-1111-1111-111111111111"
PID = 4242


def make_reader(nvml, variable=None, torch_devices=lambda: None, allocator_stats=lambda index: {}):
    environ = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    return GpuReader(nvml, torch_devices=torch_devices, allocator_stats=allocator_stats, environ=environ, pid=PID)


def read(nvml, **arguments):
    """Read once; nothing may have gone wrong."""
    result = make_reader(nvml, **arguments).read()
    assert result.failure is None
    return result.gpus


def test_the_fake_has_the_signatures_of_the_real_library():
    """Every function of the fake exists in pynvml with the same parameters."""
    functions = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(functions) > 15
    for name in functions:
        fake = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        assert fake == list(inspect.signature(getattr(pynvml, name)).parameters), name


def test_all_readings_are_in_base_units():
    """Milliwatts, megahertz, millijoules and per cent become watts, hertz, joules and ratios."""
    card = FakeCard(A, processes=[FakeProcess(1, 5), FakeProcess(PID, 2**35)])
    allocator = {
        "cuda_allocated_bytes": 1.0,
        "cuda_reserved_bytes": 2.0,
        "cuda_allocation_retries": 3.0,
        "cuda_out_of_memory": 4.0,
    }
    (gpu,) = read(FakeNvml([card]), allocator_stats=lambda index: allocator)
    assert {field.name: getattr(gpu, field.name) for field in fields(gpu)} == {
        "index": 0,
        "uuid": A,
        "model": "NVIDIA H200",
        "driver_version": "580.10",
        "utilization_ratio": 0.97,
        "memory_activity_ratio": 0.4,
        "memory_used_bytes": 2.0**36,
        "memory_total_bytes": 2.0**37,
        "process_memory_bytes": 2.0**35,
        "temperature_celsius": 61.0,
        "power_watts": 540.5,
        "power_limit_watts": 700.0,
        "sm_clock_hertz": 1.98e9,
        "energy_joules": 123456.789,
        "throttle_reasons": {
            "applications_clocks_setting": False,
            "sw_power_cap": True,
            "hw_slowdown": False,
            "sync_boost": False,
            "sw_thermal_slowdown": False,
            "hw_thermal_slowdown": False,
            "hw_power_brake_slowdown": False,
            "display_clock_setting": False,
        },
        "ecc_errors": {"corrected": 3.0, "uncorrected": 0.0},
        **allocator,
    }


@pytest.mark.parametrize(
    ("function", "names"),
    [
        ("nvmlDeviceGetUtilizationRates", {"utilization_ratio", "memory_activity_ratio"}),
        ("nvmlDeviceGetPowerUsage", {"power_watts"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_watts"}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_hertz"}),
        ("nvmlDeviceGetTotalEnergyConsumption", {"energy_joules"}),
        ("nvmlDeviceGetTotalEccErrors", {"ecc_errors"}),
        ("nvmlDeviceGetComputeRunningProcesses", {"process_memory_bytes"}),
    ],
)
@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
    ],
)
def test_a_reading_that_the_card_does_not_offer_is_absent(function, names, code):
    """NVML's refusals are None, not 0, and no failure; the other readings are there."""
    process = FakeProcess(PID, 1)
    whole = read(FakeNvml([FakeCard(A, processes=[process])]))[0]
    part = read(FakeNvml([FakeCard(A, processes=[process], errors={function: code})]))[0]
    differing = {f.name for f in fields(part) if getattr(part, f.name) != getattr(whole, f.name)}
    assert differing == names
    assert [name for name in names if getattr(part, name) is not None] == []


def test_a_card_that_offers_nothing_is_still_there():
    """Identity remains when every reading is refused."""
    errors = {name: pynvml.NVML_ERROR_NOT_SUPPORTED for name in vars(FakeNvml) if name.startswith("nvmlDeviceGet")}
    for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName"):
        del errors[name]
    errors["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    (gpu,) = read(FakeNvml([FakeCard(A, errors=errors)]))
    known = {field.name for field in fields(gpu) if getattr(gpu, field.name) is not None}
    assert known == {"index", "uuid", "model", "driver_version"}


def test_memory_falls_back_to_version_1():
    """A driver without version 2 gives used memory with the reserve in it."""
    card = FakeCard(A, memory_used=1000, memory_reserved=24)
    old = FakeNvml([card], missing_in_driver=("nvmlDeviceGetMemoryInfo_v2",))
    assert read(FakeNvml([card]))[0].memory_used_bytes == 1000.0
    assert read(old)[0].memory_used_bytes == 1024.0


@pytest.mark.parametrize("place", ["missing_in_module", "missing_in_driver"])
def test_newer_functions_are_not_needed(place):
    """Temperature and clock reasons come from the older functions where module or driver lacks the new ones."""
    newer = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons")
    assert read(FakeNvml([FakeCard(A)], **{place: newer})) == read(FakeNvml([FakeCard(A)]))


def test_removed_functions_are_not_needed():
    """The deprecated functions may go: the newer ones are asked first."""
    removed = ("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons")
    assert read(FakeNvml([FakeCard(A)], missing_in_module=removed)) == read(FakeNvml([FakeCard(A)]))


def test_idle_clocks_are_not_throttled():
    """An idle GPU has no reason set."""
    (gpu,) = read(FakeNvml([FakeCard(A, clock_reasons=pynvml.nvmlClocksEventReasonGpuIdle)]))
    assert set(gpu.throttle_reasons.values()) == {False}


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ([], None),
        ([FakeProcess(1, 10)], None),
        ([FakeProcess(PID, None)], None),
        ([FakeProcess(PID, 10), FakeProcess(PID, 5), FakeProcess(1, 99)], 15.0),
    ],
    ids=["none", "other pids only", "not told", "two contexts"],
)
def test_process_memory_is_that_of_the_pid(processes, expected):
    """In a container that hides our pid from the driver, the reading is absent rather than 0."""
    assert read(FakeNvml([FakeCard(A, processes=processes)]))[0].process_memory_bytes == expected


def test_indices_are_those_of_torch():
    """CUDA_VISIBLE_DEVICES renumbers; the handle goes by UUID."""
    nvml = FakeNvml([FakeCard(A, temperature=40), FakeCard(B, temperature=50)])
    assert [(g.index, g.uuid, g.temperature_celsius) for g in read(nvml, variable="1,0")] == [
        (0, B, 50.0),
        (1, A, 40.0),
    ]
    assert [(g.index, g.uuid) for g in read(nvml, variable=B)] == [(0, B)]
    assert read(nvml, variable="") == ()


def test_torch_decides_once_cuda_is_initialised():
    """The order guessed from the environment gives way to torch's own, in the middle of a run."""
    answers = {"devices": None}
    nvml = FakeNvml([FakeCard(A), FakeCard(B)])
    reader = make_reader(nvml, torch_devices=lambda: answers["devices"])
    assert [gpu.uuid for gpu in reader.read().gpus] == [A, B]
    answers["devices"] = (B.removeprefix("GPU-"), A.removeprefix("GPU-"))
    assert [gpu.uuid for gpu in reader.read().gpus] == [B, A]


def test_a_torch_without_cuda_has_no_gpus():
    """A CPU build of torch on a machine with GPUs uses none of them."""
    assert read(FakeNvml([FakeCard(A)]), torch_devices=lambda: ()) == ()


def test_a_device_that_nvml_does_not_know_is_a_failure():
    """What torch sees and NVML does not is reported; the others are read."""
    devices = ("cccc", A.removeprefix("GPU-"))
    result = make_reader(FakeNvml([FakeCard(A)]), torch_devices=lambda: devices).read()
    assert [(gpu.index, gpu.uuid) for gpu in result.gpus] == [(1, A)]
    assert str(result.failure) == "GPU 0: torch sees it and NVML does not"


def test_a_mig_instance_has_its_own_memory_and_its_cards_sensors():
    """Memory and processes are the instance's, power and temperature the card's; utilization is not supported."""
    instance = FakeInstance(M1, memory_total=1000, memory_used=10, processes=[FakeProcess(PID, 7)])
    card = FakeCard(A, instances=[FakeInstance(M0), None, instance], processes=[FakeProcess(1, 99)])
    (gpu,) = read(FakeNvml([card]), variable=M1)
    assert (gpu.uuid, gpu.model) == (M1, instance.name)
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.process_memory_bytes) == (1000.0, 10.0, 7.0)
    assert (gpu.power_watts, gpu.temperature_celsius) == (540.5, 61.0)
    assert gpu.utilization_ratio is None


def test_a_lost_card_leaves_the_others():
    """A card that falls off the bus is missing and named; the other one continues under its index."""
    lost, well = FakeCard(A), FakeCard(B)
    reader = make_reader(FakeNvml([lost, well]))
    assert len(reader.read().gpus) == 2
    lost.errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        result = reader.read()
        assert [(gpu.index, gpu.uuid) for gpu in result.gpus] == [(1, B)]
        assert str(result.failure) == f"GPU 0 ({A}): GPU is lost"
        assert isinstance(result.failure.__cause__, pynvml.NVMLError_GpuIsLost)
    lost.errors.clear()
    result = reader.read()
    assert ([gpu.index for gpu in result.gpus], result.failure) == ([0, 1], None)


def test_a_card_lost_from_the_start_is_looked_for_again():
    """A list that lacks a card which torch uses is not kept: once the card answers, it is there."""
    lost, well = FakeCard(A, errors={"*": pynvml.NVML_ERROR_GPU_IS_LOST}), FakeCard(B)
    devices = (A.removeprefix("GPU-"), B.removeprefix("GPU-"))
    reader = make_reader(FakeNvml([lost, well]), torch_devices=lambda: devices)
    result = reader.read()
    assert [gpu.index for gpu in result.gpus] == [1]
    assert str(result.failure) == "GPU at NVML index 0: GPU is lost"
    lost.errors.clear()
    result = reader.read()
    assert ([gpu.index for gpu in result.gpus], result.failure) == ([0, 1], None)


def test_a_card_that_the_container_may_not_see_is_no_failure():
    """A card whose handle is refused keeps its place in NVML's order and is left out."""
    hidden = FakeCard(A, errors={"*": pynvml.NVML_ERROR_NO_PERMISSION})
    nvml = FakeNvml([hidden, FakeCard(B)])
    assert [gpu.uuid for gpu in read(nvml, variable="1")] == [B]


def test_a_driver_that_goes_away_during_the_search_is_contained():
    """The first round may be the one in which the driver goes."""
    card = FakeCard(A, errors={"nvmlDeviceGetUUID": pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
    result = make_reader(FakeNvml([card])).read()
    assert (result.gpus, str(result.failure)) == ((), "NVML: Driver Not Loaded")


def test_a_module_that_is_newer_than_its_driver_costs_one_reading():
    """pynvml says "library mismatch" with an error that is no NVMLError: the reading is absent."""

    class Mismatched(FakeNvml):
        def nvmlDeviceGetComputeRunningProcesses(self, handle):
            raise pynvml.NVMLLibraryMismatchError("Unversioned function called")

    (gpu,) = read(Mismatched([FakeCard(A, processes=[FakeProcess(PID, 5)])]))
    assert (gpu.process_memory_bytes, gpu.power_watts) == (None, 540.5)


def test_a_driver_that_goes_away_in_the_middle_of_a_round_is_contained():
    """A driver replaced under the process ends the round without readings, not with an exception."""
    card = FakeCard(A)
    reader = make_reader(FakeNvml([card]))
    reader.read()
    card.errors["nvmlDeviceGetPowerUsage"] = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    result = reader.read()
    assert (result.gpus, str(result.failure)) == ((), "NVML: RM has detected an NVML/RM version mismatch.")


def test_one_strange_answer_costs_one_reading():
    """An error that means neither "not offered" nor "gone" is an absent reading and a failure of the round."""
    card = FakeCard(A, errors={"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_UNKNOWN})
    result = make_reader(FakeNvml([card])).read()
    assert (result.gpus[0].power_watts, result.gpus[0].temperature_celsius) == (None, 61.0)
    assert str(result.failure) == "nvmlDeviceGetPowerUsage: Unknown Error"


def test_a_reloaded_driver_is_opened_again():
    """After a reload the handles are found anew within the same round."""
    nvml = FakeNvml([FakeCard(A)])
    reader = make_reader(nvml)
    reader.read()
    nvml.reload()
    result = reader.read()
    assert ([gpu.uuid for gpu in result.gpus], result.failure) == ([A], None)
    assert nvml.num_inits == 1


def test_an_unloaded_driver_is_a_failure_until_it_is_back():
    """While the driver is away there are no readings and no exception; afterwards all is as before."""
    nvml = FakeNvml([FakeCard(A)])
    reader = make_reader(nvml)
    reader.read()
    nvml.unload()
    for _ in range(2):
        result = reader.read()
        assert (result.gpus, str(result.failure)) == ((), "NVML: Driver Not Loaded")
    nvml.reload()
    result = reader.read()
    assert ([gpu.uuid for gpu in result.gpus], result.failure) == ([A], None)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_there_are_no_gpus(code, caplog):
    """A machine without a driver is reported once, at level debug; that is no failure, and it is not asked again."""
    nvml = FakeNvml([FakeCard(A)])
    nvml.unload(code)
    reader = make_reader(nvml)
    with caplog.at_level(logging.DEBUG, "monitor"):
        rounds = [reader.read() for _ in range(3)]
    assert [(r.gpus, r.failure) for r in rounds] == [((), None)] * 3
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert nvml.calls == []


def test_without_the_library_there_are_no_gpus(monkeypatch, caplog):
    """A missing pynvml is no more than a missing GPU."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with caplog.at_level(logging.DEBUG, "monitor"):
        assert GpuReader().read().gpus == ()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_failing_allocator_costs_only_its_own_readings():
    """After a CUDA error torch refuses its statistics; the card is read all the same."""

    def refuse(index):
        raise RuntimeError("CUDA error")

    result = make_reader(FakeNvml([FakeCard(A)]), allocator_stats=refuse).read()
    assert (result.gpus[0].cuda_allocated_bytes, result.gpus[0].power_watts) == (None, 540.5)
    assert str(result.failure) == "caching allocator of GPU 0: CUDA error"


def test_identity_is_looked_up_once():
    """A round in the steady state asks for readings only."""
    nvml = FakeNvml([FakeCard(A), FakeCard(B)])
    reader = make_reader(nvml)
    reader.read()
    nvml.calls.clear()
    reader.read()
    assert {"nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetCount"} & set(nvml.calls) == set()


def test_closing_gives_the_library_back():
    """close() undoes nvmlInit once, also when it is called twice or before a reading."""
    nvml = FakeNvml([FakeCard(A)])
    reader = make_reader(nvml)
    reader.close()
    reader.read()
    assert nvml.num_inits == 1
    reader.close()
    reader.close()
    assert nvml.num_inits == 0


def test_the_real_library_is_read_or_absent():
    """With the installed pynvml and torch there is no exception, GPU or not."""
    reader = GpuReader()
    result = reader.read()
    reader.close()
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in result.gpus)
    assert result.failure is None


def test_older_modules_lack_newer_error_codes():
    """Codes that the installed library does not know are not looked for."""
    from monitor.system._nvml import _codes

    assert _codes(SimpleNamespace(NVML_ERROR_NOT_FOUND=6), ("NOT_FOUND", "GPU_NOT_FOUND")) == {6}


@pytest.mark.parametrize(
    ("is_asked", "torch_devices", "level"),
    [(False, (), "DEBUG"), (False, None, "DEBUG"), (True, (), "INFO"), (False, ("GPU-aa",), "INFO")],
)
def test_that_there_is_no_driver_is_news_only_where_a_gpu_was_to_be_expected(is_asked, torch_devices, level, caplog):
    """A machine without a GPU is no line in the log; where torch uses one, or one was asked for, one line says so."""
    nvml = FakeNvml([])
    nvml.unload()
    reader = GpuReader(nvml, torch_devices=lambda: torch_devices, environ={}, is_asked=is_asked)
    with caplog.at_level(logging.DEBUG, "monitor"):
        assert (reader.read().gpus, reader.read().gpus) == ((), ())
    assert [(r.levelname, r.getMessage().partition(":")[0]) for r in caplog.records] == [(level, "GPUs are not read")]

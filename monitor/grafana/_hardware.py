"""Hardware: GPUs, host and process tree of every run; the panels serve the Run dashboard too."""

from __future__ import annotations

from monitor.export._promql import per_run
from monitor.grafana._dashboard import Dashboard, Row
from monitor.grafana._panel import Panel, Query, override, value_mapping
from monitor.grafana._panels import state_timeline, table, timeseries
from monitor.grafana._queries import increase, latest, rate, select

_GPU = "{{run_id}} GPU {{gpu}}"
_NO_GPU = "no GPU that can be read"


def utilization() -> Panel:
    """Show how busy the GPUs are."""
    return timeseries(
        "GPU utilization",
        "Share of time in which a kernel ran, and in which device memory was read or written. A low one with a long "
        "data phase means that the GPU waits for its batches.",
        "percentunit",
        Query(select("training_gpu_utilization_ratio"), f"{_GPU} kernels"),
        Query(select("training_gpu_memory_activity_ratio"), f"{_GPU} memory"),
        noValue=_NO_GPU,
        min=0,
        max=1,
    )


def gpu_memory() -> Panel:
    """Show where the device memory goes."""
    return timeseries(
        "GPU memory",
        "In use on the card, by this process, and within PyTorch's caching allocator: reserved of the device, held by "
        "tensors.",
        "bytes",
        Query(select("training_gpu_memory_used_bytes"), f"{_GPU} in use"),
        Query(select("training_gpu_memory_total_bytes"), f"{_GPU} total"),
        Query(select("training_gpu_process_memory_bytes"), f"{_GPU} this process"),
        Query(select("training_cuda_reserved_bytes"), f"{_GPU} reserved"),
        Query(select("training_cuda_allocated_bytes"), f"{_GPU} tensors"),
        noValue=_NO_GPU,
        min=0,
    )


def host_cpu() -> Panel:
    """Show how busy the machine is."""
    return timeseries(
        "CPU",
        "Share of the machine's CPU time in use, by everyone.",
        "percentunit",
        Query(select("training_host_cpu_utilization_ratio"), "{{run_id}}"),
        min=0,
        max=1,
    )


def host_memory() -> Panel:
    """Show the machine's memory and what the trainer holds of it."""
    return timeseries(
        "Memory",
        "Of the machine: in use and total. Of the trainer with its workers: resident; pages that they share count once "
        "for each.",
        "bytes",
        Query(select("training_host_memory_used_bytes"), "{{run_id}} machine"),
        Query(select("training_host_memory_total_bytes"), "{{run_id}} total"),
        Query(select("training_process_tree_resident_memory_bytes"), "{{run_id}} trainer"),
        min=0,
    )


def _cards() -> Panel:
    used = per_run("max", latest("training_gpu_memory_used_bytes"), "gpu")
    total = per_run("max", latest("training_gpu_memory_total_bytes"), "gpu")
    queries = (
        per_run("max", latest("training_gpu_info"), "gpu", "model", "uuid", "driver_version"),
        per_run("max", latest("training_gpu_utilization_ratio"), "gpu"),
        f"{used} / {total}",
        per_run("max", latest("training_gpu_temperature_celsius"), "gpu"),
        per_run("max", latest("training_gpu_power_watts"), "gpu"),
    )
    share = {"unit": "percentunit", "min": 0, "max": 1, "custom__cellOptions": {"type": "gauge", "mode": "basic"}}
    return table(
        "Cards",
        "The GPUs that the chosen runs train on, with what was last scraped of each within the time range.",
        "short",
        *(Query(query) for query in queries),
        columns={
            "run_id": "Run",
            "gpu": "GPU",
            "model": "Model",
            "Value #B": "Utilization",
            "Value #C": "Memory",
            "Value #D": "Temperature",
            "Value #E": "Power",
            "driver_version": "Driver",
            "uuid": "UUID",
            "instance": "Page",
        },
        overrides=(
            override("Utilization", **share),
            override("Memory", **share),
            override("Temperature", unit="celsius"),
            override("Power", unit="watt"),
        ),
    )


def _electrics() -> tuple[Panel, ...]:
    return (
        timeseries(
            "Temperature",
            "Of the GPU die. Cards begin to hold their clocks back somewhere between 80 and 95 °C.",
            "celsius",
            Query(select("training_gpu_temperature_celsius"), _GPU),
            noValue=_NO_GPU,
        ),
        timeseries(
            "Power",
            "Draw of the card, as it reports it and as its energy counter grows, and the limit in force.",
            "watt",
            Query(select("training_gpu_power_watts"), _GPU),
            Query(rate("training_gpu_energy_joules_total"), f"{_GPU} from energy"),
            Query(select("training_gpu_power_limit_watts"), f"{_GPU} limit"),
            noValue=_NO_GPU,
            min=0,
        ),
        timeseries(
            "SM clock",
            "Clock of the streaming multiprocessors.",
            "hertz",
            Query(select("training_gpu_sm_clock_hertz"), _GPU),
            noValue=_NO_GPU,
            min=0,
        ),
    )


def _faults() -> tuple[Panel, ...]:
    return (
        state_timeline(
            "Clocks held back",
            "Coloured while the card holds its clocks back for the reason at the left: heat, power, or a slow-down "
            "that the hardware asks for.",
            Query(select("training_gpu_throttled"), f"{_GPU} {{{{reason}}}}"),
            mappings=(value_mapping({"0": ("no", "transparent"), "1": ("held back", "orange")}),),
            no_value=_NO_GPU,
        ).sized(8),
        timeseries(
            "Memory errors",
            "ECC errors in each interval. An uncorrected one may have spoiled a value of this run.",
            "none",
            Query(increase("training_gpu_ecc_errors_total"), f"{_GPU} {{{{kind}}}}"),
            noValue="no GPU with memory that counts its errors",
            is_bars=True,
            min=0,
        ),
        timeseries(
            "Allocator trouble",
            "Times that PyTorch's caching allocator had to free its cache and try again, and times it failed "
            "altogether, in each interval.",
            "none",
            Query(increase("training_cuda_allocation_retries_total"), f"{_GPU} retries"),
            Query(increase("training_cuda_out_of_memory_total"), f"{_GPU} out of memory"),
            noValue="not trained on a CUDA device",
            is_bars=True,
            min=0,
        ),
    )


def _trainer_cpu() -> Panel:
    return timeseries(
        "CPU of the trainer",
        "CPU seconds a second that the trainer and its workers use: 1 is one core.",
        "short",
        Query(rate("training_process_tree_cpu_seconds_total"), "{{run_id}}"),
        min=0,
    )


def hardware() -> Dashboard:
    """Build the dashboard of cards and machines."""
    return Dashboard(
        "training-monitor-hardware",
        "Training: hardware",
        "GPUs, host and process tree of the chosen runs. What a card does not offer is absent.",
        (
            Row("GPUs", (_cards(), utilization().sized(12), gpu_memory().sized(12), *_electrics(), *_faults())),
            Row("Host", (host_cpu(), _trainer_cpu(), host_memory())),
        ),
        variables=("gpu",),
    )

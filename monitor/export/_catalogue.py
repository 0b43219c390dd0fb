"""The metric catalogue: one table, from which the scrape, the documentation and every check are made.

Names are those of the text format: counters end in ``_total``, info metrics in ``_info``. ``run_id`` is the
first label of every series and is not repeated in ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MetricType = Literal["counter", "gauge", "histogram", "info", "stateset", "summary"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalogue. ``labels`` are those besides ``run_id``; ``unit`` is a base unit or empty."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    unit: str
    help: str

    @property
    def family(self) -> str:
        """Name the metric family as OpenMetrics does: without ``_total`` and ``_info``.

        >>> Metric("training_steps_total", "counter", (), "", "").family
        'training_steps'
        """
        suffix = {"counter": "_total", "info": "_info"}.get(self.type, "")
        return self.name.removesuffix(suffix)


def _counter(name: str, help: str, *labels: str, unit: str = "") -> Metric:  # noqa: A002
    return Metric(name, "counter", labels, unit, help)


def _gauge(name: str, help: str, *labels: str, unit: str = "") -> Metric:  # noqa: A002
    return Metric(name, "gauge", labels, unit, help)


def _histogram(name: str, help: str, *labels: str, unit: str = "") -> Metric:  # noqa: A002
    return Metric(name, "histogram", labels, unit, help)


def _info(name: str, help: str, *labels: str) -> Metric:  # noqa: A002
    return Metric(name, "info", labels, "", help)


_RUN = (
    _info(
        "training_run_info",
        "Identity of the run; always 1. Join with group_left on run_id.",
        *("run_name", "torch_version", "device", "hostname", "world_size", "git_commit", "monitor_version"),
    ),
    Metric(
        "training_run_state",
        "stateset",
        ("training_run_state",),
        "",
        "State of the run: exactly one of starting, running, paused, finished, failed, interrupted is 1.",
    ),
    _gauge("training_run_start_timestamp_seconds", "Unix time at which the run began.", unit="seconds"),
    _gauge(
        "training_run_end_timestamp_seconds",
        "Unix time at which the run ended; absent while it lives.",
        unit="seconds",
    ),
    _gauge(
        "training_last_step_timestamp_seconds",
        "Unix time of the last optimizer step.",
        "rank",
        unit="seconds",
    ),
    _gauge(
        "training_stall_timeout_seconds",
        "Configured time without a step after which the run counts as stalled.",
        unit="seconds",
    ),
)

_PROGRESS = (
    _counter("training_steps_total", "Optimizer steps made since the run was attached.", "optimizer"),
    _gauge("training_global_step", "Step of the run, earlier sessions of a resumed run included.", "optimizer"),
    _gauge("training_target_steps", "Planned optimizer steps; absent if unknown."),
    _counter("training_samples_total", "Training samples that the script reported; absent unless reported."),
    _counter("training_tokens_total", "Training tokens that the script reported; absent unless reported."),
    _histogram(
        "training_step_duration_seconds",
        "Wall time between optimizer steps; 17 buckets from 1 ms, each twice the one before.",
        unit="seconds",
    ),
    _counter(
        "training_phase_duration_seconds_total",
        "Host wall time by phase; data is the time spent waiting for a DataLoader.",
        "phase",
        unit="seconds",
    ),
)

_RANKS = (
    _gauge("training_ranks", "Ranks that train together, by state; absent unless this is rank 0 of several.", "state"),
    _gauge("training_summed_ranks", "Ranks whose shares are in loss and gradient norm."),
    _counter("training_incomplete_steps_total", "Steps whose loss and gradient norm lack the share of a rank."),
    _gauge("training_rank_step", "Step that a rank has reached.", "rank"),
    _gauge(
        "training_rank_step_duration_seconds",
        "Median step time of a rank over the last second with steps.",
        "rank",
        unit="seconds",
    ),
    _gauge(
        "training_rank_own_duration_seconds",
        "Mean time of a step that a rank takes apart from the backward pass, in which it waits for the others.",
        "rank",
        unit="seconds",
    ),
    _gauge(
        "training_rank_last_seen_seconds",
        "Time for which a rank has said nothing, by rank 0's clock.",
        "rank",
        unit="seconds",
    ),
)

_LOSS = (
    _gauge(
        "training_loss",
        "Loss of the last optimizer step; NaN is shown as NaN, and a loss that is not known is absent.",
        "optimizer",
    ),
    _gauge("training_loss_ema", "Exponentially weighted mean of the finite losses.", "optimizer"),
    _gauge("training_loss_window_mean", "Mean of the finite losses in the trailing window.", "optimizer"),
    _gauge("training_loss_window_min", "Lowest finite loss in the trailing window.", "optimizer"),
    _gauge("training_loss_window_max", "Highest finite loss in the trailing window.", "optimizer"),
    _gauge(
        "training_loss_window_stddev",
        "Standard deviation of the finite losses in the trailing window.",
        "optimizer",
    ),
    _gauge("training_loss_best", "Lowest smoothed loss so far.", "optimizer"),
    _gauge("training_loss_best_step", "Step at which the smoothed loss was lowest.", "optimizer"),
    Metric(
        "training_step_loss",
        "summary",
        ("optimizer", "sign"),
        "",
        "Sum and count of the finite losses, for exact means by rate(); negative ones with inverted sign.",
    ),
    _gauge("training_validation_loss", "Last reported validation loss.", "dataset"),
    _gauge("training_metric", "Last value of a metric that the script logged; 64 names at most.", "name"),
)

_LEARNING_RATE = (
    _gauge("training_learning_rate", "Learning rate that the last update used.", "optimizer", "param_group"),
    _gauge(
        "training_scheduled_learning_rate",
        "Learning rate that the schedule asked for.",
        "optimizer",
        "param_group",
    ),
    _gauge(
        "training_learning_rate_factor",
        "Factor that commands put in force; 1: none. It is applied over scheduled LR unless min_lr holds.",
        "optimizer",
        "param_group",
    ),
    _info("training_param_group_info", "Name of a param group.", "optimizer", "param_group", "name"),
    _gauge(
        "training_weight_decay",
        "Weight decay of a param group; absent where the optimizer has none.",
        "optimizer",
        "param_group",
    ),
    _gauge(
        "training_momentum",
        "Momentum of a param group; absent where the optimizer has none.",
        "optimizer",
        "param_group",
    ),
)

_GRADIENTS = (
    _gauge("training_gradient_norm", "Total L2 norm of the gradients before clipping, as last measured.", "optimizer"),
    _gauge("training_gradient_norm_step", "Step at which that gradient norm was measured.", "optimizer"),
    _gauge(
        "training_gradient_norm_window_max",
        "Highest finite gradient norm in the trailing window.",
        "optimizer",
    ),
    _gauge(
        "training_gradient_norm_window_median",
        "Median of the finite gradient norms in the trailing window.",
        "optimizer",
    ),
    _histogram(
        "training_step_gradient_norm",
        "Finite gradient norms, one a step; buckets at 10^(k/2) for k from -8 to 8.",
        "optimizer",
    ),
    _gauge("training_gradient_clip_threshold", "Threshold of the last clip; absent without.", "optimizer"),
    _counter(
        "training_gradient_clip_checks_total",
        "Steps at which clipping (kind norm or value) was evaluated.",
        "optimizer",
        "kind",
    ),
    _counter(
        "training_gradient_clips_total",
        "Steps at which clipping (kind norm or value) took effect.",
        "optimizer",
        "kind",
    ),
    _gauge(
        "training_gradient_clip_factor",
        "What the last clip multiplied the gradients by; 1 means untouched.",
        "optimizer",
    ),
    _counter(
        "training_skipped_steps_total",
        "Steps that were not made, by reason (amp_overflow: GradScaler found Inf or NaN).",
        "optimizer",
        "reason",
    ),
    _gauge("training_amp_scale", "Loss scale of the GradScaler; absent without one.", "optimizer"),
    _counter(
        "training_nonfinite_total",
        "Steps at which the loss or the gradient norm (kind) was NaN or Inf.",
        "optimizer",
        "kind",
    ),
)

_EVENTS = (
    _counter("training_events_total", "Events raised, by kind; capture: the monitor cannot see something.", "kind"),
    _gauge("training_event_active", "1 while the condition of this kind holds.", "kind"),
    _gauge(
        "training_last_event_timestamp_seconds",
        "Unix time of the last event of this kind.",
        "kind",
        unit="seconds",
    ),
    _gauge("training_last_event_step", "Step at which the last event of this kind was raised.", "kind"),
)

_CONTROL = (
    _counter(
        "training_control_commands_total",
        "Commands by action, source and outcome.",
        "action",
        "source",
        "outcome",
    ),
    _gauge(
        "training_control_last_applied_timestamp_seconds",
        "Unix time at which a command of this action was last applied.",
        "action",
        unit="seconds",
    ),
    _gauge("training_control_pending_commands", "Commands accepted and not yet applied."),
)

_GPU = (
    _info("training_gpu_info", "Identity of a GPU; always 1.", "gpu", "uuid", "model", "driver_version"),
    _gauge("training_gpu_utilization_ratio", "Share of time in which a kernel ran.", "gpu", unit="ratio"),
    _gauge(
        "training_gpu_memory_activity_ratio",
        "Share of time in which device memory was read or written.",
        "gpu",
        unit="ratio",
    ),
    _gauge("training_gpu_memory_used_bytes", "Device memory in use by all processes.", "gpu", unit="bytes"),
    _gauge("training_gpu_memory_total_bytes", "Memory of the GPU or MIG instance.", "gpu", unit="bytes"),
    _gauge(
        "training_gpu_process_memory_bytes",
        "Device memory in use by the training process.",
        "gpu",
        unit="bytes",
    ),
    _gauge("training_gpu_temperature_celsius", "Temperature of the GPU die.", "gpu", unit="celsius"),
    _gauge("training_gpu_power_watts", "Power draw of the card.", "gpu", unit="watts"),
    _gauge("training_gpu_power_limit_watts", "Power limit in force on the card.", "gpu", unit="watts"),
    _gauge("training_gpu_sm_clock_hertz", "Clock of the streaming multiprocessors.", "gpu", unit="hertz"),
    _counter(
        "training_gpu_energy_joules_total",
        "Energy used by the card since its driver was loaded.",
        "gpu",
        unit="joules",
    ),
    _gauge("training_gpu_throttled", "1 while clocks are held back for this reason.", "gpu", "reason"),
    _counter(
        "training_gpu_ecc_errors_total",
        "Memory errors since the driver was loaded, corrected and uncorrected (kind).",
        "gpu",
        "kind",
    ),
    _gauge(
        "training_cuda_allocated_bytes",
        "Bytes that tensors hold in PyTorch's caching allocator.",
        "gpu",
        unit="bytes",
    ),
    _gauge(
        "training_cuda_reserved_bytes",
        "Bytes that PyTorch's caching allocator holds of the device.",
        "gpu",
        unit="bytes",
    ),
    _counter(
        "training_cuda_allocation_retries_total",
        "Times the caching allocator had to free its cache and try again.",
        "gpu",
    ),
    _counter("training_cuda_out_of_memory_total", "Out-of-memory errors of the caching allocator.", "gpu"),
)

_HOST = (
    _gauge("training_host_cpu_utilization_ratio", "Share of the machine's CPU time in use.", unit="ratio"),
    _gauge("training_host_memory_used_bytes", "Memory in use: total - available.", unit="bytes"),
    _gauge("training_host_memory_total_bytes", "Memory of the machine.", unit="bytes"),
    _gauge(
        "training_process_tree_resident_memory_bytes",
        "Resident memory of the trainer and its workers; pages that they share count once for each.",
        unit="bytes",
    ),
    _counter(
        "training_process_tree_cpu_seconds_total",
        "CPU time of the trainer and its workers, those that have ended included.",
        unit="seconds",
    ),
)

_MONITOR = (
    _counter(
        "training_monitor_hook_seconds_total",
        "Time that the monitor's hooks took on the training thread.",
        unit="seconds",
    ),
    _gauge("training_monitor_overhead_ratio", "Hook time over step time in the trailing window.", unit="ratio"),
    _counter("training_monitor_errors_total", "Failures of the monitor itself, contained, by component.", "component"),
    _counter(
        "training_monitor_dropped_steps_total",
        "Steps not recorded: the recorder fell behind, or a step overlapped another of the same optimizer.",
    ),
    _gauge("training_monitor_dropped_series", "Series left out because a bound was reached."),
    _gauge(
        "training_monitor_collect_duration_seconds",
        "Time that the last round of a collector (training, gpu, host) took.",
        "collector",
        unit="seconds",
    ),
    _gauge(
        "training_monitor_collect_success",
        "1 if the last round of a collector (training, gpu, host) went well, else 0.",
        "collector",
    ),
)

SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Run": _RUN,
    "Progress": _PROGRESS,
    "Ranks": _RANKS,
    "Loss and logged values": _LOSS,
    "Learning rate": _LEARNING_RATE,
    "Gradients": _GRADIENTS,
    "Events": _EVENTS,
    "Control": _CONTROL,
    "GPU": _GPU,
    "Host": _HOST,
    "The monitor itself": _MONITOR,
}
CATALOGUE: tuple[Metric, ...] = tuple(metric for section in SECTIONS.values() for metric in section)
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in CATALOGUE}

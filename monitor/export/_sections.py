"""The sections of the catalogue: plain functions from a snapshot to samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product

from monitor._records import (
    ACTIONS,
    COMPONENTS,
    EVENT_KINDS,
    MAX_NAMES,
    MAX_RANKS,
    OUTCOMES,
    PHASES,
    RANK_KINDS,
    RANK_STATES,
    SOURCES,
    STATES,
    GpuReading,
    OptimizerSnapshot,
    ParamGroup,
    RankReading,
    Snapshot,
)
from monitor.export._samples import Samples

SERIES_PER_GROUP = 4

Section = Callable[[Snapshot, Samples], None]


def render_run(snapshot: Snapshot, samples: Samples) -> None:
    """Render identity, state and times of the run."""
    run = snapshot.run
    samples.put(
        "training_run_info",
        1,
        *(run.name, run.torch_version, run.device, run.hostname),
        *(str(run.world_size), run.git_commit, run.monitor_version),
    )
    samples.put_states("training_run_state", snapshot.state, STATES)
    samples.put("training_run_start_timestamp_seconds", run.start_time)
    samples.put("training_run_end_timestamp_seconds", snapshot.end_time)
    samples.put("training_last_step_timestamp_seconds", snapshot.last_step_time, str(run.rank))
    samples.put("training_stall_timeout_seconds", snapshot.stall_timeout)


def render_progress(snapshot: Snapshot, samples: Samples) -> None:
    """Render step counts, step time and phases."""
    for key, optimizer in labelled(snapshot):
        samples.put("training_steps_total", optimizer.steps, key)
        samples.put("training_global_step", optimizer.global_step, key)
    samples.put("training_target_steps", snapshot.target_steps)
    samples.put("training_samples_total", snapshot.samples_total)
    samples.put("training_tokens_total", snapshot.tokens_total)
    samples.put_histogram("training_step_duration_seconds", snapshot.step_duration)
    for phase in PHASES:
        samples.put("training_phase_duration_seconds_total", snapshot.phase_seconds.get(phase, 0.0), phase)


def render_ranks(snapshot: Snapshot, samples: Samples) -> None:
    """Render how many ranks are in which state, and how far each is, a bounded number of them."""
    if not snapshot.ranks:
        return
    for state in RANK_STATES:
        samples.put("training_ranks", sum(one.state == state for one in snapshot.ranks), state)
    samples.put("training_summed_ranks", snapshot.summed_ranks)
    samples.put("training_incomplete_steps_total", snapshot.incomplete_steps)
    for one in snapshot.ranks[:MAX_RANKS]:
        for name, value in _series_of(one).items():
            samples.put(f"training_rank_{name}", value, str(one.rank))


def _series_of(one: RankReading) -> dict[str, float | None]:
    return {
        "step": one.step,
        "step_duration_seconds": one.step_time,
        "own_duration_seconds": one.own_time,
        "last_seen_seconds": one.last_seen_seconds,
    }


def render_losses(snapshot: Snapshot, samples: Samples) -> None:
    """Render the losses of every optimizer."""
    for key, optimizer in labelled(snapshot):
        samples.put("training_loss", optimizer.loss, key)
        samples.put("training_loss_ema", optimizer.loss_ema, key)
        samples.put("training_loss_window_mean", optimizer.loss_window_mean, key)
        samples.put("training_loss_window_min", optimizer.loss_window_min, key)
        samples.put("training_loss_window_max", optimizer.loss_window_max, key)
        samples.put("training_loss_window_stddev", optimizer.loss_window_stddev, key)
        samples.put("training_loss_best", optimizer.loss_best, key)
        samples.put("training_loss_best_step", optimizer.loss_best_step, key)
        samples.put_summary(
            "training_step_loss", optimizer.loss_positive_sum, optimizer.loss_positive_count, key, "positive"
        )
        # A sum may only grow, or rate() takes it for a restart: negative losses are summed by their size.
        samples.put_summary(
            "training_step_loss",
            abs(optimizer.loss_negative_sum),
            optimizer.loss_negative_count,
            key,
            "negative",
        )


def render_logged(snapshot: Snapshot, samples: Samples) -> None:
    """Render what the script logged by name, a bounded number of names of each."""
    for dataset, loss in islice(snapshot.validation_losses.items(), MAX_NAMES):
        samples.put("training_validation_loss", loss, dataset)
    for name, value in islice(snapshot.metrics.items(), MAX_NAMES):
        samples.put("training_metric", value, name)


def render_groups(groups: Iterable[tuple[str, ParamGroup]], samples: Samples) -> None:
    """Render the learning rates of the given param groups."""
    for key, group in groups:
        index = str(group.index)
        samples.put("training_learning_rate", group.applied, key, index)
        samples.put("training_scheduled_learning_rate", group.scheduled, key, index)
        samples.put("training_learning_rate_factor", group.factor, key, index)
        samples.put("training_param_group_info", 1, key, index, group.name or "")
        samples.put("training_weight_decay", group.weight_decay, key, index)
        samples.put("training_momentum", group.momentum, key, index)


def render_gradients(snapshot: Snapshot, samples: Samples) -> None:
    """Render gradient norms, clipping, loss scale and non-finite steps."""
    for key, optimizer in labelled(snapshot):
        samples.put("training_gradient_norm", optimizer.gradient_norm, key)
        samples.put("training_gradient_norm_step", optimizer.gradient_norm_step, key)
        samples.put("training_gradient_norm_window_max", optimizer.gradient_norm_window_max, key)
        samples.put("training_gradient_norm_window_median", optimizer.gradient_norm_window_median, key)
        samples.put_histogram("training_step_gradient_norm", optimizer.gradient_norm_histogram, key)
        samples.put("training_gradient_clip_threshold", optimizer.clip_threshold, key)
        samples.put("training_gradient_clip_factor", optimizer.clip_factor, key)
        samples.put("training_amp_scale", optimizer.amp_scale, key)
        for kind in ("norm", "value"):
            samples.put("training_gradient_clip_checks_total", optimizer.clip_checks.get(kind, 0), key, kind)
            samples.put("training_gradient_clips_total", optimizer.clips.get(kind, 0), key, kind)
        for reason, count in {"amp_overflow": 0, **optimizer.skipped_steps}.items():
            samples.put("training_skipped_steps_total", count, key, reason)
        for kind, count in {"loss": 0, "gradient": 0, **optimizer.nonfinite}.items():
            samples.put("training_nonfinite_total", count, key, kind)


def render_events(snapshot: Snapshot, samples: Samples) -> None:
    """Render the events, every kind that the run may have from 0 on: only several ranks have some of them."""
    kinds = [kind for kind in EVENT_KINDS if kind not in RANK_KINDS or snapshot.ranks]
    for kind, count in {**dict.fromkeys(kinds, 0), **snapshot.events_total}.items():
        samples.put("training_events_total", count, kind)
    for kind, is_active in {**dict.fromkeys(kinds, False), **snapshot.events_active}.items():
        samples.put("training_event_active", float(is_active), kind)
    for kind, time in snapshot.last_event_time.items():
        samples.put("training_last_event_timestamp_seconds", time, kind)
    for kind, step in snapshot.last_event_step.items():
        samples.put("training_last_event_step", step, kind)


def render_control(snapshot: Snapshot, samples: Samples) -> None:
    """Render the commands, all combinations from 0 on: a rule must see the first one as an increase."""
    zeros = dict.fromkeys(product(ACTIONS, SOURCES, OUTCOMES), 0)
    for labels, count in {**zeros, **snapshot.commands_total}.items():
        samples.put("training_control_commands_total", count, *labels)
    for action, time in snapshot.commands_last_applied.items():
        samples.put("training_control_last_applied_timestamp_seconds", time, action)
    samples.put("training_control_pending_commands", snapshot.commands_pending)


def render_monitor(snapshot: Snapshot, samples: Samples) -> None:
    """Render what the monitor knows about itself."""
    samples.put("training_monitor_hook_seconds_total", snapshot.hook_seconds)
    samples.put("training_monitor_overhead_ratio", snapshot.overhead_ratio)
    none: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
    for component, count in {**none, **snapshot.errors}.items():
        samples.put("training_monitor_errors_total", count, component)
    samples.put("training_monitor_dropped_steps_total", snapshot.dropped_steps)


def render_gpus(snapshot: Snapshot, samples: Samples) -> None:
    """Render every GPU; what a card does not offer stays absent."""
    for reading in snapshot.gpus:
        _render_gpu(reading, samples)


def render_host(snapshot: Snapshot, samples: Samples) -> None:
    """Render the machine and the process tree."""
    if (host := snapshot.host) is None:
        return
    samples.put("training_host_cpu_utilization_ratio", host.cpu_utilization_ratio)
    samples.put("training_host_memory_used_bytes", host.memory_used_bytes)
    samples.put("training_host_memory_total_bytes", host.memory_total_bytes)
    samples.put("training_process_tree_resident_memory_bytes", host.tree_resident_bytes)
    samples.put("training_process_tree_cpu_seconds_total", host.tree_cpu_seconds)


def labelled(snapshot: Snapshot) -> Iterator[tuple[str, OptimizerSnapshot]]:
    """Pair each optimizer with its ``optimizer`` label: its key, or its class name where it has none."""
    for optimizer in snapshot.optimizers:
        yield optimizer.key or optimizer.class_name, optimizer


def labelled_groups(snapshot: Snapshot) -> Iterator[tuple[str, ParamGroup]]:
    """Pair every param group of the run with the label of its optimizer."""
    for key, optimizer in labelled(snapshot):
        for group in optimizer.groups:
            yield key, group


def count_dropped(snapshot: Snapshot, max_groups: int) -> int:
    """Count the series that the bounds on param groups, names and ranks leave out."""
    dropped = sum(
        SERIES_PER_GROUP + (group.weight_decay is not None) + (group.momentum is not None)
        for _, group in islice(labelled_groups(snapshot), max_groups, None)
    )
    dropped += sum(value is not None for one in snapshot.ranks[MAX_RANKS:] for value in _series_of(one).values())
    names = (snapshot.validation_losses, snapshot.metrics)
    return dropped + sum(max(0, len(values) - MAX_NAMES) for values in names)


def _render_gpu(reading: GpuReading, samples: Samples) -> None:
    gpu = str(reading.index)
    samples.put("training_gpu_info", 1, gpu, reading.uuid, reading.model, reading.driver_version)
    samples.put("training_gpu_utilization_ratio", reading.utilization_ratio, gpu)
    samples.put("training_gpu_memory_activity_ratio", reading.memory_activity_ratio, gpu)
    samples.put("training_gpu_memory_used_bytes", reading.memory_used_bytes, gpu)
    samples.put("training_gpu_memory_total_bytes", reading.memory_total_bytes, gpu)
    samples.put("training_gpu_process_memory_bytes", reading.process_memory_bytes, gpu)
    samples.put("training_gpu_temperature_celsius", reading.temperature_celsius, gpu)
    samples.put("training_gpu_power_watts", reading.power_watts, gpu)
    samples.put("training_gpu_power_limit_watts", reading.power_limit_watts, gpu)
    samples.put("training_gpu_sm_clock_hertz", reading.sm_clock_hertz, gpu)
    samples.put("training_gpu_energy_joules_total", reading.energy_joules, gpu)
    samples.put("training_cuda_allocated_bytes", reading.cuda_allocated_bytes, gpu)
    samples.put("training_cuda_reserved_bytes", reading.cuda_reserved_bytes, gpu)
    samples.put("training_cuda_allocation_retries_total", reading.cuda_allocation_retries, gpu)
    samples.put("training_cuda_out_of_memory_total", reading.cuda_out_of_memory, gpu)
    for reason, is_throttled in (reading.throttle_reasons or {}).items():
        samples.put("training_gpu_throttled", float(is_throttled), gpu, reason)
    for kind, count in (reading.ecc_errors or {}).items():
        samples.put("training_gpu_ecc_errors_total", count, gpu, kind)


TRAINING_SECTIONS: tuple[Section, ...] = (
    render_run,
    render_progress,
    render_ranks,
    render_losses,
    render_logged,
    render_gradients,
    render_events,
    render_control,
    render_monitor,
)

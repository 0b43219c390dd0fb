"""A snapshot in which everything is known: every metric of the catalogue has a series."""

from __future__ import annotations

from monitor._records import (
    Collection,
    GpuReading,
    Histogram,
    HostReading,
    OptimizerSnapshot,
    ParamGroup,
    RankReading,
    RunInfo,
    Snapshot,
)

STEP_BOUNDS = tuple(0.001 * 2**k for k in range(17))
NORM_BOUNDS = tuple(10 ** (k / 2) for k in range(-8, 9))


def make_run(**changes: object) -> RunInfo:
    fields: dict[str, object] = {
        "run_id": "demo-0a1b2c",
        "name": "demo",
        "start_time": 1_790_000_000.25,
        "monitor_version": "0.1.0",
        "torch_version": "2.13.0",
        "device": "cuda:0",
        "hostname": "box",
        "git_commit": "0123abc",
        "pid": 7,
    }
    return RunInfo(**{**fields, **changes})  # type: ignore[arg-type]


def make_groups(count: int) -> tuple[ParamGroup, ...]:
    return tuple(
        ParamGroup(i, f"group {i}", 0.1 / (i + 1), 0.05 / (i + 1), 0.5, weight_decay=0.01, momentum=0.9)
        for i in range(count)
    )


def make_optimizer(key: str = "AdamW", groups: int = 64, **changes: object) -> OptimizerSnapshot:
    fields: dict[str, object] = {
        "key": key,
        "class_name": "AdamW",
        "steps": 1200,
        "global_step": 5200,
        "groups": make_groups(groups),
        "loss": 1.25,
        "loss_ema": 1.3,
        "loss_window_mean": 1.31,
        "loss_window_min": 1.1,
        "loss_window_max": 1.6,
        "loss_window_stddev": 0.07,
        "loss_best": 1.2,
        "loss_best_step": 5100,
        "loss_positive_sum": 2345.5,
        "loss_positive_count": 1190,
        "loss_negative_sum": 12.5,
        "loss_negative_count": 8,
        "gradient_norm": 0.8,
        "gradient_norm_step": 5190,
        "gradient_norm_window_max": 3.5,
        "gradient_norm_window_median": 0.7,
        "gradient_norm_histogram": Histogram(NORM_BOUNDS, tuple(range(18)), 900.5),
        "clip_threshold": 1.0,
        "clip_factor": 0.6,
        "clip_checks": {"norm": 1200, "value": 0},
        "clips": {"norm": 300, "value": 0},
        "amp_scale": 65536.0,
        "skipped_steps": {"amp_overflow": 2},
        "nonfinite": {"loss": 1, "gradient": 2},
    }
    return OptimizerSnapshot(**{**fields, **changes})  # type: ignore[arg-type]


def make_gpu(index: int, **changes: object) -> GpuReading:
    fields: dict[str, object] = {
        "index": index,
        "uuid": f"GPU-0000000{index}-aaaa-bbbb-cccc-ddddeeeeffff",
        "model": "NVIDIA H200",
        "driver_version": "580.10",
        "utilization_ratio": 0.97,
        "memory_activity_ratio": 0.4,
        "memory_used_bytes": 6e10,
        "memory_total_bytes": 1.5e11,
        "process_memory_bytes": 5.9e10,
        "temperature_celsius": 61.0,
        "power_watts": 540.5,
        "power_limit_watts": 700.0,
        "sm_clock_hertz": 1.98e9,
        "energy_joules": 123456.789,
        "throttle_reasons": {
            "applications_clocks_setting": False,
            "display_clock_setting": False,
            "hw_power_brake_slowdown": False,
            "hw_slowdown": False,
            "hw_thermal_slowdown": False,
            "sw_power_cap": True,
            "sw_thermal_slowdown": False,
            "sync_boost": False,
        },
        "ecc_errors": {"corrected": 3.0, "uncorrected": 0.0},
        "cuda_allocated_bytes": 5e10,
        "cuda_reserved_bytes": 5.5e10,
        "cuda_allocation_retries": 1.0,
        "cuda_out_of_memory": 0.0,
    }
    return GpuReading(**{**fields, **changes})  # type: ignore[arg-type]


def make_snapshot(groups: int = 64, gpus: int = 2, **changes: object) -> Snapshot:
    """Make the full snapshot; ``groups`` and ``gpus`` are counts, ``changes`` replace fields."""
    fields: dict[str, object] = {
        "run": make_run(),
        "state": "running",
        "time": 1_790_000_100.0,
        "end_time": 1_790_000_100.0,
        "stall_timeout": 600.0,
        "target_steps": 10_000,
        "last_step_time": 1_790_000_099.5,
        "optimizers": (make_optimizer(groups=groups),),
        "samples_total": 38400.0,
        "tokens_total": 4.9e6,
        "validation_losses": {"wiki": 1.4},
        "metrics": {"accuracy": 0.91},
        "step_duration": Histogram(STEP_BOUNDS, (0, 5, 900, *([10] * 15)), 99.5),
        "phase_seconds": {"data": 1.0, "forward": 30.0, "backward": 50.0, "optimizer": 9.0},
        "events_total": {"spike": 3},
        "events_active": {"spike": True},
        "last_event_time": {"spike": 1_790_000_050.0},
        "last_event_step": {"spike": 5150},
        "commands_total": {("reduce", "api", "applied"): 2},
        "commands_last_applied": {"reduce": 1_790_000_060.0},
        "commands_pending": 1,
        "hook_seconds": 0.05,
        "overhead_ratio": 0.0004,
        "errors": {"probe": 1},
        "dropped_steps": 4,
        "dropped_series": 5,
        "host": HostReading(0.4, 8e9, 3.2e10, 2.5e9, 1234.5),
        "gpus": tuple(make_gpu(i) for i in range(gpus)),
        "ranks": tuple(RankReading(i, "ok", "demo", "box", 5200, 0.2, 1.25, 0.5, 0.1) for i in range(2)),
        "summed_ranks": 2,
        "incomplete_steps": 3,
        "collections": {"gpu": Collection(0.003, True), "host": Collection(0.002, True)},
    }
    return Snapshot(**{**fields, **changes})  # type: ignore[arg-type]

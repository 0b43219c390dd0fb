"""For every alert a course of things that must raise it, and one that looks like it and must not.

Courses are in the notation of ``promtool test rules``, one value every 15 seconds from time 0 on; ``_`` is no sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from monitor._records import STATES

RUN = {"job": "training", "instance": "box:9477", "run_id": "demo-0a1b2c"}


@dataclass(frozen=True)
class Case:
    """One alert, a course, the moment at which one looks, and what is to be seen then: None is no alert.

    ``fires`` holds the labels besides those of the run and the rule; ``shown`` is the value as the description has it.
    """

    alert: str
    about: str
    at: str
    series: dict[str, str]
    fires: dict[str, str] | None = None
    shown: str = ""


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """Return one series of the run."""
    pairs = ", ".join(f'{key}="{value}"' for key, value in {**RUN, **labels}.items())
    return {f"{name}{{{pairs}}}": values}


def state(now: str, values: str = "1x400") -> dict[str, str]:
    """Return the state of the run: ``now`` is 1 for the given course, the others are 0 for as long."""
    zeros = re.sub(r"(?<!\S)1", "0", values)
    found = series("training_run_state", values, training_run_state=now)
    for other in sorted({*STATES} - {now}):
        found |= series("training_run_state", zeros, training_run_state=other)
    return found


def event(kind: str, active: str, time: str, step: str) -> dict[str, str]:
    """Return what a run exports of one kind of event."""
    return (
        series("training_event_active", active, kind=kind)
        | series("training_last_event_timestamp_seconds", time, kind=kind)
        | series("training_last_event_step", step, kind=kind)
    )


def _events(alert: str, kind: str, other: str) -> list[Case]:
    """Give the cases that all alerts on events have in common; ``other`` is a kind that must not be taken for it."""
    holds = event(kind, "0x7 1x80", "_x7 120x80", "_x7 1234x80")
    return [
        Case(alert, "the condition holds", "15m", holds, fires={}, shown="1234"),
        Case(alert, "it ended before anybody looked", "15m", event(kind, "0x80", "-600x80", "77x80")),
        Case(alert, "another kind of event", "15m", event(other, "1x80", "0x80", "77x80")),
    ]


def _short(alert: str, kind: str) -> Case:
    """Give an event that began and ended between two scrapes: only its time and its step tell of it."""
    course = event(kind, "0x80", "_x7 118x80", "_x7 1234x80")
    return Case(alert, "it was over within a scrape interval", "3m", course, fires={}, shown="1234")


def _paused(course: dict[str, str]) -> dict[str, str]:
    return course | state("paused")


_RATE = "training_steps_total"
_NONE_DROPPED = series("training_monitor_dropped_steps_total", "0x80")
_OLD_RUN = series("training_run_start_timestamp_seconds", "-90000x80")
_NEW_RUN = series("training_run_start_timestamp_seconds", "30x80")
_SHORT_RUN = series("training_run_start_timestamp_seconds", "30x6 stale")


def _kept(alert: str, counter: str, shown: str = "", **labels: str) -> list[Case]:
    """Give what a short run had counted by its first scrape: told for a while after its end, and then no more."""
    course = _SHORT_RUN | series(counter, f"_x4 {shown or 1}x2 stale", **labels)
    return [
        Case(alert, "the run that counted it is over", "5m", course, fires=labels, shown=shown),
        Case(alert, "the run that counted it is long over", "12m", course),
    ]


CASES = [
    # runs
    Case(
        "TrainingRunFailed",
        "the final state was scraped once",
        "2m",
        state("failed", "_x3 1 stale"),
        fires={},
    ),
    Case("TrainingRunFailed", "the run finished", "2m", state("finished", "_x3 1 stale")),
    Case("TrainingRunFailed", "it failed nine minutes ago", "9m", state("failed", "_x3 1 stale"), fires={}),
    Case("TrainingRunFailed", "it failed a while ago", "20m", state("failed", "_x3 1 stale")),
    Case("TrainingRunVanished", "series end while it runs", "4m", state("running", "1x7 stale"), fires={}),
    Case("TrainingRunVanished", "series end while it is paused", "4m", state("paused", "1x7 stale"), fires={}),
    Case("TrainingRunVanished", "one scrape is lost", "4m", state("running", "1x7 stale 1x40")),
    Case(
        "TrainingRunVanished",
        "it finished, and the end was scraped",
        "4m",
        series("training_run_state", "1x7 0 stale", training_run_state="running")
        | series("training_run_state", "0x7 1 stale", training_run_state="finished"),
    ),
    Case(
        "TrainingRunVanished",
        "its watcher saw it vanish, and was scraped once more",
        "4m",
        series("training_run_state", "1x7 0 stale", training_run_state="running")
        | series("training_run_state", "0x7 1 stale", training_run_state="vanished"),
        fires={},
    ),
    Case("TrainingRunVanished", "it vanished long ago", "40m", state("running", "1x7 stale")),
    Case(
        "TrainingStalled",
        "no step for longer than the run's own limit",
        "20m",
        state("running")
        | series("training_last_step_timestamp_seconds", "60x100", rank="0")
        | series("training_stall_timeout_seconds", "600x100"),
        fires={},
        shown="19m 0s",
    ),
    Case(
        "TrainingStalled",
        "the run's detector, which knows the usual step time, is earlier",
        "5m",
        state("running")
        | series("training_last_step_timestamp_seconds", "60x100", rank="0")
        | series("training_stall_timeout_seconds", "600x100")
        | series("training_event_active", "0x15 1x20", kind="stall"),
        fires={},
        shown="4m 0s",
    ),
    Case(
        "TrainingStalled",
        "the limit of this run is longer",
        "20m",
        state("running")
        | series("training_last_step_timestamp_seconds", "60x100", rank="0")
        | series("training_stall_timeout_seconds", "7200x100"),
    ),
    Case(
        "TrainingStalled",
        "the run is paused",
        "20m",
        _paused(
            series("training_last_step_timestamp_seconds", "60x100", rank="0")
            | series("training_stall_timeout_seconds", "600x100")
        ),
    ),
    *_events("TrainingRankLost", "rank_lost", "stall"),
    _short("TrainingRankLost", "rank_lost"),
    *_events("TrainingStraggler", "straggler", "slowdown"),
    # loss
    *_events("TrainingLossNonfinite", "nonfinite", "nonfinite_metric"),
    _short("TrainingLossNonfinite", "nonfinite"),
    Case(
        "TrainingLossNonfinite",
        "no detector is armed and the loss is NaN",
        "2m",
        series("training_loss", "1 1 1" + " NaN" * 20, optimizer="AdamW")
        | series("training_global_step", "10+10x20", optimizer="AdamW"),
        fires={},
        shown="90",
    ),
    Case(
        "TrainingLossNonfinite",
        "no detector is armed and the loss is minus infinity",
        "2m",
        series("training_loss", "1 1 1" + " -Inf" * 20, optimizer="AdamW")
        | series("training_global_step", "10+10x20", optimizer="AdamW"),
        fires={},
        shown="90",
    ),
    Case(
        "TrainingLossNonfinite",
        "no detector is armed and one loss between two scrapes was NaN",
        "2m",
        series("training_loss", "1x20", optimizer="AdamW")
        | series("training_nonfinite_total", "0 0 0 1x20", optimizer="AdamW", kind="loss")
        | series("training_global_step", "10+10x20", optimizer="AdamW"),
        fires={},
        shown="90",
    ),
    Case(
        "TrainingLossNonfinite",
        "a GradScaler finds its scale, and losses are negative and huge",
        "5m",
        series("training_loss", "-1e30x20", optimizer="AdamW")
        | series("training_nonfinite_total", "0+1x20", optimizer="AdamW", kind="gradient")
        | series("training_nonfinite_total", "0x20", optimizer="AdamW", kind="loss")
        | series("training_global_step", "10+10x20", optimizer="AdamW"),
    ),
    *_events("TrainingMetricNonfinite", "nonfinite_metric", "nonfinite"),
    _short("TrainingMetricNonfinite", "nonfinite_metric"),
    *_events("TrainingDivergence", "divergence", "spike"),
    _short("TrainingDivergence", "divergence"),
    *_events("TrainingLossSpike", "spike", "outlier"),
    _short("TrainingLossSpike", "spike"),
    *_events("TrainingPlateau", "plateau", "overfit"),
    *_events("TrainingOverfitting", "overfit", "plateau"),
    *_events("TrainingLossStuck", "stuck", "stall"),
    Case(
        "TrainingLearningRateZero",
        "all groups are at 0",
        "10m",
        state("running")
        | series("training_learning_rate", "0.1x4 0x80", optimizer="SGD", param_group="0")
        | series("training_learning_rate", "0.1x4 0x80", optimizer="SGD", param_group="1"),
        fires={},
    ),
    Case(
        "TrainingLearningRateZero",
        "one group is frozen, the other learns",
        "10m",
        state("running")
        | series("training_learning_rate", "0x80", optimizer="SGD", param_group="0")
        | series("training_learning_rate", "1e-12x80", optimizer="SGD", param_group="1"),
    ),
    Case(
        "TrainingLearningRateZero",
        "a warm-up starts from 0",
        "10m",
        state("running") | series("training_learning_rate", "0x12 1e-4x80", optimizer="SGD", param_group="0"),
    ),
    # gradients
    *_events("TrainingGradientExplosion", "gradient_explosion", "gradient_vanishing"),
    *_events("TrainingGradientVanishing", "gradient_vanishing", "gradient_explosion"),
    *_events("TrainingClippingSaturated", "clipping_saturated", "gradient_explosion"),
    Case(
        "TrainingStepsSkipped",
        "every step is skipped and none is counted as made",
        "15m",
        series("training_skipped_steps_total", "0+5x80", optimizer="AdamW", reason="amp_overflow")
        | series("training_steps_total", "100x80", optimizer="AdamW"),
        fires={},
        shown="200",
    ),
    Case(
        "TrainingStepsSkipped",
        "a scaler overflows now and then",
        "15m",
        series("training_skipped_steps_total", "0+5x80", optimizer="AdamW", reason="amp_overflow")
        | series("training_steps_total", "0+1000x80", optimizer="AdamW"),
    ),
    # throughput
    Case(
        "TrainingThroughputHalved",
        "a third of the speed for twenty minutes",
        "80m",
        state("running") | series(_RATE, "0+30x240 7210+10x160", optimizer="AdamW"),
        fires={},
        shown="666.7m",
    ),
    Case(
        "TrainingThroughputHalved",
        "slower, but not by half",
        "80m",
        state("running") | series(_RATE, "0+30x240 7220+20x160", optimizer="AdamW"),
    ),
    Case(
        "TrainingThroughputHalved",
        "no step at all is a stall",
        "80m",
        state("running") | series(_RATE, "0+30x240 7200x160", optimizer="AdamW"),
    ),
    Case(
        "TrainingThroughputHalved",
        "the run is paused",
        "80m",
        _paused(series(_RATE, "0+30x240 7210+10x160", optimizer="AdamW")),
    ),
    *_events("TrainingSlowdown", "slowdown", "stall"),
    # GPU
    Case(
        "TrainingGpuIdle",
        "nothing runs on the card",
        "30m",
        state("running") | series("training_gpu_utilization_ratio", "0.9x4 0.02x200", gpu="1"),
        fires={"gpu": "1"},
        shown="2%",
    ),
    Case(
        "TrainingGpuIdle",
        "it is busy half of the time",
        "30m",
        state("running") | series("training_gpu_utilization_ratio", "0 1 " * 100, gpu="1"),
    ),
    Case(
        "TrainingGpuIdle",
        "the run is paused",
        "30m",
        _paused(series("training_gpu_utilization_ratio", "0.02x200", gpu="1")),
    ),
    Case(
        "TrainingGpuThrottled",
        "too hot for minutes",
        "15m",
        series("training_gpu_throttled", "0x10 1x80", gpu="0", reason="sw_thermal_slowdown"),
        fires={"gpu": "0", "reason": "sw_thermal_slowdown"},
        shown="100%",
    ),
    Case(
        "TrainingGpuThrottled",
        "a power cap in software is normal",
        "15m",
        series("training_gpu_throttled", "1x80", gpu="0", reason="sw_power_cap"),
    ),
    Case(
        "TrainingGpuThrottled",
        "too hot for a moment",
        "15m",
        series("training_gpu_throttled", "0x40 1x8 0x80", gpu="0", reason="hw_slowdown"),
    ),
    Case(
        "TrainingGpuEccErrors",
        "two uncorrected errors, half an hour ago",
        "40m",
        series("training_gpu_ecc_errors_total", "3x20 5x200", gpu="0", kind="uncorrected"),
        fires={"gpu": "0"},
    ),
    Case(
        "TrainingGpuEccErrors",
        "errors that stood there before the run, and corrected ones",
        "15m",
        series("training_gpu_ecc_errors_total", "3x80", gpu="0", kind="uncorrected")
        | series("training_gpu_ecc_errors_total", "0+3x80", gpu="0", kind="corrected"),
    ),
    Case(
        "TrainingGpuMemoryAlmostFull",
        "98 of 100 bytes are in use",
        "10m",
        series("training_gpu_memory_used_bytes", "98x80", gpu="0")
        | series("training_gpu_memory_total_bytes", "100x80", gpu="0"),
        fires={"gpu": "0"},
        shown="98%",
    ),
    Case(
        "TrainingGpuMemoryAlmostFull",
        "90 of 100 bytes are in use",
        "10m",
        series("training_gpu_memory_used_bytes", "90x80", gpu="0")
        | series("training_gpu_memory_total_bytes", "100x80", gpu="0"),
    ),
    # monitor
    Case(
        "TrainingCommandRejected",
        "a command was rejected",
        "5m",
        _OLD_RUN
        | series("training_control_commands_total", "4x8 5x80", action="set", source="api", outcome="rejected"),
        fires={"action": "set", "source": "api", "outcome": "rejected"},
    ),
    Case(
        "TrainingCommandRejected",
        "a command had expired before the first scrape of a new run",
        "2m",
        _NEW_RUN
        | series("training_control_commands_total", "_x4 1x80", action="set", source="code", outcome="expired"),
        fires={"action": "set", "source": "code", "outcome": "expired"},
    ),
    Case(
        "TrainingCommandRejected",
        "commands were applied, and one was rejected before Prometheus came up",
        "5m",
        _OLD_RUN
        | series("training_control_commands_total", "0+1x80", action="set", source="api", outcome="applied")
        | series("training_control_commands_total", "_x4 1x80", action="set", source="api", outcome="rejected"),
    ),
    Case(
        "TrainingCollectorFailing",
        "the GPU cannot be read any more",
        "10m",
        series("training_monitor_collect_success", "1x4 0x80", collector="gpu"),
        fires={"collector": "gpu"},
    ),
    Case(
        "TrainingCollectorFailing",
        "one round in four fails",
        "10m",
        series("training_monitor_collect_success", "0 1 1 1 " * 20, collector="gpu"),
    ),
    Case(
        "TrainingStepsDropped",
        "three steps are lost",
        "5m",
        _OLD_RUN | series("training_monitor_dropped_steps_total", "0x8 3x80"),
        fires={},
        shown="3",
    ),
    *_kept("TrainingStepsDropped", "training_monitor_dropped_steps_total", "3"),
    *_kept(
        "TrainingCommandRejected",
        "training_control_commands_total",
        action="set",
        source="code",
        outcome="expired",
    ),
    *_kept("TrainingMonitorErrors", "training_monitor_errors_total", component="recorder"),
    *_events("TrainingNotCaptured", "capture", "stall"),
    Case("TrainingStepsDropped", "none is lost", "5m", _OLD_RUN | _NONE_DROPPED),
    Case(
        "TrainingMonitorErrors",
        "the recorder fails before the first scrape",
        "2m",
        _NEW_RUN | series("training_monitor_errors_total", "_x4 1x80", component="recorder"),
        fires={"component": "recorder"},
    ),
    Case(
        "TrainingMonitorErrors",
        "an old failure",
        "5m",
        _OLD_RUN | series("training_monitor_errors_total", "1x80", component="recorder"),
    ),
    Case("TrainingTargetDown", "nothing answers", "5m", series("up", "1x4 0x80"), fires={}),
    Case("TrainingTargetDown", "one scrape fails", "5m", series("up", "1x8 0 1x80")),
    Case("TrainingTargetDown", "a target of another job", "5m", {'up{job="node", instance="box:9100"}': "0x80"}),
]

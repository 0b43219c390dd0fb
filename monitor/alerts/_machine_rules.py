"""Rules on what the training runs on, and on the monitor itself."""

from __future__ import annotations

from monitor.alerts import _text as text
from monitor.alerts._promql import event, grown, select, while_running
from monitor.alerts._rule import AlertRule, RuleGroup
from monitor.export._promql import per_run

_RATE = "run:training_steps:rate5m"

THROUGHPUT = RuleGroup(
    "training-throughput",
    (
        AlertRule(
            name="TrainingThroughputHalved",
            # A run that makes no step at all is the stall's business.
            expression=while_running(f"{_RATE} < 0.5 * avg_over_time({_RATE}[1h] offset 10m)\nand {_RATE} > 0"),
            severity="warning",
            hold="10m",
            summary=f"Run {text.RUN_ID} is half as fast as it was",
            description=(
                f"{text.RUN_ID} makes {text.NUMBER} steps a second, less than half of its average over the hour before."
            ),
        ),
        AlertRule(
            name="TrainingSlowdown",
            expression=event("slowdown"),
            severity="warning",
            hold="5m",
            summary=f"Steps of {text.RUN_ID} take longer than they did",
            description=(
                f"The step time of {text.RUN_ID} has risen by more than 30 % and stays up; seen at step {text.COUNT}."
            ),
        ),
    ),
)

_THROTTLED = select("training_gpu_throttled", reason="~hw_.*|sw_thermal_slowdown")
_UTILIZATION = select("training_gpu_utilization_ratio")
_USED, _TOTAL = select("training_gpu_memory_used_bytes"), select("training_gpu_memory_total_bytes")

GPU = RuleGroup(
    "training-gpu",
    (
        AlertRule(
            name="TrainingGpuIdle",
            expression=while_running(f"{per_run('max', f'avg_over_time({_UTILIZATION}[10m])', 'gpu')} < 0.1"),
            severity="warning",
            hold="15m",
            summary=f"GPU {text.GPU_ID} of {text.RUN_ID} is idle",
            description=(f"GPU {text.GPU_ID} of {text.RUN_ID} was busy for {text.SHARE} of the last 10 minutes."),
        ),
        AlertRule(
            name="TrainingGpuThrottled",
            # A power cap in software is how a busy card normally runs; heat and the hardware's own limits are not.
            expression=f"{per_run('max', f'avg_over_time({_THROTTLED}[5m])', 'gpu', 'reason')} > 0.5",
            severity="warning",
            hold="5m",
            summary=f"GPU {text.GPU_ID} of {text.RUN_ID} is throttled",
            description=(
                f"The clocks of GPU {text.GPU_ID} of {text.RUN_ID} are held back: {text.REASON}, "
                f"{text.SHARE} of the last 5 minutes."
            ),
        ),
        AlertRule(
            name="TrainingGpuEccErrors",
            # Counted since the driver was loaded, so what stands there at the start is history.
            expression=per_run(
                "max", f"increase({select('training_gpu_ecc_errors_total', kind='uncorrected')}[10m])", "gpu"
            )
            + " > 0",
            severity="critical",
            keep="1h",
            summary=f"GPU {text.GPU_ID} of {text.RUN_ID} has memory errors",
            description=(f"GPU {text.GPU_ID} of {text.RUN_ID} reported uncorrected memory errors within 10 minutes."),
        ),
        AlertRule(
            name="TrainingGpuMemoryAlmostFull",
            expression=f"{per_run('max', f'{_USED} / {_TOTAL}', 'gpu')} > 0.95",
            severity="info",
            hold="5m",
            summary=f"Memory of GPU {text.GPU_ID} of {text.RUN_ID} is almost full",
            description=f"{text.SHARE} of the memory of GPU {text.GPU_ID} is in use.",
        ),
    ),
)

_KEEP = "5m"  # what a run had counted before its first scrape is in no range: it is seen until the series end

MONITOR = RuleGroup(
    "training-monitor",
    (
        AlertRule(
            name="TrainingCommandRejected",
            expression=per_run(
                "sum",
                grown("training_control_commands_total", 10, outcome="~rejected|expired"),
                *("action", "source", "outcome"),
            ),
            severity="warning",
            keep=_KEEP,
            summary=f"A command to {text.RUN_ID} was not carried out",
            description=(
                f"{text.RUN_ID}: {text.ACTION}, sent by {text.SOURCE}, was {text.OUTCOME} within the last 10 minutes."
            ),
        ),
        AlertRule(
            name="TrainingCollectorFailing",
            expression=per_run("min", select("training_monitor_collect_success"), "collector") + " == 0",
            severity="warning",
            hold="5m",
            summary=f"Readings of {text.RUN_ID} are missing",
            description=f"The collector {text.COLLECTOR} of {text.RUN_ID} fails at every round.",
        ),
        AlertRule(
            name="TrainingStepsDropped",
            expression=per_run("sum", grown("training_monitor_dropped_steps_total", 10)),
            severity="warning",
            keep=_KEEP,
            summary=f"The monitor of {text.RUN_ID} has lost steps",
            description=(
                f"About {text.COUNT} steps of {text.RUN_ID} were made within 10 minutes but not "
                "recorded: events in them went unseen."
            ),
        ),
        AlertRule(
            name="TrainingNotCaptured",
            expression=event("capture"),
            severity="warning",
            keep=_KEEP,
            summary=f"The monitor of {text.RUN_ID} cannot see all of the training",
            description=(
                f"Something of {text.RUN_ID}, such as its loss, is not known since about step {text.COUNT}; the log of "
                "the run says what, and what to do about it."
            ),
        ),
        AlertRule(
            name="TrainingMonitorErrors",
            expression=per_run("sum", grown("training_monitor_errors_total", 10), "component"),
            severity="info",
            keep=_KEEP,
            summary=f"The monitor of {text.RUN_ID} has failed in part",
            description=(
                f"The monitor's part {text.COMPONENT} failed in {text.RUN_ID} within the last 10 minutes; the "
                "training is not affected."
            ),
        ),
        AlertRule(
            name="TrainingTargetDown",
            expression='up{job="training"} == 0',
            severity="warning",
            hold="2m",
            summary=f"{text.INSTANCE} cannot be scraped",
            description=f"Prometheus gets no metrics from the run at {text.INSTANCE}.",
        ),
    ),
)

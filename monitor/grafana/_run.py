"""Run: everything about one run."""

from __future__ import annotations

from monitor.export._promql import per_run
from monitor.grafana._dashboard import Dashboard, Row
from monitor.grafana._hardware import gpu_memory, host_cpu, host_memory, utilization
from monitor.grafana._panel import RUN_DASHBOARD, STATE_COLOURS, Panel, Query, override, value_mapping
from monitor.grafana._panels import gauge, stat, state_timeline, table, timeseries
from monitor.grafana._queries import firing, increase, latest, quantile, rate, select, state
from monitor.grafana._training_rows import gradients, learning_rate, loss, ranks


def _status() -> tuple[Panel, ...]:
    step, target = per_run("max", select("training_global_step")), per_run("max", select("training_target_steps"))
    speed = per_run("max", rate("training_steps_total"))
    left = f"clamp_min({target} - {step}, 0) / ({speed} > 0)"
    age = f"time() - {per_run('max', select('training_last_step_timestamp_seconds'))}"
    return (
        stat(
            "State",
            "Last state of the run: starting, running, paused, finished, failed or interrupted; vanished where it was "
            "alive and is not scraped any more. A click opens the run's own page, where it can be controlled.",
            "none",
            Query(state(), "{{training_run_state}}", is_instant=True),
            text="name",
            overrides=tuple(
                override(name, color={"mode": "fixed", "fixedColor": colour}) for name, colour in STATE_COLOURS.items()
            ),
        ),
        gauge(
            "Progress", "Share of the planned steps that are made; empty without a plan.", Query(f"{step} / {target}")
        ),
        stat("Step", "Optimizer step of the run, earlier sessions of a resumed run included.", "locale", Query(step)),
        stat("Time left", "At the present speed; empty without a planned length.", "dtdurations", Query(left)),
        stat("Since the last step", "Time since the last optimizer step.", "s", Query(age)),
        stat(
            "Alerts firing",
            "Alerts that fire for this run.",
            "none",
            Query(f"count({firing()}) or vector(0)", is_instant=True),
            steps=((None, "text"), (1.0, "red")),
            links=(),
        ),
        table(
            "Who and where",
            "Identity of the run.",
            "short",
            Query(latest("training_run_info")),
            columns={
                "run_name": "Name",
                "run_id": "Run",
                "hostname": "Host",
                "device": "Device",
                "world_size": "Ranks",
                "torch_version": "PyTorch",
                "git_commit": "Commit",
                "monitor_version": "Monitor",
                "instance": "Page",
            },
            overrides=(
                override(
                    "Page",
                    links=[{"title": "Open the run's own page", "url": "http://${__value.raw}/", "targetBlank": True}],
                ),
            ),
            height=4,
        ),
        state_timeline(
            "Conditions",
            "Coloured while the condition holds that a detector has found.",
            Query(select("training_event_active"), "{{kind}}"),
            mappings=(value_mapping({"0": ("no", "transparent"), "1": ("holds", "red")}),),
        ),
        timeseries(
            "Events",
            "What the detectors have raised in each interval, by kind.",
            "none",
            Query(f"{increase('training_events_total')} > 0", "{{kind}}"),
            noValue="none in this time range",
            is_bars=True,
            is_stacked=True,
            min=0,
        ).sized(12),
    )


def _throughput() -> tuple[Panel, ...]:
    duration = "training_step_duration_seconds"
    mean = f"{per_run('sum', rate(f'{duration}_sum'))} / ({per_run('sum', rate(f'{duration}_count'))} > 0)"
    return (
        timeseries(
            "Throughput",
            "Optimizer steps a second; samples and tokens where the script reports them.",
            "short",
            Query(rate("training_steps_total"), "{{optimizer}} steps/s"),
            Query(rate("training_samples_total"), "samples/s"),
            Query(rate("training_tokens_total"), "tokens/s"),
            min=0,
        ),
        timeseries(
            "Step time",
            "Wall time between optimizer steps: median, 95th percentile and mean. The buckets double, so a quantile "
            "may be off by half of its value.",
            "s",
            Query(quantile(0.5, duration), "median"),
            Query(quantile(0.95, duration), "95 %"),
            Query(mean, "mean"),
            min=0,
        ),
        timeseries(
            "Where the time goes",
            "Host wall time by phase, as a share. data is the time spent waiting for a DataLoader.",
            "percentunit",
            Query(rate("training_phase_duration_seconds_total"), "{{phase}}"),
            is_stacked=True,
            min=0,
        ),
    )


def _control() -> tuple[Panel, ...]:
    commands = per_run(
        "sum", increase("training_control_commands_total", window="$__range"), "action", "source", "outcome"
    )
    return (
        table(
            "Commands in the time range",
            "Commands by action, source and outcome. Who gave them and why is on the run's own page.",
            "none",
            Query(f"round({commands}) > 0"),
            columns={
                "action": "Action",
                "source": "Source",
                "outcome": "Outcome",
                "Value": "Commands",
                "instance": "Page",
            },
            width=8,
        ),
        table(
            "Last events",
            "When the detectors last raised each kind of event; those that never were are absent.",
            "dateTimeFromNow",
            Query(f"{latest('training_last_event_timestamp_seconds')} * 1000"),
            Query(latest("training_last_event_step")),
            columns={"kind": "Event", "Value #A": "Raised", "Value #B": "At step"},
            overrides=(override("At step", unit="locale"),),
            width=8,
        ),
        table(
            "Last commands",
            "When each command was last applied; those that never were are absent.",
            "dateTimeFromNow",
            Query(f"{latest('training_control_last_applied_timestamp_seconds')} * 1000"),
            columns={"action": "Command", "Value": "Applied"},
            width=8,
        ),
        timeseries(
            "Commands waiting",
            "Accepted, to be applied at the next optimizer step.",
            "none",
            Query(select("training_control_pending_commands"), "waiting"),
            min=0,
        ).sized(6),
        timeseries(
            "Cost of the monitor",
            "Time of its hooks on the training thread: share of the step time in the trailing window, and seconds a "
            "second.",
            "percentunit",
            Query(select("training_monitor_overhead_ratio"), "of the step time"),
            Query(rate("training_monitor_hook_seconds_total"), "of the wall time"),
            min=0,
        ).sized(6),
        timeseries(
            "Failures of the monitor",
            "Its own failures, contained, by component; steps that were lost because it fell behind; series left out "
            "because a bound was reached.",
            "none",
            Query(increase("training_monitor_errors_total"), "{{component}}"),
            Query(increase("training_monitor_dropped_steps_total"), "steps lost"),
            Query(select("training_monitor_dropped_series"), "series left out"),
            min=0,
        ).sized(6),
        timeseries(
            "Collectors",
            "Time that the last round of each took; one that failed is counted at 0 or 1 in `success`.",
            "s",
            Query(select("training_monitor_collect_duration_seconds"), "{{collector}}"),
            Query(select("training_monitor_collect_success"), "{{collector}} success"),
            overrides=(
                {
                    "matcher": {"id": "byRegexp", "options": ".*success$"},
                    "properties": [{"id": "unit", "value": "none"}, {"id": "custom.axisPlacement", "value": "right"}],
                },
            ),
            min=0,
        ).sized(6),
    )


def run() -> Dashboard:
    """Build the dashboard of one run."""
    return Dashboard(
        RUN_DASHBOARD,
        "Training: run",
        "Everything about one run. Marks on the graphs are events, commands, start and end. Control is on the run's "
        "own page: the links open it.",
        (
            Row("Status", _status()),
            Row("Loss", loss()),
            Row("Learning rate", learning_rate()),
            Row("Gradients", gradients()),
            Row("Throughput and phases", _throughput()),
            Row("Ranks", ranks()),
            Row(
                "GPU and host",
                tuple(panel.sized(6) for panel in (utilization(), gpu_memory(), host_cpu(), host_memory())),
            ),
            Row("Control and monitor", _control()),
        ),
        variables=("optimizer", "param_group", "gpu"),
        is_one_run=True,
    )

"""Overview: every run at a glance, those in trouble first."""

from __future__ import annotations

from monitor.export._promql import RUN, per_run
from monitor.grafana._dashboard import Dashboard, Row
from monitor.grafana._panel import RUN_DASHBOARD, RUN_LINK, STATE_COLOURS, Panel, Query, override, value_mapping
from monitor.grafana._panels import stat, table, timeseries
from monitor.grafana._queries import LIVE, firing, increase, latest, rate, select, state


def _count(state: str) -> Query:
    series = select("training_run_state", f'training_run_state="{state}"')
    return Query(f"count({series} == 1) or vector(0)", is_instant=True)


def _states() -> tuple[Panel, ...]:
    red = ((None, "text"), (1.0, "red"))
    ended = per_run("max", latest("training_run_state", 'training_run_state=~"failed|interrupted"'))
    live = f'training_run_state=~"{LIVE}"'
    is_live = per_run("max", f"{select('training_run_state', live)} == 1")
    age = f"max((time() - {per_run('max', select('training_last_step_timestamp_seconds'))}) and {is_live})"
    return (
        stat("Running", "Runs that make steps now.", "none", _count("running"), steps=((None, "green"),), links=()),
        stat("Paused", "Runs that wait at a step for somebody's resume.", "none", _count("paused"), links=()),
        stat(
            "Ended badly",
            "Runs of the time range whose last scrape said failed or interrupted. A run whose process died silently is "
            "not among them: it is vanished in the table, and one of Targets down.",
            "none",
            Query(f"count({ended} == 1) or vector(0)", is_instant=True),
            steps=red,
            links=(),
        ),
        stat(
            "Alerts firing",
            "Alerts of the shipped rules that fire for the chosen runs.",
            "none",
            Query(f"count({firing()}) or vector(0)", is_instant=True),
            steps=red,
            links=(),
        ),
        stat(
            "Longest without a step",
            "Time since the last optimizer step of the run that has been silent longest.",
            "s",
            Query(age, is_instant=True),
            links=(),
        ),
        stat(
            "Targets down",
            "Targets that Prometheus cannot scrape. A run that ended as it should takes its target away.",
            "none",
            Query('count(up{job=~"$job", instance=~"$instance"} == 0) or vector(0)', is_instant=True),
            steps=red,
            links=(),
        ),
    )


def _runs() -> Panel:
    step = per_run("max", latest("training_global_step"))
    target = per_run("max", latest("training_target_steps"))
    speed = per_run("max", rate("training_steps_total"))
    known = per_run("max", latest("training_run_info"))
    queries = (
        state(),
        per_run("max", latest("training_run_info"), "run_name", "device"),
        step,
        f"{step} / {target}",
        f"clamp_min({target} - {step}, 0) / ({speed} > 0)",
        per_run("avg", latest("training_loss_ema")),
        per_run("max", latest("training_learning_rate")),
        f"time() - {per_run('max', latest('training_last_step_timestamp_seconds'))}",
        f"count by (run_id) ({firing()}) * on (run_id) group_left (job, instance) {known}",
    )
    letter = dict(zip(_VALUES, "CDEFGHI", strict=True))
    columns = {
        "run_id": "Run",
        "training_run_state": "State",
        "run_name": "Name",
        "device": "Device",
        **{f"Value #{letter[name]}": name for name in _VALUES},
        "instance": "Page",
    }
    return table(
        "Runs",
        "One line for each run of the time range, with what was last scraped of it; one that was alive then and is not "
        "scraped any more has vanished. Loss is the smoothed one, the mean over the chosen optimizers; LR is the "
        "highest that an update used; ETA is at the present speed, and empty where the run has no planned length or "
        "has ended.",
        "short",
        *(Query(query) for query in queries),
        columns=columns,
        overrides=(
            override("Run", links=[_open_run()]),
            override("Page", links=[_open_page()]),
            override(
                "State",
                mappings=[value_mapping({name: (name, colour) for name, colour in STATE_COLOURS.items()})],
                custom__cellOptions={"type": "color-text"},
            ),
            override("Step", unit="locale"),
            override(
                "Progress", unit="percentunit", min=0, max=1, custom__cellOptions={"type": "gauge", "mode": "basic"}
            ),
            override("ETA", unit="dtdurations"),
            override("LR", unit="sci"),
            override("Last step", unit="s"),
            override("Alerts", unit="none"),
        ),
        height=10,
        sort="Alerts",
    )


_VALUES = ("Step", "Progress", "ETA", "Loss", "LR", "Last step", "Alerts")


def _open_run() -> dict[str, object]:
    url = f"/d/{RUN_DASHBOARD}?${{datasource:queryparam}}&var-run_id=${{__value.raw}}&${{__url_time_range}}"
    return {"title": "Show this run", "url": url}


def _open_page() -> dict[str, object]:
    return {"title": "Open the run's own page", "url": "http://${__value.raw}/", "targetBlank": True}


def _course() -> tuple[Panel, ...]:
    return (
        timeseries(
            "Loss, smoothed",
            "Exponentially weighted mean of the finite losses of each run.",
            "short",
            Query(per_run("max", select("training_loss_ema"), "optimizer"), "{{run_id}} {{optimizer}}"),
            links=(RUN_LINK,),
        ),
        timeseries(
            "Learning rate",
            "Highest learning rate that an update of the run used.",
            "sci",
            Query(per_run("max", select("training_learning_rate"), "optimizer"), "{{run_id}} {{optimizer}}"),
            links=(RUN_LINK,),
        ),
        timeseries(
            "Speed",
            "Optimizer steps a second.",
            "ops",
            Query(per_run("max", rate("training_steps_total"), "optimizer"), "{{run_id}} {{optimizer}}"),
            links=(RUN_LINK,),
        ),
    )


def _trouble() -> tuple[Panel, ...]:
    events = per_run("sum", increase("training_events_total", window="$__range"), "kind")
    return (
        table(
            "Which alerts fire",
            "Every alert that fires for the chosen runs; docs/alerts.md says what each means and what to do.",
            "short",
            Query(f"sum by (alertname, severity, run_id) ({firing()})"),
            columns={"alertname": "Alert", "severity": "Severity", "run_id": "Run"},
            overrides=(
                override("Run", links=[_open_run()]),
                override(
                    "Severity",
                    mappings=[value_mapping({"critical": ("critical", "red"), "warning": ("warning", "orange")})],
                    custom__cellOptions={"type": "color-text"},
                ),
            ),
            width=12,
        ),
        table(
            "Events in the time range",
            "What the detectors of each run have raised, by kind. They look at every step, so that nothing between two "
            "scrapes is missed.",
            "none",
            Query(f"round({events}) > 0"),
            columns={"run_id": "Run", "kind": "Kind", "Value": "Events", "instance": "Page"},
            overrides=(override("Run", links=[_open_run()]), override("Page", links=[_open_page()])),
            width=12,
            sort="Events",
        ),
    )


def overview() -> Dashboard:
    """Build the dashboard that shows all runs."""
    return Dashboard(
        "training-monitor-overview",
        "Training: overview",
        f"All training runs: state, progress, loss, learning rate, alerts. Series are told apart by {RUN}.",
        (
            Row("State", _states()),
            Row("Runs", (_runs(),)),
            Row("Course", _course()),
            Row("Trouble", _trouble()),
        ),
        variables=("optimizer", "param_group"),
    )

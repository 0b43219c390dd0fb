"""Compare: several runs beside each other, by time and by step."""

from __future__ import annotations

from monitor.export._promql import per_run
from monitor.grafana._dashboard import Dashboard, Row
from monitor.grafana._panel import RUN_LINK, Panel, Query
from monitor.grafana._panels import by_step, table, timeseries
from monitor.grafana._queries import latest, rate, select

_EACH = "{{run_id}} {{optimizer}}"


def _step() -> str:
    return per_run("max", select("training_global_step"), "optimizer")


def _by_step() -> tuple[Panel, ...]:
    def panel(title: str, description: str, unit: str, value: str, *, is_log: bool = False) -> Panel:
        return by_step(title, description, unit, _step(), per_run("max", value, "optimizer"), is_log=is_log)

    return (
        panel(
            "Loss by step",
            "Mean of the finite losses in the trailing window over the optimizer step at that time. Runs of different "
            "speed, or started on different days, lie over each other.",
            "short",
            select("training_loss_window_mean"),
        ),
        panel(
            "Smoothed loss by step",
            "Exponentially weighted mean of the loss over the optimizer step.",
            "short",
            select("training_loss_ema"),
        ),
        panel(
            "Learning rate by step",
            "Highest learning rate that an update used, over the optimizer step.",
            "sci",
            select("training_learning_rate"),
        ),
        panel(
            "Gradient norm by step",
            "Median gradient norm of the trailing window, before clipping, over the optimizer step.",
            "short",
            select("training_gradient_norm_window_median"),
            is_log=True,
        ),
    )


def _by_time() -> tuple[Panel, ...]:
    return (
        timeseries(
            "Smoothed loss by time",
            "Exponentially weighted mean of the finite losses.",
            "short",
            Query(select("training_loss_ema"), _EACH),
            links=(RUN_LINK,),
        ),
        timeseries(
            "Validation loss by time",
            "Last validation loss that the script reported, for each dataset.",
            "short",
            Query(select("training_validation_loss"), "{{run_id}} {{dataset}}"),
            noValue="none reported: run.log(val_loss=...)",
            links=(RUN_LINK,),
        ),
        timeseries(
            "Speed by time",
            "Optimizer steps a second.",
            "ops",
            Query(rate("training_steps_total"), _EACH),
            links=(RUN_LINK,),
        ),
    )


def _standing() -> Panel:
    queries = (
        per_run("min", latest("training_loss_best"), "optimizer"),
        per_run("min", latest("training_loss_best_step"), "optimizer"),
        per_run("max", latest("training_global_step"), "optimizer"),
        per_run("max", latest("training_loss_ema"), "optimizer"),
        per_run("max", latest("training_learning_rate_factor"), "optimizer"),
    )
    return table(
        "Standing",
        "The lowest smoothed loss of each run of the time range and where it was reached, whether the run has ended or "
        "not. A factor below 1 means that somebody has lowered the learning rate.",
        "short",
        *(Query(query) for query in queries),
        columns={
            "run_id": "Run",
            "optimizer": "Optimizer",
            "Value #A": "Best loss",
            "Value #B": "at step",
            "Value #C": "Step",
            "Value #D": "Loss",
            "Value #E": "LR factor",
            "instance": "Page",
        },
    )


def compare() -> Dashboard:
    """Build the dashboard that lays runs over each other."""
    return Dashboard(
        "training-monitor-compare",
        "Training: compare",
        "Several runs beside each other, by step and by time.",
        (Row("Standing", (_standing(),)), Row("By step", _by_step()), Row("By time", _by_time())),
        variables=("optimizer", "param_group"),
        refresh="30s",
        span="now-6h",
    )

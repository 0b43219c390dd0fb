"""Loss, learning rate, gradients and ranks: the rows of the Run dashboard about the training itself."""

from __future__ import annotations

from monitor.export._promql import per_run
from monitor.grafana._panel import Panel, Query
from monitor.grafana._panels import heatmap, timeseries
from monitor.grafana._queries import increase, named_group, rate, select


def loss() -> tuple[Panel, ...]:
    """Show what the loss does."""

    def mean(sign: str) -> str:
        return per_run("sum", rate("training_step_loss_sum", f'sign="{sign}"'), "optimizer")

    count = per_run("sum", rate("training_step_loss_count"), "optimizer")
    return (
        timeseries(
            "Loss",
            "Of the last step, smoothed, and the extremes of the trailing window, which hold what happened between two "
            "scrapes. A gap is a loss that is NaN.",
            "short",
            Query(select("training_loss"), "{{optimizer}} last step"),
            Query(select("training_loss_ema"), "{{optimizer}} smoothed"),
            Query(select("training_loss_window_min"), "{{optimizer}} window minimum"),
            Query(select("training_loss_window_max"), "{{optimizer}} window maximum"),
        ).sized(16, 10),
        timeseries(
            "Validation loss",
            "Last one that the script reported, for each dataset, beside the training loss.",
            "short",
            Query(select("training_validation_loss"), "{{dataset}}"),
            Query(select("training_loss_window_mean"), "{{optimizer}} training, window mean"),
            noValue="none reported: run.log(val_loss=...)",
        ).sized(8, 10),
        timeseries(
            "Loss, exact mean",
            "Mean of the finite losses of all steps in each interval, none left out.",
            "short",
            Query(f"({mean('positive')} - {mean('negative')}) / ({count} > 0)", "{{optimizer}}"),
        ),
        timeseries(
            "Noise of the loss",
            "Standard deviation of the finite losses in the trailing window.",
            "short",
            Query(select("training_loss_window_stddev"), "{{optimizer}}"),
            min=0,
        ),
        timeseries(
            "Best loss",
            "Lowest smoothed loss so far.",
            "short",
            Query(select("training_loss_best"), "{{optimizer}}"),
        ),
        timeseries(
            "Logged values",
            "Whatever else the script logs by name.",
            "short",
            Query(select("training_metric"), "{{name}}"),
            noValue="none logged: run.log(name=value)",
        ).sized(12),
        timeseries(
            "Steps with NaN or Inf",
            "Steps in each interval at which the loss or the gradient norm was not finite.",
            "none",
            Query(increase("training_nonfinite_total"), "{{optimizer}} {{kind}}"),
            is_bars=True,
            min=0,
        ).sized(12),
    )


def learning_rate() -> tuple[Panel, ...]:
    """Show what the updates used, and what the schedule asked for."""
    group = "{{optimizer}} {{param_group}} {{name}}"
    return (
        timeseries(
            "Learning rate",
            "What the last update used. Where it lies below the schedule, a command is in force.",
            "sci",
            Query(named_group(select("training_learning_rate")), group),
            Query(named_group(select("training_scheduled_learning_rate")), f"{group} schedule"),
            overrides=(
                {
                    "matcher": {"id": "byRegexp", "options": ".*schedule$"},
                    "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}}],
                },
            ),
        ).sized(12),
        timeseries(
            "Learning rate factor",
            "Factor that commands put in force; 1: none. It is applied over scheduled LR unless min_lr holds.",
            "percentunit",
            Query(named_group(select("training_learning_rate_factor")), group),
            min=0,
        ).sized(6),
        timeseries(
            "Weight decay and momentum",
            "Of each param group; absent where the optimizer has none.",
            "short",
            Query(select("training_weight_decay"), "{{optimizer}} {{param_group}} weight decay"),
            Query(select("training_momentum"), "{{optimizer}} {{param_group}} momentum"),
            noValue="the optimizer has neither",
        ).sized(6),
    )


def gradients() -> tuple[Panel, ...]:
    """Show the gradients' size and what was done to it."""
    checks = per_run("sum", rate("training_gradient_clip_checks_total"), "optimizer", "kind")
    clips = per_run("sum", rate("training_gradient_clips_total"), "optimizer", "kind")
    return (
        timeseries(
            "Gradient norm",
            "Total L2 norm before clipping: of the last step, maximum and median of the trailing window; and the "
            "threshold of the last clip.",
            "short",
            Query(select("training_gradient_norm"), "{{optimizer}} last step"),
            Query(select("training_gradient_norm_window_max"), "{{optimizer}} window maximum"),
            Query(select("training_gradient_norm_window_median"), "{{optimizer}} window median"),
            Query(select("training_gradient_clip_threshold"), "{{optimizer}} threshold"),
            is_log=True,
        ).sized(12),
        heatmap(
            "Gradient norms of all steps",
            "How many steps of each interval had a norm in each bucket; nothing is lost between two scrapes.",
            "short",
            Query(f"sum by (le) ({increase('training_step_gradient_norm_bucket')})"),
        ).sized(12),
        timeseries(
            "Share of clipped steps",
            "Of the steps at which clipping was evaluated, those at which it took effect. Near 1 the threshold, not "
            "the learning rate, sets the step size.",
            "percentunit",
            Query(f"{clips} / ({checks} > 0)", "{{optimizer}} {{kind}}"),
            noValue="the script does not clip",
            min=0,
            max=1,
        ),
        timeseries(
            "Clip factor",
            "What the last clip multiplied the gradients by: 1 leaves them as they are.",
            "percentunit",
            Query(select("training_gradient_clip_factor"), "{{optimizer}}"),
            noValue="the script does not clip",
            min=0,
            max=1,
        ),
        timeseries(
            "Loss scale and skipped steps",
            "Scale of the GradScaler, and steps in each interval that it skipped because it met Inf or NaN.",
            "short",
            Query(select("training_amp_scale"), "{{optimizer}} scale"),
            Query(increase("training_skipped_steps_total"), "{{optimizer}} skipped: {{reason}}"),
            noValue="the script uses no GradScaler",
            overrides=(
                {
                    "matcher": {"id": "byRegexp", "options": ".*scale$"},
                    "properties": [{"id": "custom.axisPlacement", "value": "right"}],
                },
            ),
            min=0,
        ),
    )


def ranks() -> tuple[Panel, ...]:
    """Show how far each rank is, where several train together."""
    alone = "no other ranks"
    return (
        timeseries(
            "Ranks by state",
            "Ranks of the run: ok, behind, lost, ended or not attached.",
            "none",
            Query(f"{select('training_ranks')} > 0", "{{state}}"),
            noValue=alone,
            is_stacked=True,
            min=0,
        ).sized(6),
        timeseries(
            "Step of each rank",
            "Ranks that train in lockstep lie on one line.",
            "locale",
            Query(select("training_rank_step"), "rank {{rank}}"),
            noValue=alone,
        ).sized(6),
        timeseries(
            "Step time of each rank",
            "Median of the last second with steps; in lockstep it holds the wait for the slowest.",
            "s",
            Query(select("training_rank_step_duration_seconds"), "rank {{rank}}"),
            noValue=alone,
            min=0,
        ).sized(6),
        timeseries(
            "Own time of each rank",
            "A step without the backward pass, in which ranks wait for each other: they wait for the highest.",
            "s",
            Query(select("training_rank_own_duration_seconds"), "rank {{rank}}"),
            noValue=alone,
            min=0,
        ).sized(6),
        timeseries(
            "Ranks in the sums",
            "Ranks whose shares are in loss and gradient norm, and steps that lack one.",
            "none",
            Query(select("training_summed_ranks"), "ranks"),
            Query(increase("training_incomplete_steps_total"), "incomplete steps"),
            noValue=alone,
            min=0,
        ).sized(6),
        timeseries(
            "Silence of each rank",
            "Time since a rank last said how far it is, by rank 0's clock; it keeps rising for a lost one.",
            "s",
            Query(select("training_rank_last_seen_seconds"), "rank {{rank}}"),
            noValue=alone,
            min=0,
        ).sized(6),
    )

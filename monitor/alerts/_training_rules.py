"""Rules on the training itself: life of the run, loss, learning rate, gradients."""

from __future__ import annotations

from monitor.alerts import _text as text
from monitor.alerts._promql import event, select, while_running
from monitor.alerts._rule import AlertRule, Recording, RuleGroup
from monitor.export._promql import RUN, per_run

_VANISHED = select("training_run_state", training_run_state="vanished")
_FAILED = select("training_run_state", training_run_state="failed")
_LIVE = select("training_run_state", training_run_state="~starting|running|paused")
_AGE = f"time() - {select('training_last_step_timestamp_seconds')}"
_AT_STEP = f"step {text.COUNT}"

RUNS = RuleGroup(
    "training-runs",
    (
        AlertRule(
            name="TrainingRunFailed",
            # The final state is served for one more scrape, then the series end: look back for it.
            expression=f"{per_run('max', f'max_over_time({_FAILED}[10m])')} == 1",
            severity="critical",
            summary=f"Run {text.RUN_ID} failed",
            description=f"The training script of {text.RUN_ID} ended with an exception.",
        ),
        AlertRule(
            name="TrainingRunVanished",
            expression=(
                f"({per_run('max', f'last_over_time({_LIVE}[15m])')} == 1\n"
                f"unless on (run_id) {select('training_run_state')})\n"
                f"or {per_run('max', f'max_over_time({_VANISHED}[15m])')} == 1"
            ),
            severity="critical",
            hold="1m",
            summary=f"Run {text.RUN_ID} vanished",
            description=(
                f"The process of {text.RUN_ID} is gone without a word (it was killed, perhaps for lack of memory), or "
                "it was alive at its last scrape and cannot be scraped any more: its machine is down or cut off."
            ),
        ),
        AlertRule(
            name="TrainingStalled",
            expression=(
                while_running(
                    per_run("max", f"{_AGE}\n> on ({RUN}) group_left () {select('training_stall_timeout_seconds')}")
                )
                + "\nor\n"
                + per_run("max", f"{_AGE}\nand on ({RUN}) ({select('training_event_active', kind='stall')} == 1)")
            ),
            severity="critical",
            summary=f"Run {text.RUN_ID} has stalled",
            description=f"{text.RUN_ID} has made no optimizer step for {text.DURATION}.",
        ),
    ),
)

_LOSS = select("training_loss")

LOSS = RuleGroup(
    "training-loss",
    (
        AlertRule(
            name="TrainingLossNonfinite",
            expression=(
                event("nonfinite")
                + "\nor\n"
                + per_run(
                    "max",
                    f"{select('training_global_step')}\nand on ({RUN}, optimizer) (\n"
                    f"  {_LOSS} != {_LOSS}\n"  # true for NaN alone
                    f"  or abs({_LOSS}) == Inf\n"
                    f"  or increase({select('training_nonfinite_total', kind='loss')}[2m]) > 0\n)",
                )
            ),
            severity="critical",
            keep="10m",
            summary=f"Loss of {text.RUN_ID} is not finite",
            description=f"Loss or gradients of {text.RUN_ID} were NaN or infinite at {_AT_STEP}.",
        ),
        AlertRule(
            name="TrainingMetricNonfinite",
            expression=event("nonfinite_metric"),
            severity="warning",
            keep="10m",
            summary=f"A logged value of {text.RUN_ID} is not finite",
            description=(
                f"A validation loss or a metric that {text.RUN_ID} logs is NaN or infinite; seen at {_AT_STEP}."
            ),
        ),
        AlertRule(
            name="TrainingDivergence",
            expression=event("divergence"),
            severity="critical",
            keep="5m",
            remediation="reduce",
            summary=f"Run {text.RUN_ID} diverges",
            description=(f"The loss of {text.RUN_ID} has left its level and does not come back; seen at {_AT_STEP}."),
        ),
        AlertRule(
            name="TrainingLossSpike",
            expression=event("spike"),
            severity="warning",
            keep="10m",
            summary=f"Loss of {text.RUN_ID} spikes",
            description=f"The loss of {text.RUN_ID} rose above its level for several steps; seen at {_AT_STEP}.",
        ),
        AlertRule(
            name="TrainingPlateau",
            expression=event("plateau"),
            severity="warning",
            hold="2m",
            summary=f"Loss of {text.RUN_ID} has stopped falling",
            description=(
                f"{text.RUN_ID} has made no progress worth its steps while its learning rate is not at its end; "
                f"seen at {_AT_STEP}."
            ),
        ),
        AlertRule(
            name="TrainingOverfitting",
            expression=event("overfit"),
            severity="warning",
            keep="10m",
            summary=f"Run {text.RUN_ID} overfits",
            description=(
                f"The validation loss of {text.RUN_ID} rises from its best while the training loss keeps "
                f"falling; seen at {_AT_STEP}."
            ),
        ),
        AlertRule(
            name="TrainingLossStuck",
            expression=event("stuck"),
            severity="warning",
            keep="10m",
            summary=f"Loss of {text.RUN_ID} does not change at all",
            description=(f"The loss of {text.RUN_ID} was identical to the last bit for 50 steps; seen at {_AT_STEP}."),
        ),
        AlertRule(
            name="TrainingLearningRateZero",
            expression=while_running(f"{per_run('max', select('training_learning_rate'))} == 0"),
            severity="warning",
            hold="5m",
            summary=f"Every learning rate of {text.RUN_ID} is 0",
            description=f"{text.RUN_ID} keeps making steps that change no weight.",
        ),
    ),
)

_SKIPPED = f"increase({select('training_skipped_steps_total')}[10m])"
_STEPS = f"increase({select('training_steps_total')}[10m])"

GRADIENTS = RuleGroup(
    "training-gradients",
    (
        AlertRule(
            name="TrainingGradientExplosion",
            expression=event("gradient_explosion"),
            severity="warning",
            keep="10m",
            summary=f"Gradients of {text.RUN_ID} explode",
            description=f"The gradient norm of {text.RUN_ID} is far above its own level; seen at {_AT_STEP}.",
        ),
        AlertRule(
            name="TrainingGradientVanishing",
            expression=event("gradient_vanishing"),
            severity="warning",
            keep="10m",
            summary=f"Gradients of {text.RUN_ID} vanish",
            description=(
                f"The gradient norm of {text.RUN_ID} is below a thousandth of its own level; seen at {_AT_STEP}."
            ),
        ),
        AlertRule(
            name="TrainingClippingSaturated",
            expression=event("clipping_saturated"),
            severity="info",
            hold="5m",
            summary=f"Nearly every step of {text.RUN_ID} is clipped",
            description=(
                f"The clip threshold of {text.RUN_ID} acts at nearly every step and so sets the size of the "
                f"updates; seen at {_AT_STEP}."
            ),
        ),
        AlertRule(
            name="TrainingStepsSkipped",
            # A GradScaler overflows now and then by design: more than one step in ten is what it does not.
            expression=(
                f"{per_run('sum', _SKIPPED)} > 10\nand\n{per_run('sum', _SKIPPED)} > 0.1 * {per_run('sum', _STEPS)}"
            ),
            severity="warning",
            hold="2m",
            summary=f"Run {text.RUN_ID} skips steps",
            description=(
                f"{text.COUNT} optimizer steps of {text.RUN_ID} were skipped within 10 minutes, more "
                "than one in ten: gradients overflow in half precision."
            ),
        ),
    ),
)


def _mean_loss() -> str:
    """Take the exact mean of the losses of five minutes: negative ones are summed apart, by their size."""
    total, count = "training_step_loss_sum", "training_step_loss_count"
    positive, negative = (f"sum without (sign) (rate({select(total, sign=s)}[5m]))" for s in ("positive", "negative"))
    # 0 / 0 is NaN: a run without steps has no mean.
    return f"({positive}\n- {negative})\n/ (sum without (sign) (rate({select(count)}[5m])) > 0)"


_PHASES = f"rate({select('training_phase_duration_seconds_total')}[5m])"

RECORDED = (
    Recording(
        name="run:training_steps:rate5m",
        expression=per_run("max", f"rate({select('training_steps_total')}[5m])"),
        help="Optimizer steps a second; of several optimizers the fastest.",
    ),
    Recording(
        name="run:training_samples:rate5m",
        expression=per_run("sum", f"rate({select('training_samples_total')}[5m])"),
        help="Reported samples a second.",
    ),
    Recording(
        name="run:training_tokens:rate5m",
        expression=per_run("sum", f"rate({select('training_tokens_total')}[5m])"),
        help="Reported tokens a second.",
    ),
    Recording(
        name="run_optimizer:training_step_loss:mean5m",
        expression=_mean_loss(),
        help="Exact mean of the finite losses of five minutes, of either sign.",
    ),
    Recording(
        name="run_phase:training_phase_duration_seconds:ratio5m",
        expression=(f"{per_run('sum', _PHASES, 'phase')}\n/ on ({RUN}) group_left ()\n({per_run('sum', _PHASES)} > 0)"),
        help="Share of the host's time in each phase; data is waiting for a DataLoader.",
    ),
)

"""Queries of panels: a selector knows the labels of its metric and the variables of a dashboard."""

from __future__ import annotations

from monitor._records import LIVE_STATES
from monitor.export._promql import RUN, SCOPE, metric_of, per_run, selector

# Labels that a dashboard filters by a variable of the same name, where the metric has them.
FILTERED = ("optimizer", "param_group", "gpu")
LIVE = "|".join(LIVE_STATES)


def select(series: str, *matchers: str) -> str:
    """Select what the dashboard's variables select of one metric.

    >>> select("training_loss", 'optimizer!="critic"')
    'training_loss{job=~"$job", instance=~"$instance", run_id=~"$run_id", optimizer=~"$optimizer", optimizer!="critic"}'
    """
    labels = (*SCOPE, *(label for label in FILTERED if label in metric_of(series).labels))
    return selector(series, *(f'{label}=~"${label}"' for label in labels), *matchers)


def latest(series: str, *matchers: str) -> str:
    """Select the last value within the time range: a run that has ended is seen as it was at its end.

    For instant queries. A run's target goes when it ends, and with it goes what a plain selector would find.
    """
    return f"last_over_time({select(series, *matchers)}[$__range])"


def state() -> str:
    """Return 1 for each run, with its last state within the time range in the label ``training_run_state``.

    A run that was alive at its last scrape and is not scraped any more is ``vanished``.
    """
    last = per_run("max", f"{latest('training_run_state')} == 1", "training_run_state")
    live = f'training_run_state=~"{LIVE}"'
    alive = per_run("max", f"{latest('training_run_state', live)} == 1")
    seen = f"last_over_time({select('training_run_state')}[$__rate_interval])"
    gone = f'label_replace({alive} unless on ({RUN}) {seen}, "training_run_state", "vanished", "", "")'
    return f"{gone} or on ({RUN}) {last}"


def rate(series: str, *matchers: str) -> str:
    """Return the increase a second of a counter."""
    return f"rate({select(series, *matchers)}[$__rate_interval])"


def increase(series: str, *matchers: str, window: str = "$__rate_interval") -> str:
    """Return the increase of a counter within ``window``."""
    return f"increase({select(series, *matchers)}[{window}])"


def quantile(share: float, histogram: str, *labels: str) -> str:
    """Return a quantile of a histogram over the rate interval, per run and ``labels``."""
    return f"histogram_quantile({share:g}, {per_run('sum', rate(f'{histogram}_bucket'), 'le', *labels)})"


def named_group(expression: str) -> str:
    """Put the name of the param group beside its index."""
    on = f"{RUN}, optimizer, param_group"
    return f"{expression} * on ({on}) group_left (name) {select('training_param_group_info')}"


def firing(*matchers: str) -> str:
    """Select the alerts that fire for the chosen runs. Rules may drop ``job`` and ``instance``, never ``run_id``.

    >>> firing()
    'ALERTS{alertname=~"Training.+", alertstate="firing", run_id=~"$run_id"}'
    """
    return selector("ALERTS", 'alertname=~"Training.+"', 'alertstate="firing"', 'run_id=~"$run_id"', *matchers)

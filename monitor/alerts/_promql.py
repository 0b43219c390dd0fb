"""Pieces of PromQL for rules.

Three things decide their form. A comparison with NaN is false, so no rule may rely on one with a value that can be NaN.
``increase`` does not see what a counter had counted at its first sample. And what lasts less than a scrape interval is
seen only in counters and in the times of events.
"""

from __future__ import annotations

from monitor.export._promql import RUN, metric_of, per_run, selector

RECENT_SECONDS = 120
"""How long an event that is over again counts as new: four scrapes of half a minute."""


def select(name: str, **labels: str) -> str:
    """Select a metric of the catalogue; a value that begins with ``~`` is a regular expression.

    >>> select("training_events_total", kind="spike")
    'training_events_total{kind="spike"}'
    >>> select("training_control_commands_total", outcome="~rejected|expired")
    'training_control_commands_total{outcome=~"rejected|expired"}'

    Raises ValueError for a metric, or a label of it, that no run exports.
    """
    if not set(labels) <= set(metric_of(name).labels):
        raise ValueError(f"no run exports {name!r} with the labels {sorted(labels)}; see monitor/export/_catalogue.py")
    return selector(name, *map(_matcher, labels, labels.values()))


def while_running(expression: str) -> str:
    """Keep what belongs to a run in state ``running``: not one that is paused, has ended or only begins."""
    state = select("training_run_state", training_run_state="running")
    return f"{expression}\nand on ({RUN}) ({state} == 1)"


def event(kind: str) -> str:
    """Return the step of the last event of a kind, while its condition holds and for two minutes from its start.

    The run exports the time of the event, so one that came and went between two scrapes is seen, and one that came
    before the first scrape as well.
    """
    return per_run("max", _event(kind))


def _event(kind: str) -> str:
    active = select("training_event_active", kind=kind)
    time = select("training_last_event_timestamp_seconds", kind=kind)
    step = select("training_last_event_step", kind=kind)
    return f"{step}\nand ({active} == 1 or time() - {time} < {RECENT_SECONDS})"


def grown(name: str, minutes: int, **labels: str) -> str:
    """Return what a counter has gained within the last minutes, if anything.

    Of a run that began within them that is all it has counted, its first sample included.

    >>> print(grown("training_monitor_dropped_steps_total", 10))
    increase(training_monitor_dropped_steps_total[10m]) > 0
    or (training_monitor_dropped_steps_total > 0
    and on (job, instance, run_id) (time() - training_run_start_timestamp_seconds < 600))
    """
    series, start = select(name, **labels), select("training_run_start_timestamp_seconds")
    is_new = f"and on ({RUN}) (time() - {start} < {60 * minutes})"
    return f"increase({series}[{minutes}m]) > 0\nor ({series} > 0\n{is_new})"


def _matcher(label: str, value: str) -> str:
    return f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"'

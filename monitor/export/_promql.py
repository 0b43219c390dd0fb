"""PromQL in the catalogue's names: what the rules of alerts and the queries of dashboards are built of."""

from __future__ import annotations

from textwrap import indent

from monitor.export._catalogue import BY_NAME, Metric

SCOPE = ("job", "instance", "run_id")
"""The labels that tell one run from another."""
RUN = ", ".join(SCOPE)
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def metric_of(series: str) -> Metric:
    """Return the row of the catalogue that ``series`` belongs to, be it a ``_bucket``, a ``_sum`` or a ``_count``.

    Raises ValueError for a name that no run exports.
    """
    if series in BY_NAME:
        return BY_NAME[series]
    for suffix in ("_bucket", "_sum", "_count"):
        metric = BY_NAME.get(series.removesuffix(suffix))
        if metric is not None and suffix in _PARTS.get(metric.type, ()):
            return metric
    raise ValueError(f"no run exports {series!r}; the names are in monitor/export/_catalogue.py")


def selector(series: str, *matchers: str) -> str:
    """Write a selector.

    >>> selector("ALERTS", 'alertstate="firing"')
    'ALERTS{alertstate="firing"}'
    """
    return f"{series}{{{', '.join(matchers)}}}" if matchers else series


def per_run(aggregation: str, expression: str, *labels: str) -> str:
    """Aggregate over everything but the run and ``labels``.

    >>> per_run("max", "training_learning_rate", "optimizer")
    'max by (job, instance, run_id, optimizer) (training_learning_rate)'
    """
    body = f"(\n{indent(expression, '  ')}\n)" if "\n" in expression else f"({expression})"
    return f"{aggregation} by ({', '.join((*SCOPE, *labels))}) {body}"

"""The documentation page of the catalogue."""

from __future__ import annotations

from monitor.export._catalogue import SECTIONS, Metric

_HEAD = """\
# Metrics

<!-- Made by `python docs/make_pages.py` from monitor/export/_catalogue.py; a test compares the two. -->

Every series of the tables carries the label `run_id`, unique to a run; everything else that identifies a run
is in `training_run_info` (join with `group_left`). Units are base units, times are Unix seconds, ratios go
from 0 to 1. Counters start at 0; what is not known or not offered is absent, not 0. No scrape resets a thing.

`optimizer` is the class name of the optimizer, or its key where `attach` was given a mapping of several;
`param_group` is the index of the group; `gpu` is the index of the torch device.

The text format and OpenMetrics 1.0 are served by content negotiation. A histogram has the series `_bucket`,
`_sum` and `_count`, a summary `_sum` and `_count`. The process, platform and garbage collector metrics of
prometheus_client (`process_*`, `python_*`) are served beside these.
"""
_TABLE_HEAD = "| name | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |"


def render_docs() -> str:
    """Render the catalogue as Markdown.

    >>> print(render_docs().splitlines()[0])
    # Metrics
    """
    parts = [_HEAD]
    for title, metrics in SECTIONS.items():
        rows = "\n".join(map(_row, metrics))
        parts.append(f"\n## {title}\n\n{_TABLE_HEAD}\n{rows}\n")
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.unit} | {metric.help} |"

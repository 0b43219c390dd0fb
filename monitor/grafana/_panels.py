"""The kinds of panels that a dashboard here needs, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from monitor.grafana._panel import PAGE_LINK, Json, Panel, Query, override, thresholds


def timeseries(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    is_stacked: bool = False,
    is_log: bool = False,
    is_bars: bool = False,
    links: Sequence[Json] = (PAGE_LINK,),
    overrides: tuple[Json, ...] = (),
    **defaults: Any,
) -> Panel:
    """Make a panel of lines over time. NaN and missing values are gaps, never bridged."""
    custom: Json = {
        "drawStyle": "bars" if is_bars else "line",
        "lineWidth": 1,
        "fillOpacity": 70 if is_stacked or is_bars else 0,
        "showPoints": "never" if is_stacked or is_bars else "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if is_stacked else "none"},
        "scaleDistribution": {"type": "log", "log": 10} if is_log else {"type": "linear"},
    }
    return Panel(
        "timeseries",
        title,
        description,
        unit,
        queries,
        defaults={"custom": custom, "links": list(links), **defaults},
        overrides=overrides,
        options={
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    text: str = "auto",
    steps: Sequence[tuple[float | None, str]] = ((None, "text"),),
    links: Sequence[Json] = (PAGE_LINK,),
    no_value: str = "–",
    overrides: tuple[Json, ...] = (),
    **defaults: Any,
) -> Panel:
    """Make a panel of one number, or of one name (``text="name"``); ``steps`` are (from, colour)."""
    return Panel(
        "stat",
        title,
        description,
        unit,
        (query,),
        width=4,
        height=4,
        defaults={
            "noValue": no_value,
            "color": {"mode": "thresholds"},
            "thresholds": thresholds(steps),
            "links": list(links),
            **defaults,
        },
        overrides=overrides,
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": text,
        },
    )


def gauge(title: str, description: str, query: Query) -> Panel:
    """Make a panel that shows a share from 0 to 1 as an arc."""
    panel = stat(title, description, "percentunit", query, min=0, max=1)
    options = {"reduceOptions": panel.options["reduceOptions"], "showThresholdLabels": False}
    return replace(panel, type="gauge", options={**options, "showThresholdMarkers": False})


def table(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    columns: Mapping[str, str],
    overrides: tuple[Json, ...] = (),
    width: int = 24,
    height: int = 8,
    sort: str | None = None,
) -> Panel:
    """Make a panel with a row for each set of labels; ``columns`` names the columns to keep, in order.

    The value of the only query is called ``Value``, those of several ``Value #A``, ``Value #B``, ...
    """
    kept = list(columns)
    return Panel(
        "table",
        title,
        description,
        unit,
        tuple(replace(query, is_instant=True, is_table=True) for query in queries),
        width=width,
        height=height,
        defaults={"custom": {"align": "auto", "filterable": True}, "noValue": ""},
        overrides=overrides,
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": sort, "desc": True}] if sort else [],
        },
        transformations=(
            {"id": "merge", "options": {}},
            {"id": "filterFieldsByName", "options": {"include": {"names": kept}}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": {name: index for index, name in enumerate(kept)},
                    "renameByName": {name: shown for name, shown in columns.items() if name != shown},
                },
            },
        ),
    )


def state_timeline(
    title: str, description: str, *queries: Query, mappings: Sequence[Json], no_value: str = ""
) -> Panel:
    """Make a panel of coloured bars over time: one row a series, one colour a value."""
    return Panel(
        "state-timeline",
        title,
        description,
        "short",
        queries,
        width=12,
        defaults={
            "custom": {"fillOpacity": 80, "lineWidth": 0},
            "mappings": list(mappings),
            "color": {"mode": "thresholds"},
            "thresholds": thresholds([(None, "text")]),
            "links": [PAGE_LINK],
            **({"noValue": no_value} if no_value else {}),
        },
        options={
            "mergeValues": True,
            "showValue": "never",
            "alignValue": "left",
            "rowHeight": 0.9,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def heatmap(title: str, description: str, unit: str, query: Query) -> Panel:
    """Make a panel of a histogram over time."""
    return Panel(
        "heatmap",
        title,
        description,
        unit,
        (replace(query, is_heatmap=True, legend="{{le}}"),),
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "fill": "dark-blue"},
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
    )


def by_step(title: str, description: str, unit: str, step: str, value: str, *, is_log: bool = False) -> Panel:
    """Make a panel of ``value`` over the optimizer step, one line for each run and optimizer.

    Grafana joins the two at their times into one table, which it parts by run and optimizer.
    """
    return Panel(
        "xychart",
        title,
        description,
        unit,
        (Query(step, is_table=True), Query(value, is_table=True)),
        width=12,
        height=10,
        defaults={
            "custom": {
                "show": "points+lines",
                "pointSize": {"fixed": 2},
                "lineWidth": 1,
                "scaleDistribution": {"type": "log", "log": 10} if is_log else {"type": "linear"},
            },
        },
        overrides=(
            override("Value #A", unit="locale", displayName="Step", custom__axisLabel="optimizer step"),
            override("Value #B", displayName="${__field.labels.run_id} ${__field.labels.optimizer}"),
        ),
        options={
            "mapping": "auto",
            "series": [
                {
                    "x": {"matcher": {"id": "byName", "options": "Value #A"}},
                    "y": {"matcher": {"id": "byName", "options": "Value #B"}},
                }
            ],
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": ["run_id", "optimizer", "Value #A", "Value #B"]}},
            },
            {
                "id": "partitionByValues",
                "options": {"fields": ["run_id", "optimizer"], "keepFields": False, "naming": {"asLabels": True}},
            },
        ),
    )

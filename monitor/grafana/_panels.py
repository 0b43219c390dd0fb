"""Panels of Grafana's classic dashboard JSON, as plain data: what a dashboard here needs of them and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
RUN_DASHBOARD = "training-monitor-run"

# The run's own page. A link opens it; only the page itself, with its token, changes anything.
PAGE_LINK: Json = {
    "title": "Open the run's own page: live view and control",
    "url": "http://${__field.labels.instance}/",
    "targetBlank": True,
}
RUN_LINK: Json = {
    "title": "Show this run",
    "url": f"/d/{RUN_DASHBOARD}?${{datasource:queryparam}}&var-run_id=${{__field.labels.run_id}}&${{__url_time_range}}",
}
STATE_COLOURS = {
    "starting": "blue",
    "running": "green",
    "paused": "yellow",
    "finished": "text",
    "failed": "red",
    "interrupted": "orange",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression of a panel. ``is_instant``: only the value at the end of the time range."""

    expression: str
    legend: str = ""
    is_instant: bool = False
    is_table: bool = False
    is_heatmap: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``unit`` is one of Grafana's; ``width`` is in 24ths of the page, ``height`` in rows of 30 pixels."""

    type: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    transformations: tuple[Json, ...] = ()

    def render(self, number: int, x: int, y: int) -> Json:
        """Return the JSON of the panel at its place."""
        panel: Json = {
            "id": number,
            "type": self.type,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": DATASOURCE,
            "targets": [_render_query(query, chr(ord("A") + index)) for index, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": {"unit": self.unit, **self.defaults}, "overrides": list(self.overrides)},
            "options": dict(self.options),
        }
        if self.transformations:
            panel["transformations"] = list(self.transformations)
        return panel

    def sized(self, width: int, height: int | None = None) -> Panel:
        """Return the same panel in another size."""
        return replace(self, width=width, height=height or self.height)


def _render_query(query: Query, letter: str) -> Json:
    target: Json = {
        "refId": letter,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "instant": query.is_instant,
        "range": not query.is_instant,
        "format": "table" if query.is_table else "heatmap" if query.is_heatmap else "time_series",
    }
    if query.legend:
        target["legendFormat"] = query.legend
    return target


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


def state_timeline(title: str, description: str, *queries: Query, mappings: Sequence[Json]) -> Panel:
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
    renamed = {"Value #A": "Step", "Value #B": "Value"}
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
        overrides=(override("Step", unit="locale", custom__axisLabel="optimizer step"),),
        options={
            "mapping": "auto",
            "series": [
                {
                    "x": {"matcher": {"id": "byName", "options": "Step"}},
                    "y": {"matcher": {"id": "byName", "options": "Value"}},
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
            {"id": "organize", "options": {"excludeByName": {}, "indexByName": {}, "renameByName": renamed}},
            {
                "id": "partitionByValues",
                "options": {"fields": ["run_id", "optimizer"], "keepFields": False, "naming": {"asLabels": True}},
            },
            {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "Step"}]}},
        ),
    )


def thresholds(steps: Sequence[tuple[float | None, str]]) -> Json:
    """Return colours from values on."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def value_mapping(texts: Mapping[str, tuple[str, str]]) -> Json:
    """Return a mapping of values to (text, colour)."""
    options = {
        value: {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(texts.items())
    }
    return {"type": "value", "options": options}


def override(column: str, **properties: Any) -> Json:
    """Return an override of one field by its name; ``custom__axisLabel`` stands for ``custom.axisLabel``."""
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()],
    }

"""A panel of Grafana's classic dashboard JSON, and what panels are made of."""

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
    "vanished": "red",
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

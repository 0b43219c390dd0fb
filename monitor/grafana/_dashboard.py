"""A dashboard: variables, annotations and links that all of ours share, and rows of panels set out on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from monitor.export._promql import SCOPE
from monitor.grafana._panel import DATASOURCE, Json, Panel
from monitor.grafana._queries import select

SCHEMA_VERSION = 42
TAG = "training-monitor"
_COLUMNS = 24
_LABELS = {
    "job": "Job",
    "instance": "Instance",
    "run_id": "Run",
    "optimizer": "Optimizer",
    "param_group": "Param group",
    "gpu": "GPU",
}
# Where the values of a variable come from: a metric that has the label on every run that has it at all.
_SOURCES = {
    "job": "training_run_info",
    "instance": "training_run_info",
    "run_id": "training_run_info",
    "optimizer": "training_steps_total",
    "param_group": "training_learning_rate",
    "gpu": "training_gpu_info",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row; its panels follow each other, and wrap where the page ends."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard. ``variables`` are those besides datasource, job, instance and run_id."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ()
    is_one_run: bool = False
    refresh: str = "10s"
    span: str = "now-1h"

    def render(self) -> Json:
        """Return the JSON that Grafana reads.

        >>> Dashboard("u", "T", "D", ()).render()["schemaVersion"]
        42
        """
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "graphTooltip": 1,
            "timezone": "browser",
            "refresh": self.refresh,
            "time": {"from": self.span, "to": "now"},
            "timepicker": {},
            "fiscalYearStartMonth": 0,
            "weekStart": "",
            "annotations": {"list": _annotations()},
            "links": [_link_to_others()],
            "templating": {"list": self._variables()},
            "panels": list(_set_out(self.rows)),
        }

    def _variables(self) -> list[Json]:
        names = (*SCOPE, *self.variables)
        return [_datasource(), *(_variable(name, is_single=self.is_one_run and name == "run_id") for name in names)]


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def variable_query(name: str) -> str:
    """Return where Grafana takes the values of a variable from: the variables before it narrow it down.

    >>> variable_query("run_id")
    'label_values(training_run_info{job=~"$job", instance=~"$instance"}, run_id)'
    """
    earlier = SCOPE[: SCOPE.index(name)] if name in SCOPE else SCOPE
    matchers = ", ".join(f'{label}=~"${label}"' for label in earlier)
    return (
        f"label_values({_SOURCES[name]}{{{matchers}}}, {name})"
        if matchers
        else f"label_values({_SOURCES[name]}, {name})"
    )


def _variable(name: str, *, is_single: bool) -> Json:
    query = variable_query(name)
    everything = {"current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "allValue": ".+"}
    return {
        "name": name,
        "label": _LABELS[name],
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "hide": 0,
        "includeAll": not is_single,
        "multi": not is_single,
        **({} if is_single else everything),
        "options": [],
        "refresh": 2,  # when the time range changes: runs come and go
        "regex": "",
        "skipUrlSync": False,
        "sort": 3 if name in ("param_group", "gpu") else 1,  # as numbers, as text
    }


def _annotations() -> list[Json]:
    """Return what is marked on every graph. The times are values of metrics, so that no token is needed."""
    built_in: Json = {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }
    return [
        built_in,
        _mark("Events", "training_last_event_timestamp_seconds", "orange", "{{kind}}", "run_id,kind"),
        _mark("Commands", "training_control_last_applied_timestamp_seconds", "blue", "{{action}}", "run_id,action"),
        _mark("Run starts", "training_run_start_timestamp_seconds", "green", "run started", "run_id"),
        _mark("Run ends", "training_run_end_timestamp_seconds", "purple", "run ended", "run_id"),
        _notes(),
    ]


def _notes() -> Json:
    """Return the marks that an Annotator has saved, with the full message of each event; off until switched on."""
    return {
        "name": "Notes",
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": False,
        "hide": False,
        "iconColor": "yellow",
        "target": {"type": "tags", "tags": [TAG], "matchAny": False, "limit": 100},
    }


def _mark(name: str, series: str, colour: str, title: str, tags: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        # The last state of a run is scraped once and stale soon after: a wide step would pass it over. Grafana takes
        # the value for a time in milliseconds.
        "expr": f"last_over_time({select(series)}[$__rate_interval]) * 1000",
        "step": "10s",
        "useValueForTime": "on",
        "titleFormat": title,
        "textFormat": "{{run_id}}",
        "tagKeys": tags,
    }


def _link_to_others() -> Json:
    return {
        "type": "dashboards",
        "title": "Training monitor",
        "tags": [TAG],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _set_out(rows: Iterable[Row]) -> Iterable[Json]:
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
            "panels": [],
        }
        number, y = number + 1, y + 1
        for line in _lines(row.panels):
            x = 0
            for panel in line:
                yield panel.render(number, x, y)
                number, x = number + 1, x + panel.width
            y += max(panel.height for panel in line)


def _lines(panels: Sequence[Panel]) -> Iterable[list[Panel]]:
    line: list[Panel] = []
    for panel in panels:
        if line and sum(each.width for each in line) + panel.width > _COLUMNS:
            yield line
            line = []
        line.append(panel)
    if line:
        yield line

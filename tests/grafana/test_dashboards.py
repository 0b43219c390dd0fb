"""The committed dashboards: what the builder makes, and what Grafana's dashboard-linter asks of a dashboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from monitor.export import CATALOGUE
from monitor.export._promql import metric_of
from monitor.grafana import render_files
from monitor.grafana._queries import select
from tests.grafana.reading import FILES, FOLDER, expressions, load, panels, selectors

DASHBOARDS = [pytest.param(load(path), id=path.stem) for path in FILES]
# What is shown nowhere, and why.
NOT_SHOWN = {
    "training_stall_timeout_seconds": "a threshold that the stall alert uses",
    "training_gradient_norm_step": "a graph over time shows by its course how old the last norm is",
}
# Metrics that are not of a run's own scrape: they lack labels that every series of ours has.
FOREIGN = {"ALERTS": {"job", "instance"}, "up": {"run_id"}}
UNITS = {
    *("none", "short", "locale", "sci", "percentunit", "bytes", "s", "ops", "hertz", "celsius", "watt", "dtdurations"),
    "dateTimeFromNow",
}


def every_panel() -> Iterator[Any]:
    for path in FILES:
        dashboard = load(path)
        for panel in panels(dashboard):
            yield pytest.param(dashboard, panel, id=f"{path.stem}-{panel['title']}")


def test_the_committed_files_are_those_of_the_builder() -> None:
    """`monitor dashboards export dashboards` would change nothing."""
    committed = {
        str(path.relative_to(FOLDER)): path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.is_file()
    }
    assert committed == dict(render_files())


def test_every_metric_is_shown_somewhere() -> None:
    """What a run exports can be seen on a dashboard, or has a reason for not being."""
    shown = set()
    for path in FILES:
        for expression in expressions(load(path)):
            shown |= {metric_of(s.metric).name for s in selectors(expression.text) if s.metric not in FOREIGN}
    assert {metric.name for metric in CATALOGUE} - shown == set(NOT_SHOWN)


def test_a_metric_that_no_run_exports_is_refused() -> None:
    """The builder stops at a name that is not in the catalogue."""
    with pytest.raises(ValueError, match="no run exports 'training_los'"):
        select("training_los")
    with pytest.raises(ValueError, match="training_loss_bucket"):
        select("training_loss_bucket")


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_a_dashboard_has_an_identity(dashboard: dict[str, Any]) -> None:
    """It has a uid, a title, a description, our tag, is not editable and of the schema that we write."""
    assert re.fullmatch(r"[a-z-]{1,40}", dashboard["uid"])
    assert dashboard["title"].startswith("Training: ")
    assert dashboard["description"]
    assert dashboard["tags"] == ["training-monitor"]
    assert (dashboard["editable"], dashboard["schemaVersion"]) == (False, 42)
    assert "id" not in dashboard


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_template_datasource_rule(dashboard: dict[str, Any]) -> None:
    """The first variable is the data source, of Prometheus, named and labelled as it should be."""
    found = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    assert [(v["name"], v["label"], v["query"]) for v in found] == [("datasource", "Data source", "prometheus")]
    assert dashboard["templating"]["list"][0] == found[0]


@pytest.mark.parametrize("dashboard", DASHBOARDS)
@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_and_instance_rules(dashboard: dict[str, Any], name: str) -> None:
    """job and instance are multi-select query variables over the chosen data source; all of them is ".+"."""
    (variable,) = [v for v in dashboard["templating"]["list"] if v["name"] == name]
    assert variable["datasource"]["uid"] == "${datasource}"
    assert (variable["type"], variable["label"]) == ("query", name.title())
    assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_template_label_and_reload_rules(dashboard: dict[str, Any]) -> None:
    """Every query variable asks for label values of a metric of ours, and asks again when the time range changes."""
    for variable in dashboard["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["query"]["query"])
        assert match, variable["query"]
        assert match[3] == variable["name"]
        assert match[3] in (*metric_of(match[1]).labels, "job", "instance", "run_id")
        assert variable["refresh"] == 2


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_variables_are_used_and_defined(dashboard: dict[str, Any]) -> None:
    """Every variable is used by an expression, and every one that an expression uses is there."""
    used = {
        name
        for each in expressions(dashboard)
        for name in re.findall(r"\$(\w+)", each.text)
        if not name.startswith("__")
    }
    assert used == {variable["name"] for variable in dashboard["templating"]["list"]} - {"datasource"}


@pytest.mark.parametrize(("dashboard", "panel"), list(every_panel()))
def test_panel_rules(dashboard: dict[str, Any], panel: dict[str, Any]) -> None:
    """A panel has a title, a description, a unit that Grafana knows, expressions, and the chosen data source."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    for override in panel["fieldConfig"]["overrides"]:
        assert {p["value"] for p in override["properties"] if p["id"] == "unit"} <= UNITS
    assert panel["targets"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_titles_and_numbers_are_unique(dashboard: dict[str, Any]) -> None:
    """Titles stand for panels in links and alerts, ids for them in Grafana: neither comes twice."""
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_panels_lie_beside_each_other(dashboard: dict[str, Any]) -> None:
    """No panel covers another or leaves the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_target_rules(dashboard: dict[str, Any]) -> None:
    """Selectors filter by job, instance, run; counters are rated; rates have $__rate_interval; so are buckets."""
    for expression in expressions(dashboard):
        found = selectors(expression.text)
        assert found, expression.where
        for selector in found:
            wanted = {"job", "instance", "run_id"} - FOREIGN.get(selector.metric, set())
            matchers = {f'{label}=~"${label}"' for label in wanted}
            assert matchers <= set(selector.matchers), f"{expression.where}: {selector}"
            call = selector.calls[-1] if selector.calls else ""
            if call in ("rate", "irate"):
                assert selector.window == "$__rate_interval", expression.where
            if selector.metric in FOREIGN:
                continue
            metric = metric_of(selector.metric)
            is_counter = metric.type == "counter" or selector.metric != metric.name
            assert is_counter == (call in ("rate", "irate", "increase")), f"{expression.where}: {selector}"
            if selector.metric.endswith("_bucket") and expression.kind != "heatmap":
                assert "histogram_quantile" in selector.calls


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_legends_name_labels_that_the_expression_keeps(dashboard: dict[str, Any]) -> None:
    """A label of a legend is one of the metric, and survives the aggregation."""
    for expression in expressions(dashboard):
        kept = re.findall(r"\bby \(([^)]*)\)", expression.text)
        own = {"job", "instance", "run_id", "name"}
        for selector in selectors(expression.text):
            own |= set() if selector.metric in FOREIGN else {*metric_of(selector.metric).labels, "le"}
        allowed = {label.strip() for label in kept[0].split(",")} if kept else own
        assert expression.labels <= allowed | {"training_run_state"}, expression.where


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_marks_come_from_metrics(dashboard: dict[str, Any]) -> None:
    """Events, commands, run starts and run ends are marked from values of metrics, each at its own time."""
    found = {mark["name"]: mark for mark in dashboard["annotations"]["list"] if "expr" in mark}
    sources = {
        "Events": "training_last_event_timestamp_seconds",
        "Commands": "training_control_last_applied_timestamp_seconds",
        "Run starts": "training_run_start_timestamp_seconds",
        "Run ends": "training_run_end_timestamp_seconds",
    }
    assert {name: selectors(mark["expr"])[0].metric for name, mark in found.items()} == sources
    for mark in found.values():
        assert mark["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert (mark["enable"], mark["useValueForTime"]) == (True, "on")
        assert mark["expr"].endswith("* 1000")


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_what_a_run_may_lack_says_so(dashboard: dict[str, Any]) -> None:
    """A panel about GPUs or a scaler, which many runs do not have, says what is missing instead of "No data"."""
    for panel in panels(dashboard):
        texts = " ".join(target["expr"] for target in panel["targets"])
        if panel["type"] != "table" and re.search(r"training_(gpu|cuda|amp|validation|metric)", texts):
            assert panel["fieldConfig"]["defaults"].get("noValue"), panel["title"]


def test_links_only_open_pages() -> None:
    """Links lead to dashboards of ours and to the front page of a run: none of them can change anything by a GET."""
    known = {load(path)["uid"] for path in FILES}
    for path in FILES:
        for url in re.findall(r'"url": "([^"]+)"', path.read_text(encoding="utf-8")):
            dashboard = re.match(r"/d/([a-z-]+)\?", url)
            is_page = re.fullmatch(r"http://\$\{__(field\.labels\.instance|value\.raw)\}/", url)
            assert is_page or (dashboard and dashboard[1] in known), url


def test_the_linter_sees_bad_expressions() -> None:
    """The reading of expressions that the rules above stand on tells calls, windows and matchers apart."""
    (first, second) = selectors('sum by (job) (rate(a_total{job=~"$job", x!="(y)"}[5m])) / max(b{})')
    assert (first.metric, first.matchers, first.window) == ("a_total", ('job=~"$job"', 'x!="(y)"'), "5m")
    assert first.calls == ("sum", "rate")
    assert (second.metric, second.calls) == ("b", ("max",))

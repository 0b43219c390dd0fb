from __future__ import annotations

import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitor._records import Snapshot
from monitor.export import CATALOGUE, Exporter
from tests.export.full_snapshot import make_optimizer, make_run, make_snapshot

TEXT = "text/plain; version=0.0.4; charset=utf-8"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def render(accept=None, names=(), snapshot=None):
    snapshot = make_snapshot() if snapshot is None else snapshot
    body, content_type = Exporter(lambda: snapshot).render(accept, names)
    return body.decode(), content_type


def lines(body):
    return [line for line in body.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("accept", [None, "", "*/*", "text/html", "application/openmetrics-text;version=x", ";;,="])
def test_text_is_the_default(accept):
    """Who asks for nothing known, or for nonsense, gets the text format."""
    body, content_type = render(accept)
    assert content_type == TEXT
    assert "# EOF" not in body


@pytest.mark.parametrize("accept", [PROMETHEUS_3, OPENMETRICS, "application/openmetrics-text"])
def test_openmetrics_is_served_where_it_is_asked_for(accept):
    """A Prometheus server gets OpenMetrics 1.0, ended as the standard asks."""
    body, content_type = render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;q=0,text/plain",
        "application/openmetrics-text; q=0.000, */*",
        "application/openmetrics-text;version=1.0.0;q=0",
        "Application/OpenMetrics-Text;Q=0,*/*;q=0.1",
        "application/*;q=0,*/*",
        "application/openmetrics-text;q=0.2,text/plain;q=0.9",
        "application/openmetrics-text;q=0.2,text/*;q=0.9",
        "*/*;q=0",
        "text/plain;q=0",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    ],
)
def test_what_is_not_acceptable_is_not_served(accept):
    """A quality of 0 excludes OpenMetrics, a lower one puts text first; where nothing is acceptable there is text."""
    body, content_type = render(accept)
    assert content_type == TEXT
    assert "# EOF" not in body


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;q=0,*/*",
        "text/plain;q=0.5,application/openmetrics-text;q=0.6",
        "text/plain,application/openmetrics-text",
        "APPLICATION/OPENMETRICS-TEXT; version=1.0.0",
        "application/openmetrics-text;q=much,text/plain;q=0.5",
        "text/plain;q=0.1,application/*;q=0.2",
    ],
)
def test_openmetrics_is_served_where_it_is_wanted_as_much(accept):
    """Named and wanted no less than text it is served; a quality that is none counts as 1."""
    assert render(accept)[1].startswith("application/openmetrics-text; version=1.0.0")


def test_the_most_wanted_version_is_served():
    """Of several elements of one format the order is that of their quality, not of the header."""
    _, content_type = render("text/plain;version=0.0.4;q=0.3,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4")
    assert content_type == "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"


def test_the_strict_parser_reads_the_openmetrics_output():
    """The reference parser takes the whole scrape: units, state set, info, histograms and counters."""
    families = {family.name: family for family in parse_openmetrics(render(OPENMETRICS)[0])}
    for metric in CATALOGUE:
        assert (families[metric.family].type, families[metric.family].unit) == (metric.type, metric.unit)


def test_both_formats_hold_the_same_series():
    """Content negotiation changes the dress, not the data."""
    accepts = (None, OPENMETRICS, PROMETHEUS_3)
    bodies = [[line for line in lines(render(accept)[0]) if "collect_duration" not in line] for accept in accepts]
    training = [sorted(line for line in body if line.startswith("training_")) for body in bodies]
    assert training[0] == training[1] == training[2]
    assert len(training[0]) > 600


def test_there_is_no_created_noise():
    """No _created series are exported: they double the counters and the start time says as much."""
    for accept in (None, OPENMETRICS):
        assert [line for line in lines(render(accept)[0]) if "_created" in line.split("{")[0]] == []


def test_process_platform_and_collector_metrics_are_there():
    """One scrape of a run also tells about its process."""
    names = {family.name for family in parse_text(render()[0])}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= names
    assert {"python_gc_collections", "python_gc_objects_collected"} <= names


def test_two_exporters_live_side_by_side():
    """Each run has a registry of its own, so the second run of a process is no duplicate."""
    other = make_snapshot(run=make_run(run_id="other-ffffff"))
    assert 'run_id="other-ffffff"' in render(snapshot=other)[0]
    assert 'run_id="other-ffffff"' not in render()[0]


def test_a_scrape_can_be_restricted_by_name():
    """name[] gives these samples and no others; a name that nobody has gives none."""
    body, _ = render(names=["training_loss", "training_steps_total"])
    assert lines(body) == [
        'training_steps_total{optimizer="AdamW",run_id="demo-0a1b2c"} 1200.0',
        'training_loss{optimizer="AdamW",run_id="demo-0a1b2c"} 1.25',
    ]
    assert render(names=["nothing"])[0] == ""
    assert render(OPENMETRICS, names=["nothing"])[0] == "# EOF\n"


NASTY = 'a "quoted" back\\slash\nnew line, käse \ud800 end'


@pytest.mark.parametrize("accept", [None, OPENMETRICS, PROMETHEUS_3])
def test_label_values_may_be_any_text(accept):
    """Quotes, line ends, other alphabets and even lone surrogates in a name leave the scrape readable."""
    body, _ = render(accept, snapshot=make_snapshot(metrics={NASTY: 1.0}, run=make_run(name=NASTY)))
    parse = parse_text if accept is None else parse_openmetrics
    families = {family.name: family for family in parse(body)}
    (sample,) = families["training_metric"].samples
    assert sample.labels["name"] == NASTY.replace("\ud800", "\\ud800")


@pytest.mark.parametrize(
    "snapshot",
    [
        make_snapshot(),
        make_snapshot(groups=4, gpus=1, end_time=None),
        make_snapshot(optimizers=(make_optimizer("a", 2, loss=float("nan")), make_optimizer("b", 70))),
        make_snapshot(metrics={NASTY: float("inf")}, gpus=0),
        Snapshot(run=make_run(), state="starting", time=0.0),
    ],
    ids=["full", "small", "several optimizers", "no gpu", "empty"],
)
def test_promtool_finds_nothing_to_mend(promtool, snapshot):
    """promtool check metrics passes, without a word, on every kind of scrape."""
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=render(snapshot=snapshot)[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_promtool_would_object(promtool):
    """The check is alive: a scrape with a counter that is not named as one is refused."""
    bad = "# HELP training_steps x\n# TYPE training_steps counter\ntraining_steps 1\n"
    result = subprocess.run([promtool, "check", "metrics"], input=bad, capture_output=True, text=True, check=False)
    assert result.returncode != 0


def test_the_series_of_a_usual_run_are_few():
    """A run with one GPU, four groups and no other ranks stays near the size that the contract names."""
    body, _ = render(snapshot=make_snapshot(groups=4, gpus=1, ranks=(), dropped_series=0))
    training = [line for line in lines(body) if line.startswith("training_")]
    assert len(training) < 300


def test_gpu_series_go_by_torch_index():
    """The gpu label is the index of the torch device, not the order in the reading."""
    body, _ = render(snapshot=make_snapshot(groups=1), names=["training_gpu_power_watts"])
    assert [line.split('gpu="')[1][0] for line in lines(body)] == ["0", "1"]

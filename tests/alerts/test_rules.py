"""The shipped Prometheus rules: their names, their texts, and when they fire, judged by the real promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from monitor._records import EVENT_KINDS, OUTCOMES, STATES
from monitor.alerts import RUNBOOK, render_files
from monitor.export import CATALOGUE
from tests.alerts.cases import CASES, series
from tests.alerts.promtool import check
from tests.alerts.rules import ALERTS, RECORDINGS, AlertRule, Recording
from tests.requirements import need

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "dashboards" / "prometheus" / "rules"
RULES = sorted(FOLDER.glob("*.yml"))
EVENTS = ("event_active", "last_event_step", "last_event_timestamp_seconds", "events_total")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
EXPORTED = {metric.name + suffix for metric in CATALOGUE for suffix in _SUFFIXES.get(metric.type, ("",))}
LABELS = {label for metric in CATALOGUE for label in metric.labels}
VALUES = {
    **{(f"training_{name}", "kind"): EVENT_KINDS for name in EVENTS},
    ("", "training_run_state"): STATES,
    ("", "outcome"): OUTCOMES,
    ("", "sign"): ("positive", "negative"),
}
"""What a label of a metric, or of any, may be."""


def test_the_committed_files_are_those_of_the_package() -> None:
    """The folder holds what ``monitor dashboards export`` writes, and nothing else."""
    assert {path.name: path.read_text() for path in RULES} == dict(render_files())


def test_the_runbook_is_where_the_reader_says() -> None:
    """Every alert links to its section at the address that was given; no other placeholder is filled in or left."""
    usual, other = render_files()["alerts.yml"], render_files("https://wiki/alerts")["alerts.yml"]
    assert other == usual.replace(f'"{RUNBOOK}#', '"https://wiki/alerts#')
    assert [alert.runbook_url for alert in ALERTS] == [f"{RUNBOOK}#{alert.name.lower()}" for alert in ALERTS]
    assert set(re.findall(r"\$(?!labels\.|value )\S*", usual)) == set()


def test_promtool_accepts_the_rules() -> None:
    """``promtool check rules`` finds nothing to object, with all its lints on."""
    command = [need("promtool", "prometheus"), "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDINGS], ids=lambda rule: rule.name)
def test_a_rule_uses_only_what_a_run_exports(rule: AlertRule | Recording) -> None:
    """Every metric in an expression is in the catalogue or is recorded, with labels that it has."""
    bare = re.sub(r'"[^"]*"', '""', rule.expression)
    selectors = re.findall(r"([a-z_:]+:[\w:]+|training_\w+|\bup\b)(?:\{([^}]*)\})?(?![\w=!])", bare)
    recorded = {recording.name for recording in RECORDINGS}
    names = [(name, labels) for name, labels in selectors if name != "training_run_state" or "=" not in name]
    assert names
    for name, labels in names:
        assert name in EXPORTED | recorded | {"up"}, name
        for label in re.findall(r"(\w+)(?:=~|=|!=|!~)", labels):
            assert label in LABELS | {"job"}, f"{name} has no label {label}"


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDINGS], ids=lambda rule: rule.name)
def test_a_rule_selects_values_that_a_run_exports(rule: AlertRule | Recording) -> None:
    """Kinds of events, states and outcomes are spelt as runs spell them: no rule is silent for a misspelling."""
    selected = re.findall(r"\b(training_\w+)\{([^}]*)\}", rule.expression)
    for name, label, operator, value in (
        (name, *match) for name, matchers in selected for match in re.findall(r'(\w+)(=~|=)"([^"]*)"', matchers)
    ):
        known = VALUES.get((name, label), VALUES.get(("", label)))
        if known is not None:
            found = [one for one in known if re.fullmatch(value if operator == "=~" else re.escape(value), one)]
            assert len(found) >= len(value.split("|")), f"{rule.name}: {name} has no {label} {value}"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_thresholds_in_seconds_agree(rule: AlertRule) -> None:
    """An event counts as new for 120 s; a counter's first sample counts for as long as its range reaches back."""
    recent = re.findall(r"time\(\) - training_last_event_timestamp_seconds\{[^}]*\} < (\d+)", rule.expression)
    assert set(recent) <= {"120"}
    assert len(recent) == rule.expression.count("training_last_event_timestamp_seconds")
    young = re.findall(r"time\(\) - training_run_start_timestamp_seconds < (\d+)", rule.expression)
    ranges = re.findall(r"increase\([^[]*\[(\d+)m\]\) > 0\n *or", rule.expression) if young else []
    assert [int(seconds) for seconds in young] == [60 * int(minutes) for minutes in ranges]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_is_named_described_and_explained(alert: AlertRule) -> None:
    """An alert is called Training..., says which run in one short line, and has a section in docs/alerts.md."""
    assert re.fullmatch(r"Training([A-Z][a-z]+)+", alert.name)
    assert "$labels." in alert.summary
    assert len(alert.summary) < 80
    assert not alert.summary.endswith(".")
    assert alert.description.endswith(".")
    docs = (ROOT / "docs" / "alerts.md").read_text()
    section = re.search(rf"^## {alert.name}\n(.*?)(?=^## |\Z)", docs, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/alerts.md has no section {alert.name}"
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in section[1], f"docs/alerts.md, {alert.name}: no {part}"


def test_the_docs_explain_no_alert_that_is_gone() -> None:
    """Every section on an alert in docs/alerts.md is about one that exists."""
    headings = re.findall(r"^## (Training\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert headings == [alert.name for alert in ALERTS]


def test_every_kind_of_event_reaches_somebody() -> None:
    """All kinds of trouble have an alert, but outliers, which are none."""
    text = "".join(alert.expression for alert in ALERTS)
    assert {kind for kind in EVENT_KINDS if f'kind="{kind}"' not in text} == {"outlier"}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert: AlertRule) -> None:
    """No alert ships untested, in neither direction."""
    about = [case.fires is not None for case in CASES if case.alert == alert.name]
    assert True in about
    assert False in about


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_should_and_only_then(alert: AlertRule, tmp_path: Path) -> None:
    """promtool finds each case as expected, down to labels and texts."""
    assert check([case for case in CASES if case.alert == alert.name], RULES, tmp_path) == ""


def test_the_cases_hold_where_ranges_are_open_on_the_left(tmp_path: Path) -> None:
    """Prometheus 3 leaves out the sample at the very start of a range; a range of a millisecond less does so too."""
    rules = []
    for path in RULES:
        shorter = re.sub(r"\[(\d+)([mh])\]", lambda m: f"[{int(m[1]) * (60_000 if m[2] == 'm' else 3_600_000) - 1}ms]",
                         path.read_text())  # fmt: skip
        assert shorter != path.read_text()
        rules.append(tmp_path / path.name)
        rules[-1].write_text(shorter)
    assert check(CASES, rules, tmp_path) == ""


def test_two_runs_are_told_apart(tmp_path: Path) -> None:
    """The alert of one run is none of another's at the same address, before it or beside it."""
    case = next(c for c in CASES if c.alert == "TrainingDivergence" and c.fires is not None)
    other = {name.replace("demo-0a1b2c", "demo-ffffff"): "0x80" for name in case.series if "active" in name}
    assert check([type(case)(**{**vars(case), "series": case.series | other})], RULES, tmp_path) == ""


def test_promtool_would_object(tmp_path: Path) -> None:
    """A case with a wrong expectation fails: the judge is awake."""
    case = next(c for c in CASES if c.alert == "TrainingTargetDown" and c.fires is not None)
    wrong = type(case)(**{**vars(case), "series": series("up", "1x80")})
    assert "TrainingTargetDown" in check([wrong], RULES, tmp_path)

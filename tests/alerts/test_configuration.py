"""The shipped Prometheus and Alertmanager configuration, judged by promtool, amtool and a real Alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path

import pytest
import yaml

from monitor.server._alertmanager import ACTIONS
from tests.alerts.rules import BY_NAME
from tests.requirements import need
from tests.stack.real_alertmanager import Alertmanager
from tests.stack.real_prometheus import wait_until

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"
ALERTMANAGER = DASHBOARDS / "alertmanager" / "alertmanager.yml"
EXAMPLES = sorted((DASHBOARDS / "alertmanager" / "examples").glob("*.yml"))
ALERTS_PAGE = DASHBOARDS.parent / "docs" / "alerts.md"
ENDED = {"TrainingRunFailed", "TrainingRunVanished"}


def amtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [need("amtool", "prometheus-alertmanager"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def routed(config: Path, **labels: str) -> list[str]:
    """Return the receivers of an alert with these labels."""
    done = amtool("config", "routes", "test", f"--config.file={config}", *(f"{k}={v}" for k, v in labels.items()))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(",")


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    """``promtool check config`` finds nothing to object, the rule files included, once the token's file is there."""
    (tmp_path / "token").write_text("secret")
    (tmp_path / "rules").symlink_to(DASHBOARDS / "prometheus" / "rules")
    text = (DASHBOARDS / "prometheus" / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/run/secrets/monitor_read_token", str(tmp_path / "token")))
    command = [need("promtool", "prometheus"), "check", "config", "--lint=all", "--lint-fatal", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


@pytest.mark.parametrize("config", [ALERTMANAGER, *EXAMPLES], ids=lambda path: path.name)
def test_amtool_accepts_the_configuration(config: Path) -> None:
    """``amtool check-config`` finds nothing to object, in the shipped file and in every example."""
    done = amtool("check-config", config)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_examples_for_slack_mail_and_webhooks() -> None:
    """Each way to reach people that the documentation names has an example."""
    assert {"slack.yml", "mail.yml", "webhook.yml", "several-runs.yml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("name", BY_NAME)
def test_every_alert_reaches_people_and_a_remedy_the_run(name: str) -> None:
    """People are notified of all alerts; the run of those alone that name something that it can do."""
    alert = BY_NAME[name]
    labels = {"alertname": name, "severity": alert.severity, "run_id": "demo-0a1b2c"}
    if alert.remediation is None:
        assert routed(ALERTMANAGER, **labels) == ["people"]
    else:
        assert routed(ALERTMANAGER, **labels, remediation=alert.remediation) == ["run", "people"]


def test_the_run_knows_every_remedy() -> None:
    """What a rule asks for is something that the run's endpoint does."""
    remedies = {alert.remediation for alert in BY_NAME.values()} - {None}
    assert remedies == {"reduce"}
    assert remedies <= set(ACTIONS)


@pytest.mark.parametrize("config", [ALERTMANAGER, *EXAMPLES], ids=lambda path: path.name)
@pytest.mark.parametrize("remediation", [*sorted(set(ACTIONS) - {"reduce"}), "unknown"])
def test_no_alert_can_do_more_than_lower_a_learning_rate(config: Path, remediation: str) -> None:
    """Anybody who reaches Alertmanager can post an alert: as shipped none is delivered that stops, pauses or saves."""
    labels = {"alertname": "TrainingDivergence", "severity": "critical", "run_id": "char-gpt-0a1b2c"}
    receivers = routed(config, **labels, remediation=remediation)
    assert receivers
    assert not any(name.startswith("run") for name in receivers)


def test_an_alert_of_no_run_asks_no_run_for_anything() -> None:
    """Without a run_id nobody can be meant."""
    assert routed(ALERTMANAGER, alertname="Other", severity="critical", remediation="reduce") == ["people"]


@pytest.mark.parametrize(("run_id", "receiver"), [("char-gpt-0a1b2c", "run-char-gpt"), ("digits-ffffff", "run-digits")])
def test_several_runs_are_told_apart(run_id: str, receiver: str) -> None:
    """In the example for several runs, each is notified of its own alerts, and people of all."""
    config = DASHBOARDS / "alertmanager" / "examples" / "several-runs.yml"
    labels = {"alertname": "TrainingDivergence", "severity": "critical", "remediation": "reduce", "run_id": run_id}
    assert routed(config, **labels) == [receiver, "people"]


def test_inhibition_names_alerts_that_exist() -> None:
    """No rule of inhibition is about an alert that is gone, and each is bound to one run."""
    config = yaml.safe_load(ALERTMANAGER.read_text())
    for rule in config["inhibit_rules"]:
        assert rule["equal"] == ["run_id"]
        text = " ".join(rule["source_matchers"] + rule["target_matchers"])
        assert set(re.findall(r"Training[A-Z]\w+", text)) <= set(BY_NAME)


def documented() -> set[tuple[str, str]]:
    """Return (what fires, what it mutes) by the table of docs/alerts.md."""
    section = ALERTS_PAGE.read_text(encoding="utf-8").partition("## Who mutes whom")[2].partition("\n## ")[0]
    pairs: set[tuple[str, str]] = set()
    for line in section.splitlines():
        sources, targets = (re.findall(r"Training\w+", cell) for cell in [*line.split("|"), "", ""][1:3])
        pairs |= {(s, t) for s in sources for t in (targets or set(BY_NAME) - ENDED)}
    return pairs


def test_the_page_names_what_has_to_be_muted() -> None:
    """A run that has ended mutes all else; NaN mutes divergence and spike; a stall mutes throughput."""
    pairs = documented()
    assert {s for s, t in pairs if t == "TrainingDivergence"} == ENDED | {"TrainingLossNonfinite"}
    assert {s for s, t in pairs if t == "TrainingLossSpike"} == ENDED | {"TrainingLossNonfinite", "TrainingDivergence"}
    assert {s for s, t in pairs if t == "TrainingThroughputHalved"} == ENDED | {"TrainingStalled"}
    assert all(("TrainingRunFailed", name) in pairs for name in BY_NAME if name != "TrainingRunFailed")
    assert all(("TrainingRunVanished", name) in pairs for name in set(BY_NAME) - ENDED)


def test_alertmanager_mutes_what_follows_within_a_run_and_in_no_other(tmp_path: Path) -> None:
    """A real Alertmanager, given any two alerts of a run, mutes what the page says and no other; of two runs, none."""
    pairs = {f"a-{number}": pair for number, pair in enumerate(product(BY_NAME, BY_NAME))}
    wanted = documented()
    with Alertmanager(tmp_path / "alertmanager") as server:
        server.start(ALERTMANAGER.read_text())
        firing = []
        for run_id, (source, target) in pairs.items():
            firing += [_alert(source, run_id, "0"), _alert(target, run_id, "1"), _alert(target, f"not-{run_id}", "1")]
        _post(server.url, firing)
        wait_until(lambda: len(server.alerts()) == len(firing), "all alerts have arrived")

        def muted() -> set[tuple[str, str] | str]:
            """Return the pairs of which the second is muted; in place of one where nothing has to be, the run."""
            found = [a["labels"] for a in server.alerts() if a["status"]["inhibitedBy"]]
            return {pairs.get(labels["run_id"], labels["run_id"]) for labels in found if labels["part"] == "1"}

        wait_until(lambda: muted() >= wanted, "it mutes what the page says", lambda: str(wanted - muted()))
        assert muted() == wanted


def _alert(name: str, run_id: str, part: str) -> dict[str, object]:
    now = datetime.now(timezone.utc)
    labels = {"alertname": name, "severity": BY_NAME[name].severity, "run_id": run_id, "part": part}
    return {"labels": labels, "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}


def _post(url: str, body: list[dict[str, object]]) -> None:
    request = urllib.request.Request(
        f"{url}/api/v2/alerts", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200

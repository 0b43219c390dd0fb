"""The shipped Prometheus on `monitor demo`: a real process, the shipped configuration and rules; panels and alerts.

Addresses and intervals alone are changed. What a machine without a GPU and a run without trouble cannot show comes from
a second target: the real exporter over a full snapshot.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.alerts.rules import ALERTS, AlertRule
from tests.grafana.reading import FILES, Expression, expressions, load
from tests.stack.real_alertmanager import prometheus_config
from tests.stack.real_prometheus import Prometheus, wait_until
from tests.stack.snapshot_target import RUN_ID, snapshot_target

EVERYTHING = [each for path in FILES for each in expressions(load(path))]
# Panels about what happens within the time range: nobody commands, and no event has to be; test_dashboards.py has a run
# to which something happens.
NOTHING_HAPPENS = {"overview: Events in the time range A", "run: Events A", "run: Commands in the time range A"}
_SOUND, _LONG = "the demo is sound, and the snapshot has no such event", "looks back longer than a test lasts"
# Why neither target gives an alert a reason to fire; tests/alerts/cases.py has a course for each that does.
SILENT = {
    "TrainingRankLost": _SOUND,
    "TrainingStraggler": _SOUND,
    "TrainingRunFailed": "no run has failed",
    "TrainingRunVanished": "both runs are scraped",
    "TrainingLossNonfinite": _SOUND,
    "TrainingDivergence": _SOUND,
    "TrainingNotCaptured": _SOUND,
    "TrainingMetricNonfinite": _SOUND,
    "TrainingPlateau": _SOUND,
    "TrainingOverfitting": _SOUND,
    "TrainingLossStuck": _SOUND,
    "TrainingLearningRateZero": "the demo learns, and so does the snapshot",
    "TrainingGradientExplosion": _SOUND,
    "TrainingGradientVanishing": _SOUND,
    "TrainingClippingSaturated": "whether nearly every step of the demo is clipped shows later",
    "TrainingStepsSkipped": "no counter of a snapshot grows, and the demo has no GradScaler",
    "TrainingThroughputHalved": _LONG,
    "TrainingSlowdown": "on a machine that is shared the demo may slow down or not",
    "TrainingGpuIdle": "the GPUs of the snapshot are busy",
    "TrainingGpuThrottled": "the GPUs of the snapshot are not held back by heat",
    "TrainingGpuEccErrors": "no counter of a snapshot grows",
    "TrainingGpuMemoryAlmostFull": "the GPUs of the snapshot have room",
    "TrainingCommandRejected": "nobody commands, and the snapshot's run is an old one",
    "TrainingCollectorFailing": "every collector works",
    "TrainingStepsDropped": "no step is lost, and the snapshot's run is an old one",
    "TrainingMonitorErrors": "nothing fails, and the snapshot's run is an old one",
    "TrainingTargetDown": "both targets are up",
}


class Seen:
    """A Prometheus that has scraped the demo and the snapshot; ``run_id`` is that of the demo."""

    def __init__(self, prometheus: Prometheus, run_id: str, start: float, end: float) -> None:
        self.prometheus, self.run_id, self.start, self.end = prometheus, run_id, start, end

    def ask(self, expression: Expression) -> list[dict[str, str]]:
        """Return the labels of what an expression gives with every variable of the dashboard on All."""
        values = {"__rate_interval": "5s", "__range": f"{max(1, round(self.end - self.start))}s"}
        text = re.sub(r"\$(\w+)", lambda match: values.get(match[1], ".+"), expression.text)
        if expression.is_instant:
            found = self.prometheus.query(text, self.end)
        else:
            found = self.prometheus.query_range(text, self.start, self.end, 1)
        return [series["metric"] for series in found]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Start the demo as a user does, and wait until Prometheus has seen it make steps."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "token").write_text("not asked for on loopback")
    (folder / "others").mkdir()
    config = yaml.safe_load(prometheus_config("127.0.0.1:9", folder / "runs" / "targets", folder / "token"))
    config["scrape_configs"][0]["file_sd_configs"][0]["files"].append(str(folder / "others" / "*.json"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONITOR_")}
    environment |= {"MONITOR_DIR": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monitor", "demo", "--port", "0"]
    with (
        snapshot_target(folder / "others" / f"{RUN_ID}.json"),
        Prometheus(folder / "prometheus", yaml.safe_dump(config)) as prometheus,
    ):
        with (folder / "demo.log").open("w") as log:
            start = time.time()
            demo = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            steps = 'training_steps_total{run_id=~"char_gpt-.*"}'
            enough = f"count_over_time({steps}[1m]) > 8 and {steps} > 5"
            wait_until(lambda: bool(prometheus.query(enough)), "the demo is scraped", (folder / "demo.log").read_text)
            (found,) = prometheus.query(steps)
            yield Seen(prometheus, found["metric"]["run_id"], start, time.time())
        finally:
            demo.kill()
            demo.wait()


@pytest.mark.parametrize("expression", EVERYTHING, ids=str)
def test_an_expression_has_data(seen: Seen, expression: Expression) -> None:
    """It gives data from the demo or from the snapshot, with its labels; where nothing happened it may not."""
    found = seen.ask(expression)
    assert found or str(expression) in NOTHING_HAPPENS
    for labels in found:
        assert expression.labels <= set(labels), f"{expression} lacks labels: {labels}"


def test_the_demo_itself_is_seen(seen: Seen) -> None:
    """State, loss and learning rate are those of the process, under its own id."""
    for name in ('training_run_state{training_run_state="running"} == 1', "training_loss", "training_learning_rate"):
        assert seen.run_id in {each["metric"]["run_id"] for each in seen.prometheus.query(name, seen.end)}, name


def test_the_shipped_rules_are_evaluated(seen: Seen) -> None:
    """Prometheus has every alert of the table, and evaluates each without an error."""
    groups = seen.prometheus.get("rules")["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"}
    assert states == {alert.name: "ok" for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_gives_data_or_is_silent_for_a_reason(seen: Seen, alert: AlertRule) -> None:
    """Its expression gives data that names the run, or the list above says why it does not."""
    found = seen.prometheus.query(alert.expression, seen.end)
    assert found or alert.name in SILENT
    assert all(series["metric"]["run_id"] for series in found)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_what_an_alert_names_is_there(seen: Seen, alert: AlertRule) -> None:
    """Silent or not: every metric that the expression names has series, so it is silent for no misspelling."""
    bare = re.sub(r"\{[^}]*\}|\b(by|on|without|group_left) \([\w, ]*\)", "", alert.expression)
    names = set(re.findall(r"\btraining_\w+|\b\w+:training_[\w:]+|\bup\b", bare))
    assert names
    assert [name for name in sorted(names) if not seen.prometheus.query(name, seen.end)] == []


def test_only_alerts_that_exist_are_silent() -> None:
    """The list names no alert that is gone, and gives a reason for each."""
    assert set(SILENT) <= {alert.name for alert in ALERTS}
    assert all(SILENT.values())

"""The loop: a run diverges, the shipped rule fires, Alertmanager tells the run, the run lowers its LR and recovers.

A real Prometheus and a real Alertmanager on the shipped files, which are changed in addresses and intervals alone.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from tests.alerts.rules import ALERTS, RECORDINGS, AlertRule, Recording
from tests.requirements import need
from tests.stack.real_alertmanager import Alertmanager, alertmanager_config, prometheus_config
from tests.stack.real_prometheus import Prometheus

TOKEN = "the-token-for-alerts-in-the-loop"
READ_TOKEN = "the-token-of-prometheus-in-the-loop"
PATIENCE_SECONDS = 300.0
REPEATS = 4
RULES = [*ALERTS, *RECORDINGS]
SELECTORS = sorted(
    {
        match[0]
        for rule in RULES
        for match in re.finditer(r"(?:\btraining_\w+|\b\w+:training_[\w:]+|\bup\b)(?:\{[^}]*\})?", rule.expression)
        if not re.match(r"training_\w+=", rule.expression[match.start() :])
    }
)
# What a run on this machine cannot have: a pattern of the selector, and why.
ABSENT = {
    r"training_(gpu|cuda)_": "the run trains on no GPU; tests/alerts/cases.py has courses for these",
    r"^training_last_event_\w+\{kind=": "only kinds of which there was an event have a last one",
}


class Task:
    """Least squares with clipped gradients: at a learning rate above 2 it swings, at half of 2.6 it settles again."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x = torch.linalg.qr(torch.randn(512, 8)).Q * 512**0.5
        self.truth = torch.randn(8, 1)
        self.model = torch.nn.Linear(8, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.8)

    def step(self) -> float:
        """Make one step; return its loss."""
        loss = 0.5 * (self.model(self.x) - self.x @ self.truth - 0.5 * torch.randn(512, 1)).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        time.sleep(0.002)  # some hundred steps a second
        return loss.item()


@dataclass
class Seen:
    """What was seen of one loop."""

    prometheus: Prometheus
    run_id: str
    losses: dict[str, float] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: tuple[monitor.Event, ...] = ()
    factors: list[float] = field(default_factory=lambda: [1.0])
    highest: float = 0.0
    num_posts: float = 0
    num_failed_posts: float = 0
    end: float = 0.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Go once around the loop."""
    need("prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("loop")
    token_file, read_token_file = folder / "alert_token", folder / "read_token"
    token_file.write_text(TOKEN)
    read_token_file.write_text(READ_TOKEN)
    with Alertmanager(folder / "alertmanager") as alertmanager:
        config = prometheus_config(alertmanager.url, folder / "runs" / "targets", read_token_file)
        with Prometheus(folder / "prometheus", config) as prometheus:
            yield _go_around(folder, token_file, prometheus, alertmanager)


def _go_around(folder: Path, token_file: Path, prometheus: Prometheus, alertmanager: Alertmanager) -> Seen:
    task = Task()
    tokens = {"alert_token": TOKEN, "read_token": READ_TOKEN, "protect_metrics": True}
    options = {"name": "loop", "directory": str(folder / "runs"), "port": 0, "system_interval": 0.5}
    with monitor.attach(task.optimizer, gpu=False, **options, **tokens) as run:
        alertmanager.start(alertmanager_config(str(run.url), token_file))
        seen = Seen(prometheus, run.id)

        def train(seconds_apart: float, is_enough: Any) -> float:
            """Train until ``is_enough``; return the mean of the last losses."""
            losses, deadline, look = [math.nan] * 64, time.monotonic() + PATIENCE_SECONDS, 0.0
            while True:
                losses = [*losses[1:], task.step()]
                seen.highest = max(seen.highest, losses[-1] if run.step > 100 else 0.0)
                if (factor := run.lr[0].factor) != seen.factors[-1]:
                    seen.factors.append(factor)
                now = time.monotonic()
                if now >= look and run.step % 10 == 0:
                    look = now + seconds_apart
                    run.log(samples=512, tokens=4096)
                    if not math.isnan(losses[0]) and is_enough():
                        return sum(losses) / len(losses)
                assert now < deadline, f"in vain at step {run.step}: {run.events()}\n{alertmanager.log[-3000:]}"

        def is_scraped() -> bool:
            rates = prometheus.query(f'run:training_steps:rate5m{{run_id="{run.id}"}} > 0')
            return bool(rates) and run.step > 300

        seen.losses["before"] = train(1.0, is_scraped)
        task.optimizer.param_groups[0]["lr"] = 2.6
        train(0.2, lambda: run.snapshot().events_active["divergence"])
        train(0.2, lambda: seen.factors[-1] < 1.0)
        posts = alertmanager.count("alertmanager_notifications_total")
        train(0.5, lambda: alertmanager.count("alertmanager_notifications_total") >= posts + REPEATS)
        seen.losses["after"] = train(0.5, lambda: not run.snapshot().events_active["divergence"])
        run.flush()
        seen.alerts = alertmanager.alerts()
        seen.num_posts = alertmanager.count("alertmanager_notifications_total")
        seen.num_failed_posts = alertmanager.count("alertmanager_notifications_failed_total")
        seen.events = tuple(run.events())
        groups = prometheus.get("rules")["groups"]
        seen.rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        seen.end = time.time()
    return seen


def test_the_run_diverges_and_the_shipped_rule_fires(seen: Seen) -> None:
    """The loss leaves its level, and Prometheus raises TrainingDivergence for this run."""
    assert seen.highest > 3 * seen.losses["before"]
    (alert,) = seen.rules["TrainingDivergence"]["alerts"]
    assert alert["state"] == "firing"
    assert alert["labels"]["run_id"] == seen.run_id
    assert (alert["labels"]["severity"], alert["labels"]["remediation"]) == ("critical", "reduce")
    (event,) = (e for e in seen.events if e.kind == "divergence" and e.end_step is None)
    assert alert["annotations"]["description"].endswith(f"seen at step {event.step}.")


def test_the_factor_drops_once_although_alertmanager_repeats_itself(seen: Seen) -> None:
    """Several posts with the token from the file arrive; the LR factor goes from 1 to 0.5 and no further."""
    assert seen.num_posts >= REPEATS + 1
    assert seen.num_failed_posts == 0
    assert seen.factors == [1.0, 0.5]


def test_the_audit_event_names_the_alert(seen: Seen) -> None:
    """One command was carried out, and its audit entry says that it came from this alert."""
    (audit,) = (e for e in seen.events if e.kind == "control")
    assert audit.details["source"] == "alertmanager"
    assert audit.details["actor"] == "TrainingDivergence"
    assert "TrainingDivergence" in audit.details["reason"]


def test_the_run_recovers(seen: Seen) -> None:
    """The divergence ends by itself after the reduction, and the loss is back near where it was."""
    assert any(e.kind == "divergence" and e.end_step is not None for e in seen.events)
    assert seen.losses["after"] < 1.5 * seen.losses["before"]


def test_what_follows_from_the_divergence_is_muted(seen: Seen) -> None:
    """Alertmanager knows the alert, and inhibits by run: an alert that it mutes names one of the same run."""
    by_fingerprint = {alert["fingerprint"]: alert for alert in seen.alerts}
    assert "TrainingDivergence" in {alert["labels"]["alertname"] for alert in seen.alerts}
    for alert in seen.alerts:
        for source in alert["status"]["inhibitedBy"]:
            assert by_fingerprint[source]["labels"]["run_id"] == alert["labels"]["run_id"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_real_prometheus_evaluates_the_rule(rule: AlertRule | Recording, seen: Seen) -> None:
    """Loaded from the shipped file, the rule was evaluated without an error; what it gives has the run's labels."""
    assert (seen.rules[rule.name]["health"], seen.rules[rule.name].get("lastError", "")) == ("ok", "")
    found = seen.prometheus.query(rule.expression, seen.end)
    for series in found:
        assert series["metric"]["job"] == "training"
        assert series["metric"]["run_id"] == seen.run_id
        assert re.fullmatch(r"127\.0\.0\.1:\d+", series["metric"]["instance"])
    if isinstance(rule, Recording):
        assert found, f"{rule.name} gives nothing"
        assert seen.prometheus.query(rule.name, seen.end), f"{rule.name} is not recorded"


@pytest.mark.parametrize("selector", SELECTORS)
def test_what_a_rule_selects_is_there(selector: str, seen: Seen) -> None:
    """Every selector in a rule finds series of the run, or is listed with the reason why it cannot."""
    found = seen.prometheus.query(selector, seen.end)
    if any(re.search(pattern, selector) for pattern in ABSENT) and not found:
        return
    assert found
    assert {series["metric"]["run_id"] for series in found} == {seen.run_id}


def test_only_expected_alerts_fire(seen: Seen) -> None:
    """On a run that diverges, nothing fires that has no part in it."""
    firing = {name for name, rule in seen.rules.items() if rule.get("alerts")}
    assert firing <= {
        "TrainingDivergence",
        "TrainingLossSpike",
        "TrainingGradientExplosion",
        "TrainingClippingSaturated",
        "TrainingPlateau",
        "TrainingSlowdown",
    }
    assert "TrainingDivergence" in firing

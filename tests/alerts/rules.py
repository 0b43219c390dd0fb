"""The shipped rules, read as Prometheus reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from monitor.alerts import render_files


@dataclass(frozen=True)
class AlertRule:
    """One alert. ``remediation`` is the action that a run takes when it receives the alert; None: none."""

    name: str
    expression: str
    severity: str
    summary: str
    description: str
    runbook_url: str
    remediation: str | None


@dataclass(frozen=True)
class Recording:
    """One recorded series; ``name`` is ``level:metric:operation``."""

    name: str
    expression: str


def _rules() -> list[dict[str, Any]]:
    documents = [yaml.safe_load(text) for text in render_files().values()]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


def _alert(rule: dict[str, Any]) -> AlertRule:
    labels, texts = rule["labels"], rule["annotations"]
    assert labels.keys() <= {"severity", "remediation"}
    return AlertRule(
        rule["alert"],
        rule["expr"],
        labels["severity"],
        texts["summary"],
        texts["description"],
        texts["runbook_url"],
        labels.get("remediation"),
    )


ALERTS = [_alert(rule) for rule in _rules() if "alert" in rule]
RECORDINGS = [Recording(rule["record"], rule["expr"]) for rule in _rules() if "record" in rule]
BY_NAME = {alert.name: alert for alert in ALERTS}

"""Cases as ``promtool test rules`` takes them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.alerts.cases import RUN, Case
from tests.alerts.rules import BY_NAME, AlertRule
from tests.requirements import need


def check(cases: Iterable[Case], rules: list[Path], folder: Path) -> str:
    """Let promtool judge the cases; return what it has to object, nothing if all is as expected."""
    document = {
        "rule_files": [str(path) for path in rules],
        "evaluation_interval": "30s",
        "tests": [_test(case) for case in cases],
    }
    path = folder / "cases.yml"
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    done = subprocess.run(
        [need("promtool", "prometheus"), "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _test(case: Case) -> dict[str, Any]:
    expected = [] if case.fires is None else [_expected(BY_NAME[case.alert], case)]
    return {
        "name": f"{case.alert}: {case.about}",
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}],
    }


def _expected(alert: AlertRule, case: Case) -> dict[str, Any]:
    labels = {**RUN, **(case.fires or {}), "severity": alert.severity}
    if alert.remediation:
        labels["remediation"] = alert.remediation
    annotations = {
        "summary": _fill(alert.summary, labels, case.shown),
        "description": _fill(alert.description, labels, case.shown),
        "runbook_url": f"docs/alerts.md#{alert.name.lower()}",
    }
    return {"exp_labels": labels, "exp_annotations": annotations}


def _fill(text: str, labels: dict[str, str], shown: str) -> str:
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels[match[1]], text)
    return re.sub(r"\{\{ \$value [^}]*\}\}", shown, text)

"""The Kubernetes objects: valid YAML that holds the shipped rules and dashboards, character by character."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import need_module

ROOT = Path(__file__).resolve().parents[2]
RULES = {path.name: path.read_text() for path in (ROOT / "dashboards/prometheus/rules").glob("*.yml")}
DASHBOARDS = {path.name: path.read_text() for path in (ROOT / "dashboards/grafana").glob("*.json")}


def made(*words: str) -> list[dict[str, Any]]:
    need_module("yaml")
    import yaml

    command = [sys.executable, "dashboards/kubernetes.py", "--namespace", "watch", *words]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_rules_and_dashboards_are_the_shipped_ones() -> None:
    """The ConfigMaps hold the committed files, under the label that the sidecar looks for."""
    found = [each for each in made() if each["kind"] == "ConfigMap"]
    assert found[0]["data"] == RULES
    assert {name: text for each in found[1:] for name, text in each["data"].items()} == DASHBOARDS
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in found[1:])


def test_the_operator_gets_the_same_rules() -> None:
    """The PrometheusRules have the groups of the rule files."""
    import yaml

    groups = [each["spec"]["groups"] for each in made("--rules", "operator") if each["kind"] == "PrometheusRule"]
    assert sorted(map(str, groups)) == sorted(str(yaml.safe_load(text)["groups"]) for text in RULES.values())


@pytest.mark.parametrize("rules", ["configmap", "operator"])
def test_every_object_has_its_place(rules: str) -> None:
    """Names are unique, everything is in the namespace asked for, and no object is too large for the API server."""
    found = made("--rules", rules)
    assert {each["metadata"]["namespace"] for each in found} == {"watch"}
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(names)) == len(names)
    # kubectl apply keeps a copy in an annotation, which may have 256 KiB
    assert all(len(str(each)) < 256 * 1024 for each in found)


def test_pods_are_scraped_as_the_runs_are_served() -> None:
    """The PodMonitor asks the named port for /metrics with the read-only token; no answer renames its target."""
    (monitor,) = [each for each in made() if each["kind"] == "PodMonitor"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint.get("honorLabels")) == ("monitor", "/metrics", None)
    (job,) = endpoint["relabelings"]
    assert job == {"action": "replace", "targetLabel": "job", "replacement": "training"}
    assert any('up{job="training"}' in text for text in RULES.values())
    assert endpoint["authorization"]["credentials"]["key"] == "read-token"
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert 'training-monitor: "true"' in page
    assert "name: monitor" in page

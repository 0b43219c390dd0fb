"""`monitor dashboards export --local`: what it writes is what servers without containers run as it is."""

from __future__ import annotations

import json
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import monitor
from monitor.cli import main
from tests.stack.real_alertmanager import Alertmanager
from tests.stack.real_prometheus import Prometheus, wait_until

TOKEN = "the-token-of-a-run-without-containers"
ADAPTED = [
    "prometheus/prometheus.yml",
    "alertmanager/alertmanager.yml",
    "grafana/provisioning/datasources/prometheus.yml",
    "grafana/provisioning/dashboards/training.yml",
]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Return the exported folder; the runs are in the folder ``runs`` beside it."""
    words = ["dashboards", "export", str(tmp_path / "stack"), "--local", "--dir", str(tmp_path / "runs")]
    assert CliRunner().invoke(main, words).exit_code == 0
    return tmp_path / "stack"


def test_nothing_of_the_containers_is_left(exported: Path) -> None:
    """No name, secret or folder that only containers have stands in the configuration."""
    for name in ADAPTED:
        text = (exported / name).read_text()
        for word in (
            "host.docker.internal",
            "/run/secrets",
            "alertmanager:9093",
            "$PROMETHEUS",
            "/var/lib/",
            "compose",
        ):
            assert word not in text, name


def test_exporting_again_keeps_nothing_by_mistake(exported: Path) -> None:
    """The files of --local are known again as they are."""
    words = ["dashboards", "export", str(exported), "--local", "--dir", str(exported.parent / "runs")]
    assert CliRunner().invoke(main, words).stderr == ""


def test_a_folder_of_runs_is_for_local_servers() -> None:
    """--dir alone would be without effect, and is refused."""
    done = CliRunner().invoke(main, ["dashboards", "export", "anywhere", "--dir", "runs"])
    assert done.exit_code == 2
    assert "add --local" in done.stderr


def test_the_servers_find_the_run_and_each_other(exported: Path) -> None:
    """Prometheus scrapes the run and knows Alertmanager, which lowers the run's LR; only ports and times differ."""
    (exported / "alert_token").write_text(TOKEN)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    options = {"directory": str(exported.parent / "runs"), "port": 0, "gpu": False, "alert_token": TOKEN}
    with (
        monitor.attach(optimizer, name="local", linger=0, **options) as run,  # Prometheus ends before it
        Alertmanager(exported / "alertmanager") as alertmanager,
    ):
        told = (exported / "alertmanager" / "alertmanager.yml").read_text()
        alertmanager.start(told.replace("http://127.0.0.1:9477/", f"{str(run.url).rstrip('/')}/"))
        config = (exported / "prometheus" / "prometheus.yml").read_text().replace(": 15s", ": 1s")
        config = config.replace(": 10s", ": 1s").replace("127.0.0.1:9093", alertmanager.url.removeprefix("http://"))
        with Prometheus(exported / "prometheus", config) as prometheus:
            wait_until(lambda: prometheus.value(f'up{{run_id="{run.id}"}}') == 1, "the run is scraped")
            wait_until(lambda: known_to(prometheus) != [], "Prometheus knows an Alertmanager")
            (known,) = known_to(prometheus)
            assert known["url"].startswith(alertmanager.url)
            assert len(prometheus.get("rules")["groups"]) == 7
            _fire(alertmanager.url, run.id)

            def is_lowered() -> bool:
                optimizer.step()
                return run.lr[0].factor == 0.5

            wait_until(is_lowered, "the run has lowered its LR")


def known_to(prometheus: Prometheus) -> list[dict[str, str]]:
    """Return the Alertmanagers that it sends to."""
    return list(prometheus.get("alertmanagers")["activeAlertmanagers"])


def _fire(url: str, run_id: str) -> None:
    now = datetime.now(timezone.utc)
    labels = {"alertname": "TrainingDivergence", "severity": "critical", "run_id": run_id, "remediation": "reduce"}
    alert = {"labels": labels, "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v2/alerts", json.dumps([alert]).encode(), head)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200

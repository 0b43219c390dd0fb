"""A real Alertmanager for a test, and the shipped configuration with other addresses and shorter intervals."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.requirements import need
from tests.stack.real_prometheus import free_port, wait_until

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"


def prometheus_config(alertmanager: str, targets: Path, token_file: Path) -> str:
    """Return the shipped prometheus.yml: every second, on these files, with containers' addresses replaced."""
    config = yaml.safe_load((DASHBOARDS / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DASHBOARDS / "prometheus" / path) for path in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager.removeprefix("http://")]
    (job,) = config["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    discovery |= {"files": [str(targets / "*.json")], "refresh_interval": "1s"}
    job["authorization"]["credentials_file"] = str(token_file)
    job["relabel_configs"][-1]["replacement"] = "127.0.0.1:$1"
    return yaml.safe_dump(config)


def alertmanager_config(run_url: str, token_file: Path) -> str:
    """Return the shipped alertmanager.yml: told every second, repeated every two, with this run's address and token."""
    config = yaml.safe_load((DASHBOARDS / "alertmanager" / "alertmanager.yml").read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "2s"}
    (receiver,) = (each for each in config["receivers"] if each["name"] == "run")
    (webhook,) = receiver["webhook_configs"]
    webhook["url"] = re.sub(r"http://[^/]+", run_url.rstrip("/"), webhook["url"])
    webhook["http_config"]["authorization"]["credentials_file"] = str(token_file)
    return yaml.safe_dump(config)


class Alertmanager:
    """Run the Alertmanager of this machine from ``start`` until the ``with`` block ends, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Alertmanager:
        return self

    def start(self, config: str) -> None:
        """Start with this configuration, and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "alertmanager.yml").write_text(config)
        command = [
            need("prometheus-alertmanager"),
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--cluster.listen-address=",
            "--log.level=debug",
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_ready, "Alertmanager is ready", lambda: self._log.read_text()[-2000:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that it knows."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=10) as answer:
            return list(json.load(answer))

    def count(self, name: str) -> float:
        """Return the sum of one of its own counters over the webhook integration."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name) and 'integration="webhook"' in x)

    @property
    def _log(self) -> Path:
        return self._folder / "alertmanager.log"

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"Alertmanager ended at once:\n{self.log[-4000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

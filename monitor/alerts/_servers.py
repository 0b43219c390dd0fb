"""The configuration of Prometheus and Alertmanager: templates in this package, filled in for where the servers run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

_FILES = Path(__file__).resolve().parent / "servers"
_AUTHORIZATION = """\
    # Needed for runs that are not on this machine (as seen from the container) or that protect their metrics; others
    # ignore it. The run's own read-only token: MONITOR_READ_TOKEN.
    authorization:
      credentials_file: /run/secrets/monitor_read_token
"""
_RELABELLING = """\
      # `instance` keeps the address that the run's owner knows; within a container the same machine has another.
      - source_labels: [__address__]
        target_label: instance
      - source_labels: [__address__]
        regex: (?:127\\.0\\.0\\.1|localhost|0\\.0\\.0\\.0):(\\d+)
        target_label: __address__
        replacement: host.docker.internal:$1
"""
COMPOSE: Mapping[str, str] = {
    "servers": "as docker-compose.yml mounts it; without containers: `monitor dashboards export --local`.",
    "alertmanager": "alertmanager:9093",
    "target_files": '"targets/*.json", "train/targets/*.json"',
    "authorization": _AUTHORIZATION,
    "relabelling": _RELABELLING,
    "run": "host.docker.internal:9477",
    "alert_token": "/run/secrets/monitor_alert_token",
}
"""What the placeholders of the templates stand for in the containers of docker-compose.yml."""


def on_this_machine(target_files: str, alert_token: str) -> Mapping[str, str]:
    """Return what the placeholders stand for without containers. Both arguments are YAML strings, quoted."""
    return {
        "servers": "without containers, by `monitor dashboards export --local`.",
        "alertmanager": "127.0.0.1:9093",
        "target_files": target_files,
        "authorization": "",
        "relabelling": "",
        "run": "127.0.0.1:9477",
        "alert_token": alert_token,
    }


def server_files(places: Mapping[str, str] = COMPOSE) -> Mapping[str, str]:
    """Return the configuration files: relative path to content.

    >>> sorted(server_files())[-1]
    'prometheus/prometheus.yml'
    """
    return {
        path.relative_to(_FILES).as_posix(): Template(path.read_text(encoding="utf-8")).substitute(places)
        for path in sorted(_FILES.rglob("*.yml"))
    }

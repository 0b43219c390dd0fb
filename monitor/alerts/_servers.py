"""The configuration of Prometheus and Alertmanager, as docker-compose.yml mounts it: files of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_FILES = Path(__file__).resolve().parent / "servers"


def server_files() -> Mapping[str, str]:
    """Return the configuration files: relative path to content.

    >>> sorted(server_files())[-1]
    'prometheus/prometheus.yml'
    """
    return {
        path.relative_to(_FILES).as_posix(): path.read_text(encoding="utf-8") for path in sorted(_FILES.rglob("*.yml"))
    }

"""Files for Prometheus and Alertmanager: recording rules, alerts, and the configuration of both."""

from __future__ import annotations

from monitor.alerts._files import RUNBOOK, render_files
from monitor.alerts._servers import COMPOSE, on_this_machine, server_files

__all__ = ["COMPOSE", "RUNBOOK", "on_this_machine", "render_files", "server_files"]

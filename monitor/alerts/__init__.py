"""Prometheus rules as code: what is recorded, what is alerted on, and the files that hold it."""

from __future__ import annotations

from monitor.alerts._files import RUNBOOK, render_files
from monitor.alerts._groups import GROUPS
from monitor.alerts._rule import AlertRule, Recording, RuleGroup, alerts
from monitor.alerts._servers import COMPOSE, on_this_machine, server_files

__all__ = [
    "COMPOSE",
    "GROUPS",
    "RUNBOOK",
    "AlertRule",
    "Recording",
    "RuleGroup",
    "alerts",
    "on_this_machine",
    "render_files",
    "server_files",
]

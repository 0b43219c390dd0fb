"""Prometheus rules as code: what is recorded, what is alerted on, and the files that hold it."""

from monitor.alerts._files import render_files
from monitor.alerts._groups import GROUPS
from monitor.alerts._rule import Alert, Group, Recording, alerts

__all__ = ["GROUPS", "Alert", "Group", "Recording", "alerts", "render_files"]

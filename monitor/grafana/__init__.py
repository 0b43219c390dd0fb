"""Dashboards as code, and the way of them into a Grafana."""

from __future__ import annotations

from monitor.grafana._annotator import Annotator
from monitor.grafana._api import GrafanaError
from monitor.grafana._files import dashboards, render_files
from monitor.grafana._publish import Published, publish

__all__ = ["Annotator", "GrafanaError", "Published", "dashboards", "publish", "render_files"]

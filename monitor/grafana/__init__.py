"""Dashboards as code, and the way of them into a Grafana."""

from __future__ import annotations

from monitor.grafana._files import dashboards, export, render_files

__all__ = ["dashboards", "export", "render_files"]

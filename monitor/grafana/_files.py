"""The files that a Grafana reads: dashboards and their provisioning."""

from __future__ import annotations

import json
from collections.abc import Mapping

from monitor.grafana._compare import compare
from monitor.grafana._dashboard import Dashboard
from monitor.grafana._hardware import hardware
from monitor.grafana._overview import overview
from monitor.grafana._run import run

FOLDER = "Training"
FOLDER_UID = "training-monitor"
DATASOURCE_UID = "training-monitor-prometheus"
SCRAPE_INTERVAL = "15s"

_DATASOURCE = f"""\
# Made by `monitor dashboards export`. $PROMETHEUS_URL is set where Grafana runs.
apiVersion: 1
datasources:
  - name: Prometheus
    uid: {DATASOURCE_UID}
    type: prometheus
    access: proxy
    url: $PROMETHEUS_URL
    isDefault: true
    editable: false
    jsonData:
      httpMethod: POST
      timeInterval: {SCRAPE_INTERVAL}  # the scrape interval: $__rate_interval is four of them
"""
_PROVIDER = f"""\
# Made by `monitor dashboards export`.
apiVersion: 1
providers:
  - name: training-monitor
    folder: {FOLDER}
    folderUid: {FOLDER_UID}
    type: file
    disableDeletion: true
    allowUiUpdates: false
    updateIntervalSeconds: 30
    options:
      path: /var/lib/training-monitor/dashboards
"""


def dashboards() -> tuple[Dashboard, ...]:
    """Return all dashboards."""
    return overview(), run(), compare(), hardware()


def render_files() -> Mapping[str, str]:
    """Return what belongs into the folder ``dashboards/grafana``: relative path to content.

    >>> sorted(render_files())[0]
    'compare.json'
    """
    shown = {f"{each.uid.removeprefix('training-monitor-')}.json": _to_json(each) for each in dashboards()}
    return {
        **shown,
        "provisioning/datasources/prometheus.yml": _DATASOURCE,
        "provisioning/dashboards/training.yml": _PROVIDER,
    }


def _to_json(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.render(), indent=2, ensure_ascii=False) + "\n"

"""The files that a Grafana reads: dashboards and their provisioning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Template

from monitor.grafana._compare import compare
from monitor.grafana._dashboard import Dashboard
from monitor.grafana._hardware import hardware
from monitor.grafana._overview import overview
from monitor.grafana._run import run

FOLDER = "Training"
FOLDER_UID = "training-monitor"
DATASOURCE_UID = "training-monitor-prometheus"
SCRAPE_INTERVAL = "15s"
_CONTAINER_PATH = "/var/lib/training-monitor/dashboards"

_DATASOURCE = Template("""\
# Made by `monitor dashboards export`.$note
apiVersion: 1
datasources:
  - name: Prometheus
    uid: $uid
    type: prometheus
    access: proxy
    url: $url
    isDefault: true
    editable: false
    jsonData:
      httpMethod: POST
      timeInterval: $interval  # the scrape interval: $$__rate_interval is four of them
""")
_PROVIDER = Template("""\
# Made by `monitor dashboards export`.
apiVersion: 1
providers:
  - name: training-monitor
    folder: $folder
    folderUid: $folder_uid
    type: file
    disableDeletion: true
    allowUiUpdates: false
    updateIntervalSeconds: 30
    options:
      path: $path
""")


def dashboards() -> tuple[Dashboard, ...]:
    """Return all dashboards."""
    return overview(), run(), compare(), hardware()


def render_files(local_path: str | None = None) -> Mapping[str, str]:
    """Return what belongs into the folder ``dashboards/grafana``: relative path to content.

    Args:
        local_path: the folder of the dashboards, a quoted YAML string, for a Grafana on this machine without
            containers; default: for that of docker-compose.yml.

    >>> sorted(render_files())[0]
    'compare.json'
    """
    shown = {f"{each.uid.removeprefix('training-monitor-')}.json": _to_json(each) for each in dashboards()}
    note, url, path = " $PROMETHEUS_URL is set where Grafana runs.", "$PROMETHEUS_URL", _CONTAINER_PATH
    if local_path is not None:
        note, url, path = "", "http://127.0.0.1:9090", local_path
    datasource = _DATASOURCE.substitute(note=note, uid=DATASOURCE_UID, url=url, interval=SCRAPE_INTERVAL)
    return {
        **shown,
        "provisioning/datasources/prometheus.yml": datasource,
        "provisioning/dashboards/training.yml": _PROVIDER.substitute(folder=FOLDER, folder_uid=FOLDER_UID, path=path),
    }


def _to_json(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.render(), indent=2, ensure_ascii=False) + "\n"

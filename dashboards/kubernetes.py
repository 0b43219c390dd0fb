"""Print the Kubernetes objects for training runs: PodMonitor, rules, dashboards, from the source of the shipped files.

    python dashboards/kubernetes.py --namespace monitoring | kubectl apply -f -

The rules come as a ConfigMap, for a Prometheus that mounts its rule files, or (`--rules operator`) as objects of the
Prometheus operator. The dashboards are ConfigMaps with the label that Grafana's sidecar looks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from string import Template
from textwrap import indent

from monitor.alerts import render_files as render_rules
from monitor.grafana import render_files as render_dashboards

_POD_MONITOR = Template("""\
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: training-monitor
  namespace: $namespace
  labels: {app.kubernetes.io/part-of: training-monitor}
spec:
  namespaceSelector: {any: true}
  selector:
    matchLabels: {training-monitor: "true"}
  podMetricsEndpoints:
    - port: monitor
      path: /metrics
      interval: 15s
      relabelings:
        - {action: replace, targetLabel: job, replacement: training}  # what TrainingTargetDown goes by
      authorization:
        credentials: {name: training-monitor, key: read-token}
""")


def objects(namespace: str, runbook: str, *, has_operator_rules: bool) -> Iterator[str]:
    """Yield each object as a YAML document."""
    yield _POD_MONITOR.substitute(namespace=namespace)
    rules = render_rules(runbook)
    if has_operator_rules:
        for name, text in rules.items():
            head = _head(
                "monitoring.coreos.com/v1", "PrometheusRule", f"training-{name.removesuffix('.yml')}", namespace
            )
            yield f"{head}spec:\n{indent(text, '  ')}"
    else:
        yield _config_map("training-rules", namespace, rules)
    for name, text in render_dashboards().items():
        if name.endswith(".json"):
            title = f"training-dashboard-{name.removesuffix('.json')}"
            yield _config_map(title, namespace, {name: text}, {"grafana_dashboard": "1"})


def _head(version: str, kind: str, name: str, namespace: str, labels: Mapping[str, str] | None = None) -> str:
    shown = {"app.kubernetes.io/part-of": "training-monitor", **(labels or {})}
    lines = "".join(f'    {key}: "{value}"\n' for key, value in shown.items())
    return (
        f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n{lines}"
    )


def _config_map(name: str, namespace: str, files: Mapping[str, str], labels: Mapping[str, str] | None = None) -> str:
    data = "".join(f"  {file}: |\n{indent(text, '    ')}" for file, text in files.items())
    return f"{_head('v1', 'ConfigMap', name, namespace, labels)}data:\n{data}"


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--namespace", default="monitoring", help="where the objects go (default: %(default)s)")
    parser.add_argument("--rules", choices=("configmap", "operator"), default="configmap", help="default: %(default)s")
    parser.add_argument("--runbook", default="docs/alerts.md", help="address of docs/alerts.md for your readers")
    args = parser.parse_args()
    print("---\n".join(objects(args.namespace, args.runbook, has_operator_rules=args.rules == "operator")), end="")


if __name__ == "__main__":
    main()

"""The rule files, as YAML that a person can read and a diff can show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from textwrap import indent

from monitor.alerts._groups import ALERT_GROUPS, RECORDING_GROUPS
from monitor.alerts._rule import AlertRule, Recording, RuleGroup

RUNBOOK = "docs/alerts.md"
_HEAD = "# Made by `monitor dashboards export` from monitor/alerts/; a test compares the two.\ngroups:\n"


def render_files(runbook: str = RUNBOOK) -> Mapping[str, str]:
    """Return the rule files by name.

    Args:
        runbook: address of docs/alerts.md, as your readers reach it; ``runbook_url`` is an anchor in it.

    >>> sorted(render_files())
    ['alerts.yml', 'recording.yml']
    """
    return {
        "recording.yml": _HEAD + "".join(_group(group, runbook) for group in RECORDING_GROUPS),
        "alerts.yml": _HEAD + "".join(_group(group, runbook) for group in ALERT_GROUPS),
    }


def _group(group: RuleGroup, runbook: str) -> str:
    rules = "".join(indent("\n".join(_rule(rule, runbook)) + "\n", "      ") for rule in group.rules)
    return f"  - name: {group.name}\n    rules:\n{_dashed(rules)}"


def _dashed(rules: str) -> str:
    """Make list items of what is indented: the first line of each rule begins with its kind."""
    return rules.replace("      alert:", "    - alert:").replace("      record:", "    - record:")


def _rule(rule: AlertRule | Recording, runbook: str) -> Iterator[str]:
    if isinstance(rule, Recording):
        yield f"record: {rule.name}"
        yield f"# {rule.help}"
        yield from _expression(rule.expression)
        return
    yield f"alert: {rule.name}"
    yield from _expression(rule.expression)
    if rule.hold:
        yield f"for: {rule.hold}"
    if rule.keep:
        yield f"keep_firing_for: {rule.keep}"
    labels = [("severity", rule.severity), *([("remediation", rule.remediation)] if rule.remediation else [])]
    yield from _mapping("labels", labels)
    texts = [("summary", rule.summary), ("description", rule.description), ("runbook_url", f"{runbook}#{rule.anchor}")]
    yield from _mapping("annotations", texts)


def _expression(expression: str) -> Iterator[str]:
    yield "expr: |-"
    yield from (f"  {line}" for line in expression.splitlines())


def _mapping(name: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"{name}:"
    # A JSON string is a YAML string, whatever is in it.
    yield from (f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in pairs)

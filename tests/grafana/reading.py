"""Read dashboards as Grafana does: the panels, and every expression with the place where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "dashboards" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\{([^{}]*)\}(\[[^\]]*\])?")


@dataclass(frozen=True)
class Expression:
    """One PromQL expression. ``labels`` are those that its place makes use of; ``kind`` is the place's."""

    where: str
    text: str
    kind: str
    labels: frozenset[str] = frozenset()
    is_instant: bool = False

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True)
class Selector:
    """A metric's selector within an expression; ``calls`` are the functions around it, the innermost last."""

    metric: str
    matchers: tuple[str, ...]
    window: str
    calls: tuple[str, ...]


def load(path: Path) -> dict[str, Any]:
    """Return a committed dashboard."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something: all but the rows' titles."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[Expression]:
    """Yield the expression of every panel and annotation."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            where = f"{dashboard['uid'].removeprefix('training-monitor-')}: {panel['title']} {target['refId']}"
            yield Expression(where, target["expr"], panel["type"], _labels(panel, target), target["instant"])
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            used = _braced(annotation["titleFormat"], annotation["textFormat"]) | set(annotation["tagKeys"].split(","))
            where = f"{dashboard['uid'].removeprefix('training-monitor-')}: mark {annotation['name']}"
            yield Expression(where, annotation["expr"], "annotation", frozenset(used))


def selectors(expression: str) -> list[Selector]:
    """Return every selector with the calls around it."""
    found = []
    for match in _SELECTOR.finditer(expression):
        matchers = tuple(part.strip() for part in re.findall(r'\w+\s*(?:=~|!~|!=|=)\s*"[^"]*"', match[2]))
        found.append(Selector(match[1], matchers, (match[3] or "").strip("[]"), _calls(expression[: match.start()])))
    return found


def _calls(before: str) -> tuple[str, ...]:
    """Return the names before the parentheses that are open at the end of ``before``; "" for a bare one."""
    stripped = re.sub(r'"[^"]*"', '""', re.sub(r"\b(?:by|on|without|group_left|group_right)\s*\([^()]*\)", "", before))
    opened: list[str] = []
    for match in re.finditer(r"(\w*)\s*\(|\)", stripped):
        if match[0] == ")":
            opened.pop()
        else:
            opened.append(match[1])
    return tuple(opened)


def _labels(panel: dict[str, Any], target: dict[str, Any]) -> frozenset[str]:
    links = json.dumps(panel["fieldConfig"]["defaults"].get("links", []))
    used = _braced(target.get("legendFormat", "")) | set(re.findall(r"\$\{__field\.labels\.(\w+)\}", links))
    if panel["type"] == "xychart":
        used |= {"run_id", "optimizer"}
    return frozenset(used)


def _braced(*texts: str) -> set[str]:
    return {name for text in texts for name in re.findall(r"\{\{\s*(\w+)\s*\}\}", text)}

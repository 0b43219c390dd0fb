"""The nouns of a rule file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One alert. Durations are Prometheus' own: ``5m``.

    ``hold`` is how long the expression must hold (``for``), ``keep`` how long the alert continues after it (
    ``keep_firing_for``). ``remediation`` is the action that a run takes when it receives the alert; none by default.
    ``summary`` and ``description`` are Prometheus templates.
    """

    name: str
    expression: str
    severity: Severity
    summary: str
    description: str
    hold: str | None = None
    keep: str | None = None
    remediation: str | None = None

    @property
    def anchor(self) -> str:
        """Name the section of docs/alerts.md, as the usual renderers derive it from the heading."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded series; ``name`` is ``level:metric:operation``."""

    name: str
    expression: str
    help: str


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated one after the other, at one moment."""

    name: str
    rules: tuple[AlertRule | Recording, ...]


def alerts(groups: Iterable[RuleGroup]) -> Iterator[AlertRule]:
    """Give the alerts of some groups, in order."""
    return (rule for group in groups for rule in group.rules if isinstance(rule, AlertRule))

"""Notifications of Alertmanager's webhook (version 4), checked and cut down to what is read of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor._checks import is_whole
from monitor.server._bodies import is_one_line, shown
from monitor.server._problems import HttpProblem

STATUSES = ("firing", "resolved")
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
FINGERPRINT_PATTERN = r"^[0-9A-Za-z]{1,64}$"


@dataclass(frozen=True, slots=True)
class Alert:
    """What is read of one alert of a notification."""

    name: str
    fingerprint: str
    starts_at: str
    is_firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def read_notification(body: Mapping[str, Any]) -> tuple[list[Alert], int]:
    """Check a notification and return its alerts, and how many Alertmanager has left out.

    Fields that are not read may be anything: later Alertmanagers send more of them.

    Raises:
        HttpProblem: 422 with the field, for what no Alertmanager would send.
    """
    if body.get("version") != "4":
        raise _wrong("version", 'the string "4", the webhook version that Alertmanager sends', body.get("version"))
    alerts = body.get("alerts")
    if not isinstance(alerts, list):
        raise _wrong("alerts", "a list of alerts", alerts)
    truncated = body.get("truncatedAlerts", 0)
    if not is_whole(truncated) or truncated < 0:
        raise _wrong("truncatedAlerts", "an integer from 0", truncated)
    return [_alert(f"alerts[{index}]", alert) for index, alert in enumerate(alerts)], truncated


def _alert(where: str, alert: Any) -> Alert:
    if not isinstance(alert, dict):
        raise _wrong(where, "an object", alert)
    status, fingerprint, starts_at = (alert.get(name) for name in ("status", "fingerprint", "startsAt"))
    if status not in STATUSES:
        raise _wrong(f"{where}.status", " or ".join(STATUSES), status)
    if not isinstance(fingerprint, str) or not re.fullmatch(FINGERPRINT_PATTERN, fingerprint):
        raise _wrong(f"{where}.fingerprint", "letters and digits, 1 to 64 of them", fingerprint)
    if not isinstance(starts_at, str) or not re.fullmatch(TIME_PATTERN, starts_at):
        raise _wrong(f"{where}.startsAt", "a time such as 2026-01-31T10:00:00.000Z", starts_at)
    labels = _texts(f"{where}.labels", alert.get("labels"))
    annotations = _texts(f"{where}.annotations", alert.get("annotations", {}))
    name = one_line(labels.get("alertname", "")) or "unnamed alert"
    return Alert(name[:200], fingerprint, starts_at, status == "firing", labels, annotations)


def _texts(where: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong(where, "an object of strings", value)
    return value


def _wrong(field: str, must_be: str, value: Any) -> HttpProblem:
    return HttpProblem(422, f"{field} must be {must_be}, got {shown(value)}.", field=field)


def one_line(text: str) -> str:
    """Return text as a log may hold it: annotations are often several lines, and labels may be anything."""
    return " ".join("".join(char if is_one_line(char) else " " for char in text).split())

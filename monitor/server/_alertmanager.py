"""The view that Alertmanager calls: what fires for this run and names a remediation becomes a command, once."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flask import Flask, Response, request

from monitor._errors import CommandRefusedError, QueueFullError
from monitor._records import CommandRecord
from monitor.server import _json
from monitor.server._access import RunAccess
from monitor.server._bodies import MAX_REASON, is_one_line, read_object, shown
from monitor.server._gate import Gate
from monitor.server._problems import Refusal

ACTIONS = ("reduce", "pause", "stop", "checkpoint")
"""What an alert may ask for: nothing that raises a learning rate or takes back what a person has decided."""
DEFAULT_FACTOR = 0.5
COOLDOWN_SECONDS = 300.0
MAX_REMEMBERED = 4096
MAX_NOTIFICATION_BYTES = 512 * 1024
STATUSES = ("firing", "resolved")
OUTCOMES = ("accepted", "duplicate", "cooling_down", "resolved", "no_remediation", "other_run", "refused")
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
FINGERPRINT_PATTERN = r"^[0-9A-Za-z]{1,64}$"
_RETRY_SECONDS = "5"
_log = logging.getLogger("monitor.server")


@dataclass(frozen=True, slots=True)
class Alert:
    """What is read of one alert of a notification."""

    name: str
    fingerprint: str
    starts_at: str
    is_firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one alert; ``outcome`` is one of OUTCOMES."""

    alert: str
    fingerprint: str
    outcome: str
    detail: str = ""
    command: str | None = None


class Receiver:
    """Turn alerts into commands: each once per fingerprint and start, each action at most once per cool-down.

    Several alerts that tell of the same trouble are one reduction; what still fires when its notification is repeated
    after the cool-down acts then. An alert whose command expired, as no step was made, acts again when repeated.

    Args:
        access: the run.
        cooldown: seconds in which the same action is not taken again.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        access: RunAccess,
        *,
        cooldown: float = COOLDOWN_SECONDS,
        capacity: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access, self._cooldown, self._capacity, self._clock = access, cooldown, capacity, clock
        self._lock = threading.Lock()  # two deliveries of one notification at once are one command
        self._commands: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._last: dict[str, float] = {}

    def take(self, alert: Alert) -> tuple[Result, CommandRefusedError | None]:
        """Act on one alert, or say why not. Raises QueueFullError and ClosedRunError."""
        outcome, detail, command, refusal = self._decide(alert)
        return Result(alert.name, alert.fingerprint, outcome, detail, command), refusal

    def _decide(self, alert: Alert) -> tuple[str, str, str | None, CommandRefusedError | None]:
        ours = self._access.snapshot().run.run_id
        if alert.labels.get("run_id") != ours:
            return "other_run", f"this is run {ours}", None, None
        action = alert.labels.get("remediation", "")
        if not action:
            return "no_remediation", "the alert has no label remediation", None, None
        if not alert.is_firing:
            return "resolved", "", None, None
        with self._lock:
            if (known := self._remembered(alert)) is not None:
                return "duplicate", "this alert has had its command", known, None
            left = self._last.get(action, -math.inf) + self._cooldown - self._clock()
            if left > 0:
                return "cooling_down", f"{action} was taken already; again possible in {math.ceil(left)} s", None, None
            try:
                record = self._submit(action, alert)
            except CommandRefusedError as error:
                return "refused", str(error), None, error
            self._remember(alert, record)
            self._last[action] = self._clock()
        return "accepted", "", record.id, None

    def _submit(self, action: str, alert: Alert) -> CommandRecord:
        if action not in ACTIONS:
            words = ", ".join(ACTIONS)
            raise CommandRefusedError(
                f"label remediation must be one of {words}, got {shown(action)}", "labels.remediation"
            )
        return self._access.submit(
            action,
            source="alertmanager",
            actor=alert.name,
            reason=_reason(alert),
            factor=_factor(alert) if action == "reduce" else None,
            groups=None,
            over_steps=0,
        )

    def _remembered(self, alert: Alert) -> str | None:
        key = (alert.fingerprint, alert.starts_at)
        command_id = self._commands.get(key)
        if command_id is None:
            return None
        record = self._access.command(command_id)
        if record is not None and record.status == "expired":
            del self._commands[key]
            return None
        self._commands.move_to_end(key)  # what is repeated is remembered longest
        return command_id

    def _remember(self, alert: Alert, record: CommandRecord) -> None:
        self._commands[alert.fingerprint, alert.starts_at] = record.id
        while len(self._commands) > self._capacity:
            self._commands.popitem(last=False)


def add_alertmanager(
    app: Flask,
    gate: Gate,
    access: RunAccess,
    prefix: str,
    *,
    cooldown: float = COOLDOWN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Add the webhook to ``app``.

    Alertmanager sends again what was answered with 5xx and gives up on what was answered with 4xx: a full queue is
    503, whatever is wrong with the notification or with the rule behind it 4xx, and what is not for us 200.
    """
    receiver = Receiver(access, cooldown=cooldown, clock=clock)

    def alertmanager() -> Response:
        request.max_content_length = MAX_NOTIFICATION_BYTES  # one notification may tell of hundreds of alerts
        alerts, truncated = read_notification(read_object(request))
        if truncated:
            _log.warning("Alertmanager has left %d alerts out of a notification; raise its max_alerts", truncated)
        results, refusals = [], []
        for alert in alerts:
            try:
                result, refusal = receiver.take(alert)
            except QueueFullError as error:
                raise Refusal(503, str(error), headers={"Retry-After": _RETRY_SECONDS}) from None
            results.append(asdict(result))
            if refusal is not None:
                refusals.append((alert, refusal))
        if refusals:
            raise _refused(refusals, len(alerts))
        body = _json.encode({"results": results, "truncated": truncated})
        return Response(body, content_type="application/json")

    app.add_url_rule(f"{prefix}/alertmanager", "alertmanager", alertmanager, methods=["POST"])
    gate.need("alertmanager", "control")


def _refused(refusals: list[tuple[Alert, CommandRefusedError]], total: int) -> Refusal:
    """Tell Alertmanager, whose log and failure counter show it, what a rule asked for in vain."""
    told = "; ".join(f"{alert.name}: {error}" for alert, error in refusals[:3])
    more = f"; and {len(refusals) - 3} more" if len(refusals) > 3 else ""
    fields = [error.field for _, error in refusals if error.field is not None]
    detail = f"{len(refusals)} of {total} alerts asked for what is refused; the others were taken. {told}{more}"
    return Refusal(422 if fields else 409, detail, field=fields[0] if fields else None)


def read_notification(body: Mapping[str, Any]) -> tuple[list[Alert], int]:
    """Check a notification and return its alerts, and how many Alertmanager has left out.

    Fields that are not read may be anything: later Alertmanagers send more of them.

    Raises:
        Refusal: 422 with the field, for what no Alertmanager would send.
    """
    if body.get("version") != "4":
        raise _wrong("version", 'the string "4", the webhook version that Alertmanager sends', body.get("version"))
    alerts = body.get("alerts")
    if not isinstance(alerts, list):
        raise _wrong("alerts", "a list of alerts", alerts)
    truncated = body.get("truncatedAlerts", 0)
    if isinstance(truncated, bool) or not isinstance(truncated, int) or truncated < 0:
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
    name = _one_line(labels.get("alertname", "")) or "unnamed alert"
    return Alert(name[:200], fingerprint, starts_at, status == "firing", labels, annotations)


def _texts(where: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong(where, "an object of strings", value)
    return value


def _wrong(field: str, must_be: str, value: Any) -> Refusal:
    return Refusal(422, f"{field} must be {must_be}, got {shown(value)}.", field=field)


def _factor(alert: Alert) -> float:
    where = "labels" if "remediation_factor" in alert.labels else "annotations"
    text = getattr(alert, where).get("remediation_factor")
    if text is None:
        return DEFAULT_FACTOR
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= 1:
        raise CommandRefusedError(
            f"remediation_factor must be a number in (0, 1], such as 0.5, got {shown(text)}",
            f"{where}.remediation_factor",
        )
    return factor


def _reason(alert: Alert) -> str:
    summary = _one_line(alert.annotations.get("summary", ""))
    reason = f"alert {alert.name} fires since {alert.starts_at}" + (f": {summary}" if summary else "")
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."


def _one_line(text: str) -> str:
    """Return text as a log may hold it: annotations are often several lines, and labels may be anything."""
    return " ".join("".join(char if is_one_line(char) else " " for char in text).split())

"""The view that Alertmanager calls: what fires for this run and names a remediation becomes a command, once."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import Flask, Response, g, request

from monitor._errors import CommandRefusedError, QueueFullError
from monitor._records import MAX_REASON
from monitor.server import _json
from monitor.server._access import RunAccess
from monitor.server._auth import Auth
from monitor.server._bodies import read_object, shown
from monitor.server._notifications import Alert, one_line, read_notification
from monitor.server._problems import HttpProblem

ACTIONS = ("reduce", "pause", "stop", "checkpoint")
"""What an alert may ask for: nothing that raises a learning rate or takes back what a person has decided."""
ALERT_TOKEN_ACTIONS = ("reduce",)
"""What it may ask for where it brings the token for alerts, which Alertmanager sends to whoever has the port."""
DEFAULT_FACTOR = 0.5
COOLDOWN_SECONDS = 300.0
MAX_REMEMBERED = 4096
MAX_ASKED = 64
"""How often one notification may ask the run: each asking is an audit event, and their log is bounded."""
MAX_NOTIFICATION_BYTES = 512 * 1024
OUTCOMES = (
    "accepted", "duplicate", "cooling_down", "resolved", "no_remediation", "other_run", "refused", "left_out",
)  # fmt: skip
_RETRY_SECONDS = "5"
_LOG = logging.getLogger("monitor")


class Taken(NamedTuple):
    """What became of one alert; ``outcome`` is one of OUTCOMES. ``has_asked``: the run was asked."""

    outcome: str
    detail: str = ""
    command: str | None = None
    refusal: CommandRefusedError | None = None
    has_asked: bool = False


class _Wish(NamedTuple):
    """What an alert asks for, from when on: by this a refusal is remembered."""

    fingerprint: str
    starts_at: str
    action: str
    factor: float | None


class Receiver:
    """Turn alerts into commands: each once per fingerprint and start, each action at most once per cool-down.

    Several alerts that report the same trouble are one reduction; what still fires when its notification is repeated
    after the cool-down acts then. An alert whose command expired, as no step was made, or was rejected at its step acts
    again when repeated. What the run has refused is refused again for a cool-down without asking it, as each refusal of
    the run is an audit event; then it is asked anew, as the reason may have passed.

    Args:
        access: the run.
        cooldown: seconds in which the same action is not taken again, nor what was refused asked for again.
        capacity: how many alerts are remembered, and how many refusals.
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
        self._refusals: OrderedDict[_Wish, tuple[CommandRefusedError, float]] = OrderedDict()
        self._last: dict[str, float] = {}

    def take(self, alert: Alert, *, may_ask: bool = True, actions: tuple[str, ...] = ACTIONS) -> Taken:
        """Act on one alert, if it asks for one of ``actions``, or say why not; without ``may_ask`` only say.

        Raises QueueFullError, ClosedRunError.
        """
        ours = self._access.snapshot().run.run_id
        if alert.labels.get("run_id") != ours:
            return Taken("other_run", f"this is run {ours}")
        if not alert.labels.get("remediation", ""):
            return Taken("no_remediation", "the alert has no label remediation")
        if not alert.is_firing:
            return Taken("resolved")
        try:
            wish = _wish(alert, actions)
        except CommandRefusedError as error:
            return Taken("refused", str(error), None, error)
        with self._lock:
            return self._known(wish) or self._ask(wish, alert, may_ask)

    def _known(self, wish: _Wish) -> Taken | None:
        if (command := self._remembered(wish)) is not None:
            return Taken("duplicate", "this alert has had its command", command)
        if (refusal := self._refused_lately(wish)) is not None:
            return Taken("refused", str(refusal), None, refusal)
        left = self._last.get(wish.action, -math.inf) + self._cooldown - self._clock()
        if left > 0:
            return Taken("cooling_down", f"{wish.action} was taken already; again possible in {math.ceil(left)} s")
        return None

    def _ask(self, wish: _Wish, alert: Alert, may_ask: bool) -> Taken:
        if not may_ask:
            return Taken("left_out", f"one notification may ask {MAX_ASKED} times; it is heard when it is repeated")
        try:
            record = self._access.submit(
                wish.action,
                source="alertmanager",
                actor=alert.name,
                reason=_reason(alert),
                factor=wish.factor,
                groups=None,
                over_steps=0,
            )
        except CommandRefusedError as error:
            refusal = CommandRefusedError(str(error), error.field)  # without the frames that the error holds
            _keep(self._refusals, wish, (refusal, self._clock()), self._capacity)
            return Taken("refused", str(error), None, error, has_asked=True)
        _keep(self._commands, wish[:2], record.id, self._capacity)
        self._last[wish.action] = self._clock()
        return Taken("accepted", "", record.id, has_asked=True)

    def _remembered(self, wish: _Wish) -> str | None:
        key = wish[:2]
        command_id = self._commands.get(key)
        if command_id is None:
            return None
        record = self._access.command(command_id)
        if record is not None and record.status in ("expired", "rejected"):
            del self._commands[key]
            return None
        self._commands.move_to_end(key)  # what is repeated is remembered longest
        return command_id

    def _refused_lately(self, wish: _Wish) -> CommandRefusedError | None:
        refusal, since = self._refusals.get(wish, (None, 0.0))
        if refusal is None:
            return None
        if self._clock() - since >= self._cooldown:
            del self._refusals[wish]
            return None
        self._refusals.move_to_end(wish)
        return refusal


def _keep(memory: OrderedDict[Any, Any], key: Any, value: Any, capacity: int) -> None:
    memory[key] = value
    while len(memory) > capacity:
        memory.popitem(last=False)


def add_alertmanager(
    app: Flask,
    auth: Auth,
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
        request.max_content_length = MAX_NOTIFICATION_BYTES  # one notification may have hundreds of alerts
        alerts, truncated = read_notification(read_object(request))
        if truncated:
            _LOG.warning("Alertmanager has left %d alerts out of a notification; raise its max_alerts", truncated)
        try:
            taken = _take_all(receiver, alerts, ACTIONS if g.permission.covers("control") else ALERT_TOKEN_ACTIONS)
        except QueueFullError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": _RETRY_SECONDS}) from None
        left_out = sum(one.outcome == "left_out" for one in taken)
        if left_out:
            _LOG.warning("%d alerts of a notification were left out: it asked for more than %d", left_out, MAX_ASKED)
        if refusals := [(alert, one.refusal) for alert, one in zip(alerts, taken, strict=True) if one.refusal]:
            raise _refused(refusals, len(alerts), left_out)
        results = [_result(alert, one) for alert, one in zip(alerts, taken, strict=True)]
        body = _json.encode({"results": results, "truncated": truncated, "left_out": left_out})
        return Response(body, content_type="application/json")

    app.add_url_rule(f"{prefix}/alertmanager", "alertmanager", alertmanager, methods=["POST"])
    auth.require("alertmanager", "alert")


def _take_all(receiver: Receiver, alerts: list[Alert], actions: tuple[str, ...]) -> list[Taken]:
    taken: list[Taken] = []
    num_asked = 0
    for alert in alerts:
        taken.append(receiver.take(alert, may_ask=num_asked < MAX_ASKED, actions=actions))
        num_asked += taken[-1].has_asked
    return taken


def _result(alert: Alert, taken: Taken) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "fingerprint": alert.fingerprint,
        "outcome": taken.outcome,
        "detail": taken.detail,
        "command": taken.command,
    }


def _refused(refusals: list[tuple[Alert, CommandRefusedError]], total: int, left_out: int) -> HttpProblem:
    """Report to Alertmanager, whose log and failure counter show it, what a rule asked for and was refused."""
    reported = "; ".join(f"{alert.name}: {error}" for alert, error in refusals[:3])
    more = f"; and {len(refusals) - 3} more" if len(refusals) > 3 else ""
    fields = [error.field for _, error in refusals if error.field is not None]
    others = f"{left_out} were left out until it is repeated, the others taken" if left_out else "the others were taken"
    detail = f"{len(refusals)} of {total} alerts asked for what is refused; {others}. {reported}{more}"
    return HttpProblem(422 if fields else 409, detail, field=fields[0] if fields else None)


def _wish(alert: Alert, actions: tuple[str, ...]) -> _Wish:
    action = alert.labels["remediation"]
    if action not in actions:
        words = ", ".join(actions) if actions == ACTIONS else f"{', '.join(actions)} with this token"
        raise CommandRefusedError(
            f"label remediation must be one of {words}, got {shown(action)}", "labels.remediation"
        )
    factor = _factor(alert) if action == "reduce" else None
    return _Wish(alert.fingerprint, alert.starts_at, action, factor)


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
    summary = one_line(alert.annotations.get("summary", ""))
    reason = f"alert {alert.name} fires since {alert.starts_at}" + (f": {summary}" if summary else "")
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."

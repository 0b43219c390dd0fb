"""The views that change a run. All of them put a command in the run's queue and answer 202 with its id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

from flask import Flask, Response, g, request

from monitor._records import COMMAND_ROUTES, CommandRecord
from monitor.server import _json
from monitor.server._access import RunAccess
from monitor.server._auth import OWNER, Auth
from monitor.server._bodies import CommandBody, read_command
from monitor.server._idempotency import IdempotencyKeys, check_key
from monitor.server._problems import HttpProblem

ACTOR_HEADER = "Monitor-Actor"
ACTOR_PATTERN = "[A-Za-z0-9_.@+-]{1,100}"


class Route(NamedTuple):
    """A command of the API: where it is, and the fields that its body may and must have."""

    rule: str
    method: str
    action: str
    allowed: tuple[str, ...]
    required: tuple[str, ...] = ()


_FACTOR = ("factor", "groups", "over_steps", "reason")
_FIELDS = {
    "set": (_FACTOR, ("factor",)),
    "reduce": (_FACTOR, ("factor",)),
    "restore": (_FACTOR[1:], ()),
}
"""The fields that an action takes, and those that it needs; the others take a reason."""
ROUTES = tuple(
    Route(path, method, action, *_FIELDS.get(action, (("reason",), ())))
    for action, (method, path) in COMMAND_ROUTES.items()
)


def add_commands(app: Flask, auth: Auth, access: RunAccess, prefix: str) -> None:
    """Add the views that change the run to ``app``."""
    keys = IdempotencyKeys()
    for route in ROUTES:
        app.add_url_rule(prefix + route.rule, route.action, _view(route, access, keys, prefix), methods=[route.method])
        auth.require(route.action, "control")


def _view(route: Route, access: RunAccess, keys: IdempotencyKeys, prefix: str) -> Callable[[], Response]:
    def view() -> Response:
        command = read_command(request, route.allowed, route.required)
        _check_actor(request.headers.get(ACTOR_HEADER))
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return _accepted(_submit(access, route.action, command), prefix)
        record, is_repeated = keys.once(
            g.permission.identity,
            check_key(key),
            _fingerprint(route, command),
            lambda: _submit(access, route.action, command),
        )
        response = _accepted(record, prefix)
        if is_repeated:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    return view


def _submit(access: RunAccess, action: str, command: CommandBody) -> CommandRecord:
    return access.submit(
        action,
        source="api",
        actor=_actor(),
        reason=command.reason,
        factor=command.factor,
        groups=command.groups,
        over_steps=command.over_steps,
    )


def _actor() -> str:
    """Return who the audit names: what the sender says of itself, and always what the server knows."""
    way = "page" if g.permission.session else "token"
    known = "socket" if request.environ.get(OWNER) else f"{way}@{request.remote_addr or 'unknown'}"
    claimed = request.headers.get(ACTOR_HEADER)
    return known if claimed is None else f"{claimed} via {known}"


def _check_actor(claimed: str | None) -> None:
    if claimed is not None and not re.fullmatch(ACTOR_PATTERN, claimed):
        detail = (
            f"{ACTOR_HEADER} must be 1 to 100 letters, digits and any of _ . @ + -, such as ada@workstation, "
            f"got {claimed[:60]!r}."
        )
        raise HttpProblem(400, detail, field=ACTOR_HEADER)


def _accepted(record: CommandRecord, prefix: str) -> Response:
    location = f"{prefix}/commands/{quote(record.id, safe='')}"
    return Response(_json.encode(record), 202, headers={"Location": location}, content_type="application/json")


def _fingerprint(route: Route, command: CommandBody) -> bytes:
    return hashlib.sha256(repr((route.action, command)).encode("utf-8", "surrogatepass")).digest()

"""The OpenAPI 3.1 document of the server; a test compares it with the routes and with real answers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from monitor._records import API_PREFIX
from monitor.server._commands import ACTOR_HEADER, ACTOR_PATTERN, ROUTES, Route
from monitor.server._schemas import components, ref

_WHY = {
    400: "The request is malformed.",
    401: "A token is needed, or the one given is wrong.",
    403: "The token may only look, the CSRF header is missing, or another site had a browser send a wrong token.",
    404: "There is no such thing.",
    409: "The state of the run forbids it.",
    413: "The body is larger than 64 KiB; of alerts, than 512 KiB.",
    415: "The body is not of the type that is asked for.",
    421: "The Host header is not one that is served.",
    422: "A field or parameter is not what it must be; `field` names it.",
    429: "Too many wrong tokens, or too many commands waiting; `Retry-After` says when to come back.",
    500: "The monitor failed; the run goes on.",
    503: "All connections are in use, or an alert found too many commands waiting: send it again.",
}
_SUMMARIES = {
    "set": "Set the factor",
    "reduce": "Multiply the factor in force",
    "restore": "Set the factor to 1",
    "undo": "Take the last change back",
    "pause": "Wait at the next step boundary",
    "resume": "Continue",
    "stop": "Ask the run to stop",
    "checkpoint": "Have the run save a checkpoint",
}
_BODIES = {"FactorCommand": "factor", "RestoreCommand": "groups", "PlainCommand": "reason"}
"""The schema of a command's body, by the field that the ones after it lack."""
_ALWAYS = (400, 403, 421, 429, 500, 503)
_TOKENS: list[dict[str, list[str]]] = [{"bearer": []}, {"session": []}]


@lru_cache(maxsize=1)
def openapi() -> dict[str, Any]:
    """Return the document.

    >>> openapi()["openapi"]
    '3.1.0'
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Training monitor",
            "version": "1",
            "description": "Watch one training run and lower its learning rate. Every error is an RFC 9457 problem.",
        },
        "servers": [{"url": "/"}],
        "security": _TOKENS,
        "paths": _reading() | _changing() | _browser(),
        "components": {
            "schemas": components(),
            "responses": {f"Problem{status}": _problem(status) for status in _WHY},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The control or the read-only token."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "monitor_session_PORT",
                    "description": "The page's session. A change also needs the header X-CSRF-Token.",
                },
            },
        },
    }


def _reading() -> dict[str, Any]:
    since = _query("since", "Cursor: the `next` of the answer before.", {"type": "integer", "minimum": 0, "default": 0})
    points = {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000}
    number = _query("points", "How many points per curve, at most.", points)
    command_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    names = _query("name[]", "Metric names to keep.", {"type": "array", "items": {"type": "string"}})
    text = {
        "text/plain": {"schema": {"type": "string"}},
        "application/openmetrics-text": {"schema": {"type": "string"}},
    }
    return {
        f"{API_PREFIX}/run": _get("run", "The whole state of the run", _json("Run")),
        f"{API_PREFIX}/history": _get(
            "history", "The curves since a cursor", _json("History"), (since, number), (422,)
        ),
        f"{API_PREFIX}/events": _get("events", "The events since a cursor", _json("Events"), (since,), (422,)),
        f"{API_PREFIX}/commands/{{id}}": _get(
            "command", "A command and its outcome", _json("CommandRecord"), (command_id,), (404,)
        ),
        f"{API_PREFIX}/targets": _get("targets", "This run for Prometheus' http_sd", _json("Targets")),
        f"{API_PREFIX}/openapi.json": _get(
            "describe", "This document", {"application/json": {"schema": {"type": "object"}}}
        ),
        "/metrics": _get("metrics", "Text format or OpenMetrics, as Accept asks", text, (names,), is_open=True),
        "/healthz": _get("healthz", "That the server answers", _json("Health"), is_open=True),
    }


def _changing() -> dict[str, Any]:
    paths = {API_PREFIX + route.rule: _command(route) for route in ROUTES}
    paths[f"{API_PREFIX}/lr"] |= _get("lr", "The learning rate of every param group", _json("LearningRates"))
    return paths | {f"{API_PREFIX}/alertmanager": _alerts()}


def _command(route: Route) -> dict[str, Any]:
    schema = next(name for name, field in _BODIES.items() if field in route.allowed)
    operation = _post(route.action, _SUMMARIES[route.action], schema, is_body_needed=bool(route.required))["post"]
    return {route.method.lower(): operation}


def _alerts() -> dict[str, Any]:
    summary = "Take a notification of Alertmanager (webhook version 4) and act on what fires for this run"
    done = {"description": "What became of each alert, in order.", "content": _json("AlertResults")}
    post = {
        "operationId": "alertmanager",
        "summary": summary,
        "description": (
            "Acts once per fingerprint and startsAt on firing alerts with this run's `run_id` and a `remediation` "
            "that is allowed. A refused remediation is told as 422 or 409; the others are queued all the same."
        ),
        "parameters": [_header("X-CSRF-Token", "Needed with the session cookie: logging in leads to ./#csrf=...")],
        "requestBody": {"required": True, "content": _json("AlertNotification")},
        "responses": {"200": done, **_problems(401, 409, 413, 415, 422)},
    }
    return {"post": post}


def _browser() -> dict[str, Any]:
    token = _query("token", "A token, exchanged for a session; the answer is a redirect.", {"type": "string"})
    html = {"text/html": {"schema": {"type": "string"}}}
    form = {"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    files = {"*/*": {"schema": {"type": "string"}}}
    index = _get("index", "The live page, or the login form", html, (token,), (404,))
    index["get"]["responses"]["303"] = _redirect()
    index["get"]["security"] = [{}, *_TOKENS]
    login = {
        "operationId": "login",
        "summary": "Exchange a token for a session",
        "security": [],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": {"303": _redirect(), **_problems(401, 413, 415)},
    }
    return {
        "/": index,
        "/login": {"post": login},
        "/static/plotly.min.js": _get("plotly", "The script that draws the charts", files, (), (404,)),
        "/static/{name}": _get("static", "A file of the page", files, (name,), (404,)),
    }


def _get(
    operation: str,
    summary: str,
    content: dict[str, Any],
    parameters: tuple[dict[str, Any], ...] = (),
    refusals: tuple[int, ...] = (),
    *,
    is_open: bool = False,
) -> dict[str, Any]:
    get: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **_problems(401, *refusals)},
    }
    if parameters:
        get["parameters"] = list(parameters)
    if is_open:
        get["security"] = [{}, *_TOKENS]
        get["description"] = "Open on the machine of the run, unless it was attached with protect_metrics."
    return {"get": get}


def _post(operation: str, summary: str, body: str, *, is_body_needed: bool = False) -> dict[str, Any]:
    location = {"description": "Where the outcome will be.", "schema": {"type": "string"}}
    replayed = {"description": "true: this key was seen before, nothing new was queued.", "schema": {"type": "string"}}
    accepted = {
        "description": "Accepted; applied at the next optimizer step.",
        "headers": {"Location": location, "Idempotency-Replayed": replayed},
        "content": _json("CommandRecord"),
    }
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "parameters": [
                _header("Idempotency-Key", "The same key within 24 h is the same command."),
                _header("X-CSRF-Token", "Needed with the session cookie: logging in leads to ./#csrf=..."),
                _header(ACTOR_HEADER, "Who asks, for the audit: ada@workstation.", f"^{ACTOR_PATTERN}$"),
            ],
            "requestBody": {"required": is_body_needed, "content": _json(body)},
            "responses": {"202": accepted, **_problems(401, 409, 413, 415, 422)},
        }
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(schema)}}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, description: str, pattern: str | None = None) -> dict[str, Any]:
    schema = {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _redirect() -> dict[str, Any]:
    headers = {name: {"schema": {"type": "string"}} for name in ("Location", "Set-Cookie")}
    return {"description": "A session; on to the page.", "headers": headers}


def _problem(status: int) -> dict[str, Any]:
    return {"description": _WHY[status], "content": {"application/problem+json": {"schema": ref("Problem")}}}


def _problems(*statuses: int) -> dict[str, Any]:
    every = sorted({*_ALWAYS, *statuses})
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in every}

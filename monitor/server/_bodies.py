"""The bodies of commands. The form is checked here; what a value may be is decided, and audited, by the run."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge

from monitor._checks import is_number, is_whole
from monitor._records import MAX_REASON
from monitor.common import MAX_NAME
from monitor.server import _json
from monitor.server._problems import HttpProblem

MAX_GROUPS = 1024


@dataclass(frozen=True, slots=True)
class CommandBody:
    """The checked body of a command."""

    factor: float | None = None
    groups: tuple[int | str, ...] | None = None
    over_steps: int = 0
    reason: str = ""


def read_command(request: Request, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> CommandBody:
    """Read and check the body of ``request``; an empty one is {} where nothing is required.

    Raises HttpProblem: 415 for another content type, 400 for what is not JSON, 422 for a field.
    """
    if not _received(request) and not required:
        return CommandBody()
    body = read_object(request)
    return _checked(body, allowed, required)


def read_object(request: Request) -> Mapping[str, Any]:
    """Read the body of ``request``: one JSON object.

    Raises HttpProblem: 415 for another content type, 400 for what is not JSON or no object.
    """
    raw = _received(request)
    if request.mimetype != "application/json":
        given = request.mimetype or "none"
        raise HttpProblem(415, f"The Content-Type must be application/json, got {given}.")
    try:
        body = _json.decode(raw)
    except ValueError as error:
        raise HttpProblem(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise HttpProblem(400, f"The body must be a JSON object, got {shown(body)}.")
    return body


def _received(request: Request) -> bytes:
    raw = request.get_data(cache=True)
    if request.content_length is not None and len(raw) != request.content_length:
        raise HttpProblem(400, f"The body ends after {len(raw)} of {request.content_length} bytes.")
    if request.content_length is None and request.environ["wsgi.input"].read(1):
        raise RequestEntityTooLarge  # a chunked body is read up to the limit and then silently no further
    return raw


def _checked(body: Mapping[str, Any], allowed: tuple[str, ...], required: tuple[str, ...]) -> CommandBody:
    for name in body:
        if name not in allowed:
            words = ", ".join(allowed)
            raise HttpProblem(422, f"There is no field {shown(name)} here; the fields are {words}.", field=name[:60])
    for name in required:
        if name not in body:
            raise HttpProblem(422, f"{name} is missing; it must be {_MUST_BE[name]}.", field=name)
    return CommandBody(**{name: _value(name, value) for name, value in body.items()})


def _value(name: str, value: Any) -> Any:
    try:
        return _CHECKS[name](value)
    except ValueError:
        raise HttpProblem(422, f"{name} must be {_MUST_BE[name]}, got {shown(value)}.", field=name) from None


def _factor(value: Any) -> float:
    if not is_number(value):
        raise ValueError
    return float(value)


def _groups(value: Any) -> tuple[int | str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_GROUPS:
        raise ValueError
    for group in value:
        is_index = is_whole(group) and group >= 0
        is_name = isinstance(group, str) and 0 < len(group) <= MAX_NAME and is_one_line(group)
        if not (is_index or is_name):
            raise ValueError
    return tuple(value)


def _over_steps(value: Any) -> int:
    if not is_whole(value):
        raise ValueError
    return int(value)


def _reason(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_REASON or not is_one_line(value):
        raise ValueError
    return value


def is_one_line(text: str) -> bool:
    """Tell whether text is safe in a log: no control characters, no half of a surrogate pair."""
    return not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def shown(value: Any) -> str:
    """Return what was sent as a message may hold it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "factor": _factor,
    "groups": _groups,
    "over_steps": _over_steps,
    "reason": _reason,
}
_MUST_BE = {
    "factor": "a JSON number, such as 0.5",
    "groups": "a non-empty list of param group indexes or names, such as [0] or null for all",
    "over_steps": "an integer, such as 100",
    "reason": f"one line of at most {MAX_REASON} characters",
}

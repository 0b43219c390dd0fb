"""Errors in one shape: RFC 9457 problem details."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from flask import Flask, Response, request
from werkzeug.exceptions import ClientDisconnected, HTTPException

from monitor._errors import ClosedRunError, CommandRefusedError, QueueFullError, UnreachableError
from monitor.server.wsgi import CONTENT_TYPE, MaxSizeExceeded, document

MAX_BODY_BYTES = 64 * 1024
_LOG = logging.getLogger("monitor")
_DRAIN_BYTES = 1024 * 1024


class HttpProblem(Exception):  # noqa: N818 - a problem of the client's request, no failure of ours
    """A request that is answered with a problem: what was offered, what would be right, and the field."""

    def __init__(
        self, status: int, detail: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})


def respond(problem: HttpProblem) -> Response:
    """Return the response that tells the client of a problem."""
    body = document(problem.status, problem.detail, problem.field)
    return Response(body, problem.status, headers=problem.headers, content_type=CONTENT_TYPE)


def install(app: Flask, on_error: Callable[[BaseException], None]) -> None:
    """Make every error of ``app`` a problem; failures of our own also go to ``on_error``."""

    def unexpected(error: Exception) -> Response:
        _LOG.error("%s %s failed", request.method, request.path, exc_info=error)
        on_error(error)
        return respond(HttpProblem(500, "The monitor failed to answer; the run continues. Its log has the traceback."))

    app.register_error_handler(HttpProblem, respond)
    app.register_error_handler(CommandRefusedError, _refused_command)
    app.register_error_handler(QueueFullError, _full_queue)
    app.register_error_handler(ClosedRunError, lambda error: respond(HttpProblem(409, str(error))))
    app.register_error_handler(UnreachableError, _unreachable)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(
        MaxSizeExceeded, lambda _: respond(HttpProblem(413, "The body is not framed as it should be."))
    )
    app.register_error_handler(Exception, unexpected)


def _refused_command(error: CommandRefusedError) -> Response:
    status = 409 if error.field is None else 422
    return respond(HttpProblem(status, str(error), field=error.field))


def _full_queue(error: QueueFullError) -> Response:
    return respond(HttpProblem(429, str(error), headers={"Retry-After": "5"}))


def _unreachable(error: UnreachableError) -> Response:
    return respond(HttpProblem(503, str(error), headers={"Retry-After": "5"}))


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    if isinstance(error, ClientDisconnected) and isinstance(error.__context__, TimeoutError):
        status = 408
    if status == 413:
        _drain()
    detail = _DETAILS.get(status) or error.description or ""
    limit = request.max_content_length or MAX_BODY_BYTES
    problem = HttpProblem(status, detail.format(method=request.method, path=request.path, limit=limit))
    if allowed := getattr(error, "valid_methods", None):
        problem.headers["Allow"] = ", ".join(sorted(allowed))
        problem.detail += f" Allowed here: {problem.headers['Allow']}."
    return respond(problem)


def _drain() -> None:
    """Read what the client is still sending, within reason: a socket closed on unread data loses ours."""
    stream, left = request.environ["wsgi.input"], _DRAIN_BYTES
    try:
        while left > 0 and (chunk := stream.read(min(left, 65536))):
            left -= len(chunk)
    except (OSError, ValueError):
        return


_DETAILS = {
    404: "There is nothing at {path}; /api/v1/openapi.json lists what there is.",
    405: "{path} does not take {method}.",
    408: "The body did not arrive in time; send it along with its head.",
    413: "The body is larger than {limit} bytes; a command needs a few hundred.",
}

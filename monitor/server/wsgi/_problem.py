"""The body of an error: RFC 9457 problem details."""

from __future__ import annotations

import json
from http import HTTPStatus

CONTENT_TYPE = "application/problem+json"


def document(status: int, detail: str, field: str | None = None) -> bytes:
    """Return the body of a problem.

    >>> document(404, "no such path")
    b'{"type":"about:blank","status":404,"title":"Not Found","detail":"no such path"}'
    """
    body: dict[str, object] = {
        "type": "about:blank",
        "status": status,
        "title": HTTPStatus(status).phrase,
        "detail": detail,
    }
    if field is not None:
        body["field"] = field
    return json.dumps(body, separators=(",", ":")).encode()

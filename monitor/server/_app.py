"""The Flask application of one run: reading views, commands, page and metrics."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request

from monitor._records import API_PREFIX
from monitor.common import Renderings
from monitor.server import _json, _problems
from monitor.server._access import RunAccess
from monitor.server._alertmanager import add_alertmanager
from monitor.server._auth import Auth, harden
from monitor.server._commands import add_commands
from monitor.server._document import run_document
from monitor.server._page import PAGE_DIR, add_page
from monitor.server._problems import MAX_BODY_BYTES, HttpProblem
from monitor.server._security import LoginCodes, Security

OPENAPI_FILE = Path(__file__).with_name("openapi.json")
"""The description of the API, kept by hand; tests/server/test_openapi.py says where the code differs from it."""
MAX_POINTS = 10_000
MAX_POINTS_TO_READ = 2000
"""The most points that a read-only token gets of each curve at once: those of the page."""
MAX_EVENTS = 2000
_MAX_INTEGER = 2**63 - 1
_GZIP_FROM_BYTES = 1024
_KEEP_UP_TO_BYTES = 256 * 1024


def create_app(
    access: RunAccess,
    security: Security,
    *,
    codes: LoginCodes | None = None,
    prove: Callable[[str, int], str] | None = None,
    page_dir: Path = PAGE_DIR,
    on_error: Callable[[BaseException], None] = lambda _: None,
) -> Flask:
    """Build the application that serves one run.

    ``codes`` log in once each; default: those alone that ``POST /login-codes`` makes. ``prove`` returns what shows, for
    a nonce and the port, that this is the run's own server. ``on_error`` hears of every failure of a view; the client
    gets a 500 problem.

    Example:
        app = create_app(access, Security(token=token))
        with HttpServer(app) as server: ...
    """
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # nothing to negotiate: no CORS
    app.url_map.merge_slashes = False  # a path is what it says: no redirects
    auth = Auth(security, codes)
    auth.install(app)
    _problems.install(app, on_error)
    _add_reading(app, auth, access)
    _add_operations(app, auth, access)
    _add_credentials(app, auth, access, prove)
    add_commands(app, auth, access, API_PREFIX)
    add_alertmanager(app, auth, access, API_PREFIX)
    add_page(app, auth, page_dir)
    app.after_request(_compress)
    app.after_request(harden)
    return app


def lr_document(access: RunAccess) -> dict[str, Any]:
    """Return the learning rate of every param group and the commands that wait for the next step."""
    pending = list(access.commands())  # first: one that is applied meanwhile is shown twice rather than not at all
    groups = [
        {
            "optimizer": optimizer.key,
            "param_group": group.index,
            "name": group.name,
            "scheduled": group.scheduled,
            "factor": group.factor,
            "applied": group.applied,
        }
        for optimizer in access.snapshot().optimizers
        for group in optimizer.groups
    ]
    return {"groups": groups, "pending": pending}


def _add_reading(app: Flask, auth: Auth, access: RunAccess) -> None:
    documents: Renderings[bytes] = Renderings()

    def run() -> Response:
        snapshot, can_control = access.snapshot(), g.permission.covers("control")

        def render() -> bytes:
            return _json.encode({**run_document(snapshot), "page": {"can_control": can_control}})

        return Response(documents.get(snapshot, can_control, render), content_type="application/json")

    def history() -> Response:
        most = MAX_POINTS if g.permission.covers("control") else MAX_POINTS_TO_READ
        return _answer(access.history(_query("since", 0), _query("points", 1000, low=1, high=most)))

    def events() -> Response:
        since, before = _query("since", 0), _query("before", _MAX_INTEGER)
        limit = _query("limit", MAX_EVENTS, low=1, high=MAX_EVENTS)
        found = access.events(since, before, limit + 1)
        shown = found[-limit:]
        return _answer(
            {
                "events": shown,
                "next": max((event.seq for event in shown), default=since),
                "earlier": shown[0].seq if len(found) > limit else None,
            }
        )

    def lr() -> Response:
        return _answer(lr_document(access))

    def command(id: str) -> Response:  # noqa: A002 - the path parameter's name
        record = access.command(id)
        if record is None:
            raise HttpProblem(404, f"This run has no command {id[:60]!r}; it keeps the latest ones.")
        return _answer(record)

    for rule, view in (
        ("/run", run),
        ("/history", history),
        ("/events", events),
        ("/lr", lr),
        ("/commands/<id>", command),
    ):
        app.add_url_rule(API_PREFIX + rule, view.__name__, view, methods=["GET"])
        auth.require(view.__name__, "read")


def _add_operations(app: Flask, auth: Auth, access: RunAccess) -> None:
    def metrics() -> Response:
        begun = time.monotonic()
        body, content_type = access.render_metrics(request.headers.get("Accept"), request.args.getlist("name[]"))
        response = Response(body, content_type=content_type)
        if request.method == "GET":
            response.call_on_close(lambda: access.scraped(begun))
        return response

    def healthz() -> Response:
        return _answer({"status": "ok"})

    def targets() -> Response:
        # The series carry run_id themselves: as a target label it would be renamed to exported_run_id.
        snapshot = access.snapshot()
        names = {"__meta_monitor_run_id": snapshot.run.run_id, "__meta_monitor_run_name": snapshot.run.name}
        hosts = [urlsplit(one.url) for one in snapshot.ranks if one.url and one.host != snapshot.run.hostname]
        found = [(request.scheme, request.host), *((host.scheme, host.netloc) for host in hosts)]
        return _answer([{"targets": [to], "labels": {"__scheme__": scheme, **names}} for scheme, to in found])

    def describe() -> Response:
        return Response(OPENAPI_FILE.read_bytes(), content_type="application/json")

    for rule, view, need in (
        ("/metrics", metrics, "metrics"),
        ("/healthz", healthz, "metrics"),
        (f"{API_PREFIX}/targets", targets, "read"),
        (f"{API_PREFIX}/openapi.json", describe, "read"),
    ):
        app.add_url_rule(rule, view.__name__, view, methods=["GET"])
        auth.require(view.__name__, need)


def _add_credentials(app: Flask, auth: Auth, access: RunAccess, prove: Callable[[str, int], str] | None) -> None:
    def proof() -> Response:
        nonce = request.args.get("nonce", "")
        if prove is None:
            raise HttpProblem(404, "This server has no key to prove itself with.")
        if not re.fullmatch(r"[0-9a-f]{32,128}", nonce):
            raise HttpProblem(422, f"nonce must be 32 to 128 digits 0-9 a-f, got {nonce[:60]!r}.", field="nonce")
        return _answer(
            {"run_id": access.snapshot().run.run_id, "proof": prove(nonce, int(request.environ["SERVER_PORT"] or 0))}
        )

    def login_codes() -> Response:
        return _answer({"code": auth.codes.make(), "expires_in": int(auth.codes.seconds)})

    for path, method, view, need in (
        ("/proof", "GET", proof, "none"),
        ("/login-codes", "POST", login_codes, "control"),
    ):
        app.add_url_rule(API_PREFIX + path, view.__name__, view, methods=[method])
        auth.require(view.__name__, need)


def _answer(value: Any) -> Response:
    return Response(_json.encode(value), content_type="application/json")


def _query(name: str, default: int, low: int = 0, high: int = _MAX_INTEGER) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise HttpProblem(422, f"{name} must be an integer from {low} to {high}, got {text[:60]!r}.", field=name)
    return int(text)


def _compress(response: Response) -> Response:
    """Compress what is large enough to be worth it; level 1, as the trainer needs the CPU more."""
    if response.direct_passthrough or response.status_code != 200 or not response.is_sequence:
        return response
    response.vary.add("Accept-Encoding")
    if (response.content_length or 0) > _GZIP_FROM_BYTES and request.accept_encodings.quality("gzip") > 0:
        body = response.get_data()
        response.set_data(_kept_gzip(body) if len(body) <= _KEEP_UP_TO_BYTES else _gzip(body))
        response.headers["Content-Encoding"] = "gzip"
    return response


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1, mtime=0)


_kept_gzip = lru_cache(maxsize=16)(_gzip)
"""What is rendered once is compressed once: a body that is the same object is found without being looked through."""

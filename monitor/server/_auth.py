"""Authentication and authorization of every request: Host, credential, access level, CSRF."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from flask import Flask, Response, g, make_response, request

from monitor.server._problems import HttpProblem
from monitor.server._security import AccessLevel, Hosts, LoginCodes, LoginRateLimit, Permission, Security, Sessions
from monitor.server.wsgi import VOUCH, is_loopback

CSRF_HEADER = "X-CSRF-Token"
OWNER = "monitor.owner"
"""Set in the WSGI environment of a request that came through the socket in the run's folder."""


class Auth:
    """Let a request pass, or raise the HttpProblem that says why not. A view without an entry needs control.

    A request without a credential is no guess and never counts as a failure; nor is a cookie of an earlier
    run, whose signature nobody can guess: a page left open must not lock its owner out.
    """

    def __init__(
        self, security: Security, codes: LoginCodes | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.security = security
        self.codes = LoginCodes() if codes is None else codes
        self.sessions = Sessions(security)
        self._hosts = Hosts(security)
        self._rate_limit = LoginRateLimit(security.max_failures, security.failure_window, clock=clock)
        self._needs: dict[str, str] = {}

    def install(self, app: Flask) -> None:
        """Stand before every view of ``app``."""
        app.before_request(self._check)

    def require(self, endpoint: str, level: str) -> None:
        """Say what a view needs: "none", "alert", "read", "control" or "metrics"."""
        self._needs[endpoint] = level

    def permission(self) -> Permission:
        """Return what the current request may do; a wrong bearer token is refused whatever it asks for."""
        if request.environ.get(OWNER):
            return Permission("control")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.permission_of_guess(token.strip().encode("latin-1", "replace").decode("utf-8", "replace"))
        return self.sessions.permission_of_cookie(request.cookies.get(cookie_name(), ""))

    def permission_of_guess(self, token: str) -> Permission:
        """Return what a token that someone typed or sent allows; wrong ones are counted and refused.

        The right token passes whatever was guessed before: an attacker often shares the owner's address.
        """
        permission = self.sessions.permission_of_token(token)
        if permission.level == "none":
            raise self._refusal("That token is not the one of this run; its log or its folder has it.")
        return permission

    def _refusal(self, detail: str) -> HttpProblem:
        """Count a guess and return what to answer."""
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            # Not counted: another site makes the owner's own browser send these, from the owner's address.
            return HttpProblem(403, f"{detail} It was another site that had this browser send it.")
        address = request.remote_addr or ""
        if seconds := self._rate_limit.retry_after(address):
            detail = f"Too many wrong tokens from {address}; try again in {seconds} s."
            return HttpProblem(429, detail, headers={"Retry-After": str(seconds)})
        self._rate_limit.add(address)
        return unauthorized(detail)

    def login_by_code(self, code: str, lead: Callable[[str], Response]) -> Response:
        """Open a session with control for who brings a login code, and use the code up."""
        if not self.codes.take(code):
            raise self._refusal("That link has been used or is too old; `monitor open` on the run's machine makes one.")
        return self.login(self.security.token, lead)

    def login(self, token: str, lead: Callable[[str], Response]) -> Response:
        """Open a session, or refuse the token: a cookie on what ``lead`` makes of the page's address.

        The CSRF token goes behind the # of the address, which a browser sends to nobody. The cookie goes to every port
        of this machine, whoever serves there, and must not be enough for a change: no answer to it holds the token.
        The address is relative: behind a reverse proxy the page may stand below a path that is not known here.
        """
        permission = self.permission_of_guess(token)
        cookie = self.sessions.open(token)
        if cookie is None:
            raise HttpProblem(403, _TOO_LITTLE[permission.level])
        csrf = self.sessions.csrf_of(self.sessions.permission_of_cookie(cookie))
        response = lead(f"./#csrf={csrf}" if csrf else "./")
        response.set_cookie(
            cookie_name(),
            cookie,
            httponly=True,
            samesite="Strict",
            secure=request.is_secure or self.security.cookie_secure,
            path="/",
        )
        return response

    def _check(self) -> None:
        host = request.environ.get("HTTP_HOST", "")
        if not self._hosts.is_served(host):
            raise HttpProblem(421, f"The host {host[:100]!r} is not served here; use localhost or the bind address.")
        if request.url_rule is None:  # 404 or 405: said by the router
            return
        need = self._level_of(self._needs.get(request.endpoint or "", "control"))
        g.permission = Permission("none") if need == "none" else self._authorize(need)

    def _level_of(self, need: str) -> AccessLevel:
        if need == "metrics":
            is_open = not self.security.protect_metrics and is_loopback(request.remote_addr or "")
            return "none" if is_open else "read"
        return cast(AccessLevel, need)

    def _authorize(self, need: AccessLevel) -> Permission:
        permission = self.permission()
        if permission.level == "none":
            raise unauthorized("This needs a token: send Authorization: Bearer TOKEN, or log in at /.")
        request.environ.get(VOUCH, _nobody)()
        if not permission.covers(need):
            raise HttpProblem(403, _TOO_LITTLE[permission.level])
        if need != "read" and permission.session is not None:
            offered = request.headers.get(CSRF_HEADER, "")
            if not self.sessions.is_csrf_right(permission, offered):
                detail = f"A change by cookie needs the header {CSRF_HEADER}; open the URL of the run's log again."
                raise HttpProblem(403, detail)
        return permission


_TOO_LITTLE = {
    "read": "A read-only token may look but not change anything; send the control token.",
    "alert": "The token for alerts may hand in alerts and nothing else; send the control token or the read-only one.",
}


def _nobody() -> None:
    """Stand for the connection of a request that came over none."""


def unauthorized(detail: str) -> HttpProblem:
    """Return the problem that asks for a token."""
    return HttpProblem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="monitor"'})


def cookie_name() -> str:
    """Return the cookie's name: cookies ignore ports, so two runs on one machine need two names."""
    return f"monitor_session_{request.environ.get('SERVER_PORT', '')}"


def harden(response: Response) -> Response:
    """Set the headers that keep a browser from doing more than the page asks for."""
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def see_other(location: str) -> Response:
    """Return a redirect that a browser follows with GET."""
    response = make_response("", 303)
    response.headers["Location"] = location
    return response


# plotly injects a style sheet, hence 'unsafe-inline' for styles alone; its exports are blob: or data: images.
_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

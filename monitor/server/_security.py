"""Tokens, permissions, sessions, allowed hosts, and the rate limit on failed logins."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import secrets
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from itsdangerous import BadSignature, Signer

from monitor._settings import SECRETS, check_token, check_tokens
from monitor.server.wsgi import address_of, is_loopback

AccessLevel = Literal["none", "alert", "read", "control"]
_COVERED: dict[str, tuple[AccessLevel, ...]] = {
    "none": ("none",),
    "alert": ("none", "alert"),
    "read": ("none", "read"),
    "control": ("none", "alert", "read", "control"),
}
"""What each level allows. Alertmanager may hand in alerts and look at nothing."""
CODE_SECONDS = 900.0
_MAX_CODES = 64
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?\Z")
# Names that container engines give to the machine itself; .internal is reserved, so no stranger can own one.
_CONTAINER_HOSTS = ("host.docker.internal", "host.containers.internal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Say who may do what.

    ``token`` allows everything, ``read_token`` only to look, ``alert_token`` only to hand in alerts.
    ``bind_host`` is the address that the server listens on; ``hosts`` names further ``Host`` headers that
    are served (a reverse proxy's, say). ``protect_metrics`` asks for a token at ``/metrics`` and ``/healthz`` from this
    machine too. ``cookie_secure`` marks the page's cookie Secure even where the request came in clear, behind a proxy
    that speaks TLS. After ``max_failures`` wrong tokens from one address within ``failure_window`` seconds further
    wrong ones are answered with 429 and a time to wait.

    Example:
        >>> Security(token="0123456789abcdef").protect_metrics
        False

    Raises:
        ValueError: for a token that is empty, not printable ASCII, or the same as the other one.
    """

    token: str
    read_token: str | None = None
    alert_token: str | None = None
    protect_metrics: bool = False
    bind_host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    cookie_secure: bool = False
    max_failures: int = 10
    failure_window: float = 60.0

    def __post_init__(self) -> None:
        for name in SECRETS:
            if (value := getattr(self, name)) is not None:
                check_token(name, value)
        check_tokens(self.token, self.read_token, self.alert_token)


@dataclass(frozen=True, slots=True)
class Permission:
    """What a request may do, and as whom. ``session`` is set when the page's cookie said so, not a header."""

    level: AccessLevel
    session: str | None = None

    @property
    def identity(self) -> str:
        """Name the credential: idempotency keys belong to it."""
        return f"{self.level}:{self.session or 'token'}"

    def covers(self, level: AccessLevel) -> bool:
        """Tell whether this is enough for ``level``."""
        return level in _COVERED[self.level]


class Sessions:
    """Check tokens and sign the page's sessions. Nothing is stored: a session is an id signed with its token.

    >>> sessions = Sessions(Security(token="0123456789abcdef"))
    >>> cookie = sessions.open("0123456789abcdef")
    >>> sessions.permission_of_cookie(cookie).level
    'control'
    """

    def __init__(self, security: Security) -> None:
        self._keys: tuple[tuple[AccessLevel, str | None], ...] = (
            ("control", security.token),
            ("read", security.read_token),
            ("alert", security.alert_token),
        )
        self._csrf = _signer(security.token, "csrf")

    def permission_of_token(self, token: str) -> Permission:
        """Return what this token allows. Every known token is compared, in constant time."""
        offered, level = _bytes_of(token), "none"
        for candidate, known in self._keys:
            if known is not None and hmac.compare_digest(offered, known.encode()):
                level = candidate
        return Permission(level)  # type: ignore[arg-type]

    def open(self, token: str) -> str | None:
        """Return the cookie of a new session for the bearer of ``token``, or None for a wrong one."""
        if not self.permission_of_token(token).covers("read"):
            return None
        return _signer(token, "session").sign(secrets.token_urlsafe(16)).decode()

    def permission_of_cookie(self, cookie: str) -> Permission:
        """Return what the session of this cookie allows: nothing, once the token is another one."""
        for level, known in self._keys:
            if known is not None and level != "alert":
                with suppress(BadSignature):
                    return Permission(level, _signer(known, "session").unsign(_bytes_of(cookie)).decode())
        return Permission("none")

    def csrf_of(self, permission: Permission) -> str | None:
        """Return what the page sends as ``X-CSRF-Token`` with a change; None where it may change nothing."""
        if permission.session is None or permission.level != "control":
            return None
        return self._csrf.get_signature(permission.session).decode()

    def is_csrf_right(self, permission: Permission, offered: str) -> bool:
        """Tell whether the header proves that our own page sent the request."""
        return self.csrf_of(permission) is not None and self._csrf.verify_signature(
            permission.session or "", _bytes_of(offered)
        )


class LoginCodes:
    """Codes that each log in once, within ``seconds`` of being made: they may stand in a log or on a command line.

    >>> codes = LoginCodes()
    >>> code = codes.make()
    >>> codes.take(code), codes.take(code)
    (True, False)
    """

    def __init__(self, seconds: float = CODE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def make(self) -> str:
        """Return a new code of 128 random bits. Of those not used the latest 64 count."""
        code = secrets.token_urlsafe(16)
        with self._lock:
            self._ends[code] = self._clock() + self.seconds
            if len(self._ends) > _MAX_CODES:
                self._ends.popitem(last=False)
        return code

    def take(self, code: str) -> bool:
        """Use a code up; tell whether it was one."""
        with self._lock:
            return self._ends.pop(code, -math.inf) > self._clock()


class LoginRateLimit:
    """Count wrong tokens per address over a sliding window, for the last ``capacity`` addresses.

    >>> limit = LoginRateLimit(limit=1, window=60.0, clock=lambda: 5.0)
    >>> limit.add("192.0.2.7")
    >>> limit.retry_after("192.0.2.7"), limit.retry_after("192.0.2.8")
    (60, None)
    """

    def __init__(
        self,
        limit: int = 10,
        window: float = 60.0,
        capacity: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._window, self._capacity, self._clock = limit, window, capacity, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, address: str) -> None:
        """Note a wrong token from this address."""
        key = _network_of(address)
        with self._lock:
            times = self._times.setdefault(key, deque(maxlen=self._limit))
            times.append(self._clock())
            self._times.move_to_end(key)
            if len(self._times) > self._capacity:
                self._times.popitem(last=False)

    def retry_after(self, address: str) -> int | None:
        """Return the seconds until this address may try again, or None if it may now."""
        with self._lock:
            times = self._times.get(_network_of(address))
            if times is None or len(times) < self._limit:
                return None
            left = times[0] + self._window - self._clock()
        return math.ceil(left) if left > 0 else None


class Hosts:
    """Tell which values of the ``Host`` header are ours, so that no stranger's name reaches us (DNS rebinding).

    An address is always safe, as only names can be rebound, but only those that we listen on make sense.

    >>> Hosts(Security(token="0123456789abcdef")).is_served("localhost:9477")
    True
    >>> Hosts(Security(token="0123456789abcdef")).is_served("evil.example")
    False
    """

    def __init__(self, security: Security, hostname: Callable[[], str] = socket.gethostname) -> None:
        names = {"localhost", _name_of(security.bind_host), *map(_name_of, security.hosts)}
        if not is_loopback(security.bind_host):
            names |= {_name_of(hostname()), *_CONTAINER_HOSTS}
        bound = address_of(security.bind_host)
        self._is_any_address = bound is not None and bound.is_unspecified
        self._names = frozenset(names)

    def is_served(self, header: str) -> bool:
        """Tell whether a request with this ``Host`` is for us."""
        match = _HOST.match(header)
        if match is None:
            return False
        name = _name_of(match[1])
        address = address_of(name)
        if address is not None and (address.is_loopback or self._is_any_address):
            return True
        return name in self._names


def _name_of(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _network_of(address: str) -> str:
    """Return what one party can hold: an IPv4 address, a /64 of IPv6 as its owner has all of it, or all of loopback."""
    if is_loopback(address):
        return "loopback"
    parsed = address_of(address)
    if parsed is None or parsed.version == 4:
        return address
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


def _signer(token: str, purpose: str) -> Signer:
    """Return what signs for one purpose: a signature made for another is none."""
    return Signer(token, salt=f"monitor.{purpose}", key_derivation="hmac", digest_method=hashlib.sha256)


def _bytes_of(header: str) -> bytes:
    """Return what a header held, whether or not it is text."""
    return header.encode("utf-8", "surrogateescape")

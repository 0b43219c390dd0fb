"""The way from a terminal to a run: find it in the run folders, speak HTTP to it. Standard library only, no torch."""

from __future__ import annotations

import getpass
import hmac
import http.client
import ipaddress
import json
import os
import re
import secrets
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monitor._records import API_PREFIX, COMMAND_ROUTES
from monitor._settings import secret_from
from monitor.store import KnownRun, connect, proof, without_parts

_ANSWER_BYTES = 2**26


class ClientError(Exception):
    """The run could not be asked, or refused; the message is for the user."""


class NoAnswerError(ClientError):
    """Nothing at the run's address speaks to us."""


@dataclass(frozen=True)
class Client:
    """Speak to one run. Proxies of the environment are not used: a run is next door.

    ``timeout`` is seconds per request. ``cafile`` is the PEM file to check an https run against, ``certfile`` and
    ``keyfile`` are shown to a run that asks for a client certificate. With ``key``, that of the run ``run_id``, whoever
    listens at the address must prove that it has the key, too, before anything else is sent. With ``folder`` the run is
    reached by the socket in its folder, and ``url`` only names it.

    ::

        client = Client("http://127.0.0.1:9477/", token)
        client.get("/run")["state"]
    """

    url: str
    token: str | None = None
    timeout: float = 5.0
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key: str | None = None
    run_id: str = ""
    folder: Path | None = None

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to ``GET /api/v1<path>``. Raises ClientError."""
        return self._request("GET", path)

    def login_code(self) -> str:
        """Return a code that opens the page once, within minutes. Raises ClientError."""
        return str(self._request("POST", "/login-codes")["code"])

    def send(self, action: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the command ``action`` and return its record. Raises ClientError.

        An answer that got lost on the way is asked for once more under the same key, so the command counts once.
        """
        method, path = COMMAND_ROUTES[action]
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": uuid.uuid4().hex,
            "Monitor-Actor": own_name(),
        }
        payload = json.dumps(dict(body or {})).encode()
        try:
            return self._request(method, path, payload, headers)
        except NoAnswerError:
            return self._request(method, path, payload, headers)

    def wait(self, record: dict[str, Any], sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        """Ask until the command has an outcome and return its record. Raises ClientError when the run goes away."""
        pause = 0.05
        while record["status"] == "pending":
            sleep(pause)
            pause = min(1.0, pause * 1.5)
            record = self.get(f"/commands/{record['id']}")
        return record

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        sent = {"Accept": "application/json", **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        try:
            with closing(self._connect()) as connection:
                if self.key:
                    self._have_proved(connection, self.key)
                connection.request(method, API_PREFIX + path, body=body, headers=sent)
                response = connection.getresponse()
                status, content = response.status, response.read(_ANSWER_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise ClientError(
                f"{self.url} shows a certificate that is not trusted ({error.verify_message}); name its CA: --cafile"
            ) from error
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{self.url} does not answer ({_reason(error)})") from error
        return self._read(status, content)

    def _have_proved(self, connection: http.client.HTTPConnection, key: str) -> None:
        """Have whoever answers prove, on this very connection, that it is the run's own server.

        Raises:
            ClientError: it is another one.
        """
        nonce = secrets.token_hex(16)
        connection.request("GET", f"{API_PREFIX}/proof?nonce={nonce}", headers={"Accept": "application/json"})
        response = connection.getresponse()
        found = response.read(_ANSWER_BYTES)
        connection.auto_open = 0
        if not hmac.compare_digest(_proof_in(found), proof(key, self.run_id, nonce, connection.port)):
            raise ClientError(
                f"{self.url} is not the server of {self.run_id}: it does not know the key in the run's folder, and "
                "gets no token; the run may be gone, and another program may have its port"
            )

    def _connect(self) -> http.client.HTTPConnection:
        if self.folder is not None:
            return _LocalConnection(self.folder, self.timeout)
        try:
            parts = urlsplit(self.url if "//" in self.url else f"//{self.url}", scheme="http")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ClientError(f"{self.url!r} is not a URL ({error}); give one such as http://127.0.0.1:9477") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ClientError(f"{self.url!r} is no http(s) URL; give one such as http://127.0.0.1:9477")
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except OSError as error:
            raise ClientError(f"the certificate files cannot be read ({error})") from error
        return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if status in (200, 202) and isinstance(answer, dict):
            return answer
        if status == 401:
            raise ClientError(
                f"{self.url} wants its token; give it with --token or $MONITOR_TOKEN "
                "(that one goes to --url and to your own runs on this machine alone)"
            )
        if isinstance(answer, dict) and "detail" in answer:
            raise ClientError(str(answer["detail"]))
        raise ClientError(f"{self.url} is not a training-monitor run: it answered {status} without a JSON object")


class _LocalConnection(http.client.HTTPConnection):
    """A connection by the socket in a run's folder."""

    def __init__(self, folder: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._folder, self._seconds = folder, timeout

    def connect(self) -> None:
        self.sock = connect(self._folder, self._seconds)


def _proof_in(content: bytes) -> str:
    try:
        return str(json.loads(content)["proof"]).encode("ascii", "replace").decode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def own_name(user: Callable[[], str] = getpass.getuser, host: Callable[[], str] = socket.gethostname) -> str:
    """Return ``user@host`` for the audit of a run, in the characters that travel in a header.

    >>> own_name(lambda: "ada", lambda: "workstation")
    'ada@workstation'
    """
    try:
        who = user()
    except (OSError, KeyError, ImportError):  # a container may know its user by number only
        who = "unknown"
    return re.sub(r"[^A-Za-z0-9_.@+-]", "-", f"{who}@{host()}")[:100]


class ChoiceError(ClientError):
    """Which run is meant cannot be told from what was given."""


def choose(runs: list[KnownRun], wanted: str | None, *, live_only: bool, leader: bool = False) -> KnownRun:
    """Return the run that ``wanted`` means: an id, a name or a unique prefix; None: the only live one;
    where none does and an ended one will do, the last to end.

    A live run beats an ended one. ``leader``: rank 0 stands for the ranks of one training. Raises ChoiceError, whose
    message lists the candidates.
    """
    only = _only_or_leader if leader else _only
    runs = [run for run in runs if run.run_id == wanted] or without_parts(runs)
    live = [run for run in runs if run.is_live]
    if wanted is None:
        if not live and runs and not live_only:
            return max(runs, key=lambda run: run.end_time or run.session_time)
        if not live:
            raise ClientError("no run is going on; `monitor runs` lists those that ended")
        return only(live, "several runs are going on; say which")
    tests: tuple[Callable[[KnownRun], bool], ...] = (
        lambda run: run.run_id == wanted,
        lambda run: run.name == wanted,
        lambda run: run.run_id.startswith(wanted) or run.name.startswith(wanted),
    )
    for pool in (live,) if live_only else (live, runs):
        for test in tests:
            if found := [run for run in pool if test(run)]:
                return only(found, f"{wanted!r} is not unique; say which")
    if any(test(run) for run in runs for test in tests):
        raise ClientError(f"the run {wanted!r} has ended; `monitor status {wanted}` shows its last state")
    raise ChoiceError(f"there is no run {wanted!r}; `monitor runs` lists those that are known")


def token_of(
    run: KnownRun | None,
    given: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    is_named: bool = False,
    uid: Callable[[], int] | None = getattr(os, "getuid", None),
) -> str | None:
    """Return the token to send: the one given, else the run folder's, else ``$MONITOR_TOKEN``.

    The environment's is for an address that the user named (no ``run``, or ``is_named``) and for a run that the user's
    own folder says is on this machine: an address that somebody else wrote would have it sent to whoever listens there.
    ``uid`` returns the user's number; None where there are no numbers.

    Raises:
        UntrustedError: somebody else may have written the token that lies in the folder.
        ClientError: the address in the folder is another machine's loopback: who listens there on this one is another.
    """
    if run is not None and not is_named and is_beyond_reach(run):
        _, _, port = urlsplit(run.url or "").netloc.rpartition(":")
        raise ClientError(
            f"{run.run_id} runs on {run.hostname}, and {run.url} is an address of that machine alone; "
            f"`ssh -L 9477:127.0.0.1:{port} {run.hostname}`, then --url http://127.0.0.1:9477 with --token"
        )
    token = given or (run.read_token() if run else None)
    if not token and (run is None or is_named or (_is_local(run.url or "") and _is_owned(run.path, uid))):
        token = _of_environment(environ)
    return token or None


def key_of(run: KnownRun, token: str | None, *, is_named: bool = False) -> str | None:
    """Return the key by which the server of a run proves itself before it gets ``token``.

    Raises:
        UntrustedError: somebody else may have written the key.
        ClientError: there is none, and the address is not the user's own word.
    """
    key = run.read_key()
    if key is None and token and not is_named:
        raise ClientError(
            f"{run.path / 'key'} is missing, so that nobody at {run.url} can prove to be {run.run_id}; it may be of an "
            f"older version: --url {run.url} with --token-file"
        )
    return key


def _of_environment(environ: Mapping[str, str]) -> str:
    try:
        return secret_from(environ, "token")
    except ValueError as error:
        raise ClientError(str(error)) from error


def place_of(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an address, all names of this machine as one; None for what is not one.

    >>> place_of("localhost:9477") == place_of("HTTP://127.1:9477/")
    True
    """
    try:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    with suppress(OSError):
        host = socket.inet_ntoa(socket.inet_aton(host))  # 127.1 and the like
    return parts.scheme, "localhost" if _is_local(f"//{host}" if ":" not in host else f"//[{host}]") else host, port


def is_beyond_reach(run: KnownRun) -> bool:
    """Tell whether a run has a loopback address on another machine, or in a container."""
    return _is_local(run.url or "") and run.hostname != socket.gethostname()


def _is_local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_owned(path: Path, uid: Callable[[], int] | None) -> bool:
    try:
        return uid is None or path.stat().st_uid == uid()
    except OSError:
        return False


def _only(found: list[KnownRun], complaint: str) -> KnownRun:
    if len(found) > 1:
        has_ranks = any(run.rank for run in found)
        lines = [f"  {run.run_id}  {run.state}" + (f"  rank {run.rank}" if has_ranks else "") for run in found]
        raise ChoiceError("\n".join([f"{complaint}:", *lines]))
    return found[0]


def _only_or_leader(found: list[KnownRun], complaint: str) -> KnownRun:
    """As :func:`_only`; of runs that can only be the ranks of one training, rank 0's, which takes the commands."""
    ranks = sorted(found, key=lambda run: run.rank)
    is_one = len({(run.name, run.script, run.world_size) for run in found}) == 1
    if is_one and [run.rank for run in ranks] == list(range(len(ranks))):
        return ranks[0]
    return _only(found, complaint)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__

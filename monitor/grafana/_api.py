"""The way to a Grafana: grafana-client, imported late, and its failures in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from monitor._errors import MonitorError

TIMEOUT_SECONDS = 10.0


class GrafanaError(MonitorError):
    """Grafana could not be asked, or refused. ``status`` is the HTTP status, None without an answer.

    It is 200 for an answer that is in no form of Grafana's: a page, say, or other JSON.

    ``is_passing`` says whether the same request may succeed later.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """Whether another try may help: no answer, too many requests, a failure of the server."""
        return self.status is None or self.status == 429 or self.status >= 500


def connect(url: str, token: str | None = None, timeout: float = TIMEOUT_SECONDS) -> Any:
    """Return grafana-client's API for ``url``; nothing is sent yet.

    ``token`` is a service account's; without one, ``https://user:password@host`` may carry a login.

    Raises GrafanaError for a URL that is none, and where the extra ``grafana`` is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise GrafanaError(
            f"Grafana's address is not a URL ({error}); give one such as http://127.0.0.1:3000"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GrafanaError(f"{shown(url)!r} is not an http(s) URL; give one such as http://127.0.0.1:3000")
    try:
        from grafana_client.api import GrafanaApi
    except ImportError as error:
        raise GrafanaError(f"{error}; publishing needs: pip install 'training-monitor[grafana]'") from error
    return GrafanaApi.from_url(url.rstrip("/") + "/" if parts.path.strip("/") else url, token, timeout=timeout)


def disconnect(api: Any) -> None:
    """Close the connections that :func:`connect`'s API has opened."""
    api.client.s.close()


@contextmanager
def explained(url: str, doing: str) -> Iterator[None]:
    """Turn whatever grafana-client raises into a GrafanaError that names the address, the act and the cure.

    What is read from an answer is read in here as well: whoever listens at the address may answer anything.
    """
    from grafana_client.client import GrafanaException, GrafanaTimeoutError

    where = shown(url)
    try:
        yield
    except GrafanaTimeoutError as error:
        raise GrafanaError(f"{where} did not answer in time while {doing}; is it overloaded?") from error
    except GrafanaException as error:
        status = error.status_code or None
        raise GrafanaError(f"{where} refused {doing}: {_reason(status, error)}", status) from error
    # An answer that is not JSON, and one that holds something else. The first is an OSError as well, so it comes first.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        how = f"does not answer like a Grafana ({type(error).__name__}) while {doing}"
        raise GrafanaError(f"{where} {how}; check the address", 200) from error
    except OSError as error:
        how = f"cannot be reached ({type(error).__name__}) while {doing}"
        raise GrafanaError(f"{where} {how}; check the address") from error


def shown(url: str) -> str:
    """Return a URL without its login, fit for a message."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _reason(status: int | None, error: Any) -> str:
    cures = {
        401: "401, the token or login is wrong; make a service account token and give it with --token",
        403: "403, the token may not do this; the service account needs the role Editor",
        404: "404, there is no such thing; check the address and the uid",
        412: "412, somebody has changed or made it meanwhile; without --no-overwrite ours takes its place",
    }
    said = str(error.message).removeprefix(f"Client Error {status}: ").removeprefix(f"Server Error {status}: ")
    return f"{cures[status]} ({said})" if status in cures else f"{status or 'no answer'} ({said})"

"""The way of a command to its run: by its folder on this machine, or by an address. The options of every command that
does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from monitor._settings import read_secret
from monitor.cli._client import ChoiceError, Client, ClientError, choose, is_beyond_reach, key_of, place_of, token_of
from monitor.cli._terminal import known_runs
from monitor.store import KnownRun, NoHomeError, answers, list_runs

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a command reaches its run, as its options say."""

    url: str | None
    token: str | None
    directory: str | None
    cafile: str | None
    certfile: str | None
    keyfile: str | None

    def client(self, url: str, run: KnownRun | None, timeout: float = 5.0) -> Client:
        """Return the client to an address; ``run`` is the folder that its token may lie in, and whose socket is the
        shorter way, unless an address or a token was given."""
        is_named = url == self.url
        if run is not None and not is_named and not self.token and answers(run.path):
            return Client(url, timeout=timeout, folder=run.path)
        token = token_of(run, self.token, is_named=is_named)
        return Client(
            url,
            token,
            key=None if run is None or (is_named and self.token) else key_of(run, token, is_named=is_named),
            run_id="" if run is None else run.run_id,
            timeout=timeout,
            cafile=self.cafile,
            certfile=self.certfile,
            keyfile=self.keyfile,
        )

    def find(self, wanted: str | None, *, live_only: bool = True) -> tuple[KnownRun | None, Client | None]:
        """Return the run's folder, if it is a known one, and the client to it, if it is served."""
        if self.url:
            if wanted:
                raise click.UsageError(f"give RUN or --url, not both; got {wanted!r} and {self.url!r}")
            run = self._run_at(self.url.rstrip("/"))
            return run, self.client(self.url, run)
        run = choose(known_runs(self.directory), wanted, live_only=live_only, leader=True)
        return run, self.client(run.url, run) if run.is_live and run.url else None

    def _run_at(self, address: str) -> KnownRun | None:
        """Return the run that is, or was when it vanished, at an address: who has that now may be another program."""
        with suppress(NoHomeError):  # an address needs no folder
            known = [run for run in list_runs(self.directory) if run.url and not is_beyond_reach(run)]
            there = [run for run in known if run.end_time is None and place_of(run.url or "") == place_of(address)]
            return max(there, key=lambda run: (run.is_live, run.session_time), default=None)
        return None

    def live(self, wanted: str | None) -> tuple[Client, str]:
        """Return the client to a live run, and what to call the run."""
        run, client = self.find(wanted)
        name = run.run_id if run else str(self.url)
        if client is None:
            raise ClientError(f"{name} serves no HTTP: attached with serve=False, or its port was taken")
        return client, name


def reaching(command: _Function) -> _Function:
    """Add the options that say how a run is reached, as the argument ``access``, and the exit status of a refusal.

    ::

        @click.command()
        @click.argument("run", required=False)
        @reaching
        def stop(access: Access, run: str | None) -> None: ...
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **given: Any) -> Any:
        given["token"] = _one_token(given["token"], given.pop("token_file"))
        access = Access(**{name: given.pop(name) for name in Access.__dataclass_fields__})
        try:
            return command(*args, access=access, **given)
        except ChoiceError as error:
            raise click.UsageError(str(error)) from error
        except ClientError as error:
            raise click.ClickException(str(error)) from error

    path = click.Path(exists=True, dir_okay=False)
    for option in (
        click.option("--keyfile", type=path, help="Private key of --certfile (PEM)."),
        click.option("--certfile", type=path, help="Client certificate to show (PEM)."),
        click.option("--cafile", type=path, help="CA of an https run (PEM); default: the system's."),
        click.option(
            "--dir", "directory", help="Where the run folders are; default: $MONITOR_DIR, else your data folder."
        ),
        click.option(
            "--token-file",
            type=path,
            help="File that holds the token; default: the run's folder, else, for --url and your own runs on this "
            "machine, $MONITOR_TOKEN or $MONITOR_TOKEN_FILE.",
        ),
        click.option("--token", help="The token itself; others see it in the list of processes (ps)."),
        click.option("--url", help="Address of a run that has no folder on this machine."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def _one_token(token: str | None, file: str | None) -> str | None:
    if token and file:
        raise click.UsageError("give --token or --token-file, not both")
    if not file:
        return token
    try:
        return read_secret(file, "--token-file")
    except ValueError as error:
        raise click.UsageError(str(error)) from error

"""``monitor open``: the page of a run, live or over."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable

import click

from monitor._errors import StoreError
from monitor.cli._client import ClientError
from monitor.cli._reach import Access, reaching
from monitor.cli._terminal import echo
from monitor.store import KnownRun, held


@click.command("open")
@click.argument("run", required=False)
@click.option("--port", type=click.IntRange(0, 65535), help="Port for a run that is over; default: a free one.")
@reaching
def open_run(access: Access, run: str | None, port: int | None) -> None:
    """Give the address of the page of RUN; the page of a run that is over is served until Ctrl-C.

    Without RUN: the only live run, else the last one to end. The address of a live run logs in once, within 15 minutes.
    The page of a run that is over is served on this machine
    alone, shows what the run left in its folder, and changes nothing.
    """
    known, client = access.find(run, live_only=False)
    if client is not None:
        echo(f"{client.url.rstrip('/')}/?code={client.login_code()}")
    elif known is None or known.is_live:
        raise ClientError(
            f"{known.run_id if known else run} serves no HTTP: attached with serve=False, or no port was free"
        )
    else:
        serve(known, port or 0)


def serve(known: KnownRun, port: int = 0, wait: Callable[[], object] = signal.pause) -> None:
    """Serve the page of a run that is over until ``wait`` returns, or Ctrl-C.

    Raises:
        ClientError: it left nothing that can be shown, or the port is taken.
    """
    from monitor.server import HttpServer, Security, create_app
    from monitor.watcher import EndedRun

    token = secrets.token_urlsafe(24)
    try:
        server = HttpServer(create_app(EndedRun(known), Security(token=token)), port=port)
    except (StoreError, OSError) as error:
        raise ClientError(str(error)) from error
    with held(known), server:
        echo(f"{known.run_id} is over ({known.state}); its page, until Ctrl-C: {server.url}/?token={token}")
        try:
            wait()
        except KeyboardInterrupt:
            return

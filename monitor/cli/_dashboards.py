"""``monitor dashboards``: the files of Prometheus, Alertmanager and Grafana, and the way into a running Grafana.

What makes them is imported late: ``monitor --help`` lists this group and need not load what it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from monitor._records import OVER_STATES, Event
from monitor.cli._client import ClientError, choose
from monitor.cli._reach import Access
from monitor.cli._terminal import echo, known_runs

_POLL_SECONDS = 2.0
_EVENT_FIELDS = {field.name for field in fields(Event)}


@click.group()
def dashboards() -> None:
    """Write dashboards, rules and configuration to files, or publish the dashboards to a running Grafana."""


@dashboards.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--runbook", metavar="URL", help="Address of docs/alerts.md for your readers: the alerts link to it.")
@click.option("--overwrite", is_flag=True, help="Replace configuration that was changed in DIRECTORY, too.")
@click.option("--local", "is_local", is_flag=True, help="For servers on this machine that run in no container.")
@click.option("--dir", "runs", help="With --local: where the run folders are; default: as for runs.")
def export(directory: Path, runbook: str | None, overwrite: bool, is_local: bool, runs: str | None) -> None:
    """Write what Prometheus, Alertmanager and Grafana read into DIRECTORY; all of it, or nothing.

    Dashboards and their provisioning into grafana/, configuration and rules into prometheus/, configuration and
    examples of receivers into alertmanager/. Configuration that you have changed there stays.
    """
    from monitor.cli import _stack

    if runs and not is_local:
        raise click.UsageError(f"--dir {runs} says where --local servers find the runs; add --local")
    local_runs = _stack.runs_directory(runs) if is_local else None
    try:
        runbook = runbook or _stack.RUNBOOK
        done = _stack.export(directory, runbook=runbook, overwrite=overwrite, local_runs=local_runs)
    except OSError as error:
        raise click.ClickException(f"{directory} cannot be written ({error}); nothing was changed there") from error
    for path in done.written:
        echo(path)
    for path in done.kept:
        echo(f"{path} differs and was kept; --overwrite replaces it", err=True)


@dashboards.command()
@click.option("--grafana", "url", required=True, envvar="GRAFANA_URL", help="Address; default: $GRAFANA_URL.")
@click.option("--token", envvar="GRAFANA_TOKEN", help="Service account token (role Editor); default: $GRAFANA_TOKEN.")
@click.option("--folder", default="Training", show_default=True, help="Folder, made where it is missing.")
@click.option("--datasource", help="uid of the Prometheus data source; default: Grafana's default one.")
@click.option("--overwrite/--no-overwrite", default=True, help="Replace dashboards that were changed since (default).")
@click.option("--annotate", is_flag=True, help="Then stay, and annotate the events and commands of a live run.")
@click.option("--run", "wanted", help="The run to annotate; default: the only live one.")
@click.option("--dir", "directory", help="Where the run folders are; default: $MONITOR_DIR, else your data folder.")
@click.option(
    "--cafile", type=click.Path(exists=True, dir_okay=False), help="CA that the run's certificate is of (PEM)."
)
def publish(
    url: str,
    token: str | None,
    folder: str,
    datasource: str | None,
    overwrite: bool,
    annotate: bool,
    wanted: str | None,
    directory: str | None,
    cafile: str | None,
) -> None:
    """Publish the dashboards to a running Grafana; all of them, or none if one is refused."""
    from monitor.grafana import Annotator, GrafanaError
    from monitor.grafana import publish as publish_dashboards

    if wanted and not annotate:
        raise click.UsageError(f"--run {wanted} says which run to annotate; add --annotate")
    try:
        done = publish_dashboards(url, token=token, folder=folder, datasource=datasource, overwrite=overwrite)
        for title, address in done.dashboards:
            echo(f"{title}: {address}")
        echo(f"data source {done.datasource}: {'healthy' if done.is_healthy else f'NOT healthy: {done.health}'}")
        if annotate:
            access = Access(url=None, token=None, directory=directory, cafile=cafile, certfile=None, keyfile=None)
            run = choose(known_runs(directory), wanted, live_only=True)
            if not run.url:
                raise ClientError(f"{run.run_id} serves no HTTP; its events cannot be read")
            echo(f"annotating {run.run_id} until it ends, or Ctrl-C")
            with Annotator(url, token=token, tags=(run.run_id,)) as annotator:
                follow(access.client(run.url, run), annotator)
            echo(f"{annotator.sent} annotations saved, {annotator.dropped} dropped")
    except (GrafanaError, ClientError) as error:
        raise click.ClickException(str(error)) from error


def follow(client: Any, post: Callable[[Event], Any], sleep: Callable[[float], Any] = time.sleep) -> None:
    """Hand every event that a run has from now on to ``post``, until it ends, goes away, or Ctrl-C.

    Raises ClientError if the run does not answer in the first place.
    """
    since = client.get("/run")["last_event_seq"]
    try:
        while True:
            state = client.get("/run")["state"]
            answer = client.get(f"/events?since={since}")
            since = answer["next"]
            for event in answer["events"]:
                post(_to_event(event))
            if state in OVER_STATES:
                return
            sleep(_POLL_SECONDS)
    except (ClientError, KeyboardInterrupt):
        return


def _to_event(document: dict[str, Any]) -> Event:
    return Event(**{name: value for name, value in document.items() if name in _EVENT_FIELDS})

"""``monitor export``: the store of a run as a file of its values, readings, events or commands."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from monitor._errors import StoreError
from monitor.cli._client import ChoiceError, ClientError, choose
from monitor.cli._terminal import echo, known_runs, standard_output
from monitor.store import FORMATS, STORE_FILE, TABLES, KnownRun, export, held


@click.command("export")
@click.argument("run")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="csv", show_default=True, help="Format.")
@click.option("--table", type=click.Choice(TABLES), default="values", show_default=True, help="What to export.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File; default: standard output.")
@click.option("--dir", "directory", help="Where the run folders are; default: $MONITOR_DIR, else your data folder.")
def export_run(run: str, format_: Any, table: Any, output: Path | None, directory: str | None) -> None:
    """Write what is kept of RUN, live or ended: its values, readings, events or commands.

    RUN is an id, a name or a unique prefix of either. The columns are described in docs/store.md.
    """
    if output is None and format_ == "parquet":
        raise click.UsageError("--format parquet needs a file to write; add --output FILE")
    known, store = _find(run, directory)
    with held(known):
        _write(known, store, format_, table, output)


def _write(known: KnownRun, store: Path, format_: Any, table: Any, output: Path | None) -> None:
    try:
        if output is None:
            file = standard_output()
            export(store, format_, file, table)
            file.flush()
        else:
            num_rows = _export_to(output, store, format_, table)
            echo(f"{num_rows:,} rows of {known.run_id} written to {output}", err=True)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends without a word
    except OSError as error:
        where, reason = output or "standard output", error.strerror or error
        raise click.ClickException(f"{where} cannot be written ({reason}); name another file with --output") from error


def _find(wanted: str, directory: str | None) -> tuple[KnownRun, Path]:
    """Return the run that is meant and its store."""
    try:
        run = choose(known_runs(directory), wanted, live_only=False)
        return run, _store_of(run)
    except ChoiceError as error:
        raise click.UsageError(str(error)) from error
    except ClientError as error:
        raise click.ClickException(str(error)) from error


def _store_of(run: KnownRun) -> Path:
    path = run.path / STORE_FILE
    if run.has_store:
        return path
    if run.is_live:
        raise ClientError(
            f"{run.run_id} has no store yet: there is no {path}. A run makes it within seconds of its start; if it "
            "stays away, the run's folder cannot be written or its monitor is an older one"
        )
    raise ClientError(
        f"{run.run_id} has no store: there is no {path}. Its monitor was an older one, or its folder could not be "
        f"written; `monitor status {run.run_id}` shows its last state"
    )


def _export_to(output: Path, store: Path, format_: Any, table: Any) -> int:
    """Write a regular file whole or not at all; a device or a pipe as it comes."""
    if output.exists() and not output.is_file():
        with output.open("wb") as file:
            return export(store, format_, file, table)
    target = output.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            num_rows = export(store, format_, file, table)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return num_rows

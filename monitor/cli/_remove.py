"""``monitor runs rm``: remove what runs that are over have left on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from monitor.cli._client import ChoiceError, ClientError, choose
from monitor.cli._terminal import echo, known_runs
from monitor.store import KnownRun, remove_run, surplus

_DAY = 86_400.0


@click.command("rm")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--keep", type=click.IntRange(min=0), help="Remove all but the newest N.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Remove those that began before that.")
@click.option("--keep-bytes", type=click.IntRange(min=0), metavar="BYTES", help="Remove the oldest beyond that size.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--dir", "directory", help="Where the run folders are; default: $MONITOR_DIR, else your data folder.")
def remove(
    names: tuple[str, ...],
    keep: int | None,
    older_than: float | None,
    keep_bytes: int | None,
    dry_run: bool,
    directory: str | None,
) -> None:
    """Remove the folders of runs that are over, with all that is kept of them.

    RUN is an id, a name or a unique prefix of either. A live run is never removed, nor is one that somebody looks at
    (`monitor open`), nor a file that no run has made. Of several conditions a run has to meet each.
    """
    if bool(names) == any(bound is not None for bound in (keep, older_than, keep_bytes)):
        raise click.UsageError("name runs to remove, or say which by --keep, --older-than or --keep-bytes")
    runs = known_runs(directory)
    chosen = _named(runs, names) if names else _oldest(runs, keep, older_than, keep_bytes)
    removed = [run for run in chosen if dry_run or remove_run(run)]
    for run in removed:
        echo(f"{'would remove' if dry_run else 'removed'} {run.run_id}")
    if not chosen:
        echo("nothing to remove")
    if left := [run.run_id for run in chosen if run not in removed]:
        raise click.ClickException(
            f"{', '.join(left)} could not be removed whole: the folder holds other files, is not writable, or is "
            "looked at (`monitor open`)"
        )


def _named(runs: Sequence[KnownRun], names: Sequence[str]) -> list[KnownRun]:
    chosen = []
    for name in names:
        try:
            run = choose(list(runs), name, live_only=False)
        except ChoiceError as error:
            raise click.UsageError(str(error)) from error
        except ClientError as error:
            raise click.ClickException(str(error)) from error
        if run.is_live:
            raise click.ClickException(f"{run.run_id} is {run.state}; `monitor stop {run.run_id}` asks it to end")
        chosen.append(run)
    return chosen


def _oldest(
    runs: Sequence[KnownRun], keep: int | None, older_than: float | None, keep_bytes: int | None
) -> list[KnownRun]:
    """Return the runs that are over and meet every condition, oldest first."""
    before = None if older_than is None else time.time() - older_than * _DAY
    found = surplus(runs, num_runs=keep, num_bytes=keep_bytes, before=before).values()
    return [run for run in runs if all(run in beyond for beyond in found)]

"""What the commands print. Nothing else writes to the terminal: whatever a run, a file or a server says, it stays
text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Any, cast

import click

from monitor.common import one_line, printable
from monitor.store import KnownRun, UntrustedError, list_runs


def echo(*lines: object, err: bool = False) -> None:
    """Print lines. What would break or steer one is a question mark."""
    click.echo("\n".join(map(one_line, lines)), err=err)


def echo_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON, all of it in ASCII."""
    click.echo(json.dumps(value, indent=indent))


def cleaned(error: click.ClickException) -> click.ClickException:
    """Return an error whose message is fit for the terminal."""
    error.message = printable(error.message)  # type: ignore[misc]  # it is what every kind of them shows
    return error


class _Terminal:
    """Standard output for bytes of text, where it is a terminal."""

    def write(self, content: bytes) -> int:
        click.echo(printable(content.decode(errors="replace")), nl=False)
        return len(content)

    def flush(self) -> None:
        sys.stdout.flush()


def standard_output() -> IO[bytes]:
    """Return where a file goes that is printed: as it is into a pipe or file, cleaned onto a terminal."""
    return cast(IO[bytes], _Terminal()) if sys.stdout.isatty() else sys.stdout.buffer


def known_runs(directory: str | None) -> list[KnownRun]:
    """Return the runs of this machine, oldest first; say in one line what others may have written and is passed over.

    Raises:
        NoHomeError: no place of run folders is known.
    """
    refused: list[UntrustedError] = []
    runs = list_runs(directory, on_refused=refused.append)
    tell_refused(refused, "run folders")
    return runs


def tell_refused(refused: Sequence[UntrustedError], what: str) -> None:
    """Say in one line how many of ``what`` were passed over, and of the first one why."""
    if len(refused) == 1:
        echo(f"passed over: {refused[0]}", err=True)
    elif refused:
        echo(f"passed over {len(refused)} {what}, the first: {refused[0]}", err=True)

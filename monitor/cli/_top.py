"""``monitor top``: one screen about a run, drawn anew each second until it ends."""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from monitor._records import OVER_STATES
from monitor.cli import _format
from monitor.cli._client import Client, ClientError, NoAnswerError
from monitor.cli._reach import Access, reaching
from monitor.cli._terminal import echo
from monitor.store import KnownRun, list_runs

_INTERVAL_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_POINTS = 200
_CURVES_EVERY = 5  # looks; the curves of a whole run cost its process some milliseconds, and change little in a second
_KEPT_EVENTS = 20


@click.command()
@click.argument("run", required=False)
@reaching
def top(access: Access, run: str | None) -> None:
    """Watch one run in the terminal: one screen, drawn anew each second.

    q or Ctrl-C leaves it; the run continues. When the run ends, its last state is printed; that of a RUN which is over
    already, at once.
    """
    known, client = access.find(run, live_only=run is None)
    if client is None and known is not None and not known.is_live:
        _print(last_state(known, access.directory))
        return
    console = _console()
    if client is None:
        raise ClientError(f"{known.run_id if known else run} serves no HTTP; nothing can be watched")

    from rich.live import Live

    from monitor.cli._screen import Frame, screen

    with ExitStack() as stack:
        keys = stack.enter_context(Keys())
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))

        def draw(look: dict[str, Any], note: str) -> None:
            size, is_ascii = console.size, console.options.ascii_only
            live.update(
                screen(
                    Frame(**look),
                    time.time(),
                    width=size.width,
                    height=size.height,
                    url=client.url,
                    note=note,
                    is_ascii=is_ascii,
                ),
                refresh=True,
            )

        try:
            final = follow(Feed(client), draw, keys.wait, lambda: last_state(known, access.directory))
        except KeyboardInterrupt:
            final = None
    _print(final)


def _print(final: dict[str, Any] | None) -> None:
    """Print the last state of a run, where there is one."""
    if final is not None and not _format.is_whole(final):
        raise ClientError("the run has ended; `monitor status --json` prints what there is of its last state")
    if final is not None:
        echo(*_format.status(final, None, time.time()))


def _console() -> Any:
    """Return rich's console. Raises UsageError where there is no terminal to draw on."""
    from rich.console import Console

    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        raise click.UsageError("`monitor top` draws on a terminal, and this is none; take `monitor status --json`")
    return console


class Feed:
    """Ask a run for all that the screen shows: events by increments, curves at every fifth look."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since: int | None = None
        self._num_looks = 0
        self._history: dict[str, Any] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)

    def read(self) -> dict[str, Any]:
        """Return the parts of a frame. Raises ClientError; NoAnswerError where nobody answers."""
        run = self._client.get("/run")
        if self._since is None:
            self._since = max(0, run["last_event_seq"] - _KEPT_EVENTS)
        answer = self._client.get(f"/events?since={self._since}")
        self._since = answer["next"]
        self._events.extend(answer["events"])
        if self._num_looks % _CURVES_EVERY == 0:
            self._history = self._client.get(f"/history?points={_POINTS}")
        self._num_looks += 1
        return {"run": run, "history": self._history, "events": list(self._events)}


def follow(
    feed: Any,
    draw: Callable[[dict[str, Any], str], None],
    wait: Callable[[float], bool],
    last_state: Callable[[], dict[str, Any] | None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any] | None:
    """Draw each look until the run ends, and return its last state; None if the user left before.

    ``wait`` takes seconds and returns True if the user wants to leave. A run that does not answer is asked again for
    30 s. Raises ClientError then, and where it never answered.
    """
    look: dict[str, Any] | None = None
    lost_at: float | None = None
    while True:
        note = ""
        try:
            look, lost_at = feed.read(), None
        except NoAnswerError as error:
            if (final := last_state()) is not None:
                return final
            lost_at = clock() if lost_at is None else lost_at
            if look is None or clock() - lost_at > _PATIENCE_SECONDS:
                raise
            note = f"no answer for {clock() - lost_at:.0f} s; what stands here is the past ({error})"
        draw(look, note)
        if look["run"]["state"] in OVER_STATES:
            return dict(look["run"])
        if wait(_INTERVAL_SECONDS):
            return None


def last_state(known: KnownRun | None, directory: str | None) -> dict[str, Any] | None:
    """Return what a run that does not answer has left behind; None where it may still be going on.

    Raises:
        ClientError: it has ended, or its process is gone, without a last state.
    """
    if known is None:
        return None
    now = next((run for run in list_runs(directory) if run.run_id == known.run_id), known)
    if now.is_live:
        return None
    if (final := now.read_final()) is None:
        raise ClientError(f"{known.run_id} is {now.state} and left no last state behind")
    return final


class Keys:
    """Hear of single keys while it is open; the terminal is as it was afterwards. Without a keyboard, just wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._file: int | None = None
        self._before: Any = None

    def __enter__(self) -> Keys:
        if sys.platform != "win32" and sys.stdin.isatty():
            import termios
            import tty

            self._file = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.platform != "win32" and self._file is not None:
            import termios

            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> bool:
        """Wait so long; return True at once for q, and for a keyboard that is gone."""
        if self._file is None:
            time.sleep(seconds)
            return False
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            if not select.select([self._file], [], [], left)[0]:
                return False
            try:
                key = os.read(self._file, 1)
            except OSError:
                key = b""
            if key in (b"q", b"Q", b""):
                return True
        return False

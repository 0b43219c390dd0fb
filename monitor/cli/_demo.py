"""``monitor demo``: run the example ``char_gpt`` as it is, with its live page, and keep the page up at the end."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from monitor._errors import ClosedRunError
from monitor._records import CommandRecord, Event
from monitor.cli._terminal import echo
from monitor.store import own_command

if TYPE_CHECKING:
    from monitor.run import Run

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds the examples inside the package; in a checkout they lie beside it.
_PLACES = (_PACKAGE / "_examples", _PACKAGE.parent / "examples")
_LOG = logging.getLogger("monitor")
PORT_SECONDS = 10.0
"""How long the port of the run may take to be free."""


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Optimizer steps to make.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the live page; default: 9477 or the next free one."
)
@click.option("--exit", "is_brief", is_flag=True, help="End with the training instead of keeping the page up.")
def demo(steps: int, port: int | None, is_brief: bool) -> None:
    """Train a small GPT on this machine's own Python code, under the monitor, with a live page.

    About a minute on two idle cores. No other service is needed, and nothing is downloaded. While it trains, try
    `monitor top` and `monitor lr reduce 0.5` in a second terminal.
    """
    if port is not None:
        os.environ["MONITOR_PORT"] = str(port)
    os.environ.setdefault("MONITOR_LINGER", "0")  # the page that stays is this process's own
    # torch's word on a package that neither it nor the demo needs: a first look would take it for a fault.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    example = load_example("char_gpt")
    command = own_command()
    echo(f"a second terminal may say:  {command} top      {command} lr reduce 0.5")
    run: Run = example.train(example.parse(["--steps", str(steps)]))
    if not is_brief:
        keep_up(run)


def load_example(name: str) -> ModuleType:
    """Return an example's module, without running what it does as a script."""
    path = next((path for place in _PLACES if (path := place / f"{name}.py").is_file()), None)
    if path is None:
        raise click.ClickException(f"the example {name}.py is not installed; looked in {_PLACES[0]} and {_PLACES[1]}")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep_up(run: Run, wait: Any = None) -> None:
    """Serve the page of a run that has ended where it was, until Ctrl-C. The run itself took its server down."""
    if run.url is None:
        return
    from monitor.server import HttpServer, Security, create_app

    def on_error(error: BaseException) -> None:
        _LOG.warning("contained a failure of the page", exc_info=error)

    app = create_app(_EndedRun(run, on_error), Security(token=run.token), on_error=on_error)
    try:
        server = _bound(lambda port: HttpServer(app, port=port, on_error=on_error), run.url)
    except OSError as error:
        raise click.ClickException(f"the page cannot stay up: {error}") from error
    with server:
        echo("", f"The run has {run.state}. Its page stays until Ctrl-C: {server.url}/?token={run.token}")
        try:
            (wait or _wait_for_ever)()
        except KeyboardInterrupt:
            echo("")


def _bound(bind: Callable[[int], Any], url: str) -> Any:
    """Bind the port of a run that is about to let go of it."""
    port, deadline = int(url.rstrip("/").rpartition(":")[2]), time.monotonic() + PORT_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            return bind(port)
        time.sleep(0.1)
    return bind(port)


class _EndedRun:
    """A run that has ended, as the server sees it."""

    def __init__(self, run: Run, on_error: Callable[[BaseException], None]) -> None:
        from monitor.export import Exporter

        self._run = run
        self._exporter = Exporter(run.snapshot, on_error=on_error)
        self.snapshot, self.history = run.snapshot, run.history
        self.render_metrics = self._exporter.render

    def events(self, since: int, before: int, limit: int) -> Sequence[Event]:
        return [event for event in self._run.events(since) if event.seq < before][-limit:]

    def submit(self, action: str, **_: Any) -> CommandRecord:
        raise ClosedRunError(f"the run has ended and takes no more commands; {action} was not applied")

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002, ARG002 - the signature is the server's
        return None

    def commands(self) -> Sequence[CommandRecord]:
        return ()

    def scraped(self, begun: float) -> None:
        """Wait for no scrape."""


def _wait_for_ever() -> None:
    while True:
        time.sleep(3600)

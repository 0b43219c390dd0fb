"""What others see of a run: its folder on this machine, and its server; both may fail, and the run goes on without."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

from monitor._access import Access, Linger
from monitor._command import own_command
from monitor._folder import RunFolder
from monitor._identity import script_path
from monitor._keeper import Keeper
from monitor._log import Failures
from monitor._records import State
from monitor.server import HttpServer, Security, create_app, run_document

if TYPE_CHECKING:
    from monitor._engine import Engine

_LOG = logging.getLogger("monitor")


class Outlets:
    """Open and close the folder and the server of a run, in the order that :class:`monitor._engine.Engine` gives."""

    def __init__(self, engine: Engine, failures: Failures) -> None:
        self._engine = engine
        self._settings = engine.settings
        self._failures = failures
        self._folder: RunFolder | None = None
        self._keeper = Keeper(self._keep, failures.note)
        self._server: HttpServer | None = None
        self.linger = Linger()

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return None if self._server is None else self._server.url

    def open_folder(self) -> None:
        """Make the run's folder.

        Raises:
            ValueError: for a ``directory`` that was asked for and cannot be written.
        """
        s, engine = self._settings, self._engine
        try:
            self._folder = RunFolder.create(
                s.directory,
                engine.id,
                name=engine.name,
                start_time=engine.reports.snapshot().run.start_time,
                script=script_path(),
                token=engine.token,
                read_token=s.read_token,
            )
        except OSError as error:
            if s.directory is not None:
                raise ValueError(
                    f"directory={str(s.directory)!r} cannot be written ({error}); give one that can, or leave it out"
                ) from error
            self._failures.note("folder", error)
            return
        self._failures.contain("folder", self._keeper.start)

    def _keep(self) -> None:
        if self._folder is not None:
            self._folder.keep(run_document(self._engine.reports.snapshot()))

    def open_server(self) -> None:
        """Serve the run, write the address into its folder and into the log.

        Raises:
            ValueError: for a certificate that cannot be used.
        """
        server = self._bind()
        if server is None:
            return
        self._server = server
        self._failures.contain("server", server.start)
        folder = self._folder
        if folder is not None:
            self._failures.contain("folder", lambda: folder.update(state="running", url=server.url))
        _LOG.info("live page: %s/?token=%s", server.url, self._engine.token)

    def _bind(self) -> HttpServer | None:
        s, token = self._settings, self._engine.token
        security = Security(
            token=token, read_token=s.read_token, protect_metrics=s.protect_metrics, bind_host=s.host, hosts=s.hosts
        )
        access = Access(self._engine, self._failures.note, self.linger)
        app = create_app(access, security, on_error=lambda e: self._failures.note("server", e))
        try:
            return HttpServer(
                app,
                s.host,
                s.port,
                certfile=s.certfile,
                keyfile=s.keyfile,
                client_cafile=s.client_cafile,
                on_error=lambda e: self._failures.note("server", e),
            )
        except OSError as error:
            self._failures.note("server", error, quiet=True)
            _LOG.warning("%s; the run goes on without a page and metrics", error)
            return None

    def finish(self, state: State, end: float) -> None:
        """Write the last state into the folder."""
        self._keeper.stop()
        if self._folder is not None:
            self._folder.finish(state, end_time=end, final=run_document(self._engine.reports.snapshot()))

    def say_goodbye(self, state: State) -> None:
        """Log how the run ended, and how to look back at it."""
        engine, directory = self._engine, self._settings.directory
        where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
        look = "" if self._folder is None else f"; look back at it: {own_command()} status {engine.id}{where}"
        _LOG.info("run %s %s at step %d%s", engine.name, state, engine.step, look)

    def wait(self) -> None:
        """Wait until whoever was watching has seen the end, as long as the settings say."""
        if self._server is not None:
            self.linger.wait(self._settings.linger)

    def stop(self) -> None:
        """Take the server down."""
        if self._server is not None:
            self._server.stop()

    def withdraw(self) -> None:
        """Take the run off the list of scrape targets."""
        if self._folder is not None:
            self._folder.withdraw()

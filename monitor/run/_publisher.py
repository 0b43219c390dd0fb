"""Publish a run: its folder on this machine and its server. Either may fail; the run continues without it."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable

from monitor._records import RunInfo, State
from monitor._settings import Settings
from monitor.control import Commands
from monitor.run._access import Access
from monitor.run._identity import script_path
from monitor.run._linger import Linger
from monitor.run._log import Failures
from monitor.run._reports import Reports
from monitor.server import HttpServer, Security, create_app, run_document
from monitor.store import PATIENCE_SECONDS, DiskThread, NoHomeError, RunFolder, own_command, prune

_LOG = logging.getLogger("monitor")


class Outlets:
    """Open and close the folder and the server of a run, in the order that :class:`monitor.run._engine.Engine` gives.

    The folder is touched on a thread of its own alone; its jobs follow each other in the order of the calls here.
    """

    def __init__(
        self,
        info: RunInfo,
        settings: Settings,
        token: str,
        *,
        reports: Reports,
        commands: Commands,
        failures: Failures,
    ) -> None:
        self._info = info
        self._settings = settings
        self._token = token
        self._reports = reports
        self._commands = commands
        self._failures = failures
        self._folder: RunFolder | None = None
        self._mistake: ValueError | None = None
        self._disk = DiskThread(self._save, self._note_disk)
        self._wait_deadline = 0.0
        self._server: HttpServer | None = None
        self.linger = Linger()

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return None if self._server is None else self._server.url

    def open_folder(self) -> None:
        """Have the run's folder made, and wait for it as long as a healthy disk may take.

        Raises:
            ValueError: for a ``directory`` that can never be one.
        """
        self._failures.contain("folder", self._disk.start)
        self._disk.post(self._make_folder)
        self._wait_deadline = time.monotonic() + PATIENCE_SECONDS
        self._wait_for_disk()
        if self._mistake is not None:
            raise self._mistake

    def _make_folder(self) -> None:
        s, info = self._settings, self._info
        try:
            self._folder = RunFolder.create(
                s.directory,
                info.run_id,
                name=info.name,
                start_time=info.start_time,
                script=script_path(),
                token=self._token,
                read_token=s.read_token,
            )
        except ValueError as error:
            self._mistake = error
        except OSError as error:
            is_homeless = isinstance(error, NoHomeError)
            where = "" if is_homeless else f" in {self._where}"
            cure = "" if is_homeless else "; set MONITOR_DIR to a directory that can be written"
            line = (
                f"training continues without a run folder{where}, and `monitor runs` and `monitor status` do not find "
                f"this run: {error}{cure}"
            )
            self._failures.note("folder", error, line=line)

    @property
    def _where(self) -> str:
        return str(self._settings.directory or "your data folder")

    def _wait_for_disk(self) -> None:
        if not self._disk.flush(max(0.0, self._wait_deadline - time.monotonic())):
            self._note_disk(TimeoutError(f"the disk has not answered for {PATIENCE_SECONDS:g} s"))

    def _note_disk(self, error: Exception) -> None:
        line = (
            f"the run folders in {self._where} cannot be used ({error}); training is not affected, but "
            "`monitor runs` and `monitor status` may show an old state of this run or none; free that disk, or set "
            "MONITOR_DIR to another"
        )
        self._failures.note("folder", error, line=line if isinstance(error, OSError) else "")

    def _post(self, act: Callable[[RunFolder], object]) -> None:
        """Have something done to the folder, if there is one when its turn comes."""
        self._disk.post(lambda: None if self._folder is None else act(self._folder))

    def _save(self) -> None:
        if self._folder is not None:
            self._folder.keep(run_document(self._reports.snapshot()))

    def tidy(self) -> None:
        """Have removed what old runs left behind."""
        self._post(lambda folder: prune(folder.path.parent))

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
        self._post(lambda folder: folder.update(state="running", url=server.url))
        if self._folder is not None:
            self._wait_for_disk()
        _LOG.info("live page: %s/?token=%s", server.url, self._token)

    def _bind(self) -> HttpServer | None:
        s, token = self._settings, self._token
        security = Security(
            token=token, read_token=s.read_token, protect_metrics=s.protect_metrics, bind_host=s.host, hosts=s.hosts
        )
        access = Access(self._reports, self._commands, self._failures.of("export"), self.linger)
        app = create_app(access, security, on_error=self._failures.of("server"))
        try:
            return HttpServer(
                app,
                s.host,
                s.port,
                certfile=s.certfile,
                keyfile=s.keyfile,
                client_cafile=s.client_cafile,
                on_error=self._failures.of("server"),
            )
        except OSError as error:
            self._failures.note("server", error, line=f"{error}; the run continues without a page and metrics")
            return None

    def finish(self, state: State, end: float) -> None:
        """Have the last state written into the folder."""
        final = run_document(self._reports.snapshot())
        self._post(lambda folder: folder.finish(state, end_time=end, final=final))

    def say_goodbye(self, state: State, step: int) -> None:
        """Log how the run ended, and how to look back at it."""
        info, directory = self._info, self._settings.directory
        where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
        look = "" if self._folder is None else f"; look back at it: {own_command()} status {info.run_id}{where}"
        _LOG.info("run %s %s at step %d%s", info.name, state, step, look)

    def wait(self) -> None:
        """Wait until whoever was watching has seen the end, as long as the settings say."""
        if self._server is not None:
            self.linger.wait(self._settings.linger)

    def stop(self) -> None:
        """Take the server down."""
        if self._server is not None:
            self._server.stop()

    def withdraw(self) -> None:
        """Have the run taken off the list of scrape targets, and wait for the disk, but not before a traceback."""
        self._post(lambda folder: folder.withdraw())
        self._disk.stop(is_raising=sys.exc_info()[0] is not None)

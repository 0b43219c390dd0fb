"""Publish a run: its folder on this machine and its server. Either may fail; the run continues without it."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monitor._records import RunInfo, State
from monitor.link import FailureReporter, Hello
from monitor.recorder import Past
from monitor.server import (
    OWNER,
    HttpServer,
    LocalServer,
    LoginCodes,
    Security,
    create_app,
    run_document,
)
from monitor.store import (
    PATIENCE_SECONDS,
    DiskThread,
    NoHomeError,
    RunFolder,
    UntrustedError,
    connect,
    leave,
    listen,
    proof,
    prune,
)
from monitor.system import other_users
from monitor.watcher._linger import Linger
from monitor.watcher._past import read_past
from monitor.watcher._reports import Reports
from monitor.watcher._run_store import RunStore
from monitor.watcher._served_run import ServedRun
from monitor.watcher._training import Training

_LOG = logging.getLogger("monitor")
CODE_MINUTES = 15
ALONE_SECONDS = 30.0
"""After how long a rank other than 0 that is not part of rank 0's run says where its own page is."""


def of_rank(info: RunInfo, environ: Mapping[str, str] = os.environ) -> str:
    """Say which of several ranks a run is that of: torch.distributed knows, else the launcher's variables do.

    >>> of_rank(RunInfo("gan-000001", "gan", 0.0), {"RANK": "1", "WORLD_SIZE": "4"})
    ' of rank 1 of 4'
    """
    if info.world_size > 1:
        return f" of rank {info.rank} of {info.world_size}"
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    is_one_of_several = rank.isdecimal() and size.isdecimal() and int(size) > 1
    return f" of rank {int(rank)} of {int(size)}" if is_one_of_several else ""


class Publisher:
    """Open and close the folder and the server of a run, in the order of the calls.

    The folder is touched on a thread of its own alone; its jobs follow each other in the order of the calls here.
    """

    def __init__(
        self,
        hello: Hello,
        *,
        store: RunStore,
        reports: Reports,
        training: Training,
        failures: FailureReporter,
        on_past: Callable[[Past], None],
    ) -> None:
        self._on_past = on_past
        self._earlier: dict[str, Any] | None = None
        self._info = hello.info
        self._settings = hello.settings
        self._token = hello.token
        self._script = hello.script
        self._command = hello.command
        self._reports = reports
        self._training = training
        self._failures = failures
        self._folder: RunFolder | None = None
        self._mistake: ValueError | None = None
        self._disk = DiskThread(self._save, self._note_disk)
        self._wait_deadline = 0.0
        self._server: HttpServer | None = None
        self._local: LocalServer | None = None
        self._key = secrets.token_hex(32)
        self._codes = LoginCodes(CODE_MINUTES * 60.0)
        self._app: Any = None
        self._is_continued = hello.is_continued
        self._store = store
        self._leader = ""
        self._is_quiet = hello.rank > 0
        self._alone_at = time.monotonic() + ALONE_SECONDS
        self._is_target = hello.local_rank == 0
        self._is_beside = hello.rank > 0 and not self._is_target  # the usual port is that of the first rank of the host
        self._is_logged = False
        self.linger = Linger()

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return None if self._server is None else self._server.url

    @property
    def has_folder(self) -> bool:
        """Tell whether the run has a folder."""
        return self._folder is not None

    def open_log(self) -> None:
        """Have what this process writes to its standard error go into the folder."""
        self._is_logged = True
        self._post(lambda folder: folder.take_errors())

    def open_folder(self) -> None:
        """Have the run's folder made, and wait for it as long as a healthy disk may take.

        Raises:
            ValueError: for a ``directory`` that can never be one.
        """
        self._failures.contain("folder", self._disk.start)
        self._disk.post(self._make_folder)
        self._post(lambda folder: folder.hold(PATIENCE_SECONDS))
        self._wait_deadline = time.monotonic() + PATIENCE_SECONDS
        self._wait_for_disk()
        if self._mistake is not None:
            raise self._mistake

    def _make_folder(self) -> None:
        s, info = self._settings, self._info
        try:
            if (self._is_continued or info.resume_time is not None) and self._reopen(info):
                return
            self._folder = RunFolder.create(
                s.directory,
                info.run_id,
                name=info.name,
                start_time=info.start_time,
                script=self._script,
                rank=info.rank,
                world_size=info.world_size,
                pid=info.pid,
                token=self._token,
                read_token=s.read_token,
                alert_token=s.alert_token,
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

    def _reopen(self, info: RunInfo) -> bool:
        """Open the folder that an earlier watcher, or an earlier session, has made; tell whether there is one."""
        folder = RunFolder.reopen(self._settings.directory, info.run_id, info.pid)
        if folder is None:
            return False
        self._folder = folder
        if info.resume_time is not None:
            self._earlier = folder.carry_on()
        return True

    def read_past(self) -> None:
        """Have what earlier sessions have recorded handed on, once the disk has answered."""
        self._disk.post(self._read_past)

    def _read_past(self) -> Past:
        found = [Past()]
        self._failures.contain("store", lambda: found.append(self._past()))
        self._on_past(found[-1])
        return found[-1]

    def _past(self) -> Past:
        folder, before = self._folder, self._info.resume_time
        return Past() if folder is None or before is None else read_past(folder.path, self._earlier, before)

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Note in the folder which of how many ranks the run is."""
        self._info = replace(self._info, world_size=world_size, rank=rank)
        self._post(lambda folder: folder.update(world_size=world_size, rank=rank))

    def move(self, info: RunInfo) -> None:
        """Have the run continue in the folder of an earlier session, which this process has claimed, and give up its
        own."""
        self._info = info
        self._disk.post(self._move)

    def _move(self) -> None:
        own = self._folder
        try:
            is_there = self._reopen(self._info)
        except BaseException:
            self._on_past(Past())  # the recorder waits for it, and the training for the recorder
            raise
        if not is_there or self._folder is None:
            self._on_past(Past())
            return
        self._store.move(self._read_past().last_seq)
        if own is not None and own.path != self._folder.path:
            own.discard()
        if self._is_logged:
            self._folder.take_errors()
        self._folder.hold(PATIENCE_SECONDS)
        if self._server is not None:
            self._announce(self._folder, self._server.url)
        else:
            self._folder.update(state="running")

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
        if isinstance(error, UntrustedError):
            line = f"{error}; training is not affected"
        self._failures.note("folder", error, line=line if isinstance(error, OSError) else "")

    def _post(self, act: Callable[[RunFolder], object]) -> None:
        """Have something done to the folder, if there is one when its turn comes."""
        self._disk.post(lambda: None if self._folder is None else act(self._folder))

    def post_to_path(self, act: Callable[[Path], None]) -> None:
        """Have something done with the path of the folder, on the disk's thread, if there is a folder by then."""
        self._post(lambda folder: act(folder.path))

    def _save(self) -> None:
        if self._folder is not None:
            self._folder.autosave(run_document(self._reports.snapshot()))

    def tidy(self) -> None:
        """Have removed what old runs left behind."""
        s = self._settings
        self._post(lambda folder: prune(folder.path.parent, s.keep_runs, max_bytes=s.keep_bytes, max_days=s.keep_days))

    def open_server(self) -> None:
        """Serve the run, write the address into its folder and into the log.

        Raises:
            ValueError: for a certificate that cannot be used.
        """
        if not self._settings.serve:
            return
        self._app = self._made_app()
        server = self._bind()
        if server is None:
            return
        self._server = server
        self._failures.contain("server", server.start)
        self._post(lambda folder: self._announce(folder, server.url))
        if self._folder is not None:
            self._wait_for_disk()
        if not self._is_quiet:
            self._say_address()

    def _announce(self, folder: RunFolder, url: str) -> None:
        folder.announce(url, self._key)
        self._failures.contain("server", lambda: self._listen_in(folder.path))

    def _listen_in(self, path: Path) -> None:
        """Take commands at a socket in the folder, too, where the system and the disk can have one."""
        earlier, self._local = self._local, None
        if earlier is not None:
            earlier.stop()
        try:
            listening = listen(path)
        except OSError as error:
            _LOG.debug("no socket in %s: %s", path, error)
            return
        self._local = local = LocalServer(
            lambda environ, start: self._app({**environ, OWNER: True}, start),
            listening,
            connect=lambda: connect(path),
            on_error=self._failures.of("server"),
        )
        local.start()

    def _say_address(self) -> None:
        """Log an address that logs in: by a code, as who reads a log later may be anybody."""
        directory = self._settings.directory
        where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
        later = f", then {self._command} open {self._info.run_id}{where}" if self._folder is not None else ""
        address = f"{self.url}/?code={self._codes.make()}"
        _LOG.info("live page%s: %s (once, for %d minutes%s)", of_rank(self._info), address, CODE_MINUTES, later)
        if not self._settings.protect_metrics and (others := other_users()):
            _LOG.info(
                "/metrics of this run can be read by the other users of this machine (%s); protect_metrics=True "
                "asks for a token",
                ", ".join(sorted(others)[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else ""),
            )

    def look_for_leader(self) -> None:
        """Say where the page of a rank is that nobody else's page shows. Called now and then."""
        if self._is_quiet and not self._leader and time.monotonic() > self._alone_at:
            self._is_quiet = False
            if self._server is not None:
                self._say_address()

    def be_part_of(self, leader: str, hostname: str) -> None:
        """Note in the folder that another run shows the steps of this rank. Of the ranks on another host one stays a
        target of Prometheus, for the readings of that host."""
        self._leader, self._alone_at = leader, time.monotonic() + ALONE_SECONDS
        is_target = self._is_target and hostname != self._info.hostname
        self._post(lambda folder: folder.update(leader=leader))
        if not is_target:
            self._post(lambda folder: folder.withdraw())

    def _made_app(self) -> Any:
        s = self._settings
        security = Security(
            token=self._token,
            read_token=s.read_token,
            alert_token=s.alert_token,
            protect_metrics=s.protect_metrics,
            bind_host=s.host,
            hosts=s.hosts,
        )
        access = ServedRun(self._reports, self._training, self._failures.of("export"), self.linger)
        return create_app(
            access,
            security,
            codes=self._codes,
            prove=lambda nonce, port: proof(self._key, self._info.run_id, nonce, port),
            on_error=self._failures.of("server"),
        )

    def _bind(self) -> HttpServer | None:
        try:
            return self._served(0 if self._is_beside else self._settings.port)
        except OSError as error:
            if not self._is_continued:
                self._failures.note("server", error, line=f"{error}; the run continues without a page and metrics")
                return None
        try:  # the port of the earlier watcher is taken: any one is better than none
            return self._served(None)
        except OSError as error:
            self._failures.note("server", error, line=f"{error}; the run continues without a page and metrics")
            return None

    def _served(self, port: int | None) -> HttpServer:
        s = self._settings
        return HttpServer(
            self._app,
            s.host,
            port,
            certfile=s.certfile,
            keyfile=s.keyfile,
            client_cafile=s.client_cafile,
            on_error=self._failures.of("server"),
        )

    def finish(self, state: State, end: float) -> None:
        """Have the last state, which is shown from now on, written into the folder."""
        self.linger.note_end()
        final = run_document(self._reports.snapshot())
        self._store.close(self.post_to_path)
        if self._leader and state == "finished":  # the other run has it all
            self._post(lambda folder: folder.discard())
            return
        self._post(lambda folder: folder.finish(state, end_time=end, final=final))

    def hand_over(self) -> None:
        """Have the store closed, and the present state kept, for another watcher of the same run."""
        self._store.close(self.post_to_path)
        self._disk.post(self._save)
        self._post(lambda folder: folder.let_go())
        self._disk.stop()

    def forget(self) -> None:
        """Let go of the folder in a forked child."""
        if self._folder is not None:
            self._folder.abandon()

    def settle(self, seconds: float) -> None:
        """Wait until what was posted to the disk is done, ``seconds`` at most."""
        self._disk.flush(seconds)

    def wait(self, seconds: float) -> None:
        """Wait until whoever was watching has seen the end, ``seconds`` at most."""
        if self._server is not None:
            self.linger.wait(seconds)

    def stay(self, seconds: float, page_seconds: float, is_told_to_end: Callable[[], bool]) -> None:
        """Keep the server up for who is still looking: see :meth:`Linger.stay`."""
        if self._server is not None:
            self.linger.stay(seconds, page_seconds, is_told_to_end)

    def stop(self) -> None:
        """Take the server down, and the socket in the folder in its turn."""
        if self._server is not None:
            self._server.stop()
            self._post(self._leave_socket)

    def _leave_socket(self, folder: RunFolder) -> None:
        local, self._local = self._local, None
        if local is not None:
            local.stop()
            leave(folder.path)

    def withdraw(self) -> None:
        """Have the run taken off the list of scrape targets, and wait for the disk, but not before a traceback."""
        self._post(lambda folder: folder.withdraw())
        self._disk.stop(is_raising=sys.exc_info()[0] is not None)

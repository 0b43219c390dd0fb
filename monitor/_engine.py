"""What a run is made of: assembles the rooms, opens and closes them in order. The only room that knows the others."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from monitor._access import Access, Linger
from monitor._detection import Detection
from monitor._errors import ClosedRunError, StopTraining
from monitor._folder import RunFolder, make_run_id
from monitor._identity import default_name, identify, script_path
from monitor._log import Failures, warn_of
from monitor._logged import LoggedValues
from monitor._open_runs import leave
from monitor._records import CommandRecord, Event, Sample, Snapshot, State, Step
from monitor._settings import Settings
from monitor.control import (
    Boundary,
    Command,
    Commands,
    Door,
    LearningRates,
    Policies,
    Policy,
    audit,
    describe,
    in_force,
)
from monitor.detect import Detector
from monitor.probe import StepProbe, Tape
from monitor.recorder import Recorder
from monitor.server import HttpServer, Security, create_app
from monitor.system import GpuReader, HostReader, SystemSampler

_LOG = logging.getLogger("monitor")
_ENDED: tuple[State, ...] = ("finished", "failed", "interrupted")


class Engine:
    """Everything behind a :class:`monitor.Run`."""

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        settings: Settings,
        *,
        detectors: Iterable[Detector] | None = None,
        policies: Iterable[Policy] = (),
        on_event: Callable[[Event], Any] | None = None,
        on_checkpoint: Callable[[], Any] | None = None,
        asks_for_gpu: bool = False,
    ) -> None:
        self.settings = settings
        self.name = settings.name or default_name()
        self.id = make_run_id(self.name)
        self.token = settings.token or secrets.token_urlsafe(24)
        self.optimizers = dict(optimizers)
        self._user_on_event = on_event
        self._failures = Failures(self._post_failure)
        self._first_thread = threading.get_ident()
        self._pid = os.getpid()
        self._has_started = False
        self._is_closed = False
        self._lock = threading.Lock()
        start = time.time()
        info = identify(self.id, self.name, start, self.optimizers.values())
        num_groups = sum(len(o.param_groups) for o in self.optimizers.values())
        self._tape = Tape(num_groups, on_error=self._failures.note)
        self._logged = LoggedValues(self._tape, self._failures.note)
        doors = {key: Door(settings.min_lr) for key in self.optimizers}
        self._rates = LearningRates(
            self.optimizers, doors, min_lr=settings.min_lr, allow_increase=settings.allow_increase
        )
        self._boundary = Boundary(
            self._rates,
            next_step=lambda: self.step + 1,
            on_checkpoint=on_checkpoint,
            on_paused=self._on_paused,
            stop_raises=settings.stop_raises,
            on_error=self._failures.note,
        )
        self._commands = Commands(
            self._boundary.check,
            on_waiting=self._call_training_thread,
            on_finished=self._on_finished,
            timeout=settings.command_timeout,
            is_training_thread=self._is_training_thread,
        )
        self._boundary.commands = self._commands
        self._probes = [
            StepProbe(
                key,
                optimizer,
                self._tape,
                doors[key],
                on_boundary=self._on_boundary,
                on_error=self._failures.note,
                gradient_norm=settings.gradient_norm,
                budget=settings.overhead_budget,
                max_stride=settings.window,
            )
            for key, optimizer in self.optimizers.items()
        ]
        self._detection = Detection(
            list(self.optimizers), detectors, stall_timeout=settings.stall_timeout, on_error=self._failures.note
        )
        self._policies = Policies(policies, self._commands.submit, self._failures.note)
        self._last_activity = 0.0
        self._recorder = Recorder(
            self._tape,
            info,
            {key: type(o).__name__ for key, o in self.optimizers.items()},
            window=settings.window,
            target_steps=settings.total_steps,
            stall_timeout=settings.stall_timeout,
            detect=self._digest,
            on_event=self._on_event,
            on_tick=self._on_tick,
            on_error=self._failures.note,
            interval=settings.digest_interval,
        )
        self._sampler = SystemSampler(
            settings.system_interval,
            HostReader(),
            GpuReader(is_asked=asks_for_gpu) if settings.gpu else None,
            self._failures.note,
        )
        self._folder: RunFolder | None = None
        self._server: HttpServer | None = None
        self._linger = Linger()

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> Engine:
        """Start everything; called by ``attach``. What can fail without harm is reported, and the run goes on without
        it.

        Raises:
            ValueError: for a ``directory`` that cannot be written or a certificate that cannot be used; nothing stays
                behind then.
        """
        try:
            self._open_folder()
            self._contain("recorder", self._recorder.start)
            self._contain("system", self._sampler.start)
            if self.settings.serve:
                self._open_server()
            for probe in self._probes:
                self._contain("probe", probe.open)
        except BaseException:
            self.close("failed")
            raise
        self._post_state("starting", f"run {self.id} started")
        self._has_started = True
        return self

    def _open_folder(self) -> None:
        s = self.settings
        try:
            self._folder = RunFolder.create(
                s.directory,
                self.id,
                name=self.name,
                start_time=self._recorder.snapshot.run.start_time,
                script=script_path(),
                token=self.token,
                read_token=s.read_token,
            )
        except OSError as error:
            if s.directory is not None:
                raise ValueError(
                    f"directory={str(s.directory)!r} cannot be written ({error}); give one that can, or leave it out"
                ) from error
            self._failures.note("folder", error)

    def _open_server(self) -> None:
        s = self.settings
        access = Access(self, self._failures.note, self._linger)
        app = create_app(
            access,
            Security(
                token=self.token,
                read_token=s.read_token,
                protect_metrics=s.protect_metrics,
                bind_host=s.host,
                hosts=s.hosts,
            ),
            on_error=lambda e: self._failures.note("server", e),
        )
        try:
            server = HttpServer(
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
            return
        self._server = server
        self._contain("server", server.start)
        folder = self._folder
        if folder is not None:
            self._contain("folder", lambda: folder.update(state="running", url=server.url))
        _LOG.info("live page: %s/?token=%s", server.url, self.token)

    def close(self, state: State = "finished") -> None:
        """End the run: take out every hook and patch, publish the final state, join the threads, free the port.

        Safe to repeat. Waits up to ``linger`` seconds for one more scrape if something has scraped this run, and says
        so in the log; Ctrl-C ends the wait alone.

        Args:
            state: "finished", "failed" or "interrupted".

        Raises:
            ValueError: for another state.
        """
        if state not in _ENDED:
            raise ValueError(f"state must be one of {', '.join(_ENDED)}, got {state!r}")
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        leave(self)
        if os.getpid() != self._pid:
            self.forget()
            return
        end = time.time()
        with ExitStack() as last:  # whatever happens on the way, Ctrl-C included: the rest is done too
            if self._folder is not None:  # after the linger: a target that is gone is not scraped once more
                last.callback(self._contain, "folder", self._folder.withdraw)
            if self._server is not None:
                last.callback(self._contain, "server", self._server.stop)
                last.callback(self._contain, "server", lambda: self._linger.wait(self.settings.linger))
            last.callback(self._contain, "log", lambda: self._say_goodbye(state))
            last.callback(self._contain, "folder", lambda: self._finish_folder(state, end))
            last.callback(self._contain, "system", lambda: self._sampler.stop(2.0))
            last.callback(self._contain, "recorder", self._recorder.stop)
            last.callback(self._contain, "recorder", lambda: self._publish_end(state, end))
            for probe in self._probes:
                last.callback(self._contain, "probe", probe.close)
            self._boundary.is_closed = True
            self._contain("control", self._boundary.wake)
            self._contain("control", self._commands.close)
            self._contain("control", self._warn_of_factors)

    def _publish_end(self, state: State, end: float) -> None:
        self._recorder.set_state(state, end)
        self._post_state(state, f"run {self.id} {state} at step {self.step}")

    def _finish_folder(self, state: State, end: float) -> None:
        if self._folder is not None:
            from monitor.server import run_document

            self._folder.finish(state, end_time=end, final=run_document(self.snapshot()))

    def _say_goodbye(self, state: State) -> None:
        if not self._has_started:
            return
        directory = self.settings.directory
        where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
        look = "" if self._folder is None else f"; look back at it: monitor status {self.id}{where}"
        _LOG.info("run %s %s at step %d%s", self.name, state, self.step, look)

    def _warn_of_factors(self) -> None:
        reduced = self._rates.reduced()
        if reduced:
            groups = ", ".join(f"{key} group {i}: {factor:g}" for key, i, factor in reduced[:8])
            _LOG.warning(
                "the run ends with LR factors in force (%s); from here on the schedule's own LR is in force again",
                groups,
            )

    def close_for(self, error: type[BaseException] | None) -> None:
        """End the run in the state that an exception of this kind calls for; None: all went well."""
        self.close(_end_state(error))

    def forget(self) -> None:
        """Let go of everything in a forked child, where the threads and the port are the parent's."""
        self._is_closed = True
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for probe in self._probes:
            self._contain("probe", probe.close)

    def _contain(self, room: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001
            self._failures.note(room, error)

    # ----------------------------------------------------------------------------------------- training thread

    def _is_training_thread(self) -> bool:
        threads = {p.thread for p in self._probes if p.thread}
        return threading.get_ident() in (threads or {self._first_thread})

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread, by its identifier, has made the latest steps."""
        return any(probe.thread == thread for probe in self._probes)

    def _call_training_thread(self) -> None:
        for probe in self._probes:
            probe.has_errand = True
        self._boundary.wake()

    def _on_boundary(self, _: StepProbe) -> None:
        for each in self._probes:
            each.has_errand = False
        try:
            self._boundary.pass_through()
        except StopTraining:
            raise
        except Exception as error:  # noqa: BLE001
            self._failures.note("control", error)

    def _on_paused(self, is_paused: bool) -> None:
        state: State = "paused" if is_paused else "running"
        self._recorder.set_state(state)
        self._post_state(state, f"training {'pauses' if is_paused else 'goes on'} before step {self.step + 1}")

    # ------------------------------------------------------------------------------------------ recorder thread

    def _on_tick(self, now: float) -> None:
        for probe in self._probes:
            probe.wants_details = True
        self._commands.expire(now)
        for event in self._detection.tick(now, is_excused=self._is_excused()):
            self._recorder.post(event)

    def _is_excused(self) -> bool:
        """Tell whether a pause, a checkpoint, or batches without steps (a validation) explain the lack of steps."""
        activity = max(p.last_activity for p in self._probes)
        has_moved, self._last_activity = activity > self._last_activity, activity
        return has_moved or self._boundary.is_busy

    def _digest(self, record: Step | Sample) -> list[Event]:
        if isinstance(record, Step):
            self._policies.on_step(record)
        return self._detection.digest(record)

    def _on_event(self, event: Event) -> None:
        self._policies.on_event(event)
        self._contain("log", lambda: warn_of(event))
        if self._user_on_event is None:
            return
        try:
            self._user_on_event(event)
        except BaseException as error:  # noqa: BLE001 - a sys.exit() in there would end the recorder's thread unheard
            self._failures.note("on_event", error)

    def _on_finished(self, record: CommandRecord) -> None:
        severity = "info" if record.status == "applied" else "warning"
        step = record.step if record.step is not None else self.step
        self._recorder.post(
            Event("control", severity, step, step, describe(record), end_step=step, details=audit(record))  # type: ignore[arg-type]
        )
        (_LOG.info if severity == "info" else _LOG.warning)("%s", describe(record))

    def _post_state(self, state: State, message: str) -> None:
        severity = "critical" if state == "failed" else "info"
        step = self.step
        self._recorder.post(Event("state", severity, step, step, message, end_step=step, details={"state": state}))  # type: ignore[arg-type]

    def _post_failure(self, room: str, message: str) -> None:
        recorder = getattr(self, "_recorder", None)
        if recorder is not None:
            step = self.step
            recorder.post(Event("internal", "warning", step, step, message, end_step=step, details={"room": room}))

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return None if self._server is None else self._server.url

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions included."""
        return self._probes[0].number + self._tape.base_step

    @property
    def should_stop(self) -> bool:
        """Tell whether a stop was asked for."""
        return self._boundary.should_stop

    @property
    def is_closed(self) -> bool:
        """Tell whether the run has ended."""
        return self._is_closed

    def lr_table(self) -> list[tuple[str, int, str | None, float, float, float]]:
        """Return (optimizer, param group, name, scheduled, factor, applied) of every param group."""
        return self._rates.table()

    def snapshot(self) -> Snapshot:
        """Return the latest published state: immutable, at most one round of the recorder old."""
        commands, system = self._commands, self._sampler.latest()
        return replace(
            self._recorder.snapshot,
            commands_total=commands.totals,
            commands_last_applied=commands.last_applied,
            commands_pending=len(commands.waiting()),
            errors=self._failures.counts,
            host=system.host,
            gpus=system.gpus,
            collections=system.collections,
        )

    def snapshot_in_force(self) -> Snapshot:
        """Return the latest published state with the commands that were applied since: factors, and a pause."""
        snapshot = self.snapshot()
        state, is_paused = snapshot.state, self._boundary.is_paused
        if is_paused and state in ("starting", "running"):
            state = "paused"
        elif state == "paused" and not is_paused:
            state = "running"
        shown = in_force(snapshot.optimizers, self.optimizers, self.settings.min_lr)
        return replace(snapshot, state=state, optimizers=shown)

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor, the system's readings beside them."""
        document = self._recorder.history(since, points)
        document["system"] = self._sampler.history(self._recorder.time_of(since), points)
        return document

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        return self._recorder.log.since(since)

    def flush(self, timeout: float) -> bool:
        """Wait until what was recorded so far is in the snapshot."""
        return self._recorder.flush(timeout)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as plain values."""
        self.flush(5.0)
        return {
            "version": 1,
            "step": self.step,
            "smoothing": self._recorder.smoothing(),
            "detectors": self._detection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an earlier session.

        Raises:
            ValueError: for what state_dict did not make.
        """
        if state.get("version") != 1 or not {"step", "smoothing", "detectors"} <= set(state):
            raise ValueError(f"this is not what run.state_dict() returns: it has the keys {sorted(map(str, state))}")
        try:
            self._detection.load_state_dict(state["detectors"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the saved state of the detectors cannot be read: {error!r}") from error
        self._tape.base_step = int(state["step"]) - self._probes[0].number
        self._recorder.load_smoothing(state["smoothing"])

    # ------------------------------------------------------------------------------------------------ writing

    def log(self, **values: Any) -> None:
        """Note what the user logs."""
        if not self._is_closed:
            self._logged.note(self._probes, **values)

    @property
    def commands(self) -> Commands:
        """The queue of this run."""
        return self._commands

    def submit(
        self, action: str, factor: Any, groups: Iterable[int | str] | None, over_steps: int, reason: str
    ) -> Command:
        """Queue a command of the script's own. Raises as ``Commands.submit``."""
        if os.getpid() != self._pid:
            raise ClosedRunError(f"run {self.id} belongs to process {self._pid}; {action} it there, not in its child")
        if isinstance(groups, int | str):
            groups = (groups,)
        return self._commands.submit(
            action,
            source="code",
            factor=factor,
            groups=None if groups is None else tuple(groups),
            over_steps=over_steps,
            reason=reason,
        )


def _end_state(kind: type[BaseException] | None) -> State:
    if kind is None:
        return "finished"
    return (
        "interrupted" if issubclass(kind, KeyboardInterrupt | SystemExit | GeneratorExit | StopTraining) else "failed"
    )

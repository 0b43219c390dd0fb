"""Assemble a run's components and manage their life cycle: open and close them in order."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch.optim import Optimizer

from monitor._errors import ClosedRunError, StopTraining
from monitor._records import ENDED_STATES, Event, Sample, State, Step
from monitor._settings import Settings
from monitor.control import Command, Commands, Policies, Policy
from monitor.detect import Detector
from monitor.recorder import Recorder
from monitor.run._detection import Detection
from monitor.run._identity import default_name, identify
from monitor.run._log import Failures, warn_of
from monitor.run._open_runs import leave
from monitor.run._optimizers import WeakOptimizers
from monitor.run._publisher import Outlets
from monitor.run._reports import Reports
from monitor.run._run_events import Journal
from monitor.run._training_side import TrainingSide
from monitor.store import make_run_id
from monitor.system import GpuReader, HostReader, SystemSampler

_LOG = logging.getLogger("monitor")


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
        self.optimizers = WeakOptimizers(optimizers)
        self._user_on_event = on_event
        self._pid = os.getpid()
        self._has_started = False
        self._is_closed = False
        self._has_let_go = False
        self._lock = threading.Lock()
        self._journal = Journal(lambda: self.step)
        self._failures = Failures(self._journal.note_failure)
        self._training = TrainingSide(
            self.optimizers,
            settings,
            self._failures,
            on_checkpoint=on_checkpoint,
            on_paused=self._on_paused,
            on_outcome=self._journal.note_outcome,
        )
        self._detection = Detection(
            list(self.optimizers), detectors, stall_timeout=settings.stall_timeout, on_error=self._failures.of("detect")
        )
        self._policies = Policies(policies, self._training.commands.submit, self._failures.of("policy"))
        info = identify(self.id, self.name, time.time(), self.optimizers.values())
        self._recorder = Recorder(
            self._training.tape,
            info,
            {key: type(o).__name__ for key, o in self.optimizers.items()},
            window=settings.window,
            target_steps=settings.total_steps,
            stall_timeout=settings.stall_timeout,
            detect=self._digest,
            on_event=self._on_event,
            on_tick=self._on_tick,
            on_error=self._failures.of("recorder"),
            interval=settings.digest_interval,
        )
        self._sampler = SystemSampler(
            settings.system_interval,
            HostReader(),
            GpuReader(is_asked=asks_for_gpu) if settings.gpu else None,
            self._failures.of("system"),
        )
        self._journal.write_to(self._recorder.post)
        self.reports = Reports(
            self._recorder,
            self._sampler,
            self._training.commands,
            self._training.boundary,
            self._failures,
            optimizers=self.optimizers,
            min_lr=settings.min_lr,
        )
        self._outlets = Outlets(
            info,
            settings,
            self.token,
            reports=self.reports,
            commands=self.commands,
            failures=self._failures,
        )

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> Engine:
        """Start everything; called by ``attach``. What can fail without harm is reported, and the run continues without
        it.

        Raises:
            ValueError: for a ``directory`` that can never be one or a certificate that cannot be used; nothing stays
                behind then.
        """
        try:
            self._outlets.open_folder()
            self._failures.contain("recorder", self._recorder.start)
            self._failures.contain("system", self._sampler.start)
            if self.settings.serve:
                self._outlets.open_server()
            self._outlets.tidy()
            self._training.open()
        except BaseException:
            self.close("failed")
            raise
        self._journal.note_state("starting", f"run {self.id} started")
        self._has_started = True
        return self

    def close(self, state: State = "finished") -> None:
        """End the run: take out every hook and patch, publish the final state, join the threads, free the port.

        Safe to repeat. Waits up to ``linger`` seconds for one more scrape if something has scraped this run, and says
        so in the log; Ctrl-C ends the wait alone.

        Args:
            state: "finished", "failed" or "interrupted".

        Raises:
            ValueError: for another state.
        """
        check_end_state(state)
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
            contain, outlets = self._failures.contain, self._outlets
            last.callback(contain, "folder", outlets.withdraw)  # last of all: what is gone is not scraped once more
            last.callback(contain, "server", outlets.stop)
            last.callback(contain, "server", outlets.wait)
            last.callback(contain, "control", self._let_go)
            if self._has_started:
                last.callback(contain, "log", lambda: outlets.say_goodbye(state, self.step))
            last.callback(contain, "folder", lambda: outlets.finish(state, end))
            last.callback(contain, "system", lambda: self._sampler.stop(2.0))
            last.callback(contain, "recorder", self._recorder.stop)
            last.callback(contain, "recorder", lambda: self._publish_end(state, end))
            last.callback(contain, "control", self._training.rates.close)
            for probe in self._training.probes:
                last.callback(contain, "probe", probe.close)
            self._training.release()
            contain("control", self._warn_of_factors)

    def _let_go(self) -> None:
        """Keep nothing that keeps the training in memory: what the user has given, and what commands have changed."""
        self._has_let_go = True
        self._user_on_event = None
        self._policies.clear()
        self._training.let_go()

    def _publish_end(self, state: State, end: float) -> None:
        self._recorder.set_state(state, end)
        self._journal.note_state(state, f"run {self.id} {state} at step {self.step}")

    def _warn_of_factors(self) -> None:
        reduced = self._training.rates.reduced()
        if reduced:
            groups = ", ".join(f"{key} group {i}: {factor:g}" for key, i, factor in reduced[:8])
            _LOG.warning(
                "the run ends with LR factors in force (%s); from here on the schedule's own LR is in force again",
                groups,
            )

    def close_for(self, kind: type[BaseException] | None, error: BaseException | None = None) -> None:
        """End the run in the state that an exception of this kind calls for; None: all went well."""
        state = end_state(kind)
        if kind is not None and state == "failed":
            self._failures.contain("log", lambda: self._journal.blame(kind, error))
        self.close(state)

    def forget(self) -> None:
        """Let go of everything in a forked child, where the threads and the port are the parent's."""
        self._is_closed = True
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for probe in self._training.probes:
            self._failures.contain("probe", probe.close)
        self._failures.contain("control", self._training.rates.close)

    # ----------------------------------------------------------------------------------------- training thread

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread, by its identifier, has made the latest steps."""
        return self._training.is_trained_by(thread)

    def _on_paused(self, is_paused: bool) -> None:
        state: State = "paused" if is_paused else "running"
        self._recorder.set_state(state)
        self._journal.note_state(
            state, f"training {'pauses' if is_paused else 'continues'} before step {self.step + 1}"
        )

    # ------------------------------------------------------------------------------------------ recorder thread

    def _on_tick(self, now: float) -> None:
        self._training.want_details()
        self._training.commands.expire()
        for message, optimizer in self._training.blind_spots():
            self._journal.note_capture(message, optimizer)
        is_excused = self._training.is_excused(is_stall_near=self._detection.is_stall_near(now))
        for event in self._detection.tick(now, is_excused=is_excused):
            self._recorder.post(event)

    def _digest(self, record: Step | Sample) -> list[Event]:
        if isinstance(record, Step):
            self._policies.on_step(record)
        return self._detection.digest(record)

    def _on_event(self, event: Event) -> None:
        self._policies.on_event(event)
        self._failures.contain("log", lambda: warn_of(event))
        if self._user_on_event is None:
            return
        try:
            self._user_on_event(event)
        except BaseException as error:  # noqa: BLE001 - a sys.exit() in there would end the recorder's thread unheard
            self._failures.note("on_event", error)

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return self._outlets.url

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions included."""
        return self._training.step

    @property
    def should_stop(self) -> bool:
        """Tell whether a stop was asked for."""
        return self._training.boundary.should_stop

    @property
    def is_closed(self) -> bool:
        """Tell whether the run has ended."""
        return self._is_closed

    def lr_table(self) -> list[tuple[str, int, str | None, float | None, float, float | None]]:
        """Return (optimizer, param group, name, scheduled, factor, applied) of every param group; of a run that has
        ended, as its last step used them."""
        if not self._has_let_go:
            return self._training.rates.table()
        return [
            (one.key, group.index, group.name, group.scheduled, group.factor, group.applied)
            for one in self.reports.snapshot().optimizers
            for group in one.groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as plain values."""
        self._recorder.flush(5.0)
        return {
            "version": 1,
            "step": self.step,
            "smoothing": self._recorder.smoothing(),
            "detectors": self._detection.state_dict(),
            "lr_factors": self._training.rates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an earlier session; an empty one, that of a disabled run, changes nothing.

        Raises:
            ValueError: for what state_dict did not make.
        """
        if state == {}:
            return
        if state.get("version") != 1 or not {"step", "smoothing", "detectors"} <= set(state):
            raise ValueError(f"this is not what run.state_dict() returns: it has the keys {sorted(map(str, state))}")
        try:
            self._detection.load_state_dict(state["detectors"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the saved state of the detectors cannot be read: {error!r}") from error
        try:
            self._training.rates.load_state_dict(state.get("lr_factors", {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the saved LR factors cannot be read: {error!r}") from error
        self._training.step = int(state["step"])
        self._recorder.load_smoothing(state["smoothing"])

    # ------------------------------------------------------------------------------------------------ writing

    def log(self, **values: Any) -> None:
        """Note what the user logs."""
        if not self._is_closed:
            self._training.log(**values)

    @property
    def commands(self) -> Commands:
        """The queue of this run."""
        return self._training.commands

    def submit(
        self, action: str, factor: Any, groups: Iterable[int | str] | None, over_steps: int, reason: str
    ) -> Command:
        """Queue a command of the script's own. Raises as ``Commands.submit``."""
        if os.getpid() != self._pid:
            raise ClosedRunError(f"run {self.id} belongs to process {self._pid}; {action} it there, not in its child")
        if isinstance(groups, int | str):
            groups = (groups,)
        return self._training.commands.submit(
            action,
            source="code",
            factor=factor,
            groups=None if groups is None else tuple(groups),
            over_steps=over_steps,
            reason=reason,
        )


def check_end_state(state: str) -> None:
    """Raise ValueError for a state in which no run ends."""
    if state not in ENDED_STATES:
        raise ValueError(f"state must be one of {', '.join(ENDED_STATES)}, got {state!r}")


def end_state(kind: type[BaseException] | None) -> State:
    """Return the state of a run that ends with an exception of this kind; None: all went well."""
    if kind is None:
        return "finished"
    return (
        "interrupted" if issubclass(kind, KeyboardInterrupt | SystemExit | GeneratorExit | StopTraining) else "failed"
    )

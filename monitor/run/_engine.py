"""Assemble a run's components and manage their life cycle: open and close them in order."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from monitor._errors import ClosedRunError, StopTraining
from monitor._records import ENDED_STATES, CommandRecord, Event, State
from monitor._settings import AUTO, SECRETS, Settings, is_run_id
from monitor.common import MAX_NAME, as_name, is_shortened
from monitor.control import FOLLOWS, Command, Commands, Policies, Policy, world
from monitor.detect import Detector
from monitor.link import FailureReporter, Hello
from monitor.run._callbacks import Callbacks
from monitor.run._identity import default_name, environment, identify, script_path
from monitor.run._launcher import expected_world, local_rank
from monitor.run._listener import Listener, open_listener
from monitor.run._notebook import Cell
from monitor.run._open_runs import leave, note_end
from monitor.run._optimizers import WeakOptimizers
from monitor.run._resume import NO_STATE, Claimed, Claims, Refusal, holds_state, where_to_continue
from monitor.run._run_events import RunEvents
from monitor.run._sigterm import SigtermHandler
from monitor.run._training_side import TrainingSide
from monitor.run._watcher_form import RunWatcher, make_watcher
from monitor.store import make_run_id, own_command

_LOG = logging.getLogger("monitor")
FLUSH_SECONDS = 5.0
MAX_EXCEPTION = 16_000
"""Characters of a traceback that are kept: its end."""


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
        cell: Cell | None = None,
    ) -> None:
        self.settings = settings = _with_tokens(settings)
        self.name = as_name(settings.name or default_name())
        self.cell = cell
        self.id = make_run_id(self.name)
        self.token = settings.token or ""
        self.optimizers = WeakOptimizers(optimizers)
        self._pid = os.getpid()
        self._has_started = False
        self._is_closed = False
        self._has_let_go = False
        self._claimed: Claimed | None = None
        self._has_compared = False
        self._exception = ""
        self._listener: Listener | None = None
        self._is_part = False
        self._secret = secrets.token_hex(32)
        self._sigterm = SigtermHandler(lambda: note_end(self, SystemExit))
        self._lock = threading.Lock()
        self._watcher: RunWatcher | None = None
        self._events = RunEvents(lambda: self.step, self._post)
        self._failures = FailureReporter(self._events.note_failure)
        self._training = TrainingSide(
            self.optimizers,
            settings,
            self._failures,
            run_id=lambda: self.id,
            on_checkpoint=on_checkpoint,
            on_paused=self._on_paused,
            on_command=self._on_command,
            on_outcome=self._on_outcome,
            place=self._place,
            on_place=self._on_place,
            on_stacks=self._events.note_stacks,
        )
        policies = tuple(policies)
        self._callbacks = Callbacks(
            Policies(
                policies,
                self._training.commands.submit,
                self._failures.of("policy"),
                is_idle=lambda: self._training.ranks.follows,
            ),
            on_event,
            self._failures,
        )
        self._hello = Hello(
            settings=settings,
            info=identify(self.id, self.name, time.time(), self.optimizers.values()),
            token=self.token,
            optimizers={key: type(o).__name__ for key, o in self.optimizers.items()},
            script=script_path(),
            command=own_command(),
            environment=environment(),
            detectors=None if detectors is None else tuple(detectors),
            asks_for_gpu=asks_for_gpu,
            wants_steps=bool(policies),
        )

        self._claims = Claims(settings, self.token, self._hello.info.rank)

    def _post(self, event: Event) -> None:
        if self._watcher is not None:  # before there is one, nobody reads events
            self._watcher.post(event)

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> Engine:
        """Start everything; called by ``attach``. What can fail without harm is reported, and the run continues
        without it.

        Raises:
            ValueError: for a ``directory`` that can never be one or a certificate that cannot be used; nothing stays
                behind then.
        """
        self._say_shortened()
        self._failures.contain("folder", self._continue_earlier)
        self._failures.contain("link", self._listen)
        try:  # only now: a run that is refused, as another one watches its optimizer, starts no process
            self._watcher = make_watcher(
                self._hello, self._training, self._callbacks, self._failures, self._begin_round
            )
        except BaseException:
            leave(self)
            self._give_back()
            self._close_listener()
            raise
        try:
            self._training.enter()
            self.watcher.open()
            self._callbacks.start()
            self._training.open()
            if self.settings.on_sigterm is not None:
                self._sigterm.install()
        except BaseException:
            self.close("failed")
            self._give_back()
            raise
        self._has_started = True
        return self

    def _listen(self) -> None:
        """Where this is one of several ranks, know which one; on rank 0 open a socket for the shares of the others."""
        num_ranks, rank = expected_world()
        self._hello = replace(self._hello, num_ranks=num_ranks, rank=rank, local_rank=local_rank())
        if num_ranks > 1 and rank == 0 and os.name == "posix":  # a watcher inherits descriptors there alone
            self._listener = open_listener()
            self._hello = replace(self._hello, listener=self._listener.descriptor, secret=self._secret)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _place(self) -> Mapping[str, Any]:
        """Return where this run's watcher takes the shares of the other ranks."""
        to = self._listener
        if to is None:
            return {}
        hostname = self._hello.info.hostname
        return {"run_id": self.id, "hostname": hostname, "host": to.host, "port": to.port, "secret": self._secret}

    def _on_place(self, place: Mapping[str, Any]) -> None:
        self._is_part = True
        if self._watcher is not None:
            self._watcher.join(place, world()[1])

    def _continue_earlier(self) -> None:
        """Become the earlier run that the settings name, if there is one to continue."""
        wanted = self.settings.resume
        if wanted is None:
            return
        if wanted == AUTO and not holds_state(self.optimizers):
            found: Claimed | Refusal = Refusal(NO_STATE)
        elif wanted == AUTO:
            found = self._claims.newest(self.name, self._hello.script)
        else:
            found = self._claims.by_id(wanted)
        if isinstance(found, Refusal):
            level = logging.INFO if wanted == AUTO else logging.WARNING
            _LOG.log(level, "a new run begins, %s; resume=%r continues none: %s", self.id, wanted, found.reason)
            return
        step, why = where_to_continue(self.optimizers, found.recorded_step)
        self._training.continue_at(step)
        self._become(found)
        _LOG.info("run %s continues at step %d: %s", self.id, step, why)

    def _become(self, claimed: Claimed) -> None:
        """Be the run of an earlier session from here on."""
        self._claimed, run = claimed, claimed.run
        self.id, self.name = run.run_id, run.name
        info = replace(
            self._hello.info, run_id=run.run_id, name=run.name, start_time=run.start_time, resume_time=time.time()
        )
        self._hello = replace(self._hello, info=info, base_step=self._training.base_step)

    def _note_other_factors(self) -> None:
        """Say which LR factors of the earlier session are not in force, but for those that this one was told to change.
        Until the first step a state may be loaded."""
        if self._claimed is None or self._has_compared or not self._training.buffer.last_sequence:
            return
        self._has_compared = True
        records = self._training.commands.kept()
        changed = {(one.optimizer, one.param_group) for record in records for one in record.changes}
        message, rows = self._claimed.other_factors(self._training.rates.state_dict(), changed)
        if message:
            _LOG.warning("%s", message)
            self._events.note_other_factors(message, rows)

    def _say_shortened(self) -> None:
        """Say of which names of the user's own only the beginning is shown."""
        groups = [group.get("name") for one in self.optimizers.values() for group in one.param_groups]
        names = [self.name, *self.optimizers, *(as_name(name) for name in groups if isinstance(name, str))]
        for name in filter(is_shortened, names):
            _LOG.warning("a name of more than %d characters is shown as %r", MAX_NAME, name)

    def _give_back(self) -> None:
        if self._claimed is not None:
            self._claimed.give_back()

    def close(self, state: State = "finished") -> None:
        """End the run: take out every hook and patch, publish the final state, join the threads, free the port.

        Safe to repeat. Does not wait for whoever looks at the run, unless ``wait_for_scrape`` says so: then for one
        more scrape if something has scraped it; the log says so, and Ctrl-C ends the wait alone.

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
            contain, watcher = self._failures.contain, self.watcher
            last.callback(self._close_listener)
            last.callback(watcher.leave)  # last of all: what is gone is not scraped once more
            last.callback(contain, "server", watcher.wait)
            last.callback(contain, "control", self._let_go)
            if self._has_started:
                last.callback(contain, "log", lambda: self._say_goodbye(state))
            last.callback(contain, "recorder", lambda: self._publish_end(state, end))
            last.callback(contain, "control", self._training.rates.close)
            last.callback(contain, "control", self._sigterm.remove)
            for probe in self._training.probes:
                last.callback(contain, "probe", probe.close)
            self._training.release()
            contain("folder", self._note_other_factors)
            contain("control", self._warn_of_factors)

    def _let_go(self) -> None:
        """Keep nothing that keeps the training in memory: what the user has given, and what commands have changed."""
        self._has_let_go = True
        self._callbacks.let_go()
        self._training.let_go()

    def _publish_end(self, state: State, end: float) -> None:
        message = f"run {self.id} {state} at step {self.step}"
        self.watcher.end(state, end, lambda: self._events.note_state(state, message), self._exception)

    def _say_goodbye(self, state: State) -> None:
        """Log how the run ended, and how to look back at it; not for a rank whose steps another run shows."""
        if self._is_part:
            return
        directory = self.settings.directory
        where = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
        look = f"; look back at it: {own_command()} status {self.id}{where}" if self.watcher.has_folder else ""
        _LOG.info("run %s %s at step %d%s", self.name, state, self.step, look)

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
            self._failures.contain("log", lambda: self._blame(kind, error))
        self.close(state)

    def _blame(self, kind: type[BaseException], error: BaseException | None) -> None:
        self._events.blame(kind, error)
        if error is not None:
            self._exception = "".join(traceback.format_exception(error))[-MAX_EXCEPTION:]

    def forget(self) -> None:
        """Let go of everything in a forked child, where the threads and the port are the parent's."""
        self._is_closed = True
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for probe in self._training.probes:
            self._failures.contain("probe", probe.close)
        self._failures.contain("control", self._training.rates.close)
        self._training.ranks.forget()
        self._close_listener()
        if self._watcher is not None:
            self._failures.contain("recorder", self._watcher.forget)

    # ----------------------------------------------------------------------------------------- training thread

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread, by its identifier, has made the latest steps."""
        return self._training.is_trained_by(thread)

    def _on_paused(self, is_paused: bool) -> None:
        state: State = "paused" if is_paused else "running"
        self.watcher.set_state(state)
        self._events.note_state(state, f"training {'pauses' if is_paused else 'continues'} before step {self.step + 1}")

    def _on_command(self, record: CommandRecord) -> None:
        self.watcher.note_command(record)

    def _on_outcome(self, record: CommandRecord) -> None:
        if self._watcher is not None:
            self._watcher.note_command(record)
        self._events.note_outcome(record)

    # ------------------------------------------------------------------------------------------- another thread

    def _begin_round(self) -> None:
        """Do, several times a second, what need not be done at every step."""
        self._training.want_details()
        self._training.commands.expire()
        self._training.ranks.look()
        self._note_ranks(*world())
        self._note_other_factors()
        for message, optimizer in self._training.blind_spots():
            self._events.note_capture(message, optimizer)

    def _note_ranks(self, world_size: int, rank: int) -> None:
        """Say which rank this is where ``attach`` came before the process group. One that is gone changes nothing."""
        info = self._hello.info
        if world_size == 1 or (world_size, rank) == (info.world_size, info.rank):
            return
        self._hello = replace(self._hello, info=replace(info, world_size=world_size, rank=rank))
        self._claims = Claims(self.settings, self.token, rank)
        self.watcher.set_ranks(world_size, rank)

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return self.watcher.url

    @property
    def watcher(self) -> RunWatcher:
        """What records, detects and serves."""
        assert self._watcher is not None
        return self._watcher

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions included."""
        return self._training.step

    @property
    def num_entries(self) -> int:
        """Steps that all optimizers together have made in this session."""
        return self._training.buffer.last_sequence

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
            for one in self.watcher.snapshot().optimizers
            for group in one.groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue, as plain values."""
        return {
            "version": 1,
            "run_id": self.id,
            "step": self.step,
            "lr_factors": self._training.rates.state_dict(),
            **self.watcher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of an earlier session; an empty one, that of a disabled run, changes nothing.

        Raises:
            ValueError: for what state_dict did not make.
        """
        if state == {}:
            return
        if not isinstance(state, Mapping):
            raise ValueError(f"this is not what run.state_dict() returns, but {type(state).__name__}")
        if state.get("version") != 1 or not {"step", "smoothing", "detectors"} <= set(state):
            raise ValueError(f"this is not what run.state_dict() returns: it has the keys {sorted(map(str, state))}")
        run_id = state.get("run_id")
        if run_id is not None and not is_run_id(run_id):
            raise ValueError(f"this is not what run.state_dict() returns: its run_id is {run_id!r}")
        try:
            self._training.rates.check_state_dict(state.get("lr_factors", {}))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the saved LR factors cannot be read: {error!r}") from error
        step = _step_of(state["step"])
        if self._training.buffer.last_sequence:
            self.watcher.flush(FLUSH_SECONDS)  # the steps made so far have the numbers of before
        before = self._training.base_step
        self._training.continue_at(step)
        try:
            self.watcher.load(self._training.base_step, state["smoothing"], state["detectors"])
        except BaseException:
            self._training.base_step = before
            raise
        self._training.rates.load_state_dict(state.get("lr_factors", {}))
        if run_id not in (None, self.id) and not self._is_closed and os.getpid() == self._pid:
            self._failures.contain("folder", lambda: self._continue_saved(str(run_id)))

    def _continue_saved(self, run_id: str) -> None:
        """Become the run that was saved, if that is still possible."""
        if self._training.buffer.last_sequence:
            found: Claimed | Refusal = Refusal("steps were made before load_state_dict")
        elif self._claimed is not None:
            found = Refusal("this run continues another one already")
        else:
            found = self._claims.by_id(run_id)
        if isinstance(found, Refusal):
            level = logging.DEBUG if self._training.ranks.follows else logging.WARNING  # rank 0 continues it
            _LOG.log(level, "run %s keeps its own id and does not continue %s: %s", self.id, run_id, found.reason)
            return
        self._become(found)
        self.watcher.resume(self._hello.info, self._training.base_step)
        for record in self._training.commands.kept():
            self.watcher.note_command(record)
        _LOG.info("run %s continues at step %d: the saved state says so", self.id, self.step)

    # ------------------------------------------------------------------------------------------------ writing

    def log(self, **values: Any) -> None:
        """Note what the user logs."""
        if not self._is_closed:
            self._training.log(**values)

    def plan(self, total_steps: int) -> None:
        """Show how many steps are planned, where the settings do not say so."""
        if self.settings.total_steps is None and not self._is_closed:
            self.watcher.set_target(total_steps)

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
        if self._training.ranks.follows:
            return self._training.commands.decline(action, FOLLOWS)
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


def _step_of(saved: Any) -> int:
    try:
        step = int(saved)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the saved step cannot be read: {error!r}") from error
    if step < 0:
        raise ValueError(f"the saved step cannot be {step}")
    return step


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


def _with_tokens(settings: Settings) -> Settings:
    """Return settings with a token for each purpose: those that were not given are made."""
    made: dict[str, Any] = {name: secrets.token_urlsafe(24) for name in SECRETS if getattr(settings, name) is None}
    return replace(settings, **made)

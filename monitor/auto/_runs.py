"""Begin a run at an optimizer's first step, and end it when its optimizers are gone or train no more."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch.optim import Optimizer

from monitor._settings import resolve, variable_of
from monitor.auto._closer import Closer
from monitor.auto._exits import ExitNote
from monitor.auto._schedules import SchedulePace
from monitor.probe import Forerunner, untraced
from monitor.run._attach import begin
from monitor.run._engine import FLUSH_SECONDS, Engine
from monitor.run._open_runs import noted_end, on_attach
from monitor.run._optimizers import named, unwrapped
from monitor.run._restarts import RestartLimit

_LOG = logging.getLogger("monitor")
NUM_LOOKS = 50
"""Steps of each optimizer that are looked at. An earlier optimizer that made none meanwhile trains no more."""
PACE_LOOKS = frozenset({1, 8, 16, 32, NUM_LOOKS})
"""At which of them schedulers are looked at."""
MAX_OPTIMIZERS = 16
"""Optimizers that one run has at most."""
MAX_WAITING = 64
"""Optimizers whose gradients are looked at before they step, at most."""
MAX_RUNS, RUNS_SECONDS = 10, 600.0
"""Runs that begin at a first step within so many seconds; beyond, an optimizer has to make NUM_LOOKS steps before."""
MAX_LATE_RUNS, LATE_SECONDS = 60, 3600.0
"""Runs that begin after that many steps within so many seconds."""


class Noting(Protocol):
    """What notes optimizers and hands their steps on: see :mod:`._noting`."""

    settled: set[int]
    hook: Any
    schedulers: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[Any]]]

    def stop(self) -> None:
        """Note nothing more."""


class _Made:
    """An optimizer that was made: the run that watches it, and what is looked at until it is settled."""

    def __init__(self, optimizer: Optimizer, on_gone: Callable[[_Made], None]) -> None:
        self.reference = weakref.ref(optimizer, lambda _: on_gone(self))
        self.id = id(optimizer)
        self.has_stepped = False
        self.num_looks = 0
        self.forerunner: Forerunner | None = None
        self.run: _AutoRun | None = None
        self.is_left_out = False
        self.beside: list[tuple[_AutoRun, int]] = []

    def parameters(self) -> set[int]:
        """Return the ids of the parameters that are trained; none once the optimizer is gone."""
        optimizer = self.reference()
        groups = () if optimizer is None else optimizer.param_groups
        return {id(p) for group in groups for p in group["params"] if p.requires_grad}


class _AutoRun:
    """A run that has begun by itself, its first optimizer, and all those of its optimizers that are still there."""

    def __init__(self, engine: Engine, members: list[_Made], pace: SchedulePace) -> None:
        self.engine = engine
        self.first = members[0]
        self.members = set(members)
        self.pace = pace


class AutoRuns:
    """The runs of this process that begin by themselves.

    A run has the optimizer that steps first, and all others that were made before and share no parameter with those
    that it has already. Of one that was made later the run is another one.

    Args:
        noting: what tells of optimizers and steps.

    Raises:
        ValueError, TypeError: for an environment variable that is not a valid setting.
    """

    def __init__(self, noting: Noting) -> None:
        self._noting = noting
        self._settings = resolve({})
        self._made: dict[int, _Made] = {}
        self._runs: list[_AutoRun] = []
        self._limit = RestartLimit(MAX_RUNS, RUNS_SECONDS)
        self._late_limit = RestartLimit(MAX_LATE_RUNS, LATE_SECONDS)
        self._has_refused = False
        self._is_over = False
        self._lock = threading.RLock()
        self._closer = Closer(self._end)
        self._num_ended = 0
        self._exits = ExitNote(lambda: self._num_ended + sum(run.engine.num_entries for run in self._runs))
        untraced(noting.hook)
        on_attach(self.give_way)
        atexit.register(self._leave)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    # ------------------------------------------------------------------------------------------ training thread

    def note(self, optimizer: Optimizer) -> None:
        """Take note of an optimizer that was made, and look at its gradients from now on."""
        with self._lock:
            made = self._add(optimizer)
            if self._is_over or sum(one.forerunner is not None for one in self._made.values()) >= MAX_WAITING:
                return
            made.forerunner = Forerunner(optimizer, self.look, _report)
            made.forerunner.open()
            for gone in [one for one in self._made.values() if one.reference() is None]:
                self._drop(gone)

    def look(self, optimizer: Optimizer) -> None:
        """Look at a step that begins: the first one of an optimizer begins a run."""
        try:
            with self._lock:
                if not self._is_over:
                    self._look(self._made.get(id(optimizer)) or self._add(optimizer), optimizer)
        except Exception:
            self.give_way()  # without the lock, for which the closer may wait
            raise

    def _look(self, made: _Made, optimizer: Optimizer) -> None:
        if unwrapped(optimizer) is not optimizer:
            self._settle(made)  # the one that it holds makes the steps
            return
        made.has_stepped = True
        made.num_looks += 1
        if made.run is None and not made.is_left_out:
            if not self._is_due(made):
                return
            self._begin(made, optimizer)
            made.num_looks = 1
        if made.run is not None and made.run.first is made and made.num_looks in PACE_LOOKS:
            self._look_at_pace(made.num_looks - 1, made.run)
        if made.num_looks >= NUM_LOOKS or made.is_left_out:
            self._end_abandoned(made)
            self._settle(made)

    def _add(self, optimizer: Optimizer) -> _Made:
        made = self._made[id(optimizer)] = _Made(optimizer, self._on_gone)
        return made

    def _on_gone(self, made: _Made) -> None:
        """Note that an optimizer is gone. Anywhere, and on any thread: this must not wait for a lock."""
        self._noting.settled.discard(made.id)
        self._closer.tell(made)

    def _settle(self, made: _Made) -> None:
        self._noting.settled.add(made.id)
        self._drop_forerunner(made)

    def _is_due(self, made: _Made) -> bool:
        if self._limit.allows_another() or (made.num_looks >= NUM_LOOKS and self._late_limit.allows_another()):
            return True
        if not self._has_refused:
            self._has_refused = True
            _LOG.warning(
                "%d runs have begun within %d minutes: from now on an optimizer has to make %d steps before its run "
                "begins",
                MAX_RUNS,
                RUNS_SECONDS / 60,
                NUM_LOOKS,
            )
        return False

    def _begin(self, first: _Made, optimizer: Optimizer) -> None:
        chosen = {first: optimizer, **dict(self._companions(first))}
        optimizers = named(list(chosen.values()) if len(chosen) > 1 else optimizer)
        first.beside = [(run, run.engine.num_entries) for run in self._open]
        engine = begin(optimizers, self._settings, asks_for_gpu=bool(os.environ.get(variable_of("gpu"))))
        run = _AutoRun(engine, list(chosen), SchedulePace(self._schedulers_of(optimizer)))
        self._runs.append(run)
        for one in chosen:
            one.run = run
        self._closer.start()
        self._exits.install()

    def _schedulers_of(self, optimizer: Optimizer) -> list[weakref.ref[Any]]:
        known = list(self._noting.schedulers.items())
        return [one for outer, schedulers in known if unwrapped(outer) is optimizer for one in schedulers]

    def _companions(self, first: _Made) -> Iterator[tuple[_Made, Optimizer]]:
        """Find the optimizers that train beside the first one: those that have made no step, and share no parameter."""
        taken, num_taken = first.parameters(), 1
        for one in list(self._made.values()):
            optimizer, parameters = one.reference(), one.parameters()
            is_free = one is not first and one.run is None and not one.has_stepped and not one.is_left_out
            if not is_free or optimizer is None or not parameters or unwrapped(optimizer) is not optimizer:
                continue
            if parameters.isdisjoint(taken):
                one.is_left_out = num_taken >= MAX_OPTIMIZERS
                if not one.is_left_out:
                    taken, num_taken = taken | parameters, num_taken + 1
                    yield one, optimizer

    def _look_at_pace(self, num_steps: int, run: _AutoRun) -> None:
        total = run.pace.total_steps(num_steps, run.engine.step)
        if total is not None:
            run.engine.plan(total)

    def _end_abandoned(self, made: _Made) -> None:
        """End the earlier runs none of whose optimizers has made a step since this one's began."""
        for run, num_entries in made.beside:
            if run in self._open and run.engine.num_entries == num_entries:
                self._closer.tell(run)
        made.beside = []

    # -------------------------------------------------------------------------------------------------- the end

    @property
    def _open(self) -> list[_AutoRun]:
        return [run for run in self._runs if not run.engine.is_closed]

    def _end(self, what: _AutoRun | _Made) -> None:
        """End a run, or those whose last optimizer is the one that is gone; called on the closer's thread."""
        with self._lock:
            if isinstance(what, _Made):
                self._drop(what)
                for run in self._runs:
                    run.members.discard(what)
            ended = [run for run in self._open if run is what or not run.members]
        for run in ended:
            run.engine.close_for(SystemExit if self._exits.is_asked else noted_end(run.engine))
        with self._lock:
            self._runs = [run for run in self._runs if run not in ended]
            self._num_ended += sum(run.engine.num_entries for run in ended)
            for member in (one for run in ended for one in run.members):  # if it steps once more, it begins another run
                member.run, member.num_looks = None, 0
                self._noting.settled.discard(member.id)

    def _drop(self, made: _Made) -> None:
        if self._made.get(made.id) is made:  # else its id is another's by now
            del self._made[made.id]
        self._drop_forerunner(made)

    def _drop_forerunner(self, made: _Made) -> None:
        forerunner, made.forerunner = made.forerunner, None
        if forerunner is not None:
            forerunner.close()

    def give_way(self) -> str | None:
        """End everything, as the script has attached a run of its own; return the id of the one that was open."""
        with self._lock:
            self._is_over = True
            self._noting.stop()
            ended = self._open
            for run in ended:
                run.engine.watcher.flush(FLUSH_SECONDS)  # one that has only just begun has no folder to continue yet
                run.engine.close()
            for made in self._made.values():
                self._drop_forerunner(made)
            self._runs = []
            self._exits.remove()
        self._closer.stop()
        return ended[-1].engine.id if ended else None

    def _leave(self) -> None:
        """End the runs as the program ends in disorder; where it ends in order, they end with all other runs."""
        self._closer.stop()
        kind, error = self._exits.cause()
        self._exits.remove()
        for run in self._open if kind is not None else ():
            run.engine.close_for(kind, error)

    def _forget(self) -> None:
        """Be no part of a forked child: it begins no run."""
        self._is_over = True
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._closer = Closer(self._end)
        for made in self._made.values():
            self._drop_forerunner(made)
        self._runs = []
        self._exits.remove()


def _report(component: str, error: Exception) -> None:
    _LOG.debug("failure in the monitor's %s: %r", component, error)

"""The part of a run on the training thread: the probes, the learning rates, and the step boundary at which commands are
carried out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from monitor._errors import StopTraining
from monitor._records import CommandRecord
from monitor._settings import Settings
from monitor.control import Boundary, Commands, LearningRates, LRScaling, Ranks, Stacks, StackTaker, in_force
from monitor.link import FailureReporter, InForce
from monitor.probe import NEVER, Blindness, ForwardWatch, StepBuffer, StepProbe
from monitor.run._launcher import local_rank, reachable
from monitor.run._logged import LoggedValues
from monitor.system import read_allocator, read_debug_page, read_torch_devices

MAX_STALLS = 100
"""Stalls whose stacks are taken: their events are large, and the watcher keeps them."""
STACK_SECONDS = 0.1
"""How long the end of a run waits for a stack that is being taken."""


class TrainingSide:
    """Assemble what the training thread passes through, and tell what it does.

    Args:
        optimizers: by name.
        settings: of the run.
        failures: where what is contained is noted.
        run_id: returns that of the run.
        on_checkpoint: called for a checkpoint; None: that is refused.
        on_paused: told True when training pauses and False when it continues.
        on_command: takes every command that was accepted.
        on_outcome: takes every command that has an outcome.
        place, on_place: see :class:`~monitor.control.Ranks`.
        on_stacks: takes where the training threads stand in a stall, and the address of torch's debug page or None.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        settings: Settings,
        failures: FailureReporter,
        *,
        run_id: Callable[[], str],
        on_checkpoint: Callable[[], Any] | None,
        on_paused: Callable[[bool], None],
        on_command: Callable[[CommandRecord], None],
        on_outcome: Callable[[CommandRecord], None],
        place: Callable[[], Mapping[str, Any]] = dict,
        on_place: Callable[[Mapping[str, Any]], None] = lambda _: None,
        on_stacks: Callable[[Stacks, str | None], None],
    ) -> None:
        self._failures = failures
        self._first_thread = threading.get_ident()
        self._last_activity = 0.0
        self._forward = ForwardWatch()
        num_groups = sum(len(o.param_groups) for o in optimizers.values())
        of_probe = failures.of("probe")
        self._optimizers, self._min_lr, self._host = optimizers, settings.min_lr, settings.host
        self.buffer = StepBuffer(num_groups, on_error=failures.of("step_buffer"))
        self.base_step = 0
        self.pace: tuple[float | None, float | None] = (None, None)
        """Median step time of the last second or so, and the last loss, where other ranks train along."""
        self.skipped: Mapping[str, int] = {}
        self.url: str | None = None
        """Address of the live page, once it is known."""
        self._logged = LoggedValues(self.buffer, failures.of("log"))
        scalings = {key: LRScaling(settings.min_lr) for key in optimizers}
        self.rates = LearningRates(optimizers, scalings, min_lr=settings.min_lr, allow_increase=settings.allow_increase)
        self.boundary = Boundary(
            self.rates,
            next_step=lambda: self.step + 1,
            on_checkpoint=on_checkpoint,
            on_paused=on_paused,
            stop_raises=settings.stop_raises,
            on_error=failures.of("control"),
            on_checkpoint_error=failures.of("on_checkpoint"),
            objection=lambda record: self.ranks.objection(record),
        )
        self.commands = Commands(
            self.boundary.check,
            on_waiting=self._on_waiting,
            on_accepted=on_command,
            on_finished=on_outcome,
            timeout=settings.command_timeout,
            is_training_thread=self._is_training_thread,
        )
        self.probes = [
            StepProbe(
                key,
                optimizer,
                self.buffer,
                scalings[key],
                on_boundary=self._on_boundary,
                on_error=lambda _, error: of_probe(error),
                gradient_norm=settings.gradient_norm,
                budget=settings.overhead_budget / len(optimizers),
                max_stride=settings.window,
            )
            for key, optimizer in optimizers.items()
        ]
        self._stacks = StackTaker(lambda: self._threads or {self._first_thread}, failures.of("control"))
        self._on_stacks, self._num_stalls = on_stacks, 0
        self.ranks = Ranks(
            run_id,
            self.commands,
            check_effect=self.boundary.check_effect,
            num_steps=lambda: self.probes[0].number,
            call_at=self._call_at,
            own_state=self._own_state,
            place=place,
            on_place=on_place,
            take_stack=self._stacks.begin,
            on_error=self._on_ranks_error,
        )
        self._blindness = Blindness(self.probes)

    def enter(self) -> None:
        """Be the same run on every rank; to be called before anything looks for the other ranks."""
        self._failures.contain("control", lambda: self.ranks.enter(self._optimizers))

    def open(self) -> None:
        """Put every hook and patch in place, and look for the other ranks."""
        self._failures.contain("control", self.ranks.look)
        self._failures.contain("control", lambda: self.rates.open(self._failures.of("control")))
        for probe in self.probes:
            self._failures.contain("probe", probe.open)

    def release(self) -> None:
        """Let a paused thread continue, and take no more commands: the run ends."""
        self._failures.contain("control", self.boundary.close)
        self._failures.contain("control", self.ranks.close)
        self._failures.contain("control", lambda: self._stacks.join(STACK_SECONDS))
        self._failures.contain("control", self.commands.close)
        self._failures.contain("probe", self._forward.close)

    def let_go(self) -> None:
        """Keep no param group and no function of the user's."""
        self.rates.let_go()
        self.boundary.let_go()

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions included."""
        return self._made + self.base_step

    def continue_at(self, step: int) -> None:
        """Count the steps made so far as ``step``."""
        self.base_step = step - self._made

    @property
    def _made(self) -> int:
        first = self.probes[0]
        return first.number - self.skipped.get(first.key, 0)

    def in_force(self) -> InForce:
        """Return factor and floor of every param group as they are now."""
        return in_force(self._optimizers, self._min_lr)

    def guesses(self) -> Mapping[str, float]:
        """Return the loss of a model that only guesses, by optimizer, where its loss function tells."""
        return {probe.key: guess for probe in self.probes if (guess := probe.attribution.guess) is not None}

    def devices(self) -> tuple[str, ...] | None:
        """Return the UUIDs of torch's devices; None while CUDA is not initialised."""
        return read_torch_devices()

    def allocator(self, index: int) -> Mapping[str, float]:
        """Return what torch's allocator says of a device."""
        return read_allocator(index)

    def log(self, **values: Any) -> None:
        """Note what the user logs."""
        self._logged.note(self.probes, **values)

    def want_details(self) -> None:
        """Have the next step note what need not be noted at every step."""
        for probe in self.probes:
            probe.wants_details = True

    def is_excused(self, *, is_stall_near: bool) -> bool:
        """Tell whether a pause, a checkpoint, or batches or forward passes without steps (a validation) explain the
        lack of steps. Forward passes are looked for only when a stall is near."""
        before = self._last_activity
        return self.look(is_stall_near=is_stall_near) > before or self.boundary.is_busy

    def look(self, *, is_stall_near: bool) -> float:
        """Return when a training thread was last seen to do something (``perf_counter``)."""
        threads = self._threads
        activity = max(self._forward.last_call(threads), *(p.last_activity for p in self.probes))
        has_moved, self._last_activity = activity > self._last_activity, max(activity, self._last_activity)
        self._forward.wait_for(threads if is_stall_near and not has_moved else set())
        return self._last_activity

    def blind_spots(self) -> list[tuple[str, str]]:
        """Return, once for each optimizer, why its steps are not seen, and its name."""
        return self._blindness.look()

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread, by its identifier, has made the latest steps."""
        return any(probe.thread == thread for probe in self.probes)

    def _is_training_thread(self) -> bool:
        return threading.get_ident() in (self._threads or {self._first_thread})

    @property
    def _threads(self) -> set[int]:
        """The threads that have made the latest steps, by their identifiers."""
        return {probe.thread for probe in self.probes if probe.thread}

    def note_stall(self) -> None:
        """Have it found out where the training threads stand, on rank 0 those of all ranks; wait for nothing."""
        self._num_stalls += 1
        if self._num_stalls <= MAX_STALLS:
            self._failures.contain("control", lambda: self._stacks.begin(self._gather_stacks))

    def _gather_stacks(self, own: str) -> None:
        self._on_stacks(self.ranks.gather_stacks(own), read_debug_page())

    def _on_waiting(self) -> None:
        """Have a command that was accepted taken: by the training thread, or first by the other ranks."""
        if self.ranks.are_several:
            self.ranks.wake()
            return
        for probe in self.probes:
            probe.boundary_at = 0
        self.boundary.wake()

    def _on_ranks_error(self, error: Exception) -> None:
        """Say in one line that the store of the process group is gone; anything else is a failure of ours."""
        first = str(error).partition("\n")[0]
        line = (
            f"no commands and no states of the ranks for now: the process group's store does not answer ({first}); "
            "training continues"
        )
        self._failures.note("control", error, line=line if isinstance(error, RuntimeError) else "")

    def _own_state(self) -> Mapping[str, Any]:
        step_time, loss = self.pace
        return {
            "host": socket.gethostname(),
            "step": self.step,
            "step_time": step_time,
            "loss": loss,
            "url": reachable(self.url, self._host) if local_rank() == 0 else "",
        }

    def _call_at(self, num_steps: int) -> None:
        self.probes[0].boundary_at = num_steps
        self.boundary.wake()

    def _on_boundary(self, _: StepProbe) -> None:
        for each in self.probes:
            each.boundary_at = NEVER
        try:
            self.boundary.pass_through(self.commands, self.ranks.take)
        except StopTraining:
            raise
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            self._failures.note("control", error)
        finally:
            self.ranks.call_for_next()

"""The side of a run that stands on the training thread: the probes, the learning rates, and the step boundary at which
commands are carried out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from monitor._errors import StopTraining
from monitor._records import CommandRecord
from monitor._settings import Settings
from monitor.control import Boundary, Commands, LearningRates, LRScaling
from monitor.probe import Blindness, Decoder, ForwardWatch, StepProbe, Tape
from monitor.run._log import Failures
from monitor.run._logged import LoggedValues


class TrainingSide:
    """Assemble what the training thread passes through, and tell what it does.

    Args:
        optimizers: by name.
        settings: of the run.
        failures: where what is contained is noted.
        on_checkpoint: called for a checkpoint; None: that is refused.
        on_paused: told True when training pauses and False when it continues.
        on_outcome: takes every command that has an outcome.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        settings: Settings,
        failures: Failures,
        *,
        on_checkpoint: Callable[[], Any] | None,
        on_paused: Callable[[bool], None],
        on_outcome: Callable[[CommandRecord], None],
    ) -> None:
        self._failures = failures
        self._first_thread = threading.get_ident()
        self._last_activity = 0.0
        self._forward = ForwardWatch()
        num_groups = sum(len(o.param_groups) for o in optimizers.values())
        of_tape, of_probe = failures.of("tape"), failures.of("probe")
        self._decoder = Decoder()
        self.tape = Tape(self._decoder.decode, num_groups, on_error=lambda _, error: of_tape(error))
        self._logged = LoggedValues(self.tape, failures.of("log"))
        doors = {key: LRScaling(settings.min_lr) for key in optimizers}
        self.rates = LearningRates(optimizers, doors, min_lr=settings.min_lr, allow_increase=settings.allow_increase)
        self.boundary = Boundary(
            self.rates,
            next_step=lambda: self.step + 1,
            on_checkpoint=on_checkpoint,
            on_paused=on_paused,
            stop_raises=settings.stop_raises,
            on_error=failures.of("control"),
            on_checkpoint_error=failures.of("on_checkpoint"),
        )
        self.commands = Commands(
            self.boundary.check,
            on_waiting=self._call_training_thread,
            on_finished=on_outcome,
            timeout=settings.command_timeout,
            is_training_thread=self._is_training_thread,
        )
        self.boundary.commands = self.commands
        self.probes = [
            StepProbe(
                key,
                optimizer,
                self.tape,
                doors[key],
                on_boundary=self._on_boundary,
                on_error=lambda _, error: of_probe(error),
                gradient_norm=settings.gradient_norm,
                budget=settings.overhead_budget / len(optimizers),
                max_stride=settings.window,
            )
            for key, optimizer in optimizers.items()
        ]

        self._blindness = Blindness(self.probes)

    def open(self) -> None:
        """Put every hook and patch in place."""
        self._failures.contain("control", lambda: self.rates.open(self._failures.of("control")))
        for probe in self.probes:
            self._failures.contain("probe", probe.open)

    def release(self) -> None:
        """Let a paused thread go on, and take no more commands: the run ends."""
        self.boundary.is_closed = True
        self._failures.contain("control", self.boundary.wake)
        self._failures.contain("control", self.commands.close)
        self._failures.contain("probe", self._forward.close)

    def let_go(self) -> None:
        """Keep no param group and no function of the user's."""
        self.rates.let_go()
        self.boundary.let_go()

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions included."""
        return self._made + self._decoder.base_step

    @step.setter
    def step(self, step: int) -> None:
        self._decoder.base_step = step - self._made

    @property
    def _made(self) -> int:
        first = self.probes[0]
        return first.number - self._decoder.num_skipped(first.key)

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
        threads = {p.thread for p in self.probes if p.thread}
        activity = max(self._forward.last_call(threads), *(p.last_activity for p in self.probes))
        has_moved, self._last_activity = activity > self._last_activity, max(activity, self._last_activity)
        self._forward.wait_for(threads if is_stall_near and not has_moved else set())
        return has_moved or self.boundary.is_busy

    def blind_spots(self) -> list[tuple[str, str]]:
        """Return, once for each optimizer, why its steps are not seen, and its name."""
        return self._blindness.look()

    def is_trained_by(self, thread: int | None) -> bool:
        """Tell whether this thread, by its identifier, has made the latest steps."""
        return any(probe.thread == thread for probe in self.probes)

    def _is_training_thread(self) -> bool:
        threads = {p.thread for p in self.probes if p.thread}
        return threading.get_ident() in (threads or {self._first_thread})

    def _call_training_thread(self) -> None:
        for probe in self.probes:
            probe.has_errand = True
        self.boundary.wake()

    def _on_boundary(self, _: StepProbe) -> None:
        for each in self.probes:
            each.has_errand = False
        try:
            self.boundary.pass_through()
        except StopTraining:
            raise
        except Exception as error:  # noqa: BLE001
            self._failures.note("control", error)

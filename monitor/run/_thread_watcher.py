"""The watcher on threads of the training process: for where no process can be started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor._records import CommandRecord, Event, RankReading, RunInfo, Snapshot, State, Step
from monitor.link import FailureReporter, Hello, InForce
from monitor.run._callbacks import Callbacks
from monitor.run._training_side import TrainingSide
from monitor.watcher import Watcher

MOMENT_SECONDS = 0.5
"""How long the end of a run waits for the last shares of the other ranks, or for its own to be sent."""


class LocalTraining:
    """The training process as a watcher on one of its own threads sees it."""

    def __init__(self, training: TrainingSide, callbacks: Callbacks, begin_round: Callable[[], None]) -> None:
        self._training = training
        self._commands = training.commands
        self._begin_round = begin_round
        self.on_step: Callable[[Step], None] = callbacks.on_step
        self.on_event: Callable[[Event], None] = callbacks.on_event

    @property
    def is_paused(self) -> bool:
        """Tell whether the training waits at a step boundary."""
        return self._training.boundary.is_paused

    @property
    def in_force(self) -> InForce:
        """The LR factors that are in force now."""
        return self._training.in_force()

    @property
    def failures(self) -> Mapping[str, int]:
        """None apart from those that the shared reporter counts."""
        return {}

    @property
    def totals(self) -> Mapping[tuple[str, str, str], int]:
        """How many commands have had which outcome."""
        return self._commands.totals

    @property
    def last_applied(self) -> Mapping[str, float]:
        """When each action was last applied, as Unix time."""
        return self._commands.last_applied

    def submit(self, action: str, **fields: Any) -> CommandRecord:
        """Queue a command."""
        return self._commands.submit(action, **fields).record

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        return self._commands.get(id)

    def waiting(self) -> Sequence[CommandRecord]:
        """Return the commands that wait for the next step."""
        return self._commands.waiting()

    def is_excused(self, *, is_stall_near: bool) -> bool:
        """Tell whether something explains the lack of steps since the last call."""
        self._begin_round()
        return self._training.is_excused(is_stall_near=is_stall_near)

    @property
    def guesses(self) -> Mapping[str, float]:
        """The loss of a model that only guesses, by optimizer."""
        return self._training.guesses()

    @property
    def are_several(self) -> bool:
        """Tell whether other ranks train along."""
        return self._training.ranks.are_several

    @property
    def ranks(self) -> tuple[RankReading, ...]:
        """How far each rank is, where this is rank 0."""
        return self._training.ranks.readings

    def note_pace(self, step_time: float, loss: float | None) -> None:
        """Take the median step time of the last second or so, and the last loss."""
        self._training.pace = step_time, loss

    def note_stall(self) -> None:
        """Have it found out where the training threads stand."""
        self._training.note_stall()

    def devices(self) -> Sequence[str] | None:
        """Return the UUIDs of torch's devices."""
        return self._training.devices()

    def allocator(self, index: int) -> Mapping[str, float]:
        """Return what torch's allocator says of a device."""
        return self._training.allocator(index)

    def end_round(self, skipped: Mapping[str, int]) -> None:
        """Take over how many steps have turned out to be skipped."""
        self._training.skipped = skipped


class ThreadWatcher:
    """A watcher on threads of this process.

    Args:
        hello: the run.
        training: what stands on the training thread.
        callbacks: called on the recorder's thread.
        failures: where what is contained is noted.
        begin_round: called in every round, on the recorder's thread.
    """

    def __init__(
        self,
        hello: Hello,
        training: TrainingSide,
        callbacks: Callbacks,
        failures: FailureReporter,
        begin_round: Callable[[], None],
    ) -> None:
        self._settings, self._failures, self._buffer = hello.settings, failures, training.buffer
        self._side = training
        local = LocalTraining(training, callbacks, begin_round)
        self.watcher = Watcher(hello, local, failures, fetch=training.buffer.take)

    def open(self) -> None:
        """Start everything. Raises as :meth:`monitor.watcher.Watcher.open`."""
        self.watcher.open()
        self._side.url = self.watcher.publisher.url

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return self.watcher.publisher.url

    @property
    def has_folder(self) -> bool:
        """Tell whether the run has a folder."""
        return self.watcher.publisher.has_folder

    def post(self, event: Event) -> None:
        """Hand in an event."""
        self.watcher.recorder.post(event)

    def set_state(self, state: State) -> None:
        """Set what is shown as the run's state."""
        self.watcher.recorder.set_state(state)

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Set which of how many ranks the run is."""
        self.watcher.set_ranks(world_size, rank)

    def set_target(self, total_steps: int) -> None:
        """Set how many steps are planned."""
        self.watcher.recorder.set_target(total_steps)

    def join(self, place: Mapping[str, Any], rank: int) -> None:
        """Be part of the sums over the ranks."""
        self._failures.contain("link", lambda: self.watcher.join(place, rank))

    def note_command(self, record: CommandRecord) -> None:
        """Keep a command; the watcher sees the queue itself."""
        self.watcher.note_command(record)

    def snapshot(self) -> Snapshot:
        """Return the latest published state."""
        return self.watcher.reports.snapshot()

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        return self.watcher.reports.history(since, points)

    def events(self, since: int) -> tuple[Event, ...]:
        """Return the events after a sequence number."""
        return self.watcher.reports.events(since)

    def flush(self, timeout: float, *, with_sums: bool = True) -> bool:
        """Wait until what was recorded so far is in the snapshot."""
        return self.watcher.recorder.flush(timeout, self._buffer.last_sequence, with_sums=with_sums)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of recorder and detectors."""
        self.flush(5.0, with_sums=False)  # a checkpoint does not wait for other ranks
        return self.watcher.state_dict()

    def load(self, base_step: int, smoothing: Any, detectors: Any) -> None:
        """Continue from the state of an earlier session."""
        self.watcher.load(base_step, smoothing, detectors)

    def resume(self, info: RunInfo, base_step: int) -> None:
        """Continue an earlier run that this process has claimed."""
        self._failures.contain("recorder", lambda: self.watcher.resume(info, base_step))

    def end(self, state: State, end: float, note: Callable[[], None], exception: str = "") -> None:
        """Record the end of the run: everything that can be done without waiting for somebody else."""
        watcher, contain = self.watcher, self._failures.contain
        contain("link", lambda: watcher.settle(MOMENT_SECONDS))
        contain("recorder", lambda: watcher.end(state, end, exception))
        contain("recorder", note)
        contain("recorder", watcher.recorder.stop)
        contain("link", lambda: watcher.shares.close(MOMENT_SECONDS))
        contain("system", lambda: watcher.sampler.stop(2.0))
        contain("folder", lambda: watcher.publisher.finish(state, end))

    def wait(self) -> None:
        """Wait for a last scrape, if the settings say so."""
        self.watcher.publisher.wait(self._settings.wait_for_scrape)

    def leave(self) -> None:
        """Free the port and the folder."""
        self._failures.contain("server", self.watcher.publisher.stop)
        self._failures.contain("folder", self.watcher.publisher.withdraw)

    def forget(self) -> None:
        """Let go of everything in a forked child: the threads have stayed behind."""
        self.watcher.publisher.forget()

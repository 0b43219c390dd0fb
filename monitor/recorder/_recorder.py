"""The recorder: digests what the training thread left in the step buffer, and publishes a snapshot."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from monitor._records import Event, RunInfo, Sample, Snapshot, State, Step
from monitor.common import Loop, contained
from monitor.recorder._course import Course
from monitor.recorder._events import EventLog
from monitor.recorder._past import Past, resumption
from monitor.recorder._sight import LossSight
from monitor.recorder._totals import RunTotals

WORK_SECONDS = 0.0002
"""How long the recorder works before it lets go of the interpreter lock. Python takes the lock from a thread only after
5 ms, and the training thread, which gives it up at every operation of torch, would wait so long to have it back."""
REST_SECONDS = 0.00005
"""How long it rests then: as long as it takes the other thread to wake up."""
_MEMORY = (
    "log",
    "_began",
    "_offset",
    "_totals",
    "_course",
    "_sights",
    "_held",
    "_holds_back",
    "sums",
    "_state",
    "_snapshot",
)
"""The attributes of a recorder that are learnt from the run."""


class Source(Protocol):
    """Where steps come from."""

    num_dropped: int

    def drain(self, wall_offset: float) -> Iterable[Step | Sample]:
        """Take what has arrived, oldest first."""

    @property
    def drained_sequence(self) -> int:
        """Number of the last entry drained."""


class Sums(Protocol):
    """Where rank 0's steps wait for the shares of the other ranks: see :class:`monitor.ranks.StepSums`."""

    num_incomplete: int
    num_summed: int

    @property
    def num_put(self) -> int:
        """Records that were put in so far."""

    @property
    def num_taken(self) -> int:
        """Records that were taken out so far."""

    def amend(self, optimizer: str, global_step: int, loss: float) -> bool:
        """Give a step that still waits another loss; tell whether it was there."""

    def put(self, record: Step | Sample) -> None:
        """Take a record."""

    def take(self, *, is_last: bool = False) -> list[Step | Sample]:
        """Return what waits no longer, in order."""


class Recorder:
    """Digest steps on a thread of its own.

    Args:
        source: where steps come from.
        run: identity of the run.
        optimizers: name -> class name, in the order of ``attach``; the first one paces the run.
        window: steps in the trailing windows.
        target_steps, stall_timeout: shown as they are.
        detect: called with each step or validation loss, in order; returns events. Must not raise.
        sums: where steps wait for the shares of other ranks; None: there are none.
        on_step: called with each step, the smoothed loss after it, and its Unix time as it is shown. Must not raise.
        on_sample: called with each value that was logged, and its Unix time. Must not raise.
        on_event: called with every event, in order. Must not raise.
        on_tick: called once a round with the time on the clock of ``Step.time``, before the snapshot is published.
            Must not raise.
        on_error: takes the exception of a record, an event or a snapshot that failed.
        interval: seconds between rounds.
        clock: Unix time, for what is shown. It may be set while the run continues.
        counter: the monotonic clock of the entries, for ages, durations and rates.
        on_round: called at the end of each round, once its snapshot is published. Must not raise.
        rest: called with seconds to let the training thread work; None where it is in another process.
    """

    def __init__(
        self,
        source: Source,
        run: RunInfo,
        optimizers: Mapping[str, str],
        *,
        window: int = 128,
        target_steps: int | None = None,
        stall_timeout: float = 600.0,
        detect: Callable[[Step | Sample], Iterable[Event]] = lambda _: (),
        sums: Sums | None = None,
        on_step: Callable[[Step, float | None, float], None] = lambda *_: None,
        on_sample: Callable[[Sample, float], None] = lambda *_: None,
        on_event: Callable[[Event], None] = lambda _: None,
        on_tick: Callable[[float], None] = lambda _: None,
        on_round: Callable[[], None] = lambda: None,
        on_error: Callable[[Exception], None],
        interval: float = 0.25,
        clock: Callable[[], float] = time.time,
        counter: Callable[[], float] = time.perf_counter,
        rest: Callable[[float], None] | None = time.sleep,
    ) -> None:
        self.log = EventLog()
        self._source = source
        self._detect = detect
        self.sums = sums
        self._on_step, self._on_sample = on_step, on_sample
        self._on_event = on_event
        self._on_tick = on_tick
        self._on_round = on_round
        self._on_error = on_error
        self._clock = clock
        self._counter = counter
        self._began = counter()
        self._offset = clock() - self._began  # once for all: no setting of the clock moves what is measured
        self._set_by = 0.0  # how far the wall clock has been set since then
        self._rest = rest
        self._totals = RunTotals(optimizers, window)
        self._course = Course(optimizers)
        self._awaited: tuple[RunInfo, int, float] | None = None
        self._past: Past | None = None
        self._recorded_step: int | None = None
        self._sights = {key: LossSight(key) for key in optimizers}
        self._held: dict[str, Step] = {}
        self._holds_back = False
        self._inbox: deque[Event] = deque(maxlen=1000)
        self._posted_before: deque[Event] = deque()  # before the start, and so before any step
        self._state: State = "starting"
        self._about_ranks: dict[str, Any] = {}
        self._target_steps = target_steps
        self._end_time: float | None = None
        self._elapsed: float | None = None
        self._snapshot = Snapshot(
            run=run,
            state="starting",
            time=clock(),
            target_steps=target_steps,
            stall_timeout=stall_timeout,
            events_total=dict(self.log.totals),
            events_active=dict(self.log.active),
            optimizers=self._totals.optimizers(),
            **self._totals.view(),
        )
        self._loop = Loop(
            "monitor-recorder",
            lambda: self.run_once(self._loop.is_awaited),
            interval,
            on_error=on_error,
            on_end=lambda: self.run_once(is_last=True),
            counter=counter,
        )

    # -------------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the thread."""
        self._posted_before, self._inbox = self._inbox, deque(maxlen=1000)
        self._loop.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Digest what is left and end the thread."""
        self._loop.stop(timeout)

    def flush(self, timeout: float, sequence: int = 0, *, with_sums: bool = True) -> bool:
        """Wait until every entry up to a number has been digested and published, ``with_sums`` also once the shares of
        the other ranks are there; False if that took longer."""
        goal: list[int] = []

        def is_through() -> bool:
            if self._source.drained_sequence < sequence:
                return False
            if self.sums is None or not with_sums:
                return True
            goal.append(self.sums.num_put)
            return bool(self.sums.num_taken >= goal[0])

        return self._loop.wait(is_through, timeout)

    def run_once(self, releases_held: bool = True, *, is_last: bool = False) -> None:
        """Make one round: drain, digest, publish; in the last one wait for no share. Failures are contained record by
        record."""
        if not contained(self._on_error, self._has_past, default=True):
            return
        contained(self._on_error, self._add_posted, self._posted_before)
        contained(self._on_error, self._drain)
        if releases_held:
            for key in list(self._held):
                contained(self._on_error, self._pass_on, self._held.pop(key))
        contained(self._on_error, self._release, is_last)
        contained(self._on_error, self._add_posted, self._inbox)
        contained(self._on_error, lambda: self._on_tick(self._counter() + self._offset))
        contained(self._fail_to_publish, self._publish)
        contained(self._on_error, self._on_round)

    def _release(self, is_last: bool) -> None:
        """Digest the steps for which all shares are there, or all of them."""
        for record in () if self.sums is None else self.sums.take(is_last=is_last):
            contained(self._on_error, self._record, record)

    def _publish(self) -> None:
        self._snapshot = self._build()

    def _fail_to_publish(self, error: Exception) -> None:
        self._on_error(error)
        if self._end_time is not None:  # whatever else is not known: that the run has ended is
            self._snapshot = replace(self._snapshot, state=self._state, end_time=self._end_time)

    def resume(self, run: RunInfo, base_step: int, seconds: float) -> None:
        """Continue an earlier session from a step; no step must have been made yet. Nothing is digested before
        :meth:`take_past` has been called, for ``seconds`` at most."""
        self._awaited = run, base_step, self._counter() + seconds

    def take_past(self, past: Past) -> None:
        """Take what the earlier session has recorded, from any thread."""
        self._past = past
        self._loop.wake()

    def wait_for_past(self, timeout: float) -> None:
        """Wait until it has been taken over, ``timeout`` seconds at most."""
        self._loop.wait(lambda: self._awaited is None, timeout)

    def _has_past(self) -> bool:
        """Tell whether nothing earlier is still to be taken over; take it over once it is there."""
        if self._awaited is None:
            return True
        run, base_step, deadline = self._awaited
        past, is_late = self._past, self._counter() > deadline or self._end_time is not None
        if past is None and not is_late:
            return False
        self._awaited = self._past = None
        self._take_over(run, base_step, past or Past())
        return True

    def _take_over(self, run: RunInfo, base_step: int, past: Past) -> None:
        self.begin_at(base_step)  # nothing is awaited or recorded yet: this says nothing
        self._snapshot = replace(self._snapshot, run=run)
        self._began -= past.elapsed_seconds
        self.log.begin_after(past.events, past.last_seq, past.events_total)
        for posted in (self._posted_before, self._inbox):  # another run was said to start
            for event in [one for one in posted if one.details.get("state") == "starting"]:
                posted.remove(event)
        self._course.begin_with(past)
        self._totals.keep_best(lambda key: past.best(key, base_step))
        self._recorded_step = past.last_step
        self._add_event(resumption(run.run_id, base_step, past.last_step))

    def begin_at(self, base_step: int) -> None:
        """Show a step until the first one is made. A session that was to continue elsewhere says so once more."""
        before = self._totals.begin_at(base_step)
        if self._awaited is not None:
            run, _, deadline = self._awaited
            self._awaited = run, base_step, deadline
        elif self._recorded_step is not None and base_step != before and self._totals.last_time is None:
            self.post(resumption(self._snapshot.run.run_id, base_step, self._recorded_step))

    def _add_posted(self, posted: deque[Event]) -> None:
        while posted:
            contained(self._on_error, self._add_event, posted.popleft())

    def _drain(self) -> None:
        rested = self._counter()
        self._set_by = self._clock() - rested - self._offset
        for record in self._source.drain(self._offset):
            contained(self._on_error, self._digest, record)
            rest = self._rest
            if rest is not None and self._counter() - rested > WORK_SECONDS and not self._loop.is_awaited:
                rest(REST_SECONDS)
                rested = self._counter()

    # ------------------------------------------------------------------------------------------------ digest

    def _digest(self, record: Step | Sample) -> None:
        if isinstance(record, Sample):
            if record.kind == "loss":
                self._on_sample(record, record.time + self._set_by)
                self._amend(record)
            else:
                self._pass_on(record)
            return
        held = self._held.pop(record.optimizer, None)
        if held is not None:
            self._pass_on(held)
        if self._holds_back:  # the loss of this step may still be logged
            self._held[record.optimizer] = record
        else:
            self._pass_on(record)

    def _pass_on(self, record: Step | Sample) -> None:
        """Record what is known of this rank, once the shares of the other ranks are there."""
        if self.sums is None:
            self._record(record)
        else:
            self.sums.put(record)

    def _record(self, record: Step | Sample) -> None:
        if isinstance(record, Step):
            self._record_step(record)
        else:
            self._record_sample(record)

    def _record_step(self, step: Step) -> None:
        ema = self._totals.add_step(step)
        shown_time = step.time + self._set_by
        self._course.add(step, ema, shown_time)
        self._on_step(step, ema, shown_time)
        for event in self._detect(step):
            self._add_event(event)
        self._say(self._sights[step.optimizer].add(step))

    def _record_sample(self, sample: Sample) -> None:
        self._on_sample(sample, sample.time + self._set_by)
        self._totals.add_sample(sample)
        if sample.kind in ("val_loss", "metric"):
            for event in self._detect(sample):
                self._add_event(event)

    def _amend(self, sample: Sample) -> None:
        """Give the last step the loss that was logged after it; from now on a step waits for what is logged
        after it."""
        self._holds_back = True
        key = sample.name
        held = self._held.get(key)
        if held is not None and held.global_step == sample.step:
            self._held[key] = replace(held, loss=sample.value)
        elif self.sums is None or not self.sums.amend(key, sample.step, sample.value):
            self._totals.amend_loss(key, sample.value)
            self._say(self._sights[key].amend(sample.step))

    def _say(self, event: Event | None) -> None:
        if event is not None:
            self._add_event(event)

    def _add_event(self, event: Event) -> None:
        self._on_event(self.log.add(event, self._clock()))

    # ----------------------------------------------------------------------------------------------- publish

    def post(self, event: Event) -> None:
        """Hand in an event from any thread; it is numbered and logged in the next round, after the steps that have
        arrived until then; one that is handed in before the start, before all steps."""
        self._inbox.append(event)

    @property
    def num_posted(self) -> int:
        """Events that wait for the next round."""
        return len(self._inbox)

    def set_state(self, state: State, end_time: float | None = None) -> None:
        """Set what the next snapshot shows as the run's state."""
        self._elapsed = None if end_time is None else self._counter() - self._began
        self._state, self._end_time = state, end_time

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Set which of how many ranks the next snapshot shows, where that was not known at the start."""
        self._about_ranks.update(world_size=world_size, rank=rank)

    def set_leader(self, run_id: str) -> None:
        """Set of which run the next snapshot says that it shows the steps of this rank."""
        self._about_ranks.update(leader=run_id)

    def set_target(self, target_steps: int) -> None:
        """Set how many steps the next snapshot shows as planned, where that was not known at the start."""
        self._target_steps = target_steps

    @property
    def snapshot(self) -> Snapshot:
        """The last published snapshot."""
        return self._snapshot

    def _build(self) -> Snapshot:
        last, totals, log = self._snapshot, self._totals, self.log
        optimizers, known, state = totals.optimizers(), totals.view(), self._state
        rate = known["steps_per_second"]
        if state == "starting" and totals.last_time is not None:
            state = "running"
        eta = None
        if self._target_steps is not None and rate and self._end_time is None:
            eta = max(0.0, (self._target_steps - optimizers[0].global_step) / rate)
        return replace(
            last,
            run=replace(last.run, **self._about_ranks),
            state=state,
            target_steps=self._target_steps,
            time=self._clock(),
            elapsed_seconds=self._counter() - self._began if self._elapsed is None else self._elapsed,
            end_time=self._end_time,
            last_step_time=None if totals.last_time is None else totals.last_time + self._set_by,
            optimizers=optimizers,
            eta_seconds=eta,
            events_total=dict(log.totals),
            events_active=dict(log.active),
            last_event_time=dict(log.last_time),
            last_event_step=dict(log.last_step),
            last_event_seq=log.last_seq,
            dropped_steps=self._source.num_dropped,
            summed_ranks=1 if self.sums is None else self.sums.num_summed,
            incomplete_steps=0 if self.sums is None else self.sums.num_incomplete,
            **known,
        )

    def memory(self) -> dict[str, Any]:
        """Return all that has been learnt, for another recorder of the same run. To be called between two rounds."""
        return {name: getattr(self, name) for name in _MEMORY}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take over what another recorder has learnt, before the first round."""
        for name in _MEMORY:
            setattr(self, name, memory[name])

    def smoothing(self) -> dict[str, dict[str, Any]]:
        """Return the smoothed loss of each optimizer and its best, as plain values."""
        return self._totals.smoothing()

    def load_smoothing(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from the smoothed losses of an earlier session."""
        self._totals.load_smoothing(state)

    def time_of(self, cursor: int) -> float:
        """Return the time of the last step up to a cursor of :meth:`history`, in seconds of ``counter``; 0 before the
        first step."""
        return max(0.0, self._course.time_of(cursor) - self._offset)

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor, as :meth:`Course.history` does."""
        return self._course.history(since, points)

"""The watcher of a run: recorder, detectors, readings, folder and server, wherever they run."""

from __future__ import annotations

import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from monitor._errors import StoreError
from monitor._records import CommandRecord, Event, RunInfo, Sample, State, Step
from monitor._settings import SECRETS
from monitor.link import FailureReporter, Hello, Refusals
from monitor.ranks import StepSums
from monitor.recorder import Decoder, EntrySource, Recorder
from monitor.store import PATIENCE_SECONDS
from monitor.system import GpuReader, HostReader, SystemSampler
from monitor.watcher._detection import Detection
from monitor.watcher._pace import Pace
from monitor.watcher._publisher import Publisher
from monitor.watcher._reports import Reports
from monitor.watcher._run_store import RunStore
from monitor.watcher._shares import END_SECONDS, Shares
from monitor.watcher._training import Training

PAST_SECONDS = 30.0
"""How long the recorder waits for what earlier sessions have left on the disk; steps wait in the buffer meanwhile."""
"""Settings that are written nowhere but into files of their own."""


class Watcher:
    """Watch a run: in a process of its own, or on threads of the training process.

    Args:
        hello: the run.
        training: the training process.
        failures: where what is contained is noted.
        fetch: returns the entries that have arrived; None: they are handed to ``source``.
        process: psutil's process of the training; None: this one.
        is_apart: it has a process of its own.
        on_round: called after each round, on the recorder's thread.
    """

    def __init__(
        self,
        hello: Hello,
        training: Training,
        failures: FailureReporter,
        *,
        fetch: Callable[[], list[bytes]] | None = None,
        process: Any = None,
        is_apart: bool = False,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        settings, self._training, self._hello = hello.settings, training, hello
        self._failures = failures
        self._wants_steps = hello.wants_steps
        self._leader = self._leader_host = ""
        self._num_put = 0
        self._after_round = on_round
        self.source = EntrySource(
            Decoder(hello.base_step, hello.skipped), failures.of("step_buffer"), fetch, hello.first_sequence
        )
        self._detection = Detection(
            list(hello.optimizers),
            hello.detectors,
            settings=settings,
            on_error=failures.of("detect"),
        )
        self._pace = Pace(next(iter(hello.optimizers)))
        self._refusals = Refusals()
        self._store = RunStore(
            _store_reporter(failures), max_bytes=settings.store_bytes, is_continued=hello.is_continued
        )
        self.shares = Shares(hello, failures, self._on_joined)
        self.recorder = Recorder(
            self.source,
            hello.info,
            hello.optimizers,
            window=settings.window,
            target_steps=settings.total_steps,
            stall_timeout=settings.stall_timeout,
            detect=self._digest,
            sums=self.shares.sums,
            on_step=self._on_step,
            on_sample=self._store.add_sample,
            on_event=self._on_event,
            on_tick=self._on_tick,
            on_round=self._on_round,
            on_error=failures.of("recorder"),
            interval=settings.digest_interval,
            rest=None if is_apart else time.sleep,
        )
        self.sampler = SystemSampler(
            settings.system_interval,
            HostReader(process=process),
            GpuReader(
                torch_devices=training.devices,
                allocator_stats=training.allocator,
                pid=hello.info.pid,
                is_asked=hello.asks_for_gpu,
            )
            if settings.gpu
            else None,
            failures.of("system"),
            on_reading=self._store.add_reading,
        )
        self.reports = Reports(self.recorder, self.sampler, training, failures, self._own_times)
        self.publisher = Publisher(
            hello,
            store=self._store,
            reports=self.reports,
            training=training,
            failures=failures,
            on_past=self.recorder.take_past,
        )

    # ------------------------------------------------------------------------------------------------- life

    def open(self) -> None:
        """Start everything. What can fail without harm is reported, and the run continues without it.

        Raises:
            ValueError: for a ``directory`` that can never be one or a certificate that cannot be used.
        """
        self.publisher.open_folder()
        if not self._hello.memory:  # no other watcher has numbered an event of this run that is known
            self._begin()
        self._failures.contain("link", lambda: self.shares.open(self.recorder.sums))
        if self._hello.place is not None:
            self.join(self._hello.place, self._hello.rank)
        self._failures.contain("recorder", self.recorder.start)
        self._failures.contain("system", self.sampler.start)
        self._store.set_facts(_facts_of(self._hello))
        self.publisher.open_server()
        self.publisher.tidy()

    def _begin(self) -> None:
        """Have the start recorded, or that an earlier session continues."""
        info, base_step = self._hello.info, self._hello.base_step
        if info.resume_time is None:
            self.recorder.post(_start_of(info.run_id))
            return
        self.recorder.resume(info, base_step, PAST_SECONDS)
        self.publisher.read_past()

    def resume(self, info: RunInfo, base_step: int) -> None:
        """Continue an earlier session of a run that this process has claimed, from a step, in the place of the run that
        was to begin. No step must have been made. Asked once more, as a watcher that has taken over may be, do nothing.
        """
        if self.recorder.snapshot.run == info:
            return
        self._hello = replace(self._hello, info=info, base_step=base_step)
        self.recorder.resume(info, base_step, PAST_SECONDS)
        self.publisher.move(info)
        self.recorder.wait_for_past(PATIENCE_SECONDS)
        self._store.set_facts(_facts_of(self._hello))

    def set_ranks(self, world_size: int, rank: int) -> None:
        """Know which of how many ranks the run is, where ``attach`` came before the process group."""
        info = replace(self._hello.info, world_size=world_size, rank=rank)
        self.shares.rank = rank
        self._hello = replace(self._hello, info=info)
        self.recorder.set_ranks(world_size, rank)
        self.publisher.set_ranks(world_size, rank)
        self._store.set_facts({"run": asdict(info)})

    def join(self, place: Mapping[str, Any], rank: int) -> None:
        """Be part of the sums over the ranks, as a rank other than 0."""
        self._leader_host = str(place.get("hostname", ""))
        self.shares.join(place, rank)

    def _on_joined(self, leader: str) -> None:
        """Be a part of rank 0's run from here on, which shows and judges the steps of all ranks; of none, if empty."""
        self._leader = leader
        self.recorder.set_leader(leader)
        self.publisher.be_part_of(leader, self._leader_host)

    def settle(self, seconds: float = END_SECONDS) -> None:
        """Wait until the last steps have the shares of all ranks, ``seconds`` at most."""
        if self.shares.sums is not None:
            self.recorder.flush(seconds)

    def load(self, base_step: int, smoothing: Any, detectors: Any) -> None:
        """Continue from the state of an earlier session.

        Raises:
            ValueError: for what ``run.state_dict()`` did not make.
        """
        before = self.state_dict()
        try:
            self._detection.load_state_dict(detectors)
            self.recorder.load_smoothing(smoothing)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            self._detection.load_state_dict(before["detectors"])
            self.recorder.load_smoothing(before["smoothing"])
            raise ValueError(f"the saved detectors or losses cannot be read: {error!r}") from error
        self.source.decoder.base_step = base_step
        self.recorder.begin_at(base_step)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of the recorder and the detectors, as plain values."""
        return {"smoothing": self.recorder.smoothing(), "detectors": self._detection.state_dict()}

    def memory(self) -> bytes:
        """Return all that has been learnt of the run, for another watcher. To be called between two rounds."""
        return pickle.dumps([part.memory() for part in self._parts()], pickle.HIGHEST_PROTOCOL)

    def remember(self, memory: bytes) -> None:
        """Take over what another watcher of this run has learnt."""
        for part, learnt in zip(self._parts(), pickle.loads(memory), strict=True):
            part.remember(learnt)

    def _parts(self) -> tuple[Any, ...]:
        return self.source, self.recorder, self._detection, self.sampler

    def note_command(self, record: CommandRecord) -> None:
        """Keep a command that was accepted, or its outcome; of a flood that is refused, a part."""
        if not self._refusals.is_counted_only(record):
            self._store.add_command(record)

    def end(self, state: State, end: float, exception: str = "") -> None:
        """Record the end of the run; ``exception`` is the text of what it failed with."""
        self.recorder.set_state(state, end)
        facts = {"state": state, "end_time": end, **({"exception": exception} if exception else {})}
        self._store.set_facts(facts)

    # ------------------------------------------------------------------------------------------ recorder thread

    def _on_tick(self, now: float) -> None:
        self._detection.expect(self._training.guesses)
        self.publisher.look_for_leader()
        is_excused = self._training.is_excused(is_stall_near=self._detection.is_stall_near(now))
        for stall in self._detection.tick(now, is_excused=is_excused or self._is_judged_elsewhere()):
            self.recorder.post(stall)
            self._training.note_stall()
        step = self.recorder.snapshot.optimizers[0].global_step
        for event in self._detection.look_at_ranks(self._training.ranks, step):
            self.recorder.post(event)
        sums = self.shares.sums
        if sums is not None:
            self._look_at_shares(sums, step)

    def _is_judged_elsewhere(self) -> bool:
        """Tell whether another rank's run looks for stalls, or steps were made here that wait for shares."""
        before, sums = self._num_put, self.shares.sums
        self._num_put = 0 if sums is None else sums.num_put
        return bool(self._leader) or self._num_put > before

    def _look_at_shares(self, sums: StepSums, step: int) -> None:
        sums.expect(one.rank for one in self._training.ranks if one.state in ("ok", "behind"))
        own = sums.take_own_times()
        for event in () if own is None else self._detection.look_at_own_times(*own, step):
            self.recorder.post(event)

    def _on_step(self, step: Step, smoothed: float | None, time: float) -> None:
        self._store.add_step(step, smoothed, time)
        self.shares.add_step(step)

    def _own_times(self) -> Mapping[int, float]:
        return {} if self.shares.sums is None else self.shares.sums.own_times

    def _digest(self, record: Step | Sample) -> list[Event]:
        if self._wants_steps and isinstance(record, Step):
            self._training.on_step(record)
        if isinstance(record, Step):
            self._pace.add(record)
        return [] if self._leader else self._detection.digest(record)

    def _on_event(self, event: Event) -> None:
        self._store.add_event(event)
        self._training.on_event(event)

    def _on_round(self) -> None:
        self._store.flush(self.publisher.post_to_path)
        self.shares.send()
        self._training.end_round(self.source.decoder.skipped)
        if self._training.are_several and (pace := self._pace.take()) is not None:
            self._training.note_pace(*pace)
        self._after_round()


def _start_of(run_id: str) -> Event:
    return Event("state", "info", 0, 0, f"run {run_id} started", end_step=0, details={"state": "starting"})


def _store_reporter(failures: FailureReporter) -> Callable[[Exception], None]:
    """Report what the disk says in one line; anything else is a mistake of ours, and has its traceback."""

    def note(error: Exception) -> None:
        line = f"the run store takes nothing more for now, training continues: {error}"
        failures.note("store", error, line=line if isinstance(error, StoreError) else "")

    return note


def _facts_of(hello: Hello) -> dict[str, Any]:
    """Return what the store keeps of a run as a whole. No token is among it."""
    settings = {name: value for name, value in asdict(hello.settings).items() if name not in SECRETS}
    over = {"state": "running", "end_time": None, "exception": ""}  # what an earlier session may have left
    return {
        **({} if hello.info.resume_time is None else over),
        "run": asdict(hello.info),
        "script": hello.script,
        "optimizers": dict(hello.optimizers),
        "settings": settings,
        "environment": {
            **hello.environment,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "executable": sys.executable,
            "num_cpus": os.cpu_count(),
        },
    }

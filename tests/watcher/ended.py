"""Folders of runs that are over, for the tests, without a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monitor._records import CommandRecord
from monitor.server import run_document
from monitor.store import STORE_FILE, KnownRun, RunFolder, StoreWriter, list_runs
from tests.server.fake_run import FakeRun
from tests.store.made import START, a_step, an_event

SECONDS = 0.2


def an_ended_run(directory: Path, *, num_steps: int = 0, num_events: int = 0, state: str = "finished") -> KnownRun:
    """Make the folder of a run that has ended, with a reading for each of its steps, and a command."""
    folder = RunFolder.create(directory, "digits-000001", name="digits", start_time=START)
    writer = StoreWriter(folder.path / STORE_FILE)
    for step in range(1, num_steps + 1):
        time = START + step * SECONDS
        writer.add_step(a_step(step, optimizer="AdamW"), loss_ema=2.0, time=time)
        writer.add_reading({"cpu_ratio": 0.5, "memory_used_bytes": 2e9, "gpus/0/utilization_ratio": 0.9}, time=time)
    for seq in range(1, num_events + 1):
        writer.add_event(an_event(min(seq, num_steps), seq=seq, id=seq))
        if seq % 1000 == 0:
            writer.commit()
    writer.add_command(CommandRecord("c1", "reduce", "api", START, 0.5, status="applied", step=2))
    writer.close()
    snapshot = FakeRun().snapshot()
    run = replace(snapshot.run, run_id="digits-000001", name="digits")
    folder.finish(state, end_time=START + 100, final=run_document(replace(snapshot, run=run, state=state)))
    return list_runs(directory)[0]

"""A run that nobody trains: believable curves from a formula, for tests of the server and work on the page.

``python -m tests.server.fake_run --port 9477`` serves the page on one that moves.
"""

from __future__ import annotations

import argparse
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from monitor._errors import ClosedRunError, CommandRefusedError, QueueFullError
from monitor._records import (
    EVENT_KINDS,
    CommandRecord,
    Event,
    GpuReading,
    GroupChange,
    HostReading,
    OptimizerSnapshot,
    ParamGroup,
    RankReading,
    RunInfo,
    Snapshot,
)

TOKEN = "control-token-of-the-fake-run"
READ_TOKEN = "read-token-of-the-fake-run"
START = 1_790_000_000.0
STEP_SECONDS = 0.12
TOTAL_STEPS = 5000
GROUPS = ((0, "decay", 3e-4), (1, "no_decay", 6e-4))
PHASES = {
    "data": 0.012,
    "forward": 0.034,
    "backward": 0.055,
    "optimizer": 0.011,
    "monitor": 0.0003,
    "other": 0.0077,
}
_OPTIMIZER_COLUMNS = (
    "step", "time", "count", "loss", "loss_min", "loss_max", "loss_ema", "gradient_norm", "gradient_norm_max",
    "clip_threshold", "step_seconds",
)  # fmt: skip


class FakeRun:
    """Implement the server's RunAccess without torch: ``advance`` makes steps, which take commands."""

    def __init__(self, clock: Callable[[], float] = lambda: START, start: float = START) -> None:
        self._clock, self._start = clock, start
        self._lock = threading.RLock()
        self._random = random.Random(7)
        self._step, self._ema = 0, math.nan
        self._factors = {0: 1.0, 1: 1.0}
        self._undo: list[dict[int, float]] = []
        self._rows: list[dict[str, Any]] = []
        self._events: list[Event] = []
        self._records: dict[str, CommandRecord] = {}
        self._totals: dict[tuple[str, str, str], int] = {}
        self.state = "running"
        self.ranks: tuple[RankReading, ...] = ()
        self.is_closed = False
        self.num_scrapes = 0
        self.failure: Exception | None = None
        self.publish("state", "info", "run started")

    def advance(self, steps: int = 1) -> None:
        """Make steps as a training loop would; while paused, only commands are taken."""
        with self._lock:
            for _ in range(steps):
                self._take_commands()
                if self.state == "running":
                    self._make_step()

    def expire(self, status: Any = "expired") -> None:
        """Let what waits expire, as when no step is made for too long, or end in ``status``."""
        with self._lock:
            for record in self.commands():
                self._records[record.id] = replace(record, status=status, finished=self._clock())

    def publish(self, kind: str, severity: Any, message: str, **more: Any) -> Event:
        """Add an event at the present step."""
        seq = len(self._events) + 1
        event = Event(
            kind,
            severity,
            self._step,
            self._step,
            message,
            **{"time": self._clock(), "id": seq, "seq": seq, **more},
        )
        self._events.append(event)
        return event

    # what the server asks for

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        with self._lock:
            if self.failure:
                raise self.failure
            last = self._rows[-1] if self._rows else None
            losses = [row["loss"] for row in self._rows[-128:] if math.isfinite(row["loss"])]
            optimizer = OptimizerSnapshot(
                key="AdamW",
                class_name="AdamW",
                steps=self._step,
                global_step=self._step,
                groups=self._groups(),
                loss=last and last["loss"],
                loss_ema=last and last["loss_ema"],
                loss_window_mean=sum(losses) / len(losses) if losses else None,
                loss_window_min=min(losses, default=None),
                loss_window_max=max(losses, default=None),
                loss_window_stddev=0.05 if losses else None,
                loss_best=min((row["loss_ema"] for row in self._rows), default=None),
                loss_best_step=self._step or None,
                gradient_norm=last and last["gradient_norm"],
                gradient_norm_step=self._step or None,
                gradient_norm_window_max=2.4 if last else None,
                gradient_norm_window_median=0.8 if last else None,
                clip_threshold=1.0,
                clip_factor=last and min(1.0, 1.0 / last["gradient_norm"]),
                clip_checks={"norm": self._step, "value": 0},
                clips={"norm": self._step // 3, "value": 0},
                clip_share=0.33 if last else None,
            )
            return Snapshot(
                run=self._info(),
                state=self.state,  # type: ignore[arg-type]
                time=self._clock(),
                elapsed_seconds=self._clock() - self._start,
                end_time=self._clock() if self.state in ("finished", "failed", "interrupted") else None,
                target_steps=TOTAL_STEPS,
                last_step_time=last and last["time"],
                optimizers=(optimizer,),
                ranks=self.ranks,
                samples_total=32.0 * self._step,
                tokens_total=8192.0 * self._step,
                steps_per_second=1 / STEP_SECONDS,
                samples_per_second=32 / STEP_SECONDS,
                tokens_per_second=8192 / STEP_SECONDS,
                eta_seconds=max(0, TOTAL_STEPS - self._step) * STEP_SECONDS,
                validation_losses={"held_out": self._loss_level() + 0.08},
                metrics={"accuracy": 1 - self._loss_level() / 6},
                phase_seconds={name: seconds * self._step for name, seconds in PHASES.items()},
                events_total={kind: sum(e.kind == kind for e in self._events) for kind in EVENT_KINDS},
                events_active={
                    kind: any(e.kind == kind and e.end_step is None for e in self._events) for kind in EVENT_KINDS
                },
                last_event_seq=len(self._events),
                commands_total=dict(self._totals),
                commands_pending=len(self.commands()),
                hook_seconds=0.0003 * self._step,
                overhead_ratio=0.0025,
                errors={"recorder": 0, "server": 0},
                host=HostReading(0.43, 11.2e9, 33.6e9, 2.9e9, 0.7 * self._step),
                gpus=(self._gpu(),),
            )

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return every n-th row after step ``since``; "next" is the last step that was used."""
        with self._lock:
            rows = [row for row in self._rows if row["step"] > since]
            resolution = max(1, math.ceil(len(rows) / points))
            kept = rows[resolution - 1 :: resolution]
            columns: dict[str, Any] = {name: [row[name] for row in kept] for name in _OPTIMIZER_COLUMNS}
            columns["count"] = [resolution] * len(kept)
            columns["phases"] = {name: [row["phases"][name] for row in kept] for name in PHASES}
            columns["lr"] = {
                str(index): {way: [row["lr"][index][way] for row in kept] for way in ("scheduled", "applied")}
                for index, _, _ in GROUPS
            }
            return {
                "since": since,
                "next": kept[-1]["step"] if kept else since,
                "resolution": resolution,
                "optimizers": {"AdamW": columns},
                "attempt": 0,
                "abandoned": {} if since else {"AdamW": []},
                "system": self._system(kept),
            }

    def events(self, since: int, before: int, limit: int) -> Sequence[Event]:
        """Return the newest events between ``since`` and ``before``."""
        with self._lock:
            return [event for event in self._events if since < event.seq < before][-limit:]

    def submit(
        self,
        action: str,
        *,
        source: str,
        actor: str,
        reason: str,
        factor: float | None,
        groups: tuple[int | str, ...] | None,
        over_steps: int,
    ) -> CommandRecord:
        """Queue a command, or refuse it as the real run does."""
        with self._lock:
            if self.is_closed:
                raise ClosedRunError("the run has been closed and takes no more commands")
            if len(self.commands()) >= 64:
                raise QueueFullError("64 commands are waiting already; try again after the next step")
            if factor is not None and not 0 < factor <= 1:
                raise CommandRefusedError(
                    f"factor must be in (0, 1], got {factor}; allow_increase=True lifts the upper bound",
                    "factor",
                )
            if not 0 <= over_steps <= 10**9:
                raise CommandRefusedError(
                    f"over_steps must be a whole number of steps from 0 to 10**9, got {over_steps}", "over_steps"
                )
            for group in groups or ():
                if all(group not in (index, name) for index, name, _ in GROUPS):
                    raise CommandRefusedError(
                        f"there is no param group {group!r}; there are 0 (decay), 1 (no_decay)", "groups"
                    )
            if action == "undo" and not self._undo:
                raise CommandRefusedError("there is no change to undo")
            if action == "checkpoint":
                raise CommandRefusedError("this run has no on_checkpoint; give attach(on_checkpoint=...) a callable")
            record = CommandRecord(
                id=f"c{len(self._records) + 1:04d}",
                action=action,
                source=source,
                created=self._clock(),
                factor=factor,
                groups=groups,
                over_steps=over_steps,
                actor=actor,
                reason=reason,
            )
            self._records[record.id] = record
            return record

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - as the server calls it
        """Return one command."""
        return self._records.get(id)

    def commands(self) -> Sequence[CommandRecord]:
        """Return the waiting commands."""
        with self._lock:
            return [record for record in self._records.values() if record.status == "pending"]

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Return a small exposition."""
        lines = [f'training_global_step{{run_id="fake-0a1b2c",optimizer="AdamW"}} {self._step}']
        lines += [f'training_metric{{run_id="fake-0a1b2c",name="m{index}"}} {index}' for index in range(40)]
        kept = [line for line in lines if not names or line.partition("{")[0] in names]
        if "openmetrics" in (accept or ""):
            return "\n".join(
                [*kept, "# EOF", ""]
            ).encode(), "application/openmetrics-text; version=1.0.0; charset=utf-8"
        return "\n".join([*kept, ""]).encode(), "text/plain; version=0.0.4; charset=utf-8"

    def scraped(self, begun: float) -> None:
        """Count the scrapes."""
        self.num_scrapes += 1

    # how it moves

    def _info(self) -> RunInfo:
        return RunInfo(
            run_id="fake-0a1b2c",
            name="fake",
            start_time=self._start,
            monitor_version="0.1.0",
            torch_version="2.13.0",
            device="cuda:0",
            hostname="workstation",
            git_commit="0a1b2c3",
            pid=4242,
        )

    def _gpu(self) -> GpuReading:
        return GpuReading(
            index=0,
            uuid="GPU-6c1f0d2e-0000-4000-8000-1a2b3c4d5e6f",
            model="NVIDIA H200",
            driver_version="570.86",
            utilization_ratio=0.91,
            memory_used_bytes=61e9,
            memory_total_bytes=150e9,
            temperature_celsius=62.0,
            power_watts=540.0,
            power_limit_watts=700.0,
            throttle_reasons={"power_cap": False, "thermal": False},
        )

    def _system(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        wave = [math.sin(row["step"] / 40) for row in rows]
        return {
            "time": [row["time"] for row in rows],
            "cpu_ratio": [0.4 + 0.1 * w for w in wave],
            "memory_used_bytes": [11.2e9 + 2e8 * w for w in wave],
            "tree_resident_bytes": [2.9e9 + 1e8 * w for w in wave],
            "gpus": {
                "0": {
                    "utilization_ratio": [0.9 + 0.05 * w for w in wave],
                    "memory_used_bytes": [61e9] * len(wave),
                    "temperature_celsius": [62 + 3 * w for w in wave],
                    "power_watts": [540 + 40 * w for w in wave],
                }
            },
        }

    def _scheduled(self, base: float) -> float:
        warm = min(1.0, (self._step + 1) / 200)
        return base * warm * (0.55 + 0.45 * math.cos(math.pi * min(1.0, self._step / TOTAL_STEPS)))

    def _groups(self) -> tuple[ParamGroup, ...]:
        return tuple(
            ParamGroup(
                index,
                name,
                self._scheduled(base),
                self._factors[index] * self._scheduled(base),
                self._factors[index],
                0.1 if index == 0 else 0.0,
            )
            for index, name, base in GROUPS
        )

    def _loss_level(self) -> float:
        return 1.4 + 2.9 / (1 + self._step / 150) ** 0.6

    def _make_step(self) -> None:
        self._step += 1
        spike = 1.5 if self._step % 900 > 885 else 0.0
        loss = self._loss_level() + spike + self._random.gauss(0, 0.04)
        if self._step % 1500 == 0:
            loss = math.nan
        else:
            self._ema = loss if math.isnan(self._ema) else 0.98 * self._ema + 0.02 * loss
        norm = 0.7 + spike + abs(self._random.gauss(0, 0.3))
        self._rows.append(
            {
                "step": self._step,
                "time": self._start + self._step * STEP_SECONDS,
                "loss": loss,
                "loss_min": loss - 0.03,
                "loss_max": loss + 0.03,
                "loss_ema": self._ema,
                "gradient_norm": norm,
                "gradient_norm_max": norm + 0.2,
                "clip_threshold": 1.0,
                "step_seconds": STEP_SECONDS + self._random.uniform(-0.005, 0.01),
                "count": 1,
                "phases": PHASES,
                "lr": {g.index: {"scheduled": g.scheduled, "applied": g.applied} for g in self._groups()},
            }
        )
        if self._step % 900 == 890:
            self.publish("spike", "warning", f"loss rose to {loss:.2f} within 4 steps", optimizer="AdamW", value=loss)
        if math.isnan(loss):
            self.publish("nonfinite", "critical", "loss is NaN", optimizer="AdamW", value=loss, end_step=self._step + 1)

    def _take_commands(self) -> None:
        for record in self.commands():
            changes = self._apply(record)
            self._totals[record.action, record.source, "applied"] = (
                self._totals.get((record.action, record.source, "applied"), 0) + 1
            )
            done = replace(record, status="applied", step=self._step + 1, finished=self._clock(), changes=changes)
            self._records[record.id] = done
            self.publish("control", "info", f"{record.action} by {record.actor}", details={"command": record.id})

    def _apply(self, record: CommandRecord) -> tuple[GroupChange, ...]:
        if record.action in ("pause", "resume", "stop"):
            self.state = {"pause": "paused", "resume": "running", "stop": "finished"}[record.action]
            return ()
        before = dict(self._factors)
        if record.action == "undo":
            self._factors = self._undo.pop()
        else:
            self._undo.append(before)
            for index, name, _ in GROUPS:
                if record.groups is None or index in record.groups or name in record.groups:
                    self._factors[index] = {
                        "reduce": before[index] * (record.factor or 1.0),
                        "set": record.factor or 1.0,
                        "restore": 1.0,
                    }[record.action]
        return tuple(
            GroupChange(
                "AdamW",
                index,
                name,
                before[index],
                self._factors[index],
                before[index] * self._scheduled(base),
                self._factors[index] * self._scheduled(base),
            )
            for index, name, base in GROUPS
            if before[index] != self._factors[index]
        )


def main() -> None:
    """Serve the page on a fake run until Ctrl-C."""
    from monitor.server import HttpServer, Security, create_app

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--steps", type=int, default=2000, help="steps that are already behind the run")
    arguments = parser.parse_args()
    run = FakeRun(time.time, time.time() - arguments.steps * STEP_SECONDS)
    run.advance(arguments.steps)
    app = create_app(run, Security(token=TOKEN, read_token=READ_TOKEN))
    with HttpServer(app, port=arguments.port) as server:
        print(f"{server.url}/?token={TOKEN}", flush=True)
        try:
            while True:
                time.sleep(STEP_SECONDS)
                run.advance()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()

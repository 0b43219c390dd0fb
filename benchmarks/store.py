"""Measure the store of a run: CPU time and bytes per step, the size, and the time to read a curve.

    python benchmarks/store.py [--steps 2000000] [--groups 2] [--folder DIR]

Steps of 4 ms are written with a commit a second (250 steps), as the recorder hands them over; what it costs to make the
steps is left out. CPU time is that of the process. The curve of the loss is then read at 1,000 points: the whole run,
and a window of 1,000 steps near the end. The values are noise, as no compression likes it.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monitor._records import PHASES, ParamGroup, Sample, Step  # noqa: E402
from monitor.store import MAX_BYTES, StoreReader, StoreWriter  # noqa: E402

STEP_SECONDS = 0.004
COMMIT_STEPS = 250
START = 1.7e9


def make_steps(num_groups: int, count: int = 5000) -> list[Step]:
    """Return steps with the noise of a real run: losses and norms in single precision, durations with jitter."""
    source = random.Random(0)

    def single(value: float) -> float:
        return float(array("f", [value])[0])

    steps = []
    for number in range(1, count + 1):
        seconds = STEP_SECONDS + abs(source.gauss(0, 3e-4))
        lr = 1e-3 * (1 + math.cos(number / count)) / 2
        steps.append(
            Step(
                optimizer="optimizer",
                number=number,
                global_step=number,
                time=START,
                duration=seconds,
                loss=single(2 + source.gauss(0, 0.1)),
                gradient_norm=single(abs(source.gauss(1, 0.1))),
                groups=tuple(ParamGroup(i, None, lr, lr, 1.0, 0.01, 0.9) for i in range(num_groups)),
                phases={phase: seconds * source.random() / 3 for phase in PHASES},
                hook_seconds=2e-5 * source.random(),
            )
        )
    return steps


def write_steps(path: Path, num_steps: int, num_groups: int) -> None:
    """Write a run and print what it cost."""
    pool = make_steps(num_groups)
    writer = StoreWriter(path)
    adding, committing, longest, largest = 0.0, 0.0, 0.0, 0
    for start in range(0, num_steps, COMMIT_STEPS):
        numbers = range(start + 1, min(start + COMMIT_STEPS, num_steps) + 1)
        batch = [replace(pool[i % len(pool)], number=i, global_step=i) for i in numbers]
        begun = time.process_time()
        for step in batch:
            writer.add_step(step, loss_ema=step.loss, time=START + step.global_step * STEP_SECONDS)
        added = time.process_time()
        writer.commit()
        seconds = time.process_time() - added
        adding, committing, longest = adding + added - begun, committing + seconds, max(longest, seconds)
        if start % (100 * COMMIT_STEPS) == 0:
            largest = max(largest, sum(file.stat().st_size for file in path.parent.iterdir()))
    writer.close()
    size = path.stat().st_size
    with StoreReader(path) as store:
        single_rows = sum(point.num_rows == 1 for point in store.rows("optimizer", "optimizer", "loss"))
    taken, committed = 1e6 * adding / num_steps, 1e6 * committing / num_steps
    say("steps", f"{num_steps:,} with {num_groups} param groups, {writer.num_dropped} dropped")
    say("CPU per step", f"{taken + committed:.1f} us: {taken:.1f} to take it, {committed:.1f} in commits")
    say("longest commit", f"{longest * 1e3:.0f} ms of CPU")
    say("size", f"{size / 2**20:.1f} MB, {size / num_steps:.1f} bytes per step")
    say("with log and index", f"at most {largest / 2**20:.1f} of {MAX_BYTES / 2**20:.0f} MB")
    say("kept step by step", f"the last {single_rows:,}")


def say(what: str, figure: str) -> None:
    """Print a line of the result."""
    print(f"{what:<24} {figure}", flush=True)


def read_curve(path: Path, num_steps: int) -> None:
    """Print how long it takes to open the store and read a curve."""
    middle = num_steps - 2000

    def timed(ask: Callable[[StoreReader], object]) -> float:
        times = []
        for _ in range(9):
            begun = time.perf_counter()
            with StoreReader(path) as store:
                ask(store)
            times.append(time.perf_counter() - begun)
        return statistics.median(times) * 1e3

    loss = ("optimizer", "optimizer", "loss")
    whole = timed(lambda store: store.curve(*loss, points=1000))
    part = timed(lambda store: store.curve(*loss, first_step=middle, last_step=middle + 999, points=1000))
    say("open", f"{timed(StoreReader.close):.1f} ms")
    say("open, whole run, 1,000", f"{whole:.1f} ms")
    say("open, 1,000 late steps", f"{part:.1f} ms")


def write_names(folder: Path, num_names: int = 10_000, num_steps: int = 30) -> None:
    """Print what it costs to log many names at each step."""
    writer = StoreWriter(folder / "names.db")
    begun = time.process_time()
    for step in range(1, num_steps + 1):
        for i in range(num_names):
            writer.add_sample(Sample("metric", f"layer {i}", step / (i + 1), step, START + step))
            if writer.is_due:
                writer.commit()
    writer.close()
    spent = (time.process_time() - begun) / num_names / num_steps
    say("10,000 logged names", f"{1e6 * spent:.1f} us of CPU per value, {writer.num_dropped} dropped")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000_000, help="steps to write, default 2,000,000")
    parser.add_argument("--groups", type=int, default=2, help="param groups, default 2")
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "run.db"
        write_steps(path, options.steps, options.groups)
        read_curve(path, options.steps)
        path.unlink()
        write_names(Path(name))


if __name__ == "__main__":
    main()

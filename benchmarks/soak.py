"""Train for millions of steps while many come and go, and draw what both processes use: docs/soak.png.

    nice python benchmarks/soak.py                   # 5,000,000 steps, about half an hour on two cores
    python benchmarks/soak.py --steps 200000 --out /tmp/soak.png

The loop is as small as can be, so that the steps are many; the watcher is a process of its own, as by default. Once a
second somebody scrapes, reads state, curves and events, and gives a command (ten a second at first, until the lists
that keep the newest are full); every five seconds somebody opens the page with all its files; ten times a second a
stranger connects and says nothing, half of something, or nonsense. Every two seconds memory, threads and open files of
both processes are noted (benchmarks/soak_visitors.py).
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from overhead import environment, table  # noqa: E402
from tail import watcher_of  # noqa: E402

import monitor  # noqa: E402

WARM_UP = 0.1
"""Share of the run after which nothing should grow any more."""
SYSTEM_SECONDS = 0.2
"""Between two readings of the machine: the 1,024 that are kept are full within minutes, with the default in 34."""
WHO, WHAT = ("training", "watcher"), ("rss", "threads", "files")
LABELS = {"rss": "resident memory, MB", "threads": "threads", "files": "open files"}


def train(num_steps: int, folder: Path) -> dict[str, Any]:
    """Train beside the visitors, and return what was counted."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1e-9)
    settings = {"directory": str(folder / "runs"), "port": 0, "linger": 0, "system_interval": SYSTEM_SECONDS}
    with monitor.attach(optimizer, **settings) as run:
        watcher = watcher_of(run) if run.url else None
        if watcher is None:
            raise SystemExit("this run has no watcher process, or no address")
        asked = {"url": run.url, "token": run.token, "pids": [os.getpid(), watcher.pid]}
        words = [
            str(ROOT / "benchmarks" / "soak_visitors.py"),
            json.dumps({**asked, "samples": str(folder / "samples")}),
        ]
        began = time.monotonic()
        with subprocess.Popen([sys.executable, *words], stdin=-1, stdout=-1, text=True) as visitors:
            for _ in range(num_steps):
                weight.square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            seconds = time.monotonic() - began
            counts = json.loads(visitors.communicate()[0])
        run.flush(60.0)
        snapshot = run.snapshot()
        is_same = watcher.is_running()
    return {"seconds": seconds, "visits": counts, "snapshot": snapshot, "is_same": is_same}


def read_samples(path: Path) -> dict[str, list[float]]:
    """Return the columns of what was noted."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def growth(samples: dict[str, list[float]]) -> list[list[str]]:
    """Return a row for each figure: after the warm-up, at the end, the largest between."""
    rows, num = [], len(samples["step"])
    first = slice(int(WARM_UP * num), int(2 * WARM_UP * num) + 1)
    last = slice(int((1 - WARM_UP) * num), num)
    for who in WHO:
        for what in WHAT:
            scale = 1e6 if what == "rss" else 1.0
            values = [value / scale for value in samples[f"{what} {who}"]]
            figures = statistics.median(values[first]), statistics.median(values[last]), max(values[first.start :])
            rows.append([f"{who}: {LABELS[what]}", *(f"{figure:.1f}".removesuffix(".0") for figure in figures)])
    return rows


def draw(samples: dict[str, list[float]], path: Path) -> None:
    """Draw what both processes use over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    steps = [step / 1e6 for step in samples["step"]]
    for place, what in zip(figure.subplots(len(WHAT), 1, sharex=True), WHAT, strict=True):
        for who, colour in zip(WHO, ("#1f77b4", "#d95f02"), strict=True):
            scale = 1e6 if what == "rss" else 1.0
            values = [value / scale for value in samples[f"{what} {who}"]]
            place.plot(steps, values, color=colour, linewidth=1, label=f"{who} process")
        place.set_ylim(bottom=0)
        place.set_ylabel(LABELS[what])
        place.grid(alpha=0.3)
    figure.axes[0].legend(loc="center right")
    figure.axes[-1].set_xlabel("steps, millions")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Soak, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "soak.png")
    args = parser.parse_args()
    logging.getLogger("monitor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = environment()
    with tempfile.TemporaryDirectory() as folder:
        found = train(args.steps, Path(folder))
        samples = read_samples(Path(folder) / "samples")
    draw(samples, args.out)
    snapshot = found["snapshot"]
    whose = "the" if found["is_same"] else "NOT the"
    lines += [
        f"{args.steps:,} steps in {found['seconds']:,.0f} s; {snapshot.dropped_steps:,} of them not recorded;",
        f"errors of the monitor: {dict(snapshot.errors) or 'none'};",
        f"the watcher at the end is {whose} one of the beginning.",
        "",
        *table(["", "after a tenth", "at the end", "largest since"], growth(samples)),
        *table(["visit: answer", "number"], [[what, f"{n:,}"] for what, n in sorted(found["visits"].items())]),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Measure what the monitor adds to the slowest steps, and what its watcher process uses. Prints tables.

    python benchmarks/tail.py                 # about five minutes on two quiet cores
    python benchmarks/tail.py --quick

Steps of 3 to 5 ms, in blocks by turns in one process: bare, with direct Prometheus gauges, with trackio where it is
installed (.bench-venv/bin/python, once benchmarks/overhead.py has made that), watched by a process of its
own, the same while it is scraped every second and its page is read as a browser does, and watched on threads. The first
steps of a block, in which a run starts, are left out. Further: full collections of the cyclic garbage collector in
fast steps, the time that ``attach`` and ``close`` take, and memory and CPU of the watcher.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from overhead import environment, free_port, table  # noqa: E402
from overhead_peers import Job, prometheus_log, trackio_log, watchers  # noqa: E402

import monitor  # noqa: E402

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
READER = """
import sys, time, urllib.request as u
base, token = sys.argv[1:]
since = 0
while True:
    for path in ("/metrics", "/api/v1/run", "/api/v1/history?since=0&points=1000", "/api/v1/events?since=0"):
        try: u.urlopen(u.Request(base + path, headers={"Authorization": "Bearer " + token})).read()
        except OSError: pass
    time.sleep(1)
"""


class Ways:
    """The same step in several ways, in blocks by turns."""

    def __init__(self, folder: Path, num_blocks: int, num_warm: int, num_measured: int) -> None:
        self.job = Job()
        self.folder = folder
        self._numbers = num_blocks, num_warm, num_measured
        self._logs = {"gauges": prometheus_log(folder)}
        if find_spec("trackio") is not None:
            self._logs["trackio"] = trackio_log(folder)
        self.seconds: dict[str, list[float]] = {}
        self.collections: dict[str, Counter[int]] = {}
        self.watcher: dict[str, list[float]] = {"cpu": [], "rss": []}

    def run(self) -> None:
        """Run every way in turns."""
        num_blocks, _, _ = self._numbers
        ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
            "bare": contextlib.nullcontext,
            **dict.fromkeys(self._logs, contextlib.nullcontext),
            "process": lambda: self._attached("process"),
            "process, scraped, page open": self._attached_and_read,
            "thread": lambda: self._attached("thread"),
        }
        for _ in range(num_blocks):
            for name, way in ways.items():
                with way() as run:
                    self._block(name, run)

    @contextlib.contextmanager
    def _attached(self, watcher: str, **settings: Any) -> Iterator[monitor.Run]:
        with monitor.attach(
            self.job.optimizer,
            self.job.scheduler,
            **{"watcher": watcher, "directory": str(self.folder), "port": 0, "linger": 0, **settings},
        ) as run:
            assert run.url  # it has started
            yield run

    @contextlib.contextmanager
    def _attached_and_read(self) -> Iterator[monitor.Run]:
        port = free_port()
        with self._attached("process", port=port) as run:
            words = [sys.executable, "-c", READER, f"http://127.0.0.1:{port}", run.token]
            with subprocess.Popen(words) as reader:
                yield run
                reader.kill()

    def _block(self, name: str, run: monitor.Run | None) -> None:
        _, num_warm, num_measured = self._numbers
        job, log = self.job, self._logs.get(name)

        def one_step(number: int) -> float:
            begin = time.perf_counter()
            loss, norm = job.step()
            if log is not None:
                log(number, job.scalars(number, loss, norm))
            return time.perf_counter() - begin

        for number in range(num_warm):
            one_step(number)
        watcher = watcher_of(run)
        before = None if watcher is None else watcher.cpu_times()
        counted: Counter[int] = self.collections.setdefault(name, Counter())

        def count(phase: str, info: dict[str, int]) -> None:
            if phase == "start":
                counted[info["generation"]] += 1

        gc.callbacks.append(count)
        self.seconds.setdefault(name, []).extend([one_step(number) for number in range(num_measured)])
        gc.callbacks.remove(count)
        if watcher is not None and before is not None and name == "process":
            after = watcher.cpu_times()
            used = after.user + after.system - before.user - before.system
            self.watcher["cpu"].append(used / num_measured)
            self.watcher["rss"].append(watcher.memory_info().rss)


def watcher_of(run: monitor.Run | None) -> psutil.Process | None:
    """Return the watcher process of a run, if it has one."""
    for process in () if run is None else watchers():
        with contextlib.suppress(psutil.Error):
            if run is not None and run.id in process.cmdline():
                return process
    return None


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lies, in percent."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 10) - 1]


def slow_steps(folder: Path, is_quick: bool) -> list[str]:
    """Percentiles of the step in each way, and what each adds."""
    ways = Ways(folder, *((3, 150, 300) if is_quick else (10, 300, 600)))
    ways.run()
    bare = [percentile(ways.seconds["bare"], share) for share in PERCENTILES]
    rows = [["bare, ms", *(f"{value * 1e3:.2f}" for value in bare), _shown(ways.collections["bare"])]]
    for name, seconds in ways.seconds.items():
        if name != "bare":
            added = [percentile(seconds, share) - value for share, value in zip(PERCENTILES, bare, strict=True)]
            rows.append([f"{name}: added, ms", *(f"{v * 1e3:+.3f}" for v in added), _shown(ways.collections[name])])
    used = ways.watcher
    return [
        "### The slowest steps",
        "",
        f"{len(ways.seconds['bare']):,} steps each way, blocks by turns. Collections are those of the cyclic garbage",
        "collector in these steps, by generation.",
        "",
        *table(["", *(f"p{share:g}" for share in PERCENTILES), "collections"], rows),
        "",
        f"The watcher: {statistics.median(used['cpu']) * 1e6:.0f} us of CPU a step,",
        f"{max(used['rss']) / 1e6:.0f} MB resident.",
        "",
    ]


def _shown(counted: Counter[int]) -> str:
    return " / ".join(str(counted[generation]) for generation in range(3))


def fast_steps(folder: Path, is_quick: bool) -> list[str]:
    """How often the cyclic garbage collector runs in steps that are as fast as can be."""
    num_steps = 25_000 if is_quick else 250_000
    rows = []
    for name in ("bare", "process", "thread"):
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1e-6)
        counted: Counter[int] = Counter()
        took = [0.0, 0.0]

        def count(phase: str, info: dict[str, int], counted: Counter[int] = counted, took: list[float] = took) -> None:
            if phase == "start":
                counted[info["generation"]] += 1
                took[0] = time.perf_counter()
            else:
                took[1] = max(took[1], time.perf_counter() - took[0])

        attached = (
            contextlib.nullcontext()
            if name == "bare"
            else monitor.attach(optimizer, watcher=name, directory=str(folder), port=0, linger=0)
        )
        gc.collect()
        with attached as run:
            gc.callbacks.append(count)
            for _ in range(num_steps):
                (weights[0] * weights[1]).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            gc.callbacks.remove(count)
            lost = 0
            if run is not None:
                run.flush(60.0)
                lost = run.snapshot().dropped_steps
        rows.append([name, *(str(counted[generation]) for generation in range(3)), f"{took[1] * 1e3:.1f}", str(lost)])
    return [
        "### The garbage collector",
        "",
        f"Collections during {num_steps:,} steps as fast as can be, by generation; the longest; steps that were lost.",
        "",
        *table(["", "0", "1", "2", "longest, ms", "lost"], rows),
        "",
    ]


def begin_and_end(folder: Path, is_quick: bool) -> list[str]:
    """How long attach and close take."""
    rows = []
    for name in ("process", "thread"):
        took: list[tuple[float, float, float]] = []
        for _ in range(4 if is_quick else 12):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1e-6)
            begin = time.perf_counter()
            run = monitor.attach(optimizer, watcher=name, directory=str(folder), port=0, linger=0)
            attached = time.perf_counter()
            assert run.url
            ready = time.perf_counter()
            run.close()
            took.append((attached - begin, ready - attached, time.perf_counter() - ready))
        rows.append([name, *(f"{statistics.median(values) * 1e3:.0f}" for values in zip(*took, strict=True))])
    return [
        "### Begin and end",
        "",
        "Median, ms. `ready`: from there until the page has an address, which the script does not wait for.",
        "",
        *table(["", "attach", "ready", "close"], rows),
        "",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    logging.getLogger("monitor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = environment()
    with tempfile.TemporaryDirectory() as folder:
        for part in (slow_steps, fast_steps, begin_and_end):
            lines += part(Path(folder), args.quick)
    print("\n".join(lines))
    print(f"load of the machine when this ended: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

"""What the watcher of rank 0 pays for the shares of many ranks, and how old what it shows becomes.

    python benchmarks/many_ranks.py [--ranks 64] [--rate 100] [--seconds 30]

Rank 0 is a real run with a watcher process of its own, which trains a small model at the given rate of steps. The
others are simulated: one process has a connection for each of them, and every 0.25 s, as real watchers do, sends what
they would have of the steps since. CPU is that of rank 0's watcher, in shares of one core; the delay is how far the
shown step is behind the training, in seconds of steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

INTERVAL_SECONDS = 0.25


def main() -> None:
    """Measure one rank alone, and with 2, 8 and so on up to the given number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rate", type=float, default=100.0, help="steps a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--simulate", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.simulate:
        simulate(json.loads(args.simulate))
        return
    print("| ranks | CPU of rank 0's watcher | its memory, MiB | delay, s: median, p99 | incomplete steps |")
    print("| ---: | ---: | ---: | --- | ---: |")
    for ranks in sorted({1, 2, 8, args.ranks}):
        print(row(ranks, args.rate, args.seconds), flush=True)


def row(ranks: int, rate: float, seconds: float) -> str:
    """Measure with so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(MONITOR_DIR=folder, WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), RANK="0")
        found = measure(ranks, rate, seconds)
    delays = sorted(found["delays"])
    return (
        f"| {ranks} | {found['cpu']:.1%} | {found['memory'] / 2**20:.0f} | "
        f"{statistics.median(delays):.2f}, {delays[int(0.99 * len(delays))]:.2f} | {found['incomplete']} |"
    )


def measure(ranks: int, rate: float, seconds: float) -> dict[str, Any]:
    """Train beside the simulated ranks, and look at the watcher meanwhile."""
    import psutil
    import torch

    import monitor

    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with monitor.attach(optimizer, gpu=False, port=0, linger=0) as run:
        place = {**run._engine._place(), "ranks": ranks, "rate": rate, "begin": time.time() + 2.0}
        others = subprocess.Popen([sys.executable, __file__, "--simulate", json.dumps(place)]) if ranks > 1 else None
        assert run.url is not None  # waits for the watcher
        watcher = next(one for one in psutil.process_iter() if run.id in _arguments(one))
        time.sleep(max(0.0, place["begin"] - time.time()))
        delays, begin, warm_up = [], time.time(), min(5.0, seconds / 3)
        before = watcher.cpu_times()
        while time.time() - begin < seconds + warm_up:
            model(torch.ones(4, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if time.time() - begin < warm_up:
                before, since = watcher.cpu_times(), time.time()
            elif run.step % int(rate) == 0:
                delays.append((run.step - run.snapshot().optimizers[0].global_step) / rate)
            time.sleep(max(0.0, begin + run.step / rate - time.time()))
        after, memory, passed = watcher.cpu_times(), watcher.memory_info().rss, time.time() - since
        incomplete = run.snapshot().incomplete_steps
        run.flush()
    if others is not None:
        others.kill()
        others.wait()
    cpu = (after.user + after.system - before.user - before.system) / passed
    return {"cpu": cpu, "memory": memory, "delays": delays, "incomplete": incomplete}


def _arguments(process: Any) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except Exception:
        return []
    return found


def simulate(place: dict[str, Any]) -> None:
    """Send what all ranks but 0 would send."""
    from monitor.ranks import Share, ShareSender

    senders = [ShareSender(lambda _: None, lambda _: None) for _ in range(place["ranks"] - 1)]
    for rank, sender in enumerate(senders, 1):
        sender.join(place["host"], place["port"], place["secret"], place["run_id"], rank)
    sent = 0
    while True:
        time.sleep(INTERVAL_SECONDS)
        made = int((time.time() - place["begin"]) * place["rate"])
        for sender in senders:
            for number in range(sent + 1, made + 1):
                sender.put(Share(0, number, loss=1.0, whole=1.0, duration=1 / place["rate"], own=0.5 / place["rate"]))
            sender.send()
        sent = max(sent, made)


if __name__ == "__main__":
    main()

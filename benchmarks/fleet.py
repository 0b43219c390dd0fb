"""Measure one real Prometheus with many runs as its targets: scrapes, series, memory, rule evaluation.

    python benchmarks/fleet.py [--runs 500] [--seconds 150] [--interval 15] [--groups 4] [--gpus 1]

The Prometheus of this machine (whichever `prometheus` is first in PATH) runs with the shipped rules and the shipped
intervals, 15 s. The runs are simulated by one other process: every run is a target of its own, with its own path and
its own run_id, and answers with the real exporter's text for a snapshot with the given param groups and GPUs. The
values move once a second and are the same for all runs at one time; a quarter of the runs has an active event,
so that alerts fire. What this leaves out: the network between machines, the churn of runs that come and go for weeks,
and compaction, which comes every two hours. Both processes share this machine's cores: the times are upper bounds. The
bytes a sample are fair only with 120 samples a series or more, where a chunk is full: `--runs 50 --interval 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import random
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monitor._records import Snapshot  # noqa: E402
from monitor.export import Exporter  # noqa: E402
from tests.export.full_snapshot import make_snapshot  # noqa: E402
from tests.stack.real_prometheus import Prometheus, wait_until  # noqa: E402

NAME = "run-000000"
CONFIG = """\
global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s, evaluation_interval: {interval}s}}
rule_files: ["{rules}/*.yml"]
scrape_configs:
  - job_name: training
    file_sd_configs: [{{files: ["{targets}"]}}]
  - job_name: prometheus
    static_configs: [{{targets: ["OWN_ADDRESS"]}}]
"""


class Fleet:
    """Answer for every run: one text a second, in which each scrape finds its own run_id."""

    def __init__(self, groups: int, gpus: int) -> None:
        self._base = make_snapshot(groups=groups, gpus=gpus)
        self._snapshot, self._second = self._base, 0
        self._exporter = Exporter(lambda: self._snapshot)
        self._random = random.Random(0)
        self._texts = {False: b"", True: b""}

    def text(self, number: int) -> bytes:
        """Return the scrape of one run."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            for is_troubled in self._texts:
                self._snapshot = self._moved(now, is_troubled)
                self._texts[is_troubled] = self._exporter.render(None)[0]
        return self._texts[number % 4 == 0].replace(NAME.encode(), f"run-{number:06d}".encode())

    def _moved(self, now: int, is_troubled: bool) -> Snapshot:
        noise = self._random.gauss
        loss = 2 + math.exp(-(now % 10_000) / 3000) + noise(0, 0.05)
        optimizers = tuple(
            replace(
                each,
                steps=now % 1_000_000,
                global_step=now % 1_000_000,
                loss=loss,
                loss_ema=loss + noise(0, 0.01),
                loss_window_mean=loss + noise(0, 0.01),
                loss_window_min=loss - abs(noise(0, 0.1)),
                loss_window_max=loss + abs(noise(0, 0.1)),
                loss_positive_sum=each.loss_positive_sum + loss * (now % 1_000_000),
                loss_positive_count=now % 1_000_000,
                gradient_norm=abs(noise(1, 0.2)),
                gradient_norm_window_max=abs(noise(2, 0.2)),
                groups=tuple(replace(group, applied=group.applied * (1 + noise(0, 0.001))) for group in each.groups),
            )
            for each in self._base.optimizers
        )
        return replace(
            self._base,
            run=replace(self._base.run, run_id=NAME),
            state="running",
            end_time=None,
            time=float(now),
            last_step_time=now - 0.1,
            optimizers=optimizers,
            events_active={"spike": is_troubled},
            events_total={"spike": now // 30 if is_troubled else 0},
            phase_seconds={"forward": now * 0.4, "backward": now * 0.5},
        )


def serve(listener: socket.socket, groups: int, gpus: int) -> None:
    """Serve ``/<number>/metrics`` until the process is ended."""
    fleet = Fleet(groups, gpus)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = fleet.text(int(head.split(b"/", 2)[1]))
                kind = b"Content-Type: text/plain; version=0.0.4\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=listener, limit=1 << 16)
        await server.serve_forever()

    asyncio.run(main())


def targets(address: str, runs: int) -> str:
    """Return the file_sd file: one target a run, told apart by path and instance."""
    return json.dumps(
        [
            {"targets": [address], "labels": {"instance": f"node{n}:9477", "__metrics_path__": f"/{n}/metrics"}}
            for n in range(runs)
        ]
    )


# what is reported: name, PromQL ({window} is the time looked at), factor, format
QUESTIONS = (
    ("runs that are up", 'count(up{job="training"} == 1)', 1, ",.0f"),
    ("series a run", 'avg(scrape_samples_scraped{job="training"})', 1, ",.0f"),
    ("series in the head block", "prometheus_tsdb_head_series", 1, ",.0f"),
    ("samples a second", "sum(rate(prometheus_tsdb_head_samples_appended_total{window}))", 1, ",.0f"),
    ("scrapes that failed", 'sum(count_over_time((up{job="training"} == 0){window:1s})) or vector(0)', 1, ",.0f"),
    ("scrape, median, ms", 'quantile(0.5, scrape_duration_seconds{job="training"})', 1e3, ".1f"),
    ("scrape, 99th percentile, ms", 'quantile(0.99, scrape_duration_seconds{job="training"})', 1e3, ".1f"),
    ("scrape, slowest, ms", 'max(max_over_time(scrape_duration_seconds{job="training"}{window}))', 1e3, ".1f"),
    ("rules, all groups, ms", "sum(prometheus_rule_group_last_duration_seconds)", 1e3, ",.0f"),
    ("rules, slowest group, ms", "max(prometheus_rule_group_last_duration_seconds)", 1e3, ",.0f"),
    ("rule evaluations that failed", "sum(prometheus_rule_evaluation_failures_total)", 1, ",.0f"),
    ("series of alerts, pending or firing", "count(ALERTS) or vector(0)", 1, ",.0f"),
)


def measure(prometheus: Prometheus, folder: Path, runs: int, seconds: int) -> Iterator[tuple[str, str]]:
    """Let it run, then ask Prometheus about itself, and the system about Prometheus."""
    wait_until(lambda: prometheus.value('count(up{job="training"} == 1)') >= runs, "every run was scraped")
    process = psutil.Process(prometheus.pid)
    started, cpu, peak = time.monotonic(), sum(process.cpu_times()[:2]), 0
    while time.monotonic() - started < seconds:
        time.sleep(1)
        peak = max(peak, process.memory_info().rss)
    cpu = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - started)
    for name, expression, factor, spelling in QUESTIONS:
        asked = expression.replace("{window:1s}", f"[{seconds}s:1s]").replace("{window}", f"[{seconds}s]")
        yield name, format(factor * prometheus.value(asked), spelling)
    yield "memory, peak RSS, MiB", f"{peak / 2**20:,.0f}"
    yield "memory a series, KiB", f"{peak / prometheus.value('prometheus_tsdb_head_series') / 1024:.1f}"
    yield "CPU, cores", f"{cpu:.2f}"
    yield "bytes a sample, in a block", f"{bytes_a_sample(prometheus, folder / 'prometheus' / 'data'):.2f}"


def bytes_a_sample(prometheus: Prometheus, data: Path) -> float:
    """Let Prometheus write what it has into a block, and return the size of its chunks over their samples."""
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/admin/tsdb/snapshot", b"", timeout=120):
        pass
    (block,) = [path.parent for path in (data / "snapshots").rglob("meta.json")]
    num_samples = json.loads((block / "meta.json").read_text())["stats"]["numSamples"]
    return sum(path.stat().st_size for path in (block / "chunks").iterdir()) / num_samples


def main() -> None:
    """Start both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=150, help="how long to look (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=15, help="of scrapes, in seconds (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=4, help="param groups of a run (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of a run (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    (folder / "targets.json").write_text(targets(address, args.runs))
    process = multiprocessing.get_context("fork").Process(
        target=serve, args=(listener, args.groups, args.gpus), daemon=True
    )
    process.start()
    listener.close()
    rules = ROOT / "dashboards" / "prometheus" / "rules"
    config = CONFIG.format(interval=args.interval, rules=rules, targets=folder / "targets.json")
    try:
        with Prometheus(folder / "prometheus", config, "--web.enable-admin-api") as prometheus:
            print("| what | value |\n| --- | ---: |")
            for name, value in measure(prometheus, folder, args.runs, args.seconds):
                print(f"| {name} | {value} |", flush=True)
    finally:
        process.terminate()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Measure what one scrape costs: CPU time to render a full snapshot, by format and number of param groups.

    python benchmarks/scrape.py [--rounds 200]

CPU time of the process is measured, not wall time, and the median of many rounds is given: what else runs on
the machine has little say in it. The snapshot has every metric of the catalogue and two GPUs; compression is
not part of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monitor.export import Exporter  # noqa: E402
from tests.export.full_snapshot import make_snapshot  # noqa: E402

LIMIT_MS = 10.0
FORMATS = {
    "text": None,
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "OpenMetrics, as Prometheus 3 asks": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
}


def measure(num_groups: int, accept: str | None, rounds: int) -> tuple[int, int, float, float]:
    """Give series, bytes, and the median and 99th percentile of CPU milliseconds of one scrape."""
    snapshot = make_snapshot(groups=num_groups)
    exporter = Exporter(lambda: snapshot)
    body = b""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        body, _ = exporter.render(accept)
        times.append((time.process_time() - started) * 1e3)
    num_series = sum(not line.startswith(b"#") for line in body.splitlines())
    return num_series, len(body), statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> int:
    """Print the table; exit 1 if a scrape of 64 groups costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="scrapes per row, default 200")
    rounds = parser.parse_args().rounds
    print("| groups | format | series | kB | median CPU ms | p99 CPU ms |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    is_within = True
    for num_groups in (1, 4, 64, 1000):
        for name, accept in FORMATS.items():
            num_series, size, median, p99 = measure(num_groups, accept, rounds)
            print(f"| {num_groups} | {name} | {num_series} | {size / 1e3:.0f} | {median:.2f} | {p99:.2f} |")
            is_within = is_within and median <= LIMIT_MS
    print(f"\n64 groups, limit {LIMIT_MS:.0f} ms of CPU: {'kept' if is_within else 'EXCEEDED'}")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())

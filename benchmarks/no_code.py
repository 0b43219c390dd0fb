"""What training-monitor.pth costs a Python that is not to be watched: its start with the file and without it.

    python benchmarks/no_code.py [--rounds 300]

Two environments that differ in this file alone are started in turn, in random order, with the variable MONITOR unset;
one of them with MONITOR=1 as well, for a program that does not import torch. What is told is the median of the
differences within a round, with its 95 % interval from the bootstrap.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUM_DRAWS = 2000


def environment(folder: Path, *, has_file: bool) -> Path:
    """Make an environment and return its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (packages / "package.pth").write_text(f"{ROOT}\n")
    if has_file:
        nodes = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        values = [ast.literal_eval(node.value) for node in nodes if isinstance(node, ast.Assign)]
        (packages / values[0]).write_text(values[1])
    return folder / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name


def seconds(python: Path, **variables: str) -> float:
    """Time one start and end of an interpreter."""
    environ = {name: value for name, value in os.environ.items() if name != "MONITOR"} | variables
    start = time.perf_counter()
    subprocess.run([str(python), "-c", ""], env=environ, check=True)
    return time.perf_counter() - start


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval."""
    draws = sorted(statistics.median(random.choices(differences, k=len(differences))) for _ in range(NUM_DRAWS))
    return statistics.median(differences), draws[NUM_DRAWS // 40], draws[-NUM_DRAWS // 40]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="Rounds that are timed.")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        without = environment(Path(folder, "without"), has_file=False)
        with_file = environment(Path(folder, "with"), has_file=True)
        cases = {"without": (without, {}), "with": (with_file, {}), "MONITOR=1": (with_file, {"MONITOR": "1"})}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(rounds + 5):
            for name in random.sample(list(cases), len(cases)):
                python, variables = cases[name]
                taken = seconds(python, **variables)
                if number >= 5:  # the first ones fill the caches of the disk
                    times[name].append(taken)
    print(f"start of the interpreter without the file: {1e3 * statistics.median(times['without']):.2f} ms")
    for name, label in (("with", "with it, MONITOR unset"), ("MONITOR=1", "with it, MONITOR=1, no torch")):
        pairs = [b - a for a, b in zip(times["without"], times[name], strict=True)]
        middle, low, high = interval(pairs)
        print(f"{label}: {1e3 * middle:+.3f} ms (95 %: {1e3 * low:+.3f} to {1e3 * high:+.3f})")


if __name__ == "__main__":
    main()

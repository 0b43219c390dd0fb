"""What commands cost and how long they take on several ranks, and that none of them splits the ranks.

    python benchmarks/ranks.py [--ranks 4] [--commands 125] [--quick]

Starts gloo ranks on this machine that train one model by DistributedDataParallel: plainly; with one rank that lags
behind now and then; with one that is stopped (SIGSTOP) for two and a half seconds now and then. Rank 0 is given one
command after the other, each at a random moment. The steps at which each rank carried it out are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import monitor

CASES = ("plain", "lagging", "stopped")
STEP_SECONDS = 0.008


def main() -> None:
    """Start the ranks of each case and compare what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--commands", type=int, default=125, help="in each case")
    parser.add_argument("--quick", action="store_true", help="10 commands in each case")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.commands = 10
    if args.rank is not None:
        train(args)
        return
    columns = ["case", "commands", "applied", "rejected", "split", "steps to effect", "seconds to effect"]
    print("| " + " | ".join([*columns, "at a fence, us", "attach, ms"]) + " |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- | --- | ---: |")
    for case in CASES:
        print(row(case, args), flush=True)
    print(
        "\nMedian and p99. At a fence: what the training thread spends on the command before the step, asking included."
        " Attach: the longest of all ranks."
    )


def row(case: str, args: argparse.Namespace) -> str:
    """Run one case; return its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--folder", folder, "--case", case]
        words += ["--ranks", str(args.ranks), "--commands", str(args.commands)]
        started = [
            subprocess.Popen([*words, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(args.ranks)
        ]
        found = [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
    given = found[0]["given"]
    applied = [one for one in given if one["status"] == "applied"]
    num_split = sum(len({json.dumps(one["steps"].get(each["id"])) for one in found}) > 1 for each in given)
    fences = [seconds for one in found for seconds in one["fences"]]
    figures = [
        spread([one["steps"] for one in applied], "{:.0f}"),
        spread([one["seconds"] for one in applied], "{:.2f}"),
        spread([seconds * 1e6 for seconds in fences], "{:.0f}"),
        f"{max(one['attach'] for one in found) * 1e3:.0f}",
    ]
    counts = [len(given), len(applied), len(given) - len(applied), num_split]
    return f"| {case} | " + " | ".join([*map(str, counts), *figures]) + " |"


def spread(values: list[float], form: str) -> str:
    """Return median and 99th percentile."""
    if len(values) < 2:
        return "-"
    return f"{form.format(statistics.median(values))}, {form.format(statistics.quantiles(values, n=100)[98])}"


# ---------------------------------------------------------------------------------------------------- one rank


def train(args: argparse.Namespace) -> None:
    """Train until rank 0 has given all its commands; print what was done here."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    meet = f"file://{args.folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=args.rank, world_size=args.ranks)
    model = DistributedDataParallel(torch.nn.Linear(32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    begin = time.perf_counter()
    with monitor.attach(optimizer, directory=f"{args.folder}/runs", serve=False, gpu=False) as run:
        attach_seconds = time.perf_counter() - begin
        fences, given = timed(run._engine._training.ranks), list[dict[str, Any]]()
        if args.rank == 0:
            threading.Thread(target=give, args=(run, args.commands, given)).start()
        step = 0
        while not run.should_stop:
            step += 1
            trouble(args, step)
            model(torch.randn(8, 32)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        records = run._engine.commands.kept()
    steps = {one.id: one.step for one in records if one.status == "applied"}
    print(json.dumps({"steps": steps, "given": given, "fences": fences, "attach": attach_seconds}))
    dist.barrier()
    dist.destroy_process_group()


def trouble(args: argparse.Namespace, step: int) -> None:
    """Take the time of a step, and have the last rank lag or stand still now and then."""
    time.sleep(STEP_SECONDS * 0.8)
    if args.rank != args.ranks - 1:
        return
    if args.case == "lagging" and random.random() < 0.05:
        time.sleep(0.2)
    if args.case == "stopped" and step % 400 == 399:
        os.posix_spawn("/bin/sh", ["sh", "-c", f"sleep 2.5; kill -CONT {os.getpid()}"], os.environ)
        os.kill(os.getpid(), signal.SIGSTOP)


def timed(ranks: Any) -> list[float]:
    """Have the seconds noted that the training thread spends on each command that is due."""
    found, take = list[float](), ranks.take

    def timed_take() -> Any:
        start = time.perf_counter()
        command = take()
        if command is not None:
            found.append(time.perf_counter() - start)
        return command

    ranks.take = timed_take
    return found


def give(run: Any, num_commands: int, given: list[dict[str, Any]]) -> None:
    """Give one command after the other, the last of which stops all ranks."""
    time.sleep(2.0)
    for i in range(num_commands):
        time.sleep(random.uniform(0.0, 0.1))
        before, start = run.step, time.monotonic()
        command = run.set_lr_factor(0.5) if i % 2 else run.restore_lr()
        record = command.wait(120.0)
        one = {"id": record.id, "status": record.status, "seconds": time.monotonic() - start}
        given.append({**one, "steps": (record.step or 0) - before})
    while run._engine.commands.submit("stop", source="code").wait(120.0).status != "applied":
        pass


if __name__ == "__main__":
    main()

"""One tracker, one process: the same training step bare, watched and logged, in blocks by turns; prints JSON.

    python benchmarks/overhead_peers.py tensorboard --blocks 40

Started by benchmarks/overhead.py, once per tracker. Each logs five scalars a step in the way of its own documentation:
the loss, the learning rates of two param groups, the gradient norm and a figure of the user's own. ``monitor`` captures
what it shows by itself, and that is more than these five. ``nothing`` logs nothing: its figures are the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn.utils import clip_grad

from monitor.probe._patches import inner_cell

Log = Callable[[int, dict[str, float]], None]
BLOCK_STEPS = 100
WARM_UP_STEPS = 20
ATTACH_STEPS = 250  # what starts a run (threads, files, the first readings of the machine) is no cost of a step


class Job:
    """A small but real training step: a perceptron on fixed random data, AdamW in two groups, a schedule, clipping."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.x, self.y = torch.randn(192, 256), torch.randint(10, (192,))
        self.model = nn.Sequential(nn.Linear(256, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 10))
        groups = [{"params": [p for p in self.model.parameters() if (p.ndim > 1) is wide]} for wide in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0 / (1 + step / 1e5))

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss, norm

    def scalars(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> dict[str, float]:
        first, second = (group["lr"] for group in self.optimizer.param_groups)
        return {
            "loss": loss.item(),
            "lr_0": first,
            "lr_1": second,
            "gradient_norm": norm.item(),
            "progress": step / 1e6,
        }


def csv_log(folder: Path) -> Log:
    file = open(folder / "log.csv", "w", newline="")  # noqa: SIM115 - open as long as the process
    writer = csv.writer(file)
    return lambda step, values: writer.writerow([step, *values.values()]) and None


def prometheus_log(_: Path) -> Log:
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    loss = Gauge("loss", "loss", ["run_id"], registry=registry)
    lr = Gauge("lr", "lr", ["run_id", "group"], registry=registry)
    norm = Gauge("gradient_norm", "gradient norm", ["run_id"], registry=registry)
    progress = Gauge("progress", "progress", ["run_id"], registry=registry)

    def log(_: int, values: dict[str, float]) -> None:
        loss.labels("a").set(values["loss"])
        lr.labels("a", "0").set(values["lr_0"])
        lr.labels("a", "1").set(values["lr_1"])
        norm.labels("a").set(values["gradient_norm"])
        progress.labels("a").set(values["progress"])

    return log


def tensorboard_log(folder: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def trackio_log(folder: Path) -> Log:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    trackio.init(project="overhead")
    return lambda _, values: trackio.log(values)


def wandb_log(folder: Path) -> Log:
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
    import wandb

    run = wandb.init(project="overhead")
    return lambda step, values: run.log(values, step=step)


def aim_log(folder: Path) -> Log:
    import aim

    run = aim.Run(repo=str(folder), system_tracking_interval=None, log_system_params=False)

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            run.track(value, name=name, step=step)

    return log


def mlflow_log(folder: Path) -> Log:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda step, values: mlflow.log_metrics(values, step=step)


LOGS: dict[str, tuple[str, Callable[[Path], Log]]] = {
    "prometheus": ("prometheus_client", prometheus_log),
    "csv": ("", csv_log),
    "trackio": ("trackio", trackio_log),
    "tensorboard": ("tensorboard", tensorboard_log),
    "wandb": ("wandb", wandb_log),
    "aim": ("aim", aim_log),
    "mlflow": ("mlflow", mlflow_log),
}


class Blocks:
    """The times of the steps of many short blocks of several ways to take them, one after the other."""

    def __init__(self, *ways: str) -> None:
        self.times: dict[str, list[list[float]]] = {way: [] for way in ways}
        self.own: dict[str, list[float]] = {way: [] for way in ways}
        self.cpu: dict[str, list[float]] = {way: [] for way in ways}

    def run(self, way: str, one_step: Callable[[], Any], num_steps: int, warm_up: int = WARM_UP_STEPS) -> None:
        for _ in range(warm_up):
            one_step()
        cpu, times, own = tree_cpu_seconds(), [], []
        for _ in range(num_steps):
            started, started_own = time.perf_counter(), time.thread_time()
            one_step()
            own.append(time.thread_time() - started_own)
            times.append(time.perf_counter() - started)
        self.own[way].append(statistics.median(own))
        self.cpu[way].append((tree_cpu_seconds() - cpu) / num_steps)
        self.times[way].append(times)

    def result(self, way: str, base: str) -> dict[str, float]:
        """Seconds per step. An added median is the median over the pairs of blocks: drift of the machine cancels."""
        medians = {key: [statistics.median(block) for block in self.times[key]] for key in (way, base)}
        every = {key: sorted(t for block in self.times[key] for t in block) for key in (way, base)}
        p99 = {key: times[int(0.99 * (len(times) - 1))] for key, times in every.items()}
        pairs = list(zip(medians[way], medians[base], strict=True))
        cpu, own = (
            [with_ - without for with_, without in zip(kind[way], kind[base], strict=True)]
            for kind in (self.cpu, self.own)
        )
        return {
            "step": statistics.median(medians[base]),
            "added_median": statistics.median(a - b for a, b in pairs),
            "added_p99": p99[way] - p99[base],
            "added_own": statistics.median(own),
            "added_cpu": statistics.median(cpu),
            "ratio": statistics.median(a / b for a, b in pairs),
        }


class Calls:
    """Time what stands on the training thread's way through one step, at the calls: the functions that are put in the
    place of torch's, less what they hand on to, and the hooks of the optimizer.

    :meth:`hand_on` goes in before the functions that are measured, :meth:`measure` after them. With nothing between
    the two, what is measured is the measuring itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
        self._spent = 0.0
        self.steps: list[float] = []

    @contextlib.contextmanager
    def hand_on(self) -> Iterator[None]:
        """Take the time of torch's own functions out."""
        with self._around(-1.0):
            yield

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Take the time of what stands in their place, and of the hooks."""
        kept = [dict(hooks) for hooks in self._hooks]
        with self._around(1.0):
            for hooks in self._hooks:
                hooks.update({key: self._timed(hook, 1.0) for key, hook in hooks.items()})
            yield
            for hooks, before in zip(self._hooks, kept, strict=True):
                hooks.update(before)

    def end_step(self) -> None:
        """Note what this step has taken."""
        self.steps.append(self._spent)
        self._spent = 0.0

    def _timed(self, function: Any, sign: float) -> Any:
        clock = time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent += sign * (clock() - started)

        return timed

    @contextlib.contextmanager
    def _around(self, sign: float) -> Iterator[None]:
        with replaced(lambda function: self._timed(function, sign)):
            yield


@contextlib.contextmanager
def replaced(make: Callable[[Any], Any]) -> Iterator[None]:
    """Put a function in the place of each one of torch's that a step goes through and the monitor replaces."""
    backward, zero_grad = torch.autograd.backward, torch.optim.Optimizer.zero_grad
    cells = [inner_cell(getattr(clip_grad, name)) for name in ("clip_grad_norm_", "_clip_grads_with_norm_")]
    kept = [(cell, cell.cell_contents) for cell in cells if cell is not None]
    torch.autograd.backward, torch.optim.Optimizer.zero_grad = make(backward), make(zero_grad)  # type: ignore[assignment]
    for cell, function in kept:
        cell.cell_contents = make(function)
    try:
        yield
    finally:
        torch.autograd.backward, torch.optim.Optimizer.zero_grad = backward, zero_grad  # type: ignore[method-assign]
        for cell, function in kept:
            cell.cell_contents = function


@contextlib.contextmanager
def nothing_at_all(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put functions that only hand on in the place of torch's, and hooks that do nothing: what any look costs that is
    written in Python."""
    handles = [
        optimizer.register_step_pre_hook(lambda *_: None),
        optimizer.register_step_post_hook(lambda *_: None),
    ]
    with replaced(lambda function: lambda *args, **kwargs: function(*args, **kwargs)):
        yield
    for handle in handles:
        handle.remove()


def watchers() -> list[psutil.Process]:
    """The watcher processes that have been seen, those that have begun since the last call among them."""
    for pid in set(psutil.pids()) - _SEEN:
        _SEEN.add(pid)
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if "training-monitor" in process.cmdline() and process.create_time() > _BEGUN:
                _WATCHERS.append(process)
    own = {child.pid for child in psutil.Process().children()}  # where this is process 1
    return [one for one in _WATCHERS if one.pid not in own]


_BEGUN = psutil.Process().create_time()
_SEEN: set[int] = set()
_WATCHERS: list[psutil.Process] = []


def tree_cpu_seconds() -> float:
    """CPU seconds of this process and its threads, of its children (services of a tracker), and of the watchers that
    were started since it began, which are nobody's children (to 10 ms)."""
    total = time.process_time()
    for child in [*psutil.Process().children(recursive=True), *watchers()]:
        with contextlib.suppress(psutil.Error):  # a child that has just ended
            total += sum(child.cpu_times()[:2])
    return total


def measure(name: str, num_blocks: int, folder: Path) -> dict[str, Any]:
    """Take the steps of one job in three ways by turns: bare, watched, and logged by the peer."""
    import monitor

    job, count = Job(), 0
    log = LOGS[name][1](folder) if name in LOGS else None
    calls: dict[str, list[float]] = {"peer": [], "monitor": [], "empty": [], "measuring": []}

    def logged() -> None:
        nonlocal count
        count += 1
        loss, norm = job.step()
        if log is not None:
            started = time.perf_counter()
            log(count, job.scalars(count, loss, norm))
            calls["peer"].append(time.perf_counter() - started)

    def watched() -> contextlib.AbstractContextManager[Any]:
        return monitor.attach(job.optimizer, job.scheduler, directory=str(folder), port=0, linger=0)

    ways = ["bare", "monitor", "peer"]
    blocks = Blocks(*ways)
    for number in range(num_blocks):
        for way in ways[number % 3 :] + ways[: number % 3]:
            if way == "monitor":
                with watched():
                    blocks.run(way, job.step, BLOCK_STEPS, warm_up=ATTACH_STEPS)
            else:
                blocks.run(way, logged if way == "peer" else job.step, BLOCK_STEPS)
        if number % 3 == 0:
            calls["monitor"] += at_the_calls(job, watched, ATTACH_STEPS)
            calls["empty"] += at_the_calls(job, lambda: nothing_at_all(job.optimizer), WARM_UP_STEPS)
            calls["measuring"] += at_the_calls(job, contextlib.nullcontext, WARM_UP_STEPS)
    distribution = LOGS[name][0] if name in LOGS else ""
    medians = {way: statistics.median(times) if times else 0.0 for way, times in calls.items()}
    measuring = medians.pop("measuring")
    return {
        "name": name,
        "version": version(distribution) if distribution else "",
        "monitor": blocks.result("monitor", "bare"),
        "peer": blocks.result("peer", "bare"),
        "calls": {way: median if way == "peer" else median - measuring for way, median in medians.items()},
    }


def at_the_calls(job: Job, watched: Callable[[], contextlib.AbstractContextManager[Any]], warm_up: int) -> list[float]:
    """Return what stands in the way of each of a block of steps takes, in seconds."""
    calls = Calls(job.optimizer)
    with calls.hand_on(), watched(), calls.measure():
        for _ in range(warm_up + BLOCK_STEPS):
            job.step()
            calls.end_step()
    return calls.steps[warm_up:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["nothing", *LOGS])
    logging.getLogger("monitor").setLevel(logging.ERROR)
    parser.add_argument("--blocks", type=int, default=15, help="blocks of each way (default: %(default)s)")
    args = parser.parse_args()
    # Some trackers print to stdout what they like: the result goes to the real one, all else to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out.write(json.dumps(measure(args.name, args.blocks, Path(folder))) + "\n")
        out.flush()
        sys.stderr.flush()
        os._exit(0)  # no tracker's farewell is measured here, nor waited for


if __name__ == "__main__":
    main()

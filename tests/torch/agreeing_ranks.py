"""One rank of a group that takes commands: ``python -m tests.torch.agreeing_ranks rank world folder case``.

Prints, as one JSON object, at which step each command took effect here, and whether the weights are those of a training
whose learning rate was written by hand at these steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import monitor
from monitor import CommandRefusedError
from monitor.control import _agreement

LR, STEPS, SECONDS = 0.1, 260, 0.003
Optimizer = torch.optim.Optimizer
Made = tuple[nn.Module, Optimizer]


def data_parallel() -> Made:
    model = DistributedDataParallel(plain())
    return model, torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


def sharded() -> Made:
    model = plain()
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=LR)


def redundancy_free() -> Made:
    model = DistributedDataParallel(plain())
    return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=LR)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


BUILDS: dict[str, Callable[[], Made]] = {
    "data parallel": data_parallel,
    "sharded": sharded,
    "redundancy free": redundancy_free,
}


def train(made: Made, num_steps: int, before: Callable[[int, Optimizer], bool | None], pause: float = 0.0) -> None:
    """Train; ``before`` is called with the number of each step, and ends the loop if it returns True."""
    model, optimizer = made
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(1, num_steps + 1):
        time.sleep(pause)
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        if before(step, optimizer):
            break
        optimizer.step()
        optimizer.zero_grad()


def weights(made: Made) -> list[list[float]]:
    return [getattr(p, "_local_tensor", p).detach().flatten().tolist() for p in made[0].parameters()]


def commands(case: str, folder: str) -> dict[str, Any]:
    """Commands from another thread of rank 0, as those of the server come."""
    made, rank = BUILDS[case](), dist.get_rank()
    saved: list[int] = []
    with watch(made[1], folder, on_checkpoint=lambda: saved.append(run.step)) as run:
        given: list[Any] = []
        sender = threading.Thread(target=send, args=(run, given))
        if rank == 0:
            sender.start()
        train(made, 4000, lambda *_: run.should_stop, SECONDS)
        if rank == 0:
            sender.join()
        records = [one for one in run._engine.commands.kept() if one.status == "applied"]
        num_steps = run.step
    steps = [[one.action, one.step] for one in records]
    factors = {one.step: one.changes[0].factor_after for one in records if one.action in ("reduce", "restore")}
    by_hand = BUILDS[case]()
    train(by_hand, num_steps, lambda step, optimizer: write(optimizer, factors.get(step)))
    outcomes = [[one.record.action, one.wait(20).status] for one in given]
    return {"steps": steps, "is_equal": weights(by_hand) == weights(made), "saved": saved, "outcomes": outcomes}


def send(run: Any, given: list[Any]) -> None:
    actions = ["reduce", "checkpoint", "reduce", "pause", "reduce", "resume", "restore", "reduce", "stop"]
    for action in actions:
        time.sleep(0.15)
        factor = 0.7 if action == "reduce" else None
        given.append(submit(run, action, factor))


def write(optimizer: Any, factor: float | None) -> None:
    """Set the learning rate by hand."""
    if factor is not None:
        for one in {id(o): o for o in (optimizer, getattr(optimizer, "optim", optimizer))}.values():
            for group in one.param_groups:
                group["lr"] = LR * factor


def watch(optimizer: Any, folder: str, **settings: Any) -> Any:
    return monitor.attach(optimizer, directory=folder, serve=False, gpu=False, **settings)


def refusals(_: str, folder: str) -> dict[str, Any]:
    """Rank 1 is not attached; rank 2 is sent a command."""
    _agreement.MEMBER_SECONDS = 4.0
    made, rank = data_parallel(), dist.get_rank()
    if rank == 1:
        train(made, STEPS, lambda *_: None, 0.025)
        return {}
    with watch(made[1], folder) as run:
        own = run.reduce_lr(0.5)
        train(made, STEPS, lambda *_: None, 0.025)
        words = [refusal(lambda: run.reduce_lr(0.5)), refusal(lambda: submit(run, "reduce", 0.5))]
        applied = {g[5] for g in run._engine.lr_table()}
    return {"own": [own.status, own.record.message], "words": words, "lrs": sorted(map(float, applied))}


def refusal(give: Callable[[], Any]) -> str:
    try:
        return str(give().record.message)
    except CommandRefusedError as error:
        return str(error)


def submit(run: Any, action: str, factor: float | None) -> Any:
    """Give a command as the server does."""
    return run._engine.commands.submit(action, source="api", factor=factor)


def stopped(_: str, folder: str) -> dict[str, Any]:
    """One rank stands still for a second, somewhere between a command and its effect."""
    made, rank = data_parallel(), dist.get_rank()
    with watch(made[1], folder) as run:
        given: list[Any] = []

        def before(step: int, __: Any) -> None:
            if rank == 0 and step % 40 == 20:
                given.append(run.reduce_lr(0.9))
            if rank == 1 and step % 40 == 20 + step // 40:
                stop_for_a_second()

        train(made, STEPS, before, SECONDS)
        steps = [[one.action, one.step] for one in run._engine.commands.kept() if one.status == "applied"]
    return {"steps": steps, "outcomes": [one.status for one in given]}


def stop_for_a_second() -> None:
    """Have a child wake this process a second after it has stopped itself."""
    pid = os.getpid()
    if os.posix_spawn("/bin/sh", ["sh", "-c", f"sleep 1; kill -CONT {pid}"], os.environ):
        os.kill(pid, signal.SIGSTOP)


def killed(_: str, folder: str) -> dict[str, Any]:
    """The last rank is killed while a command waits for its promise."""
    made, rank = data_parallel(), dist.get_rank()
    is_last = rank == dist.get_world_size() - 1
    error = ""
    with watch(made[1], folder) as run:

        def before(step: int, __: Any) -> None:
            if rank == 0 and step == 100:
                run.reduce_lr(0.5)
            if is_last and step == 101:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            train(made, STEPS, before, SECONDS)
        except RuntimeError as failure:
            error = type(failure).__name__
    return {"error": error, "step": run.step}


def two_runs(_: str, folder: str) -> dict[str, Any]:
    """Two runs are open at the same time; one after the other is given a command."""
    made = [data_parallel(), data_parallel()]
    with watch(made[0][1], folder) as first, watch(made[1][1], folder) as second:

        def before(step: int, _: Any) -> None:
            if dist.get_rank() == 0 and step in (150, 300):
                (first if step == 150 else second).reduce_lr(0.5 if step == 150 else 0.25)

        def train_second(step: int, optimizer: Any) -> None:
            before(step, optimizer)
            train(made[1], 1, lambda *_: None)

        train(made[0], 500, train_second, SECONDS)
        steps = [[(one.status, one.step) for one in run._engine.commands.kept()] for run in (first, second)]
        factors = [run.lr[0].factor for run in (first, second)]
    return {"steps": steps, "factors": factors}


def leaves_first(_: str, folder: str) -> dict[str, Any]:
    """Rank 0 ends its run; the other one trains on, and its thread has gone."""
    made, rank = data_parallel(), dist.get_rank()
    with watch(made[1], folder) as run:
        train(made, STEPS, lambda *_: None, 0.01)
        names = {thread.name for thread in threading.enumerate()}
        if rank == 0:
            run.close()
        time.sleep(2.0 * rank)
        left = {thread.name for thread in threading.enumerate()}
    return {"before": "monitor-ranks" in names, "after": "monitor-ranks" in left}


CASES = {
    "leaves first": leaves_first,
    "refusals": refusals,
    "stopped": stopped,
    "killed": killed,
    "two runs": two_runs,
    **dict.fromkeys(BUILDS, commands),
}


def main() -> None:
    rank, world, folder, case = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{case}", rank=rank, world_size=world)
    found = CASES[case](case, f"{folder}/runs")
    print(json.dumps(found), flush=True)
    if case == "killed":
        os._exit(0)  # the group cannot be taken down in order
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

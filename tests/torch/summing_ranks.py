"""One rank of a group whose losses and norms are added up: ``python -m tests.torch.summing_ranks rank world port
cases``.

Prints, as one JSON object a case, the losses and norms that the run of this rank has kept, and the true ones.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import monitor
from monitor.ranks import _own_times
from tests.torch.agreeing_layouts import BUILDS

NUM_STEPS = 30


def look(case: str) -> dict[str, Any]:
    """Train as the case says, watched on every rank, and again unwatched."""
    made, losses, norms = BUILDS[case](), list[float | None](), list[float]()
    with monitor.attach(made.optimizer, gpu=False, port=0, linger=0, gradient_norm=1, name="together") as run:
        for _ in range(NUM_STEPS):
            losses.append(made.backward(lambda: norms.append(square_of(made.model))))
            made.optimizer.step()
            made.optimizer.zero_grad()
        meet(run)
    history = run.history()["optimizers"][type(made.optimizer).__name__]
    bare = BUILDS[case]()
    for _ in range(NUM_STEPS):
        bare.backward(lambda: norms.append(square_of(bare.model)))
        bare.optimizer.step()
        bare.optimizer.zero_grad()
    return {
        "loss": history["loss"],
        "norm": history["gradient_norm"],
        "true_loss": mean_of(losses),
        "true_norm": total_of(case, norms[:NUM_STEPS]),
        "is_same": made.weights() == bare.weights(),
        "summed": run.snapshot().summed_ranks,
        "incomplete": run.snapshot().incomplete_steps,
        "step": run.step,
    }


def meet(run: Any) -> None:
    """Stay until rank 0's run has the shares of all: on a busy machine the ranks may take longer to find each other
    than these few steps."""
    deadline = time.monotonic() + 30.0
    while dist.get_rank() == 0 and run.snapshot().summed_ranks < dist.get_world_size() and time.monotonic() < deadline:
        time.sleep(0.05)
    dist.barrier()


def save() -> dict[str, Any]:
    """Train with half the learning rate, and leave a checkpoint with the state of rank 0's run."""
    made = BUILDS["data parallel"]()
    with monitor.attach(made.optimizer, gpu=False, port=0, linger=0, name="resumed", store_bytes=2**21) as run:
        train(made, 40, lambda step: run.reduce_lr(0.5) if step == 5 else None)
        state = {"model": made.model.module.state_dict(), "optimizer": made.optimizer.state_dict()}
        if dist.get_rank() == 0:
            torch.save({**state, "monitor": run.state_dict()}, checkpoint())
        factors = [group.factor for group in run.lr]
    return {"id": run.id, "factors": factors, "step": run.step}


def resume() -> dict[str, Any]:
    """Continue on as many ranks as there are now."""
    made, losses = BUILDS["data parallel"](), list[float | None]()
    saved = torch.load(checkpoint(), weights_only=True)
    made.model.module.load_state_dict(saved["model"])
    made.optimizer.load_state_dict(saved["optimizer"])
    with monitor.attach(made.optimizer, gpu=False, port=0, linger=0, name="resumed", store_bytes=2**21) as run:
        run.load_state_dict(saved["monitor"])
        first = run.step
        train(made, 10, lambda _: None, losses)
        factors = [group.factor for group in run.lr]
    history = run.history()["optimizers"]["SGD"]
    found = {"id": run.id, "first": first, "step": run.step, "factors": factors}
    return {**found, "steps": history["step"], "loss": history["loss"], "true_loss": mean_of(losses)}


def train(made: Any, num_steps: int, before: Any, losses: list[float | None] | None = None) -> None:
    for step in range(1, num_steps + 1):
        loss = made.backward()
        if losses is not None:
            losses.append(loss)
        before(step)
        time.sleep(0.02)
        made.optimizer.step()
        made.optimizer.zero_grad()


def checkpoint() -> Path:
    return Path(os.environ["MONITOR_DIR"]).parent / "saved.pt"


def straggle() -> dict[str, Any]:
    """Train until rank 1, which sleeps in each step, has been told as a straggler, and some more without the sleep."""
    _own_times.WINDOW_SECONDS = 0.2
    made, told = BUILDS["data parallel"](), []
    with monitor.attach(made.optimizer, gpu=False, port=0, linger=0, digest_interval=0.05) as run:
        deadline, is_slow = time.monotonic() + 60.0, True
        while len(told) < 2 and time.monotonic() < deadline:
            for _ in range(40):
                made.backward()
                made.optimizer.step()
                time.sleep(0.01 if is_slow and dist.get_rank() == 1 else 0.0)
            told = [event for event in run.events() if event.kind == "straggler"]
            (told,) = broadcast(told)
            is_slow = not told
        ranks = [[one.rank, one.own_time is not None] for one in run.snapshot().ranks]
    return {"told": [[event.message[:33], event.end_step is None] for event in told], "ranks": ranks}


def broadcast(value: Any) -> list[Any]:
    """Return what rank 0 has."""
    found = [value]
    dist.broadcast_object_list(found)
    return found


def square_of(model: nn.Module) -> float:
    """Return the square of the norm of the gradients, gathered where they are spread as DTensors: a collective."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    whole: list[Tensor] = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in grads]
    return float(sum(grad.double().square().sum() for grad in whole))


def gathered(values: list[Any]) -> list[list[Any]]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, values)
    return found


def mean_of(losses: list[float | None]) -> list[float]:
    """Return the means over the ranks that have a loss."""
    present = [[loss for loss in of_step if loss is not None] for of_step in zip(*gathered(losses), strict=True)]
    return [sum(of_step) / len(of_step) for of_step in present]


def total_of(case: str, squares: list[float]) -> list[float]:
    """Return the norms of the gradient that all ranks hold together."""
    if case in ("pipelined", "flat"):  # each rank has another part of it
        return [math.sqrt(sum(of_step)) for of_step in zip(*gathered(squares), strict=True)]
    return [math.sqrt(square) for square in squares]


def main(rank: int, world: int, port: int, cases: str) -> None:
    """Look at each case."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.TCPStore("127.0.0.1", port, world, rank == 0, wait_for_workers=False),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    others = {"straggler": straggle, "save": save, "resume": resume}
    found = {case: others[case]() if case in others else look(case) for case in cases.split("; ")}
    print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])

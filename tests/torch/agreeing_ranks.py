"""One rank of a group that takes commands: ``python -m tests.torch.agreeing_ranks rank world folder cases``.

Prints, as one JSON object a case, at which step each command took effect here, and whether the weights are those of a
training whose learning rate was written by hand at these steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import monitor
from monitor import CommandRefusedError
from monitor.control import _agreement, _rank_states
from monitor.control._promises import COMMIT, Promise, Promises
from monitor.control._rank_store import RankStore
from monitor.store._known import read_run
from tests.torch.agreeing_layouts import BUILDS, LR, Training, data_parallel, optimizers_of, plain

STEPS, SECONDS = 260, 0.003


def train(made: Training, num_steps: int, before: Callable[[int, Any], bool | None], pause: float = 0.0) -> None:
    """Train; ``before`` is called with the number of each step, and ends the loop if it returns True."""
    with made.inside():
        for step in range(1, num_steps + 1):
            time.sleep(pause)
            made.backward()
            if before(step, made.optimizer):
                break
            made.optimizer.step()
            made.optimizer.zero_grad()


def commands(case: str, folder: str) -> dict[str, Any]:
    """Commands from another thread of rank 0, as those of the server come."""
    made, rank = BUILDS[case](), dist.get_rank()
    saved: list[int] = []
    with watch(made.optimizer, folder, on_checkpoint=lambda: saved.append(run.step)) as run:
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
    train(by_hand, num_steps, lambda step, _: write(by_hand, factors.get(step)))
    outcomes = [[one.record.action, one.wait(20).status] for one in given]
    return {"steps": steps, "is_equal": by_hand.weights() == made.weights(), "saved": saved, "outcomes": outcomes}


def send(run: Any, given: list[Any]) -> None:
    actions = ["reduce", "checkpoint", "reduce", "pause", "reduce", "resume", "restore", "reduce", "stop"]
    for action in actions:
        time.sleep(0.15)
        factor = 0.7 if action == "reduce" else None
        given.append(submit(run, action, factor))


def write(training: Training, factor: float | None) -> None:
    """Set the learning rate by hand."""
    if factor is not None:
        for optimizer in optimizers_of(training):
            for group in optimizer.param_groups:
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
    with watch(made.optimizer, folder) as run:
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


def stop_for(seconds: float) -> None:
    """Have a child wake this process so long after it has stopped itself."""
    pid = os.getpid()
    if os.posix_spawn("/bin/sh", ["sh", "-c", f"sleep {seconds}; kill -CONT {pid}"], os.environ):
        os.kill(pid, signal.SIGSTOP)


def uneven(_: str, folder: str) -> dict[str, Any]:
    """Rank 0 runs out of batches before the others, and waits for them in ``Join``."""
    num_steps = 400 + 60 * dist.get_rank()

    def before(step: int, _: Any) -> None:
        if dist.get_rank() == 0 and step in (40, num_steps):
            run.reduce_lr(0.5)

    made = BUILDS["joined"]()
    with watch(made.optimizer, folder) as run:
        train(made, num_steps, before, SECONDS)
    changes = {one.step: one.changes[0].factor_after for one in run._engine.commands.kept() if one.changes}
    by_hand = BUILDS["joined"]()
    train(by_hand, num_steps, lambda step, _: write(by_hand, changes.get(step)))
    return {"changes": sorted(changes.items()), "is_equal": by_hand.weights() == made.weights(), "step": run.step}


class NoCollectives(dist.ProcessGroup):
    """A backend that can do nothing, as far as the monitor is concerned: any collective raises."""

    def getBackendName(self) -> str:
        return "none"


def without_gloo(_: str, folder: str) -> dict[str, Any]:
    """The process group is made after ``attach``, without a backend for the CPU, and destroyed before the run ends."""
    dist.Backend.register_backend("none", lambda _, rank, world, *__: NoCollectives(rank, world), devices=["cpu"])
    generator, model = torch.Generator().manual_seed(0), plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step() -> None:
        time.sleep(0.01)
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with watch(optimizer, folder) as run:
        for number in range(1, 401):
            if number == 20:
                meet("none", os.path.dirname(folder), *map(int, sys.argv[1:3]))
            if number in (150, 250):  # the ranks have found each other
                run.reduce_lr(0.5)
            if number == 390:
                dist.destroy_process_group()
            if 20 <= number < 390:
                keep_in_step(number)
            step()
        records = [one for one in run._engine.commands.kept() if one.status == "applied"]
        run.flush()
        info, noted = run.snapshot().run, read_run(Path(folder, run.id)).rank

    return {
        "ranks": [info.world_size, info.rank, noted],
        "steps": [one.step for one in records],
        "factors": [one.changes[0].factor_after for one in records],
    }


def keep_in_step(number: int) -> None:
    """Wait for the other ranks, as a collective of the training would."""
    store = dist.distributed_c10d._get_default_store()
    store.add(f"step-{number}", 1)
    while store.add(f"step-{number}", 0) < dist.get_world_size():
        time.sleep(0.001)


def stopped_in_each_phase(_: str, folder: str) -> dict[str, Any]:
    """In each phase of a command in turn the rank that acts in it stands still."""
    made, rank = data_parallel(), dist.get_rank()
    with watch(made.optimizer, folder) as run:
        given: list[Any] = []

        def before(step: int, __: Any) -> None:
            if step % 200 == 100:
                phase = PHASES[step // 200]
                arm(phase, rank, lambda: stop_for(float(os.environ.get("STOP_SECONDS", "1"))))
                if rank == 0:
                    given.append(run.reduce_lr(0.9))

        train(made, 200 * len(PHASES), before, SECONDS)
        steps = [[one.action, one.step] for one in run._engine.commands.kept() if one.status == "applied"]
    return {"steps": steps, "outcomes": [one.status for one in given], "weights": made.weights()}


def killed_in(phase: str, folder: str) -> dict[str, Any]:
    """The rank that acts in this phase of a command is killed in it."""
    made, rank = data_parallel(), dist.get_rank()
    error = ""
    with watch(made.optimizer, folder) as run:

        def before(step: int, __: Any) -> None:
            if step == 100:
                arm(phase, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))
                if rank == 0:
                    run.reduce_lr(0.5)

        try:
            train(made, 2000, before, SECONDS)
        except RuntimeError as failure:
            error = type(failure).__name__
    return {"error": error}


PHASES = ("asked", "seen", "promised", "committed", "due")
"""What has just happened: on rank 0 "asked" and "committed", on the others the rest."""


def arm(phase: str, rank: int, do: Callable[[], None]) -> None:
    """Have something happen once, when the next command comes to this phase on this rank."""
    if (rank == 0) != (phase in ("asked", "committed")):
        return
    store_set, write_once, due, waits = RankStore.set, RankStore.write_once, Promises.due, [True]

    def once(is_there: bool) -> None:
        if is_there and waits:
            waits.clear()
            do()

    def set_(self: RankStore, key: str, value: Any) -> None:
        once(phase == "seen" and "/vote/" in key)
        store_set(self, key, value)
        once("/command/" in key if phase == "asked" else phase == "promised" and "/vote/" in key)

    def write(self: RankStore, key: str, value: str) -> str:
        found = write_once(self, key, value)
        once(phase == "committed" and found == COMMIT)
        return found

    def is_due(self: Promises) -> Promise | None:
        promise = due(self)
        once(phase == "due" and promise is not None)
        return promise

    for kind, name, function in ((RankStore, "set", set_), (RankStore, "write_once", write), (Promises, "due", is_due)):
        setattr(kind, name, function)


def two_runs(_: str, folder: str) -> dict[str, Any]:
    """Two runs are open at the same time; one after the other is given a command."""
    made = [data_parallel(), data_parallel()]
    with watch(made[0].optimizer, folder) as first, watch(made[1].optimizer, folder) as second:

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
    with watch(made.optimizer, folder) as run:
        train(made, 10, lambda *_: None)
        deadline, names = time.monotonic() + 60.0, set[str]()
        while "monitor-ranks" not in names and time.monotonic() < deadline:
            time.sleep(0.05)
            names = {thread.name for thread in threading.enumerate()}
        dist.barrier()
        left = names
        if rank == 0:
            run.close()
        while "monitor-ranks" in left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = {thread.name for thread in threading.enumerate()}
    return {"before": "monitor-ranks" in names, "after": "monitor-ranks" in left}


def known(_: str, folder: str) -> dict[str, Any]:
    """Rank 0 tells how far all are while they train, and after rank 1 has ended its run."""
    made, rank = data_parallel(), dist.get_rank()
    found = []
    with watch(made.optimizer, folder) as run:
        train(made, STEPS, lambda *_: None, 0.02)
        found.append(read_ranks(run))
        dist.barrier()
        if rank == 1:
            run.close()
        deadline = time.monotonic() + 60.0
        while rank == 0 and read_ranks(run)[-1:] and read_ranks(run)[1]["state"] != "ended":
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        found.append(read_ranks(run))
        dist.barrier()
    return {"ranks": found, "run_id": run.snapshot().run.run_id}


def read_ranks(run: Any) -> list[dict[str, Any]]:
    return [asdict(one) for one in run.snapshot().ranks]


def silent(_: str, folder: str) -> dict[str, Any]:
    """Rank 1 is stopped for longer than a rank may be silent; its watcher is a process."""
    _rank_states.LOST_SECONDS, _rank_states.LOST_STEPS = 2.0, 0
    made, rank = data_parallel(), dist.get_rank()
    with watch(made.optimizer, folder, watcher="process") as run:

        def before(step: int, _: Any) -> None:
            if rank == 1 and step == 100:
                stop_for(6)

        train(made, STEPS, before, 0.02)
        run.flush(5.0)
        lost = [event for event in run.events() if event.kind == "rank_lost"]
    return {"lost": [[event.details["rank"], event.end_step is None, event.message] for event in lost]}


def hanging(_: str, folder: str) -> dict[str, Any]:
    """Rank 1 stands still in a function of its own until rank 0 has seen the stall; of four ranks rank 2 is stopped
    meanwhile."""
    made, rank, seen = data_parallel(), dist.get_rank(), Path(folder, "seen")
    with watch(made.optimizer, folder, watcher="process", stall_timeout=1.5) as run:

        def hang(step: int, _: Any) -> None:
            if step == 1 and rank == 1:
                stand_in_a_named_function(seen)
            if step == 1 and rank == 2:
                stop_for(12)

        train(made, 20, lambda *_: None, 0.02)
        wait_until(lambda: rank or len(read_ranks(run)) == dist.get_world_size())  # the ranks have found each other
        dist.barrier()
        observer = threading.Thread(target=lambda: (wait_until(lambda: stalls(run)), seen.touch()))
        if rank == 0:
            observer.start()
        train(made, 20, hang, 0.02)
        if rank == 0:
            observer.join()
        dist.barrier()
    return {"told": [[event.message, event.details] for event in stalls(run)]}


def stand_in_a_named_function(until: Path) -> None:
    while not until.exists():
        time.sleep(0.05)


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60.0
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)


def stalls(run: Any) -> list[Any]:
    return [event for event in run.events() if event.details.get("state") == "stalled"]


CASES = {
    "hanging": hanging,
    "known": known,
    "silent": silent,
    "leaves first": leaves_first,
    "refusals": refusals,
    "stopped in each phase": stopped_in_each_phase,
    **dict.fromkeys(PHASES, killed_in),
    "two runs": two_runs,
    "uneven": uneven,
    "without gloo": without_gloo,
    **dict.fromkeys(BUILDS, commands),
}


def meet(backend: str, folder: str, rank: int, world: int) -> None:
    """Make the process group, which finds itself by a file or at an address."""
    method = os.environ.get("MEET", f"file://{folder}/meet")
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=world)


def main() -> None:
    rank, world, folder, cases = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4].split(", ")
    torch.set_num_threads(1)
    if cases != ["without gloo"]:
        meet("gloo", folder, rank, world)
    found = [CASES[case](case, f"{folder}/runs") for case in cases]
    print(json.dumps(found), flush=True)
    if cases[0] in PHASES:
        os._exit(0)  # the group cannot be taken down in order
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

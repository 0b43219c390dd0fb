"""One rank of a group that trains sharded models, watched and unwatched: ``python -m tests.torch.sharded_ranks``.

Prints what it saw as one JSON object by case. A case is a kind of sharding and a kind of clip.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

import monitor
from monitor.cli._format import status
from monitor.server._json import plain as plain_json
from tests.probe.conftest import Watched

STEPS, MAX_NORM = 3, 0.01
Build = Callable[[DeviceMesh], nn.Module]
Clip = Callable[[nn.Module, list[Tensor]], None]
Watch = Callable[[Any], AbstractContextManager[list[Any]]]


class Collectives(TorchDispatchMode):
    """Keep the name of every operation that communicates, whoever asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # what it turns into comes by again
        if "c10d" in func.namespace:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------------------- models


def plain() -> nn.Sequential:
    """Return the model that every kind of sharding starts from."""
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def by_fully_shard(mesh: DeviceMesh) -> nn.Module:
    """Shard every parameter; the second weight has fewer rows than four ranks would fill evenly."""
    net = plain()
    fully_shard(net[1], mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def in_part(mesh: DeviceMesh) -> nn.Module:
    """Shard one layer, and leave the others whole."""
    net = plain()
    fully_shard(net[1], mesh=mesh)
    return net


def by_tensors(mesh: DeviceMesh) -> nn.Module:
    """Tensor parallelism: by columns, then by rows; one bias is replicated."""
    plan = {"0": SequenceParallel(use_local_output=True), "1": ColwiseParallel(input_layouts=Shard(1))}
    return parallelize_module(plain(), mesh, {**plan, "3": RowwiseParallel(output_layouts=Replicate())})


def tensors_in_part(mesh: DeviceMesh) -> nn.Module:
    """Tensor parallelism of two layers; the first stays plain, and alike on all ranks."""
    return parallelize_module(plain(), mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})


def in_two_dimensions(mesh: DeviceMesh) -> nn.Module:
    """Tensor parallelism inside, fully sharded outside."""
    net = parallelize_module(plain()[1:], mesh["tp"], {"1": ColwiseParallel(), "3": RowwiseParallel()})
    return fully_shard(net, mesh=mesh["dp"])


def replicated(mesh: DeviceMesh) -> nn.Module:
    """Distributed tensors of which each rank holds everything."""
    return distribute_module(plain(), mesh)


def flat(strategy: str, keeps_params: bool) -> Build:
    """FullyShardedDataParallel, with the original parameters or flat ones."""
    return lambda _: FullyShardedDataParallel(
        plain(),
        sharding_strategy=ShardingStrategy[strategy],
        use_orig_params=keeps_params,
        device_id=torch.device("cpu"),
    )


def by_data(_: DeviceMesh) -> nn.Module:
    """DistributedDataParallel: plain parameters, the gradient of all on each rank."""
    return DistributedDataParallel(plain())


# -------------------------------------------------------------------------------------------------------- clips


def no_clip(_: nn.Module, __: list[Tensor]) -> None:
    """Clip nothing."""


def by_norm(_: nn.Module, params: list[Tensor]) -> None:
    """Clip as most programs do."""
    clip_grad_norm_(params, MAX_NORM)


def by_kind(_: nn.Module, params: list[Tensor]) -> None:
    """Clip the distributed gradients, and the others, each by their own norm."""
    for is_distributed in {isinstance(p, DTensor) for p in params}:
        clip_grad_norm_([p for p in params if isinstance(p, DTensor) is is_distributed], MAX_NORM)


def by_extreme(_: nn.Module, params: list[Tensor]) -> None:
    """Clip by the infinity norm."""
    clip_grad_norm_(params, MAX_NORM, norm_type=float("inf"))


def by_value(_: nn.Module, params: list[Tensor]) -> None:
    """Clip by value, distributed gradients apart from the others."""
    for is_distributed in {isinstance(p, DTensor) for p in params}:
        clip_grad_value_([p for p in params if isinstance(p, DTensor) is is_distributed], MAX_NORM)


def by_hand(_: nn.Module, params: list[Tensor]) -> None:
    """Work out the total, make it whole, and clip two halves with it."""
    total = get_total_norm([p.grad for p in params if p.grad is not None])
    total = total.full_tensor() if isinstance(total, DTensor) else total
    clip_grads_with_norm_(params, MAX_NORM, total)


def by_halves(_: nn.Module, params: list[Tensor]) -> None:
    """Clip two halves, each with the total of both."""
    total = get_total_norm([p.grad for p in params if p.grad is not None])
    total = total.full_tensor() if isinstance(total, DTensor) else total
    clip_grads_with_norm_(params[:2], MAX_NORM, total)
    clip_grads_with_norm_(params[2:], MAX_NORM, total)


def by_its_method(net: nn.Module, _: list[Tensor]) -> None:
    """Clip with the method of FullyShardedDataParallel."""
    net.clip_grad_norm_(MAX_NORM)  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------------- cases

ALL_CLIPS = [no_clip, by_norm, by_extreme, by_value, by_hand, by_halves]
FLAT = {
    f"flat {strategy} {keeps}": flat(strategy, keeps)
    for strategy in ("FULL_SHARD", "NO_SHARD")
    for keeps in (True, False)
}
CASES: dict[int, dict[str, tuple[Build, list[Clip]]]] = {
    1: {
        "fully_shard": (by_fully_shard, ALL_CLIPS),
        "tensors": (by_tensors, [no_clip]),
        "flat": (FLAT["flat FULL_SHARD True"], [no_clip, by_norm, by_its_method]),
    },
    2: {
        "fully_shard": (by_fully_shard, ALL_CLIPS),
        "in part": (in_part, [no_clip, by_value]),
        "tensors": (by_tensors, [no_clip]),
        "tensors in part": (tensors_in_part, [no_clip, by_kind]),
        "replicated": (replicated, [no_clip, by_norm, by_value]),
        "data": (by_data, ALL_CLIPS),
        **{name: (build, [no_clip, by_norm, by_its_method]) for name, build in FLAT.items()},
    },
    4: {
        "hybrid": (by_fully_shard, [no_clip, by_norm]),
        "two dimensions": (in_two_dimensions, [no_clip, by_norm]),
        "data": (by_data, [no_clip]),
    },
}
ATTACHED: dict[int, dict[str, tuple[range, str | int]]] = {
    1: {"all": (range(1), 1)},
    2: {"one": (range(1), 1), "all": (range(2), "auto")},
    4: {"some": (range(1, 3), 1), "all": (range(4), "auto")},
}


def local(tensor: Any) -> Tensor:
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def batch_of(build: Build, rank: int) -> Tensor:
    """Return a rank's batch: the same on all where a layer is spread over them."""
    is_same = build in (by_tensors, tensors_in_part, in_two_dimensions, replicated)
    return torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0 if is_same else rank))


def true_norm(build: Build, world: int) -> float:
    """Return the norm of the whole gradient at the first step, worked out on one model with all batches."""
    net = plain()[1:] if build is in_two_dimensions else plain()
    net(torch.cat([batch_of(build, rank) for rank in range(world)])).square().mean().backward()
    return float(get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))


def train(build: Build, mesh: DeviceMesh, clip: Clip, watch: Watch) -> tuple[list[str], list[Tensor], list[Any]]:
    """Train a few steps; return what was communicated, the weights, and what was seen."""
    net = build(mesh)
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, lr=0.1)
    batch = batch_of(build, dist.get_rank())
    if build is replicated:
        batch = DTensor.from_local(batch, mesh, [Replicate()], run_check=False)
    with Collectives() as collectives, watch(optimizer) as seen:
        for _ in range(STEPS):
            net(batch).square().mean().backward()
            clip(net, params)
            optimizer.step()
            optimizer.zero_grad()
    return collectives.names, [local(p.detach()).clone() for p in params], seen


@contextmanager
def unwatched(_: Any) -> Iterator[list[Any]]:
    """Watch nothing."""
    yield []


def watching(every: str | int) -> Watch:
    """Return what watches an optimizer, and tells of its first step and the errors."""

    @contextmanager
    def watch(optimizer: Any) -> Iterator[list[Any]]:
        watched = Watched(optimizer, gradient_norm=every)
        told: list[Any] = []
        yield told
        watched.close()
        step, *others = watched.drain()
        assert len(others) == STEPS - 1
        clips = [[c.kind, c.is_clipped, c.factor] for c in step.clips]
        told += [step.gradient_norm, step.gradient_norm_reason, clips]

    return watch


@contextmanager
def in_a_run(optimizer: Any) -> Iterator[list[Any]]:
    """Watch as users do, and tell what ``monitor status`` says."""
    told: list[Any] = []
    with monitor.attach(optimizer, serve=False, gpu=False, linger=0, gradient_norm=1) as run:
        yield told
        run.flush(30.0)  # no other rank is watched, and the first steps wait for their shares
        told += status(plain_json(run.snapshot()), None, 0.0)


def look(build: Build, mesh: DeviceMesh, clip: Clip, rank: int) -> dict[str, Any]:
    """Train unwatched, and watched on some ranks; tell what differs and what was seen."""
    collectives, weights, _ = train(build, mesh, clip, unwatched)
    found: dict[str, Any] = {"communicates": bool(collectives), "true": true_norm(build, dist.get_world_size())}
    for who, (ranks, every) in ATTACHED[dist.get_world_size()].items():
        same, after, seen = train(build, mesh, clip, watching(every) if rank in ranks else unwatched)
        found[who] = {
            "is_same": same == collectives and all(map(torch.equal, weights, after)),
            **dict(zip(("norm", "reason", "clips"), seen, strict=bool(seen))),
        }
    return found


def main(rank: int, world: int, folder: str) -> None:
    """Train every case, and print what each has shown."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=limit)
    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")) if world == 4 else line
    found: dict[str, Any] = {
        f"{name}, {clip.__name__}": look(build, line if build is by_tensors else square, clip, rank)
        for name, (build, clips) in CASES[world].items()
        for clip in clips
    }
    found["status"] = train(by_fully_shard, line, no_clip, in_a_run if rank == 0 else unwatched)[2]
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

"""Ways in which ranks share a training, for ``agreeing_ranks`` and ``summing_ranks``: each builds it anew, the same
every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

LR = 0.1
NUM_MICRO_BATCHES = 3


class Training:
    """A model and its optimizer, and what makes the gradients of a step.

    Args:
        model: what this rank trains.
        optimizer: of the parameters that this rank has.
        backward: makes the gradients from this rank's own random numbers, and returns the loss, None: there is none
            here; default: one pass of one batch.
        clip: is done then; default: nothing.
        inside: what the loop stands in; default: nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Callable[[], Tensor]], float | None] | None = None,
        inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
        clip: Callable[[], object] = lambda: None,
    ) -> None:
        self.model, self.optimizer, self.inside, self._clip = model, optimizer, inside, clip
        self._generator = torch.Generator().manual_seed(dist.get_rank())
        self._backward = backward or self._of_one_batch

    def batch(self) -> Tensor:
        """Return the next batch of this rank."""
        return torch.randn(4, 8, generator=self._generator)

    def _of_one_batch(self, batch: Callable[[], Tensor]) -> float:
        return passed_back(self.model(batch()).square().mean())

    def backward(self, look: Callable[[], object] = lambda: None) -> float | None:
        """Make the gradients of a step, with a look at them before the clip; return the loss of this rank."""
        loss = self._backward(self.batch)
        look()
        self._clip()
        return loss

    def weights(self) -> list[list[float]]:
        """Return the parameters that this rank holds, or its share of them."""
        return [getattr(p, "_local_tensor", p).detach().flatten().tolist() for p in self.model.parameters()]


def passed_back(loss: Tensor) -> float:
    """Make the gradients of a loss, and return it."""
    loss.backward()
    return loss.item()


def plain() -> nn.Sequential:
    """Return the model before anything is shared."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def data_parallel() -> Training:
    """Whole copies."""
    model = DistributedDataParallel(plain())
    return Training(model, torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9))


def accumulating() -> Training:
    """Whole copies; all but the last of the micro-batches are added up without the other ranks."""
    model = DistributedDataParallel(plain())

    def backward(batch: Callable[[], Tensor]) -> float:
        loss = 0.0
        for number in range(1, NUM_MICRO_BATCHES + 1):
            with nullcontext() if number == NUM_MICRO_BATCHES else model.no_sync():
                loss += passed_back(model(batch()).square().mean() / NUM_MICRO_BATCHES)
        return loss

    return Training(model, torch.optim.SGD(model.parameters(), lr=LR), backward)


def joined() -> Training:
    """Whole copies, where a rank may run out of batches before the others."""
    model = DistributedDataParallel(plain())
    return Training(model, torch.optim.SGD(model.parameters(), lr=LR), inside=lambda: Join([model]))


def redundancy_free() -> Training:
    """Whole copies; each rank has the optimizer's state of some parameters."""
    model = DistributedDataParallel(plain())
    return Training(model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=LR))


def sharded() -> Training:
    """FSDP2 on a mesh of one dimension, with a clip."""
    model = plain()
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    return Training(model, optimizer, clip=lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.1))


def sharded_unclipped() -> Training:
    """FSDP2 without a clip: no rank has the norm."""
    model = plain()
    fully_shard(model)
    return Training(model, torch.optim.AdamW(model.parameters(), lr=LR))


def flat() -> Training:
    """FullyShardedDataParallel: plain tensors that hold a part."""
    model = FullyShardedDataParallel(plain(), device_id=torch.device("cpu"), use_orig_params=True)
    return Training(model, torch.optim.AdamW(model.parameters(), lr=LR))


def hybrid() -> Training:
    """FSDP2 on a mesh of two dimensions: copies of shards."""
    model = plain()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "shard")))
    return Training(model, torch.optim.AdamW(model.parameters(), lr=LR))


def tensor_parallel() -> Training:
    """Each layer is cut; all ranks have the same batches."""
    model = plain()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()})
    shared = torch.Generator().manual_seed(0)

    def backward(_: Callable[[], Tensor]) -> float:
        return passed_back(model(torch.randn(4, 8, generator=shared)).square().mean())

    return Training(model, torch.optim.SGD(model.parameters(), lr=LR, foreach=False), backward)


def pipelined() -> Training:
    """Each rank has a stage; the last one has the loss."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    stage = PipelineStage(model, rank, world, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=lambda output, target: (output - target).square().mean())

    def backward(batch: Callable[[], Tensor]) -> float | None:
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(batch())
        elif rank == world - 1:
            schedule.step(target=batch(), losses=losses)
            return sum(loss.item() for loss in losses) / len(losses)
        else:
            schedule.step()
        return None

    return Training(model, torch.optim.SGD(model.parameters(), lr=LR), backward)


BUILDS: dict[str, Callable[[], Training]] = {
    "data parallel": data_parallel,
    "accumulating": accumulating,
    "joined": joined,
    "redundancy free": redundancy_free,
    "sharded": sharded,
    "sharded, unclipped": sharded_unclipped,
    "flat": flat,
    "hybrid": hybrid,
    "tensor parallel": tensor_parallel,
    "pipelined": pipelined,
}


def optimizers_of(training: Training) -> Iterator[Any]:
    """Yield each optimizer that holds learning rates of this training, once."""
    inner = getattr(training.optimizer, "optim", training.optimizer)
    yield training.optimizer
    if inner is not training.optimizer:
        yield inner

"""A rank of a group that trains by micro-batches which FullyShardedDataParallel does not synchronize: prints JSON."""

from __future__ import annotations

import datetime
import json
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import monitor

NUM_STEPS = 14


def train(keeps_params: bool) -> tuple[list[float], list[float | None]]:
    """Return the losses of the steps, and those that were shown."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=keeps_params)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(dist.get_rank()))
    losses = []
    with monitor.attach(optimizer, serve=False, linger=0) as run:
        for _ in range(NUM_STEPS):
            parts = []
            for i in range(3):
                with model.no_sync() if i < 2 else nullcontext():
                    loss = (model(x * (i + 1)) - 1).square().mean() / 3
                    loss.backward()
                    parts.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(sum(parts))
        run.flush(60)
        return losses, run.history()["optimizers"]["SGD"]["loss"]


def main(rank: int, world: int, folder: str) -> None:
    """Train with flat and with original parameters, and print what was shown."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=limit)
    print(json.dumps([train(keeps_params) for keeps_params in (True, False)]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

"""Training programs that know nothing of the monitor. Each prints, as JSON, a digest of its weights, and of each of its
optimizers the losses, gradient norms and learning rates of its steps as worked out by hand.

python programs.py NAME
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

NUM_STEPS = 12


class Truth:
    """The figures of one optimizer, noted beside the loop."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.norm: list[float] = []
        self.lr: list[float] = []

    def note(self, loss: Any, norm: Any, optimizer: Any) -> None:
        self.loss.append(float(torch.as_tensor(loss).detach()))
        self.norm.append(float(norm))
        self.lr.append(float(optimizer.param_groups[0]["lr"]))


def norm_of(parameters: Iterable[torch.Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None])))


def plain() -> tuple[list[nn.Module], list[Truth]]:
    """A loop with a schedule and a clip."""
    model, truth = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), Truth()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=NUM_STEPS)
    for _ in range(NUM_STEPS):
        loss = (model(torch.randn(16, 8)) - 1).square().mean()
        loss.backward()
        truth.note(loss, nn.utils.clip_grad_norm_(model.parameters(), 0.5), optimizer)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return [model], [truth]


def gan() -> tuple[list[nn.Module], list[Truth]]:
    """Two optimizers in turn."""
    generator, discriminator, truths = nn.Linear(4, 8), nn.Linear(8, 1), [Truth(), Truth()]
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.02)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    for _ in range(NUM_STEPS):
        real, fake = torch.randn(4, 8), generator(torch.randn(4, 4))
        loss_d = functional.softplus(-discriminator(real)).mean()
        loss_d = loss_d + functional.softplus(discriminator(fake.detach())).mean()
        optimizer_d.zero_grad()
        loss_d.backward()
        truths[0].note(loss_d, norm_of(discriminator.parameters()), optimizer_d)
        optimizer_d.step()
        loss_g = functional.softplus(-discriminator(fake)).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        truths[1].note(loss_g, norm_of(generator.parameters()), optimizer_g)
        optimizer_g.step()
    return [generator, discriminator], truths


def autocast() -> tuple[list[nn.Module], list[Truth]]:
    """A GradScaler and autocast to bfloat16, both on the CPU."""
    model, truth = nn.Linear(8, 1), Truth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(NUM_STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(torch.randn(16, 8)) - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        truth.note(loss, nn.utils.clip_grad_norm_(model.parameters(), 0.5), optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [model], [truth]


def overflow() -> tuple[list[nn.Module], list[Truth]]:
    """A GradScaler that skips what would have been the first step."""
    model, truth = nn.Linear(8, 1), Truth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(NUM_STEPS):
        loss = (model(torch.randn(16, 8)) - 1).square().mean() * (float("inf") if number == 0 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = norm_of(model.parameters())
        if number > 0:
            truth.note(loss, norm, optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [model], [truth]


def accumulation() -> tuple[list[nn.Module], list[Truth]]:
    """Three micro-batches a step, and a clip."""
    model, truth = nn.Linear(8, 1), Truth()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(NUM_STEPS):
        total = 0.0
        for _ in range(3):
            loss = (model(torch.randn(16, 8)) - 1).square().mean() / 3
            loss.backward()
            total += loss.item()
        truth.note(total, nn.utils.clip_grad_norm_(model.parameters(), 0.5), optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return [model], [truth]


def lbfgs() -> tuple[list[nn.Module], list[Truth]]:
    """An optimizer that takes a closure."""
    model, truth, data = nn.Linear(8, 1), Truth(), torch.randn(16, 8)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    noted: list[tuple[float, float]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(data) - 1).square().mean()
        loss.backward()
        noted.append((loss.item(), norm_of(model.parameters())))
        return loss

    for _ in range(NUM_STEPS):
        noted.clear()
        optimizer.step(closure)
        truth.note(*noted[0], optimizer)
    return [model], [truth]


def workers() -> tuple[list[nn.Module], list[Truth]]:
    """A DataLoader with forked worker processes."""
    data = TensorDataset(torch.randn(NUM_STEPS * 4, 8))
    model, truth = nn.Linear(8, 1), Truth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for (x,) in DataLoader(data, batch_size=4, num_workers=2):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        truth.note(loss, norm_of(model.parameters()), optimizer)
        optimizer.step()
    return [model], [truth]


def folds() -> tuple[list[nn.Module], list[Truth]]:
    """Three folds, each with a model and an optimizer of its own; the last ones are kept all the same."""
    models, truths, kept = [], [], []
    for _ in range(3):
        model, truth = nn.Linear(8, 1), Truth()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(60):
            loss = (model(torch.randn(16, 8)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            truth.note(loss, norm_of(model.parameters()), optimizer)
            optimizer.step()
        models.append(model)
        truths.append(truth)
        if os.environ.get("KEEP"):
            kept.append(optimizer)
    return models, truths


def ddp() -> tuple[list[nn.Module], list[Truth]]:
    """One of several ranks of torchrun, by gloo."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model, truth = nn.parallel.DistributedDataParallel(nn.Linear(8, 1)), Truth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(rank)
    for _ in range(NUM_STEPS):
        loss = (model(torch.randn(16, 8)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        truth.note(mean / torch.distributed.get_world_size(), norm_of(model.parameters()), optimizer)
        optimizer.step()
        time.sleep(0.2)  # a training that is over at once has ended before its ranks have found each other
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return [model.module], [truth] if rank == 0 else []


PROGRAMS = (plain, gan, autocast, overflow, accumulation, lbfgs, workers, folds, ddp)


def digest(models: Iterable[nn.Module]) -> str:
    """Return what two models have in common only if their weights are the same, bit by bit."""
    found = hashlib.sha256()
    for model in models:
        for parameter in model.parameters():
            found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    torch.manual_seed(0)
    program = next(one for one in PROGRAMS if one.__name__ == sys.argv[1])
    models, truths = program()
    print(json.dumps({"weights": digest(models), "truth": [vars(truth) for truth in truths]}))


if __name__ == "__main__":
    main()

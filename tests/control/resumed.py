"""A training that is stopped and continues in a new process: ``python -m tests.control.resumed FOLDER``.

The first process saves in the middle of a ramp; the second loads what it saved in several ways and writes down the
weights that each ended with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import monitor

SAVED_AT, STEPS = 5, 14
WAYS = ("before attach", "after attach", "without the monitor", "under the monitor", "with a factor and no monitor")


class Training:
    """A small model, its optimizer and its schedule."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        groups = [{"params": list(layer.parameters())} for layer in (self.model[0], self.model[2])]
        self.optimizer = torch.optim.AdamW(groups, lr=0.05)
        self.scheduler = CosineAnnealingLR(self.optimizer, STEPS)
        self.inputs = torch.randn(STEPS, 6, 4)

    def step(self, i: int) -> None:
        self.optimizer.zero_grad()
        self.model(self.inputs[i]).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def save(self, path: Path) -> None:
        torch.save({name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}, path)

    def load(self, path: Path) -> None:
        for name, state in torch.load(path, weights_only=True).items():
            getattr(self, name).load_state_dict(state)

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def watched(training: Training, folder: Path) -> Any:
    """Attach as quietly as can be."""
    return monitor.attach(training.optimizer, serve=False, gpu=False, linger=0, directory=str(folder))


def begin(folder: Path, is_watched: bool, num_steps: int, save_at: int = SAVED_AT) -> list[torch.Tensor]:
    """Train from the start, with a ramp of 8 steps asked for before step 2, and save before step ``save_at``."""
    training = Training()
    with watched(training, folder) if is_watched else nullcontext() as run:
        for i in range(num_steps):
            if i == 2 and is_watched:
                run.reduce_lr(0.1, over_steps=8)
                run.reduce_lr(0.5, groups=[1])
            if i == save_at:
                training.save(folder / f"{'watched' if is_watched else 'plain'}.pt")
            training.step(i)
    return training.weights()


def go_on(folder: Path, way: str) -> list[torch.Tensor]:
    """Load what was saved in one of several ways, and train to the end."""
    training = Training()
    path = folder / ("watched.pt" if way in WAYS[:2] or way == WAYS[4] else "plain.pt")
    load: Callable[[], None] = lambda: training.load(path)  # noqa: E731
    is_late = way in ("after attach", "under the monitor")
    if not is_late:
        load()
    with nullcontext() if way in (WAYS[2], WAYS[4]) else watched(training, folder):
        if is_late:
            load()
        for i in range(SAVED_AT, STEPS):
            training.step(i)
    return training.weights()


if __name__ == "__main__":
    home = Path(sys.argv[1])
    torch.save({way: go_on(home, way) for way in WAYS}, home / "ends.pt")

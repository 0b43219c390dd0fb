"""Train a small CNN on scikit-learn's handwritten digits.

    python examples/digits.py              # some seconds on two cores; nothing is downloaded (needs scikit-learn)

A usual training script: a DataLoader, two param groups, OneCycleLR, gradient clipping, a validation loss per epoch. The
monitor is one ``with`` line.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import monitor

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise SystemExit(f"{error}; the digits come with scikit-learn: pip install scikit-learn") from error


def load(batch_size: int, seed: int) -> tuple[DataLoader[tuple[Tensor, ...]], tuple[Tensor, Tensor]]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=seed, stratify=labels)
    x, x_val = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2])
    y, y_val = (torch.tensor(part, dtype=torch.long) for part in parts[2:])
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True, generator=generator), (x_val, y_val)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2),
        )  # fmt: skip
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@torch.no_grad()
def validate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    model.eval()
    logits = model(x)
    model.train()
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--no-monitor", action="store_true", help="train without the monitor")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> monitor.Run:
    torch.manual_seed(args.seed)
    loader, (x_val, y_val) = load(args.batch_size, args.seed)
    model = CNN()
    groups = [
        {"name": "body", "params": model.body.parameters()},
        {"name": "head", "params": model.head.parameters(), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[args.lr, 2 * args.lr], total_steps=args.steps)
    step = 0

    with monitor.attach(optimizer, scheduler, name="digits", total_steps=args.steps) as run:
        while step < args.steps and not run.should_stop:
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                if step == args.steps or run.should_stop:
                    break

            val_loss, accuracy = validate(model, x_val, y_val)
            run.log(val_loss=val_loss, accuracy=accuracy)
            print(f"step {step:5d}  loss {loss.item():.3f}  validation {val_loss:.3f}  accuracy {accuracy:.3f}")
    return run


if __name__ == "__main__":
    args = parse()
    if args.no_monitor:
        os.environ["MONITOR_DISABLED"] = "1"
    train(args)

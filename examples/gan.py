"""Train a small GAN on scikit-learn's handwritten digits: two optimizers, each with its own loss.

    python examples/gan.py                 # some seconds on two cores; nothing is downloaded (needs scikit-learn)

A usual training script. The monitor is one ``with`` line, and a mapping names the two optimizers.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import monitor

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise SystemExit(f"{error}; the digits come with scikit-learn: pip install scikit-learn") from error

NOISE = 32


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def draw(image: Tensor) -> str:
    """Return an 8 x 8 image with values from -1 to 1 as text."""
    shades = " .:-=+*#%@"
    levels = ((image.view(8, 8).clamp(-1, 1) + 1) / 2 * (len(shades) - 1)).round().int()
    return "\n".join("".join(2 * shades[level] for level in row) for row in levels.tolist())


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="steps of each optimizer (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate of both (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--no-monitor", action="store_true", help="train without the monitor")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> monitor.Run:
    torch.manual_seed(args.seed)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    generator = nn.Sequential(mlp(NOISE, 128, 128, 64), nn.Tanh())
    discriminator = mlp(64, 128, 128, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=args.lr, betas=(0.5, 0.99))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=args.lr, betas=(0.5, 0.99))

    with monitor.attach(
        {"generator": optimizer_g, "discriminator": optimizer_d},
        name="gan",
        total_steps=args.steps,
        detectors=monitor.rl_detectors(),  # two networks at odds: their losses rise and fall, and that is no trouble
    ) as run:
        for step in range(1, args.steps + 1):
            real = images[torch.randint(len(images), (args.batch_size,))]
            fake = generator(torch.randn(args.batch_size, NOISE))

            # Minus the log-likelihood that the discriminator tells real from fake.
            loss_d = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()

            # The generator wants its images to be taken for real ones.
            loss_g = F.softplus(-discriminator(fake)).mean()
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()

            if step % 500 == 0 or step == args.steps:
                print(f"step {step:5d}  generator {loss_g.item():.3f}  discriminator {loss_d.item():.3f}")
            if run.should_stop:
                break

    print("\n--- a sample ---")
    print(draw(generator(torch.randn(1, NOISE)).detach()))
    return run


if __name__ == "__main__":
    args = parse()
    if args.no_monitor:
        os.environ["MONITOR_DISABLED"] = "1"
    train(args)

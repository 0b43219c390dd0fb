"""Measure what ``monitor.AdaptiveLR`` does for runs whose learning rate is wrong, and to those whose is right.

    python benchmarks/adaptive_lr.py              # everything, a quarter of an hour on one core
    python benchmarks/adaptive_lr.py --quick      # one seed, every second learning rate
    python benchmarks/adaptive_lr.py --write      # put the tables into docs/adaptive-lr.md

Seven small real tasks x five starting learning rates over three decades x three seeds, each with seven ways to set the
LR. A run has diverged when its validation loss ends not finite, or above that of the untrained model.

A policy sees a step when the recorder has digested it, four times a second: in a run of 50 ms a step that is up to five
steps late. The steps here take a millisecond, so the recorder is waited for every five of them, and only then.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

import monitor

STEPS = 1000
BATCH = 32
CHECK_EVERY = 20
SEEDS = (0, 1, 2)
LR_SHARES = tuple(10 ** (0.75 * k) for k in range(5))
STEPS_PER_ROUND = 5
NO_ROUND_BETWEEN = 5.0
WAYS = (
    "fixed",
    "plateau",
    "fixed + ours",
    "fixed + ours, no warm-up",
    "cosine",
    "cosine + ours",
    "cosine + ours, no warm-up",
)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "adaptive-lr.md"
MARKS = "<!-- measured: benchmarks/adaptive_lr.py -->", "<!-- end of what was measured -->"


class Task(NamedTuple):
    """A model, its data, and the lowest of the learning rates that are tried."""

    data: Callable[[], tuple[Tensor, Tensor]]
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    lowest_lr: float
    clip: float | None = None


class Outcome(NamedTuple):
    task: str
    lr: float
    seed: int
    way: str
    loss: float
    untrained: float
    num_commands: int
    last_good: int

    @property
    def is_diverged(self) -> bool:
        return not math.isfinite(self.loss) or self.loss > self.untrained


class Characters(nn.Module):
    """Guess the next character by a GRU over the ones before."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding, self.gru, self.head = (
            nn.Embedding(128, 24),
            nn.GRU(24, width, batch_first=True),
            nn.Linear(width, 128),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(x))[0]).transpose(1, 2)


class Attention(nn.Module):
    """The same by one layer of causal self-attention."""

    def __init__(self, length: int = 16, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(128, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.place
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(h + self.mlp(h)).transpose(1, 2)


def scaled(x: Any) -> Tensor:
    tensor = torch.as_tensor(x, dtype=torch.float32)
    return (tensor - tensor.mean(0)) / tensor.std(0).clamp_min(1e-6)


@cache
def digits() -> tuple[Tensor, Tensor]:
    x, y = datasets.load_digits(return_X_y=True)
    return torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y)


@cache
def digits_themselves() -> tuple[Tensor, Tensor]:
    return digits()[0], digits()[0]


@cache
def cancer() -> tuple[Tensor, Tensor]:
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return scaled(x), torch.as_tensor(y)


@cache
def diabetes() -> tuple[Tensor, Tensor]:
    x, y = datasets.load_diabetes(return_X_y=True)
    return scaled(x), scaled(y[:, None])


@cache
def text(length: int = 16) -> tuple[Tensor, Tensor]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    raw = "".join(
        (folder / f"{name}.py").read_text("ascii", "ignore") for name in ("argparse", "ast", "inspect", "typing")
    )
    codes = torch.tensor(list(raw.encode("ascii")))
    count = (len(codes) - 1) // length
    return codes[: count * length].view(count, length), codes[1 : count * length + 1].view(count, length)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 10),
    )


def momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


Adam, CE, MSE = torch.optim.Adam, F.cross_entropy, F.mse_loss
TASKS = {
    "digits, MLP, Adam": Task(digits, lambda: mlp(64, 64, 64, 10), CE, Adam, 1e-3),
    "digits, convolutions, momentum": Task(digits, conv, CE, momentum, 1e-2),
    "breast cancer, MLP, SGD": Task(cancer, lambda: mlp(30, 32, 2), CE, torch.optim.SGD, 1e-2),
    "diabetes, MLP, momentum (regression)": Task(diabetes, lambda: mlp(10, 32, 1), MSE, momentum, 1e-3),
    "digits, autoencoder, Adam (regression)": Task(digits_themselves, lambda: mlp(64, 32, 8, 32, 64), MSE, Adam, 1e-3),
    "characters, GRU, Adam (language)": Task(text, Characters, CE, Adam, 1e-3, clip=1.0),
    "characters, attention, AdamW (language)": Task(text, Attention, CE, torch.optim.AdamW, 1e-3, clip=1.0),
}


def train(task_name: str, lr: float, seed: int, way: str, steps: int = STEPS) -> Outcome:
    """Train one model in one way; return how it ended."""
    task = TASKS[task_name]
    torch.manual_seed(seed)
    x, y = task.data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, used = order[: min(400, len(x) // 5)], order[len(x) // 5 :]
    model = task.model()
    optimizer = task.optimizer(model.parameters(), lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if "cosine" in way else None
    plateau = (
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2) if way == "plateau" else None
    )

    @torch.no_grad()
    def validate() -> float:
        return float(task.loss(model(x[held]), y[held]))

    untrained = validate()
    recent: deque[float] = deque(maxlen=10)
    last_good = 0
    with watched(optimizer, way) as run:
        for step in range(1, steps + 1):
            batch = used[torch.randint(len(used), (BATCH,))]
            loss = task.loss(model(x[batch]), y[batch])
            loss.backward()
            recent.append(loss.item())
            if statistics.fmean(recent) < 0.98 * untrained:
                last_good = step
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            optimizer.zero_grad()
            if cosine is not None:
                cosine.step()
            if plateau is not None and step % CHECK_EVERY == 0:
                plateau.step(validate())
            if run is not None and step % STEPS_PER_ROUND == 0:
                run.flush(30)
        commands = 0 if run is None else sum(run.snapshot().commands_total.values())
    return Outcome(task_name, lr, seed, way, validate(), untrained, commands, last_good)


class watched:  # noqa: N801 - read as a word
    """A run with the policy where the way has it, else nothing."""

    def __init__(self, optimizer: torch.optim.Optimizer, way: str) -> None:
        self._run = None
        if "ours" in way:
            settings = {"warmup_steps": 0} if "no warm-up" in way else {}
            self._run = monitor.attach(
                optimizer,
                policies=[monitor.AdaptiveLR(allow_increase=True, **settings)],
                serve=False,
                gpu=False,
                gradient_norm=1,  # of a real step it is a hundredth, and measured every time
                digest_interval=NO_ROUND_BETWEEN,
                system_interval=60,
            )

    def __enter__(self) -> monitor.Run | None:
        return self._run

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.close()


def start_worker(folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["MONITOR_DIR"] = folder
    logging.getLogger("monitor").setLevel(logging.ERROR)


def measure(lr_shares: tuple[float, ...], seeds: tuple[int, ...], workers: int) -> list[Outcome]:
    """Train every task in every way."""
    cells = [
        (name, task.lowest_lr * share, seed, way)
        for (name, task), share, seed, way in product(TASKS.items(), lr_shares, seeds, WAYS)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (folder,)) as pool,
    ):
        return list(pool.map(train, *zip(*cells, strict=True), chunksize=5))


def report(outcomes: list[Outcome], seconds: float) -> Iterator[str]:
    """Say all of it as tables."""
    seeds, lrs = len({o.seed for o in outcomes}), len({(o.task, o.lr) for o in outcomes}) // len(TASKS)
    yield (
        f"{len(TASKS)} tasks x {lrs} learning rates x {seeds} seeds, {STEPS} steps each; "
        f"torch {torch.__version__.partition('+')[0]}, {seconds / 60:.0f} minutes."
    )
    yield from ("", "| way | runs | diverged | share |", "|---|---|---|---|")
    for way in WAYS:
        mine = [o for o in outcomes if o.way == way]
        lost = sum(o.is_diverged for o in mine)
        yield f"| {way} | {len(mine)} | {lost} | {lost / len(mine):.1%} |"
    yield ""
    yield "Where the plain way does not diverge: final validation loss over that of the plain way, same task, LR, seed."
    yield ""
    yield from (
        "| way | against | pairs | median | 10 % | 90 % | better by 5 % | worse by 5 % |",
        "|---|---|---|---|---|---|---|---|",
    )
    for way, plain in (
        ("plateau", "fixed"),
        ("fixed + ours", "fixed"),
        ("fixed + ours, no warm-up", "fixed"),
        ("cosine + ours", "cosine"),
        ("cosine + ours, no warm-up", "cosine"),
        ("cosine", "fixed"),
    ):
        yield ratio_row(outcomes, way, plain)
    yield from (
        "",
        "Each task and learning rate: median of the final validation loss (and how many seeds diverged).",
        "",
    )
    yield from (f"| task | LR | {' | '.join(WAYS)} | commands |", "|---|---|" + "---|" * (len(WAYS) + 1))
    for task, lr in dict.fromkeys((o.task, o.lr) for o in outcomes):
        cells = [[o for o in outcomes if (o.task, o.lr, o.way) == (task, lr, way)] for way in WAYS]
        made = statistics.mean(o.num_commands for o in cells[WAYS.index("fixed + ours")])
        yield f"| {task} | {lr:.2g} | {' | '.join(map(cell_text, cells))} | {made:.1f} |"
    yield ""
    yield from losses_of_ours(outcomes)


def losses_of_ours(outcomes: list[Outcome]) -> Iterator[str]:
    """Say which runs were lost with ours, and when."""
    yield "What ours has lost. Good: the mean of ten training losses in a row was 2 % below the untrained loss."
    yield ""
    yield from ("| task | LR | way | last good step | final loss, untrained |", "|---|---|---|---|---|")
    for o in outcomes:
        if o.is_diverged and o.way in ("fixed + ours", "cosine + ours"):
            yield f"| {o.task} | {o.lr:.2g} | {o.way} | {o.last_good} | {o.loss:.3g}, {o.untrained:.3g} |"


def ratio_row(outcomes: list[Outcome], way: str, plain: str) -> str:
    base = {(o.task, o.lr, o.seed): o for o in outcomes if o.way == plain and not o.is_diverged}
    pairs = [(o, base[key]) for o in outcomes if o.way == way and (key := (o.task, o.lr, o.seed)) in base]
    ratios = sorted(o.loss / b.loss if math.isfinite(o.loss) else math.inf for o, b in pairs)
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    better, worse = sum(r < 0.95 for r in ratios), sum(r > 1.05 for r in ratios)
    figures = f"{statistics.median(ratios):.3f} | {low:.2f} | {high:.2f} | {better} | {worse}"
    return f"| {way} | {plain} | {len(ratios)} | {figures} |"


def cell_text(outcomes: list[Outcome]) -> str:
    losses = sorted(o.loss if math.isfinite(o.loss) else math.inf for o in outcomes)
    middle, lost = losses[len(losses) // 2], sum(o.is_diverged for o in outcomes)
    return ("lost" if math.isinf(middle) else f"{middle:.3g}") + (f" ({lost})" if lost else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, every second learning rate")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/adaptive-lr.md")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    outcomes = measure(
        LR_SHARES[::2] if arguments.quick else LR_SHARES, SEEDS[:1] if arguments.quick else SEEDS, arguments.workers
    )
    lines = list(report(outcomes, time.perf_counter() - begun))
    print("\n".join(lines))
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        PAGE.write_text(before + "\n".join([MARKS[0], "", *lines, "", MARKS[1]]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()

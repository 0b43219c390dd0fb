"""Train a small GPT, character by character, on the text of Python's standard library.

    python examples/char_gpt.py            # about a minute on two idle cores; nothing is downloaded

A usual training script: AdamW with weight decay on the matrices only, warm-up and cosine through LambdaLR, gradient
accumulation, gradient clipping, a validation loss on files that were not trained on. The monitor is one ``with`` line.
"""

from __future__ import annotations

import argparse
import math
import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import monitor


class Corpus:
    """The standard library's modules as one row of characters each for training and validation."""

    def __init__(self, context: int, max_characters: int = 4_000_000) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
        self.characters = "".join(map(chr, [10, *range(32, 127)]))
        self.context = context
        held_out = range(0, len(texts), 10)  # every tenth file, whole: no line of it is trained on
        self.validation = self.encode("".join(texts[i] for i in held_out)[: max_characters // 10])
        self.training = self.encode("".join(t for i, t in enumerate(texts) if i not in held_out)[:max_characters])

    def encode(self, text: str) -> Tensor:
        table = torch.full((128,), -1)
        table[torch.tensor([ord(character) for character in self.characters])] = torch.arange(len(self.characters))
        codes = table[torch.tensor(list(text.encode("ascii", errors="ignore")), dtype=torch.long)]
        return codes[codes >= 0]

    def decode(self, codes: Tensor) -> str:
        return "".join(self.characters[code] for code in codes.tolist())

    def batch(self, data: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``size`` random pieces of the text, and the same pieces one character on."""
        starts = torch.randint(len(data) - self.context - 1, (size, 1), generator=generator)
        pieces = data[starts + torch.arange(self.context + 1)]
        return pieces[:, :-1], pieces[:, 1:]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(size, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(size, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.characters(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(embedded)))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x).flatten(0, 1), y.flatten())

    @torch.no_grad()
    def write(self, start: Tensor, length: int, generator: torch.Generator, temperature: float = 0.8) -> Tensor:
        text = start
        for _ in range(length):
            logits = self(text[None, -self.context :])[0, -1] / temperature
            text = torch.cat([text, torch.multinomial(logits.softmax(-1), 1, generator=generator)])
        return text


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """Weight decay is for matrices; biases and norms go without."""
    parameters = list(model.parameters())
    groups = [
        {"name": "decay", "params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"name": "no_decay", "params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up over the first twentieth, then half a cosine down to a tenth."""
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def validate(model: GPT, corpus: Corpus, batch_size: int, num_batches: int = 8) -> float:
    generator = torch.Generator().manual_seed(0)  # the same pieces every time: the values compare
    batches = [corpus.batch(corpus.validation, batch_size, generator) for _ in range(num_batches)]
    return sum(model.loss(x, y).item() for x, y in batches) / num_batches


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pieces a micro-batch (default: %(default)s)")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches a step (default: %(default)s)")
    parser.add_argument("--context", type=int, default=96, help="characters a piece (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--no-monitor", action="store_true", help="train without the monitor")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> monitor.Run:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    corpus = Corpus(args.context)
    model = GPT(len(corpus.characters), args.context)
    optimizer = make_optimizer(model, args.lr)
    scheduler = make_schedule(optimizer, args.steps)

    with monitor.attach(optimizer, scheduler, name="char_gpt", total_steps=args.steps) as run:
        for step in range(1, args.steps + 1):
            for _ in range(args.accumulate):
                x, y = corpus.batch(corpus.training, args.batch_size, generator)
                loss = model.loss(x, y) / args.accumulate
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

            if step % 50 == 0 or step == args.steps:
                val_loss = validate(model, corpus, args.batch_size)
                run.log(val_loss=val_loss)
                print(
                    f"step {step:5d}  loss {loss.item() * args.accumulate:.3f}  validation {val_loss:.3f}",
                    flush=True,
                )
            if run.should_stop:
                print(f"stopped at step {step}, as asked")
                break

        print("\n--- a sample ---")
        print(corpus.decode(model.write(corpus.encode("def "), 200, generator)))
    return run


if __name__ == "__main__":
    args = parse()
    if args.no_monitor:
        os.environ["MONITOR_DISABLED"] = "1"
    train(args)

"""Measure the LR matrix and write its tables into docs/control.md: ``python docs/make_lr_matrix.py`` (a few minutes).

The cells are those of tests/torch/test_lr_matrix.py. Beside them stand the two ways in which people lower the LR of a
schedule by hand.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.torch import lr_recipes as recipes  # noqa: E402
from tests.torch.lr_cell import PLAN, ByHand, Monitored, Unwatched, run  # noqa: E402

PAGE = ROOT / "docs" / "control.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
REDUCED = {3: ("reduce", 0.5, None)}


class Noting(Unwatched):
    """Train without the monitor, and note the LRs that the steps use."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.schedulers: list[Any] = []

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        self.optimizer = optimizer
        yield

    def step(self, optimizer: Optimizer, *closure: Any) -> None:
        self.used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step(*closure)


class WrittenOnce(Noting):
    """Multiply ``group["lr"]`` once, as is often done."""

    def command(self, _action: str, factor: float = 1.0, _groups: Any = None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * factor


class BaseScaled(Noting):
    """Multiply the ``base_lrs`` of every scheduler once."""

    def command(self, _action: str, factor: float = 1.0, _groups: Any = None) -> None:
        for scheduler in self.schedulers:
            scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]


def is_exact(recipe: recipes.OptimizerRecipe, schedule: recipes.Schedule, folder: str) -> bool:
    """Tell whether the cell holds: with commands as written by hand, without as without the monitor."""
    plain, by_hand = run(recipe, schedule, Unwatched()), run(recipe, schedule, ByHand(), plan=PLAN)
    return run(recipe, schedule, Monitored(folder)).is_like(plain) and run(
        recipe, schedule, Monitored(folder), plan=PLAN
    ).is_like(by_hand)


def by_hand_once(schedule: recipes.Schedule, keeper: Noting) -> str:
    """Say for how many of the steps after it a change made once by hand gives half of what the schedule asks for."""
    recipe = next(r for r in recipes.torch_optimizers() if r.name == "SGD")
    plain = Noting()
    run(recipe, schedule, plain)
    run(recipe, knowing(schedule, keeper.schedulers), keeper, plan=REDUCED)
    first = next(iter(REDUCED))
    pairs = list(zip(plain.used[first:], keeper.used[first:], strict=True))
    if all(asked == used for asked, used in pairs):
        return "no effect"
    num_right = sum(math.isclose(0.5 * asked, used, rel_tol=1e-6, abs_tol=1e-12) for asked, used in pairs)
    return f"{num_right} of {len(pairs)} steps"


def knowing(schedule: recipes.Schedule, found: list[Any]) -> recipes.Schedule:
    """Return the schedule, which puts every scheduler that it builds into ``found``."""
    kind = torch.optim.lr_scheduler.LRScheduler
    original = kind.__init__

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        found.append(self)

    def build(optimizer: Optimizer) -> recipes.Advance:
        kind.__init__ = noting  # type: ignore[method-assign]
        try:
            return schedule.build(optimizer)
        finally:
            kind.__init__ = original  # type: ignore[method-assign]

    return recipes.Schedule(schedule.name, build)


def runs_here(recipe: recipes.OptimizerRecipe) -> bool:
    """Tell whether torch runs a variant on this machine."""
    try:
        run(recipe, next(s for s in recipes.all_schedules() if s.name == "none"), Unwatched())
    except Exception:  # noqa: BLE001 - whatever torch refuses it with
        return False
    return True


def tables(folder: str) -> str:
    """Measure everything; return the tables."""
    schedules = list(recipes.all_schedules())
    plain = recipes.torch_optimizers()
    variants = [v for recipe in plain for _, v in recipes.variants(recipe) if runs_here(v)]
    optimizers = [*plain, *variants, *recipes.other_optimizers()]
    exact = {(o.name, s.name): is_exact(o, s, folder) for o in optimizers for s in schedules}
    packages = ("torch", "transformers", "pytorch-optimizer", "warmup-scheduler")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    pairs = f"{len(optimizers)} optimizers and variants x {len(schedules)} schedules"
    total = f"{sum(exact.values())} of {len(exact)} pairs exact: {pairs}."
    out = [
        f"Measured with {versions} on a CPU.",
        total,
        "",
        '| schedule | `monitor` | `group["lr"] *= 0.5` once | `base_lrs` halved |',
        "| --- | --- | --- | --- |",
    ]
    for schedule in schedules:
        number = sum(exact[o.name, schedule.name] for o in optimizers)
        ours = f"exact with {number} of {len(optimizers)}"
        once, base = by_hand_once(schedule, WrittenOnce()), by_hand_once(schedule, BaseScaled())
        out.append(f"| {schedule.name} | {ours} | {once} | {base} |")
    out += ["", "| optimizer | exact with | its variants | exact with |", "| --- | --- | --- | --- |"]
    for one in [*plain, *recipes.other_optimizers()]:
        own = [v for v in variants if v.kind is one.kind]
        names = "; ".join(v.name.partition(" (")[2].rstrip(")") for v in own)
        number = sum(exact[v.name, s.name] for v in own for s in schedules)
        out.append(
            f"| {one.name} | {sum(exact[one.name, s.name] for s in schedules)} of {len(schedules)} | {names} | "
            f"{f'{number} of {len(own) * len(schedules)}' if own else ''} |"
        )
    return "\n".join(out)


def main() -> None:
    logging.getLogger("monitor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        made = tables(folder)
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Measure the LR matrix and write its tables into docs/control.md: ``python docs/make_lr_matrix.py`` (five minutes).

The cells are those of tests/torch/test_lr_matrix.py, and the variants that it trains with a fourth of the schedules are
trained with all. Beside them stand the two ways in which people lower the LR of a schedule by hand.
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
from tests.torch.lr_cell import LOOPS, ByHand, Monitored, Unwatched, plan_for, refusal, run  # noqa: E402

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


def is_exact(recipe: recipes.OptimizerRecipe, schedule: recipes.Schedule, folder: str, loop: str = LOOPS[0]) -> bool:
    """Tell whether the cell holds: with commands as written by hand, without as without the monitor."""
    plan = plan_for(loop)
    plain = run(recipe, schedule, Unwatched(), loop=loop)
    by_hand = run(recipe, schedule, ByHand(), loop=loop, plan=plan)
    watched = run(recipe, schedule, Monitored(folder), loop=loop)
    commanded = run(recipe, schedule, Monitored(folder), loop=loop, plan=plan)
    return watched.is_like(plain) and commanded.is_like(by_hand)


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


def loop_table(folder: str) -> list[str]:
    """Measure the other kinds of loops, with every schedule."""
    optimizers, schedules = recipes.loop_optimizers(), recipes.all_schedules()
    out = [f"| loop | {' | '.join(one.name for one in optimizers)} |", "| --- |" + " --- |" * len(optimizers)]
    for loop in LOOPS[1:]:
        numbers = [sum(is_exact(one, s, folder, loop) for s in schedules) for one in optimizers]
        out.append(f"| {loop} | {' | '.join(f'{number} of {len(schedules)}' for number in numbers)} |")
    return out


def skipped_table(refused: dict[str, list[tuple[recipes.OptimizerRecipe, Exception]]]) -> list[str]:
    """Name the variants that torch refuses on this machine, by kind, with its words."""
    out = ["| skipped: torch refuses it | on | for | in words such as |", "| --- | --- | --- | --- |"]
    for variant, found in refused.items():
        devices = ", ".join(sorted({recipe.device for recipe, _ in found}))
        names = ", ".join(recipe.kind.__name__ for recipe, _ in found)
        out.append(f"| {variant} | {devices} | {names} | {str(found[0][1]).splitlines()[0]} |")
    return out if refused else []


def tables(folder: str) -> str:
    """Measure everything; return the tables."""
    schedules = list(recipes.all_schedules())
    plain = recipes.torch_optimizers()
    variants: list[recipes.OptimizerRecipe] = []
    refused: dict[str, list[tuple[recipes.OptimizerRecipe, Exception]]] = {}
    for variant, one in (pair for recipe in plain for pair in recipes.variants(recipe)):
        if (error := refusal(one)) is None:
            variants.append(one)
        else:
            refused.setdefault(variant, []).append((one, error))
    optimizers = [*plain, *variants, *recipes.other_optimizers()]
    exact = {(o.name, s.name): is_exact(o, s, folder) for o in optimizers for s in schedules}
    packages = ("torch", "transformers", "pytorch-optimizer", "warmup-scheduler")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    pairs = f"{len(optimizers)} optimizers and variants x {len(schedules)} schedules"
    total = f"{sum(exact.values())} of {len(exact)} pairs exact: {pairs}."
    out = [
        f"Measured with {versions} on a CPU{accelerated(variants)}.",
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
    return "\n".join([*out, "", *loop_table(folder), "", *skipped_table(refused)])


def accelerated(variants: list[recipes.OptimizerRecipe]) -> str:
    """Say which variants ran elsewhere, and where."""
    elsewhere = {one.device for one in variants} - {"cpu"}
    return f", the capturable variants on {', '.join(sorted(elsewhere))}" if elsewhere else ""


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

"""Every optimizer x every schedule: a reduced run is the run whose LR was written by hand as factor x schedule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.requirements import need_module
from tests.torch import lr_recipes as recipes
from tests.torch.lr_cell import LOOPS, PLAN, ByHand, Monitored, Unwatched, run

PLAIN = recipes.torch_optimizers()
VARIANTS = [(name, one) for recipe in PLAIN for name, one in recipes.variants(recipe)]
OTHERS = recipes.other_optimizers()
SCHEDULES = recipes.all_schedules()
BY_NAME = {recipe.name: recipe for recipe in PLAIN}
READS_ITS_LR_ONCE = {"Rprop"}
"""Optimizers that take their LR at the first step only, as the size of the first update: no later LR moves them."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models of fifty weights gain nothing from threads, and lose much where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def differing(
    recipe: recipes.OptimizerRecipe, schedules: list[recipes.Schedule], tmp_path: Path, loop: str = LOOPS[0]
) -> list[str]:
    """Return the cells of one row that are not what they must be."""
    wrong = []
    for schedule in schedules:
        plain = run(recipe, schedule, Unwatched(), loop=loop)
        by_hand = run(recipe, schedule, ByHand(), loop=loop, plan=PLAN)
        if not run(recipe, schedule, Monitored(str(tmp_path)), loop=loop).is_like(plain):
            wrong.append(f"{schedule.name}: watched without a command, it is another run")
        if not run(recipe, schedule, Monitored(str(tmp_path)), loop=loop, plan=PLAN).is_like(by_hand):
            wrong.append(f"{schedule.name}: with commands, it is not factor x schedule")
        if by_hand.lrs != plain.lrs:
            wrong.append(f"{schedule.name}: the reference itself bent the schedule")
        has_effect = not all(map(torch.equal, by_hand.weights, plain.weights))
        if has_effect == (recipe.kind.__name__ in READS_ITS_LR_ONCE):
            wrong.append(f"{schedule.name}: the commands {'had an' if has_effect else 'had no'} effect")
    return wrong


@pytest.mark.parametrize("recipe", PLAIN, ids=lambda recipe: recipe.name)
def test_every_optimizer_with_every_schedule_is_factor_times_schedule(recipe, tmp_path: Path) -> None:
    """Reduced, reduced again, undone and restored, the weights are those of the LR written by hand, bit by bit;
    without a command they are those of no monitor."""
    assert differing(recipe, list(SCHEDULES), tmp_path) == []


@pytest.mark.parametrize(("variant", "recipe"), VARIANTS, ids=[recipe.name for _, recipe in VARIANTS])
def test_every_variant_of_every_optimizer_is_factor_times_schedule(variant: str, recipe, tmp_path: Path) -> None:
    """foreach, fused, capturable and maximize, with a number and with a tensor as LR: where torch runs it, it is
    exact; where torch refuses it, it does so in words that we know."""
    schedules = [s for s in SCHEDULES if s.name in ("LambdaLR", "CosineAnnealingWarmRestarts", "LinearLR", "none")]
    try:
        run(recipe, schedules[0], Unwatched())
    except Exception as refusal:
        if recipes.REFUSED_BY_TORCH.get(variant, "(runs everywhere)") not in str(refusal):
            raise
        return
    assert differing(recipe, schedules, tmp_path) == []


def test_the_variants_that_a_cpu_runs_are_run() -> None:
    """fused and tensor LRs are exercised here: not every variant is among those that torch refuses."""
    names = {name for name, _ in VARIANTS}
    assert {"foreach", "fused", "fused, tensor LR", "tensor LR"} <= names - set(recipes.REFUSED_BY_TORCH)


@pytest.mark.parametrize("loop", LOOPS[1:])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_kind_of_loop_is_factor_times_schedule(name: str, loop: str, tmp_path: Path) -> None:
    """Stepped before the optimizer, once an epoch, over micro-batches, or with an optimizer made anew each epoch."""
    assert differing(BY_NAME[name], list(SCHEDULES), tmp_path, loop) == []


def test_optimizers_of_other_makers_are_factor_times_schedule(tmp_path: Path) -> None:
    """Ranger, NovoGrad and more of pytorch_optimizer, whose step is not torch's, are exact as well."""
    need_module("pytorch_optimizer")
    assert len(OTHERS) == len(recipes.OTHER_OPTIMIZERS)
    schedules = [s for s in SCHEDULES if s.name in ("LambdaLR", "OneCycleLR", "LambdaLR with warm-up from 0")]
    assert {recipe.name: wrong for recipe in OTHERS if (wrong := differing(recipe, schedules, tmp_path))} == {}


@pytest.mark.parametrize(
    ("module", "schedules", "number"),
    [("transformers", recipes.transformers_schedules, 8), ("warmup_scheduler", recipes.warmup_schedules, 2)],
)
def test_schedules_of_other_makers_are_in_the_matrix(module: str, schedules: Callable, number: int) -> None:
    """Where the package is installed, its schedules are columns of the matrix above."""
    need_module(module)
    names = [schedule.name for schedule in schedules()]
    assert len(names) >= number
    assert set(names) <= {schedule.name for schedule in SCHEDULES}


def test_all_of_torch_is_in_the_matrix() -> None:
    """The classes are found by looking into torch, so that a later one's join by themselves."""
    assert {"SGD", "AdamW", "LBFGS", "SparseAdam", "RAdam", "ASGD"} <= set(BY_NAME)
    assert {"LambdaLR", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau", "SequentialLR", "SWALR"} <= {
        schedule.name for schedule in SCHEDULES
    }


def test_the_documented_table_has_every_row_and_no_failure() -> None:
    """docs/control.md says what is tested here; made with another torch, it may know fewer classes."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "control.md").read_text(encoding="utf-8")
    table = page.partition("<!-- matrix: begin -->")[2].partition("<!-- matrix: end -->")[0]
    counts = re.findall(r"(\d+) of (\d+) (?:pairs|\|)|exact with (\d+) of (\d+)", table)
    pairs = {(a, b) if a else (c, d) for a, b, c, d in counts}
    assert len(counts) > 50
    assert all(first == second for first, second in pairs), pairs
    if f"torch {torch.__version__}," in table:
        names = {recipe.name for recipe in PLAIN} | {schedule.name for schedule in SCHEDULES}
        assert {name for name in names if f"| {name} |" not in table} == set()


def test_a_scheduler_with_an_argument_that_nobody_knows_fails_with_its_name() -> None:
    """What the general recipe cannot build does not drop out of the matrix unseen."""

    class Later(torch.optim.lr_scheduler.LRScheduler):
        def __init__(self, optimizer, wavelength: float) -> None: ...

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(LookupError, match="Later needs 'wavelength'"):
        recipes.make_scheduler(Later, optimizer)

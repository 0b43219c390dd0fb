"""Every optimizer x every schedule: a reduced run is the run whose LR was written by hand as factor x schedule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor import Command
from tests.requirements import need_module
from tests.torch import lr_recipes as recipes
from tests.torch.lr_cell import LOOPS, PLAN_BY_EPOCH, ByHand, Monitored, Unwatched, plan_for, refusal, run

PLAIN = recipes.torch_optimizers()
VARIANTS = [(name, one) for recipe in PLAIN for name, one in recipes.variants(recipe)]
OTHERS = recipes.other_optimizers()
SCHEDULES = recipes.all_schedules()
NUM_SHARES = 4
"""A variant, or another maker's optimizer, is trained with a fourth of the schedules, the next one with the next
fourth: four of a kind meet all. docs/make_lr_matrix.py trains each with all."""
BY_NAME = {recipe.name: recipe for recipe in PLAIN}
READS_ITS_LR_ONCE = {"Rprop"}
"""Optimizers that take their LR at the first step only, as the size of the first update: no later LR moves them."""


class Noted(Monitored):
    """Under the monitor, and what came of its commands, by optimizer."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.told: list[list[tuple[str, str]]] = []

    @contextmanager
    def watch(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        self.asked: list[tuple[str, Command]] = []
        with super().watch(optimizer):
            yield
        self.told.append([(action, command.status) for action, command in self.asked])

    def command(self, action: str, *arguments: Any) -> Command:
        command = super().command(action, *arguments)
        self.asked.append((action, command))
        return command


class Bare(torch.optim.Optimizer):
    """An optimizer that looks at no value of its LR, so that it can lie on torch's meta device, which has none."""

    def __init__(self, params: Any, lr: Any) -> None:
        super().__init__(params, {"lr": lr})


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
        by_hand = run(recipe, schedule, ByHand(), loop=loop, plan=plan_for(loop))
        if not run(recipe, schedule, Monitored(str(tmp_path)), loop=loop).is_like(plain):
            wrong.append(f"{schedule.name}: watched without a command, it is another run")
        if not run(recipe, schedule, Monitored(str(tmp_path)), loop=loop, plan=plan_for(loop)).is_like(by_hand):
            wrong.append(f"{schedule.name}: with commands, it is not factor x schedule")
        if by_hand.lrs != plain.lrs:
            wrong.append(f"{schedule.name}: the reference itself bent the schedule")
        has_effect = not all(map(torch.equal, by_hand.weights, plain.weights))
        if has_effect == (recipe.kind.__name__ in READS_ITS_LR_ONCE):
            wrong.append(f"{schedule.name}: the commands {'had an' if has_effect else 'had no'} effect")
    return wrong


@pytest.mark.sliced(2)
@pytest.mark.parametrize("recipe", PLAIN, ids=lambda recipe: recipe.name)
def test_every_optimizer_with_every_schedule_is_factor_times_schedule(recipe, tmp_path: Path) -> None:
    """Reduced, reduced again, undone and restored, the weights are those of the LR written by hand, bit by bit;
    without a command they are those of no monitor."""
    assert differing(recipe, list(SCHEDULES), tmp_path) == []


@pytest.mark.sliced(2)
@pytest.mark.parametrize(("variant", "recipe"), VARIANTS, ids=[recipe.name for _, recipe in VARIANTS])
def test_every_variant_of_every_optimizer_is_factor_times_schedule(variant: str, recipe, tmp_path: Path) -> None:
    """foreach, fused, capturable and maximize, with a number and with a tensor as LR: where torch runs it, it is
    exact; where torch refuses it, it does so in words that we know."""
    if (refused := refusal(recipe)) is not None:
        if recipes.REFUSED_BY_TORCH.get(variant, "(runs everywhere)") not in str(refused):
            raise refused
        pytest.skip(f"on {recipe.device} torch says: {refused}")
    assert differing(recipe, schedules_of(variant, recipe), tmp_path) == []


def schedules_of(variant: str, recipe: recipes.OptimizerRecipe) -> list[recipes.Schedule]:
    """Return the schedules of a variant: by its place among those of its kind."""
    of_its_kind = [one.name for name, one in VARIANTS if name == variant]
    return recipes.share_of(SCHEDULES, of_its_kind.index(recipe.name), NUM_SHARES)


def test_every_kind_of_variant_meets_every_schedule() -> None:
    """Over the optimizers that torch runs it for, a kind of variant is trained with all schedules; capturable, which
    torch runs on accelerators only, is all that may be missing here."""
    met: dict[str, set[str]] = {}
    for variant, recipe in VARIANTS:
        if refusal(recipe) is None:
            met.setdefault(variant, set()).update(schedule.name for schedule in schedules_of(variant, recipe))
    everything = {schedule.name for schedule in SCHEDULES}
    assert {variant: everything - names for variant, names in met.items() if names != everything} == {}
    is_missing = {variant for variant, _ in VARIANTS} - set(met)
    on_accelerators = {"capturable", f"capturable, {recipes.TENSOR_LR}"}
    assert is_missing == (on_accelerators if recipes.accelerator() == "cpu" else set())


def test_a_device_is_where_capturable_variants_train() -> None:
    """Model and tensor LR lie on the device that is asked for, those of the other variants on the CPU."""
    found = dict(recipes.variants(BY_NAME["RAdam"], device="meta"))
    for variant in ("capturable", "capturable, tensor LR", "tensor LR", "foreach"):
        recipe = found[variant]
        model = recipe.new_model()
        lr = replace(recipe, kind=Bare, options=()).build(model).param_groups[0]["lr"]
        tensors = [*model.parameters(), *model.buffers(), *([lr] if isinstance(lr, torch.Tensor) else [])]
        expected = "meta" if variant.startswith("capturable") else "cpu"
        assert {tensor.device.type for tensor in tensors} == {expected}, variant


@pytest.mark.sliced(2)
@pytest.mark.parametrize("loop", LOOPS[1:])
@pytest.mark.parametrize("recipe", recipes.loop_optimizers(), ids=lambda recipe: recipe.name)
def test_every_kind_of_loop_is_factor_times_schedule(recipe, loop: str, tmp_path: Path) -> None:
    """Stepped before the optimizer, once an epoch, over micro-batches, or with an optimizer made anew each epoch."""
    assert differing(recipe, list(SCHEDULES), tmp_path, loop) == []


def test_a_new_optimizer_each_epoch_has_changes_of_its_own_to_take_back(tmp_path: Path) -> None:
    """The undo stack starts anew with each optimizer, and in every epoch an undo is asked for and applied."""
    keeper = Noted(str(tmp_path))
    schedule = next(schedule for schedule in SCHEDULES if schedule.name == "LambdaLR")
    run(BY_NAME["SGD"], schedule, keeper, loop="new optimizer each epoch", plan=PLAN_BY_EPOCH)
    assert keeper.told == [
        [("reduce", "applied"), ("reduce", "applied"), ("undo", "applied")],
        [("reduce", "applied"), ("undo", "applied")],
        [("reduce", "applied"), ("restore", "applied"), ("undo", "applied")],
    ]


def test_optimizers_of_other_makers_are_factor_times_schedule(tmp_path: Path) -> None:
    """Ranger, NovoGrad and more of pytorch_optimizer, whose step is not torch's, are exact as well."""
    need_module("pytorch_optimizer")
    assert len(OTHERS) == len(recipes.OTHER_OPTIMIZERS)
    shares = [(recipe, recipes.share_of(SCHEDULES, i, NUM_SHARES)) for i, recipe in enumerate(OTHERS)]
    assert {schedule.name for _, share in shares for schedule in share} == {schedule.name for schedule in SCHEDULES}
    assert {recipe.name: wrong for recipe, share in shares if (wrong := differing(recipe, share, tmp_path))} == {}


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

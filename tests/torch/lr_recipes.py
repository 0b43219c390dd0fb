"""How the LR matrix builds each optimizer and each schedule: by introspection, so that a later torch's join by
themselves.

What the general recipe cannot build stands in a list with its reason; what is in neither fails the test.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

STEPS = 12
"""Optimizer steps in one cell of the matrix."""
LRS = (0.05, 0.02)
"""Base LRs of the two param groups."""
METRICS = tuple(1.0 if i < 2 else 1.5 for i in range(STEPS + 1))
"""What a ReduceLROnPlateau is fed: better once, then no more."""

Advance = Callable[[int], None]


# ------------------------------------------------------------------------------------------------------------- models


class Dense(nn.Module):
    """Two layers, one param group each; their inputs and targets are the same in every run."""

    inputs: Tensor
    targets: Tensor

    def __init__(self, has_bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=has_bias)
        self.second = nn.Linear(6, 3, bias=has_bias)
        self.register_buffer("inputs", torch.randn(STEPS, 8, 4))
        self.register_buffer("targets", torch.randn(STEPS, 8, 3))

    def groups(self) -> list[list[nn.Parameter]]:
        return [list(self.first.parameters()), list(self.second.parameters())]

    def loss(self, i: int) -> Tensor:
        return (self.second(self.first(self.inputs[i % STEPS]).tanh()) - self.targets[i % STEPS]).square().mean()


class Sparse(nn.Module):
    """Two embeddings with sparse gradients, one param group each."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(9, 3, sparse=True) for _ in LRS])
        self.register_buffer("rows", torch.randint(0, 9, (STEPS, 5)))

    def groups(self) -> list[list[nn.Parameter]]:
        return [list(table.parameters()) for table in self.tables]

    def loss(self, i: int) -> Tensor:
        rows = self.rows[i % STEPS]
        return (self.tables[0](rows) * self.tables[1](rows) + self.tables[0](rows).square()).sum()


# --------------------------------------------------------------------------------------------------------- optimizers


@dataclass(frozen=True)
class OptimizerRecipe:
    """How to build one optimizer. ``is_single``: it takes one param group. ``has_closure``: its step needs one.
    ``device``: where its model and a tensor LR lie."""

    name: str
    kind: type[Optimizer]
    model: Callable[[], Any] = Dense
    options: tuple[tuple[str, Any], ...] = ()
    is_single: bool = False
    has_closure: bool = False
    has_tensor_lr: bool = False
    device: str = "cpu"

    def new_model(self) -> Any:
        """Make the model on the CPU, so that one seed gives the same weights everywhere, and move it."""
        return self.model().to(self.device)

    def build(self, model: Any) -> Optimizer:
        parts = model.groups()
        if self.is_single:
            return self.kind([p for part in parts for p in part], lr=self._lr(LRS[0]), **dict(self.options))
        groups = [{"params": part, "lr": self._lr(lr)} for part, lr in zip(parts, LRS, strict=True)]
        return self.kind(groups, lr=self._lr(LRS[0]), **dict(self.options))

    def _lr(self, lr: float) -> Any:
        return torch.tensor(lr, device=self.device) if self.has_tensor_lr else lr


SPECIAL: dict[str, dict[str, Any]] = {
    "LBFGS": {"is_single": True, "has_closure": True, "options": (("max_iter", 3),)},
    "SparseAdam": {"model": Sparse},
    "Muon": {"model": lambda: Dense(has_bias=False)},
}
"""Optimizers of torch that need another model or call than the general recipe, with what they need."""

FLAGS = ("foreach", "fused", "capturable", "maximize")
"""``differentiable`` is not among them: its parameters may not be leaves, so no loop trains them like this."""
TENSOR_LR = "tensor LR"


def accelerator() -> str:
    """Return the device for what torch does not run on a CPU: cuda where there is one; else cpu, where torch refuses
    it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


REFUSED_BY_TORCH: dict[str, str] = {
    "capturable": "on supported devices",
    "capturable, tensor LR": "on supported devices",
    "foreach, tensor LR": "lr as a Tensor is not supported for capturable=False and foreach=True",
}
"""Variants that torch itself refuses for some of its optimizers, capturable on a CPU for all of them: the words that it
refuses them with."""


def torch_optimizers() -> list[OptimizerRecipe]:
    """Every optimizer class of the installed torch, in its plain form."""
    kinds = {
        kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    return [_of(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)]


def _of(kind: type[Optimizer]) -> OptimizerRecipe:
    return OptimizerRecipe(kind.__name__, kind, **SPECIAL.get(kind.__name__, {}))


def variants(recipe: OptimizerRecipe, device: str | None = None) -> Iterator[tuple[str, OptimizerRecipe]]:
    """Every flag that the class takes, an LR tensor, and the flags together with an LR tensor: (variant, recipe).

    ``device`` is where the capturable ones run; by default the accelerator, where there is one.
    """
    taken = [flag for flag in FLAGS if flag in inspect.signature(recipe.kind).parameters]
    for flag in [None, *taken]:
        options = recipe.options if flag is None else (*recipe.options, (flag, True))
        where = (device or accelerator()) if flag == "capturable" else recipe.device
        for is_tensor in (False, True):
            if flag is None and not is_tensor:
                continue
            variant = ", ".join([*([flag] if flag else []), *([TENSOR_LR] if is_tensor else [])])
            name = f"{recipe.name} ({variant})"
            yield variant, replace(recipe, name=name, options=options, has_tensor_lr=is_tensor, device=where)


# ------------------------------------------------------------------------------------------- other makers' optimizers

OTHER_OPTIMIZERS = (
    "ranger", "novograd", "lion", "adabelief", "adan", "lamb", "lars", "madgrad", "radam", "sgdp", "adamp", "yogi",
    "qhadam", "tiger", "stableadamw",
)  # fmt: skip
"""Names in pytorch_optimizer, a package of optimizers by other makers."""


def other_optimizers() -> list[OptimizerRecipe]:
    """Ranger, NovoGrad and more of the package pytorch_optimizer; none where it is not installed."""
    if importlib.util.find_spec("pytorch_optimizer") is None:
        return []
    from pytorch_optimizer import load_optimizer

    return [
        OptimizerRecipe(f"pytorch_optimizer {kind.__name__}", kind) for kind in map(load_optimizer, OTHER_OPTIMIZERS)
    ]


def loop_optimizers() -> list[OptimizerRecipe]:
    """The optimizers that are taken through every kind of loop: a number and a tensor as LR, one that corrects its
    first steps, one with a closure, one of another maker."""
    by_name = {recipe.name: recipe for recipe in (*torch_optimizers(), *other_optimizers())}
    by_name |= {one.name: one for _, one in variants(by_name["Adam"])}
    names = ("SGD", "AdamW", f"Adam ({TENSOR_LR})", "RAdam", "LBFGS", "pytorch_optimizer Ranger")
    return [by_name[name] for name in names if name in by_name]


# ---------------------------------------------------------------------------------------------------------- schedules


@dataclass(frozen=True)
class Schedule:
    """How to build one schedule: ``build(optimizer)`` returns what moves it on after step ``i``."""

    name: str
    build: Callable[[Optimizer], Advance]


ARGUMENTS: dict[str, Any] = {
    "lr_lambda": lambda epoch: 1.0 / (1 + epoch),
    "step_size": 3,
    "gamma": 0.8,
    "milestones": [3, 7],
    "total_iters": 6,
    "T_max": 7,
    "T_0": 3,
    "base_lr": 0.01,
    "max_lr": 0.1,
    "step_size_up": 3,
    "total_steps": STEPS + 1,
    "swa_lr": 0.01,
    "anneal_epochs": 5,
    "patience": 1,
    "factor": 0.7,
}
"""Values for the arguments of a scheduler, by name; an argument with a default is given only where it is here."""


def torch_schedules() -> list[Schedule]:
    """Every scheduler class of the installed torch."""
    found = {
        kind
        for module in (lr_scheduler, swa_utils)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, LRScheduler) and kind.__name__.strip("_") != "LRScheduler"
    }
    return [
        Schedule(kind.__name__, lambda optimizer, kind=kind: stepping(make_scheduler(kind, optimizer)))
        for kind in sorted(found, key=lambda kind: kind.__name__)
    ]


def make_scheduler(kind: type, optimizer: Optimizer) -> Any:
    """Build a scheduler by the names of its arguments. Raises LookupError for a needed one that no value is known
    for."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name == "optimizer":
            given[name] = optimizer
        elif name == "schedulers":
            given[name] = [
                lr_scheduler.LinearLR(optimizer, 0.2, total_iters=3),
                lr_scheduler.ExponentialLR(optimizer, 0.9),
            ]
        elif name == "cycle_momentum":
            given[name] = any(key in optimizer.param_groups[0] for key in ("momentum", "betas"))
        elif name == "milestones" and "schedulers" in given:
            given[name] = [4]
        elif name in ARGUMENTS and (name != "factor" or kind is lr_scheduler.ReduceLROnPlateau):
            given[name] = ARGUMENTS[name]
        elif parameter.default is parameter.empty:
            raise LookupError(f"{kind.__name__} needs {name!r}: give it a value in ARGUMENTS")
    return kind(**given)


def stepping(*schedulers: Any) -> Advance:
    """Return what moves schedulers on, with the metric where one asks for it."""
    are_fed = ["metrics" in inspect.signature(scheduler.step).parameters for scheduler in schedulers]

    def advance(i: int) -> None:
        for scheduler, is_fed in zip(schedulers, are_fed, strict=True):
            if is_fed:
                scheduler.step(metrics=METRICS[i])
            else:
                scheduler.step()

    return advance


class InverseSquareRoot(LRScheduler):
    """A schedule as users write them."""

    def get_lr(self) -> list[float]:
        return [lr / math.sqrt(self.last_epoch + 1) for lr in self.base_lrs]


class Halving(LRScheduler):
    """A schedule that is running from what the param groups hold, as users write them too."""

    def get_lr(self) -> list[float]:
        return [group["lr"] * (0.5 if self.last_epoch % 4 == 3 else 1.0) for group in self.optimizer.param_groups]


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Assign an LR as a hand-written loop does."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _assigned(optimizer: Optimizer, rule: Callable[[int, float], float]) -> Advance:
    base = [float(group["lr"]) for group in optimizer.param_groups]

    def advance(i: int) -> None:
        for lr, group in zip(base, optimizer.param_groups, strict=True):
            set_lr(group, rule(i, lr) * group.get("lr_scale", 1.0))

    return advance


def _warm(optimizer: Optimizer) -> Advance:
    return stepping(lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 4)))


def _layer_wise(optimizer: Optimizer) -> Advance:
    for scale, group in zip((1.0, 0.3), optimizer.param_groups, strict=False):
        group["lr_scale"] = scale
    return _assigned(optimizer, lambda i, lr: lr * 0.9**i)


def hand_made_schedules() -> list[Schedule]:
    """Nested and several schedulers, schedules without a class, and warm-up from 0."""
    s = lr_scheduler

    def nested(optimizer: Optimizer) -> Advance:
        inner = s.SequentialLR(optimizer, [s.LinearLR(optimizer, 0.01, total_iters=3), s.StepLR(optimizer, 2)], [3])
        return stepping(s.SequentialLR(optimizer, [inner, s.CosineAnnealingLR(optimizer, 5)], [7]))

    def chained(optimizer: Optimizer) -> Advance:
        first = s.SequentialLR(optimizer, [s.LinearLR(optimizer, 0.1, total_iters=3), s.StepLR(optimizer, 2)], [4])
        return stepping(s.ChainedScheduler([first, s.ExponentialLR(optimizer, 0.95)]))

    return [
        Schedule("none", lambda optimizer: lambda i: None),
        Schedule("SequentialLR in SequentialLR", nested),
        Schedule("ChainedScheduler of SequentialLR", chained),
        Schedule("ExponentialLR and CosineAnnealingLR side by side",
                 lambda o: stepping(s.ExponentialLR(o, 0.95), s.CosineAnnealingLR(o, 9))),
        Schedule("ExponentialLR and ReduceLROnPlateau side by side",
                 lambda o: stepping(s.ExponentialLR(o, 0.95), s.ReduceLROnPlateau(o, patience=1))),
        Schedule("LambdaLR with warm-up from 0", _warm),
        Schedule("hand-written LRScheduler, closed form", lambda o: stepping(InverseSquareRoot(o))),
        Schedule("hand-written LRScheduler, chained form", lambda o: stepping(Halving(o))),
        Schedule('loop that assigns group["lr"]', lambda o: _assigned(o, lambda i, lr: lr / (1 + 0.3 * i))),
        Schedule('loop that multiplies group["lr"]', _multiplied),
        Schedule("groups with lr_scale, as timm's layer-wise decay", _layer_wise),
    ]  # fmt: skip


def _multiplied(optimizer: Optimizer) -> Advance:
    def advance(_: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9

    return advance


TRANSFORMERS_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 0.001},
    "cosine_warmup_with_min_lr": {"min_lr": 0.001},
    "warmup_stable_decay": {"num_decay_steps": 4},
}


def transformers_schedules() -> list[Schedule]:
    """Every schedule that transformers' get_scheduler knows; none where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return []
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

    def build(name: str, optimizer: Optimizer) -> Advance:
        return stepping(
            get_scheduler(name, optimizer, 3, STEPS, scheduler_specific_kwargs=TRANSFORMERS_ARGUMENTS.get(name))
        )

    names = sorted(getattr(name, "value", str(name)) for name in TYPE_TO_SCHEDULER_FUNCTION)
    return [Schedule(f"transformers {name}", lambda optimizer, name=name: build(name, optimizer)) for name in names]


def warmup_schedules() -> list[Schedule]:
    """GradualWarmupScheduler of the package warmup-scheduler; none where it is not installed."""
    if importlib.util.find_spec("warmup_scheduler") is None:
        return []
    from warmup_scheduler import GradualWarmupScheduler

    def before_cosine(optimizer: Optimizer) -> Advance:
        return stepping_plainly(GradualWarmupScheduler(optimizer, 1, 3, lr_scheduler.CosineAnnealingLR(optimizer, 8)))

    def before_plateau(optimizer: Optimizer) -> Advance:
        scheduler = GradualWarmupScheduler(optimizer, 2, 3, lr_scheduler.ReduceLROnPlateau(optimizer, patience=1))
        return lambda i: scheduler.step(i + 1, METRICS[i])

    return [
        Schedule("warmup_scheduler before CosineAnnealingLR", before_cosine),
        Schedule("warmup_scheduler before ReduceLROnPlateau", before_plateau),
    ]


def stepping_plainly(scheduler: Any) -> Advance:
    """Return what moves a scheduler on without a metric."""
    return lambda _: scheduler.step()


def all_schedules() -> Sequence[Schedule]:
    """Every schedule of the matrix."""
    return [*torch_schedules(), *hand_made_schedules(), *transformers_schedules(), *warmup_schedules()]


def share_of(schedules: Sequence[Schedule], index: int, num_shares: int) -> list[Schedule]:
    """Return every ``num_shares``-th schedule, from the ``index``-th on: as many rows in turn go through all."""
    return list(schedules[index % num_shares :: num_shares])

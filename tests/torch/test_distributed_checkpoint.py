"""``torch.distributed.checkpoint`` around a watched optimizer: it meets no key that a checkpoint may lack."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from monitor import Run

Attach = Callable[..., Run]
KINDS = {
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
}
OPTIONS = {
    "plain": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "lenient": StateDictOptions(strict=False),
    "full on the CPU": StateDictOptions(full_state_dict=True, cpu_offload=True),
}

pytestmark = [
    pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS),
    pytest.mark.filterwarnings("ignore:.*(weights_only|TypedStorage|process group|single process).*"),
]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process of one rank: no port, as it meets itself in a file."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Training:
    """A model of two layers, each a param group with an LR of its own."""

    def __init__(self, kind: str = "Adam") -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
        self.optimizer: Any = KINDS[kind]([{"params": layer.parameters()} for layer in self.model])
        self.optimizer.param_groups[1]["lr"] = 0.01

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.optimizer.zero_grad()
            self.model(torch.ones(2, 3)).square().mean().backward()
            self.optimizer.step()

    def state(self, options: StateDictOptions) -> Any:
        return get_optimizer_state_dict(self.model, self.optimizer, options=options)

    def save(self, folder: Path, options: StateDictOptions, **others: Any) -> None:
        dcp.save({"optim": self.state(options), **others}, checkpoint_id=folder)

    def load(self, folder: Path, options: StateDictOptions, **others: Any) -> None:
        states = {"optim": self.state(options), **others}
        dcp.load(states, checkpoint_id=folder)
        set_optimizer_state_dict(self.model, self.optimizer, states["optim"], options=options)


class Everything:
    """What the tutorials make of a model and its optimizer: it is asked for its state by save and by load."""

    def __init__(self, training: Training, options: StateDictOptions) -> None:
        self.training, self.options = training, options

    def state_dict(self) -> dict[str, Any]:
        model, optim = get_state_dict(self.training.model, self.training.optimizer, options=self.options)
        return {"model": model, "optim": optim}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.training.model,
            self.training.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optim"],
            options=self.options,
        )


def factors(run: Run) -> list[float]:
    return [row.factor for row in run.lr]


def reduce(run: Run, training: Training) -> None:
    """Put a factor in force in one group and begin a ramp in the other."""
    run.reduce_lr(0.5, groups=[0])
    run.reduce_lr(0.25, groups=[1], over_steps=4)
    training.step(2)
    assert factors(run) == [0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_watched", [True, False])
def test_a_roll_back_to_before_a_reduction_takes_it_back(
    attach: Attach, tmp_path: Path, options: StateDictOptions, kind: str, is_watched: bool
) -> None:
    """Whether the checkpoint was saved under the monitor or before; the keys are what was saved."""
    if kind == "SGD" and options.full_state_dict:
        pytest.skip("torch refuses a full state that holds no tensor")
    training = Training(kind)
    run = attach(training.optimizer) if is_watched else None
    training.step(2)
    training.save(tmp_path, options)
    saved = [set(group) for group in training.optimizer.state_dict()["param_groups"]]
    run = run or attach(training.optimizer)
    reduce(run, training)
    training.load(tmp_path, options)
    assert factors(run) == [1.0, 1.0]
    assert [set(group) for group in training.optimizer.state_dict()["param_groups"]] == saved
    training.step()
    run.flush()
    assert [group.applied for group in run.snapshot().optimizers[0].groups] == [0.1, 0.01]


def test_a_state_kept_in_memory_is_set_while_a_factor_is_in_force(attach: Attach, options: StateDictOptions) -> None:
    """Without asking for the state of now first: setting looks at the keys of the live groups too."""
    training = Training()
    run = attach(training.optimizer)
    training.step()
    clean = copy.deepcopy(training.state(options))
    reduce(run, training)
    set_optimizer_state_dict(training.model, training.optimizer, clean, options=options)
    assert factors(run) == [1.0, 1.0]


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_checkpoint_under_a_factor_loads_anywhere(
    attach: Attach, tmp_path: Path, options: StateDictOptions, is_watched: bool
) -> None:
    """Under the monitor and without it; and one warning, when it was saved, says that the factor is not in it."""
    first = Training()
    reduce(attach(first.optimizer), first)
    first.save(tmp_path, options)
    second = Training()
    run = attach(second.optimizer) if is_watched else None
    second.load(tmp_path, options)
    assert [group["lr"] for group in second.optimizer.param_groups] == [0.1, 0.01]
    assert not any(key.startswith("monitor_") for group in second.optimizer.param_groups for key in group)
    assert run is None or factors(run) == [1.0, 1.0]


def test_the_loss_of_a_factor_is_said_once(
    attach: Attach, tmp_path: Path, options: StateDictOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the factors, and what to save beside the optimizer's state."""
    training = Training()
    run = attach(training.optimizer)
    training.save(tmp_path / "clean", options)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "monitor"]
    reduce(run, training)
    training.save(tmp_path / "first", options)
    training.save(tmp_path / "second", options)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name == "monitor"]
    assert "Adam group 0: 0.5, Adam group 1: 0.5" in warning
    assert "save run.state_dict()" in warning


def test_the_run_saved_beside_it_keeps_the_factor(attach: Attach, tmp_path: Path, options: StateDictOptions) -> None:
    """A resumed run goes through the ramp to its end as the one that never stopped."""
    first = Training()
    run = attach(first.optimizer)
    reduce(run, first)
    first.save(tmp_path, options, monitor=run)
    second = Training()
    again = attach(second.optimizer)
    second.load(tmp_path, options, monitor=again)
    assert factors(again) == [0.5, 0.5]
    first.step(3)
    second.step(3)
    assert factors(again) == factors(run) == [0.5, 0.25]


@pytest.mark.parametrize("name", ["app", "zoo"])
def test_stateful_objects_may_be_loaded_in_any_order(
    attach: Attach, tmp_path: Path, options: StateDictOptions, name: str
) -> None:
    """torch loads them in the order of their names, before the run's or after it."""
    first = Training()
    run = attach(first.optimizer)
    reduce(run, first)
    dcp.save({name: Everything(first, options), "monitor": run}, checkpoint_id=tmp_path)
    second = Training()
    again = attach(second.optimizer)
    dcp.load({name: Everything(second, options), "monitor": again}, checkpoint_id=tmp_path)
    assert factors(again) == [0.5, 0.5]
    first.step(3)
    second.step(3)
    weights = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_a_state_that_holds_the_key_puts_the_factor_in_force(attach: Attach, options: StateDictOptions) -> None:
    """Such as an earlier version saved. torch itself passes over it in a flattened state, and refuses a full one."""
    if options.full_state_dict:
        pytest.skip("torch refuses a full state with a key that the optimizer lacks")
    first = Training()
    first.step()
    state = first.state(options)
    is_flat = bool(options.flatten_optimizer_state_dict)
    if is_flat:
        state |= {key.removesuffix("lr") + "monitor_lr_factor": 0.5 for key in list(state) if key.endswith(".lr")}
    else:
        for group in state["param_groups"]:
            group["monitor_lr_factor"] = 0.5
    second = Training()
    run = attach(second.optimizer)
    set_optimizer_state_dict(second.model, second.optimizer, state, options=options)
    assert factors(run) == ([1.0, 1.0] if is_flat else [0.5, 0.5])
    second.step()
    assert not any("monitor_lr_factor" in group for group in second.optimizer.param_groups)

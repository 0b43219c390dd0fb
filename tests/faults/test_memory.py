"""Nothing of a training stays in memory for a run: no optimizer, parameter or state, with the garbage collector off."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monitor
from tests.faults.loops import make_batches, make_model, train_plainly, watch


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def trained(tmp_path: Path, *, has_callbacks: bool = False) -> tuple[monitor.Run, list[weakref.ref[Any]]]:
    """Return a run, and references to all that its training made; nothing else holds that, the user's own functions
    apart."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    made = [model, optimizer, *model.parameters()]
    callbacks = {"on_checkpoint": lambda: made, "on_event": lambda _: made} if has_callbacks else {}
    run = watch(optimizer, tmp_path, **callbacks)
    train_plainly(model, optimizer, make_batches())
    run.reduce_lr(0.5)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    train_plainly(model, optimizer, make_batches())
    moments = [one["exp_avg"] for one in optimizer.state.values()]
    return run, [weakref.ref(one) for one in (*made, *moments, *callbacks.values())]


def left(references: list[weakref.ref[Any]]) -> list[str]:
    return [type(one).__name__ for reference in references if (one := reference()) is not None]


def test_closed_run_that_is_kept_holds_nothing_of_its_training(tmp_path: Path) -> None:
    """After close() the run knows names, the last learning rates and the last snapshot, and nothing else."""
    run, references = trained(tmp_path, has_callbacks=True)
    run.close()
    assert left(references) == []
    assert [(row.optimizer, row.factor) for row in run.lr] == [("AdamW", 0.5)]
    assert run.snapshot().state == "finished"
    assert run.step == 12


def test_open_run_keeps_no_optimizer_alive(tmp_path: Path) -> None:
    """A run that was never closed, and is watched by nobody, lets its optimizer, parameters and state go."""
    run, references = trained(tmp_path)
    assert left(references) == []
    assert run.lr == []
    assert run.flush()
    assert run.snapshot().optimizers[0].steps == 12
    run.close()


@pytest.mark.parametrize("times", [3])
def test_an_optimizer_at_the_address_of_a_dead_one_is_not_taken_for_it(times: int, tmp_path: Path) -> None:
    """An optimizer made where an attached one used to be is not watched by that one's run."""
    run, _ = trained(tmp_path)
    for _ in range(times):
        model = make_model()
        train_plainly(model, torch.optim.AdamW(model.parameters(), lr=0.1), make_batches())
    run.flush()
    assert run.snapshot().optimizers[0].steps == 12
    run.close()


@pytest.mark.parametrize("make", [lambda o: o, lambda o: [o], lambda o: {"main": o}])
def test_closing_leaves_the_optimizer_as_it_was(make: Callable[[Any], Any], tmp_path: Path) -> None:
    """No hook, attribute or key of ours stays on an optimizer that lives on."""
    optimizer = torch.optim.AdamW(make_model().parameters(), lr=0.1)
    before = set(vars(optimizer)), [set(group) for group in optimizer.param_groups]
    watch(make(optimizer), tmp_path).close()
    assert (set(vars(optimizer)), [set(group) for group in optimizer.param_groups]) == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks

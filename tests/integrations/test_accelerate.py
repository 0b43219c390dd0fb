"""accelerate: what the run shows is what was trained, and it ends with the training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from monitor.store import list_runs
from tests.requirements import need_framework

need_framework("accelerate")

import accelerate  # noqa: E402 - only where it is installed
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

import monitor.integrations.accelerate  # noqa: E402, F401 - makes the name known


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state() if hasattr(state, "_reset_state") else state._shared_state.clear()


class Trained:
    """A training with accelerate; ``losses`` are the truth at every step, made by hand."""

    def __init__(self, log_with: Any, accumulate: int = 1, **settings: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(cpu=True, log_with=log_with, gradient_accumulation_steps=accumulate)
        self.accelerator.init_trackers("digits", init_kwargs={"monitor": settings})
        self.model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(1)
        data = TensorDataset(torch.randn(96, 4, generator=generator), torch.arange(96) % 3)
        self.prepared = self.accelerator.prepare(self.model, optimizer, DataLoader(data, batch_size=8))
        self.accumulate = accumulate
        self.losses: list[float] = []

    @property
    def run(self) -> Any:
        return self.accelerator.get_tracker("monitor", unwrap=True)

    def train(self) -> None:
        model, optimizer, loader = self.prepared
        parts = []
        for inputs, labels in loader:
            with self.accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                self.accelerator.backward(loss)
                parts.append(loss.item())
                optimizer.step()
                optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.losses.append(sum(parts[-self.accumulate :]) / self.accumulate)
                self.accelerator.log({"accuracy": 0.5, "val_loss": 0.25, "note": "text"}, step=len(self.losses))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_are_those_of_the_loop(accumulate: int) -> None:
    """At every step from the first one on; the weights are those of a training that nobody watches."""
    watched = Trained("monitor", accumulate, total_steps=12 // accumulate)
    watched.train()
    run = watched.run
    run.flush()
    (course,) = run.history()["optimizers"].values()
    assert list(course["loss"]) == pytest.approx(watched.losses, rel=1e-5)
    snapshot = run.snapshot()
    assert (run.name, snapshot.target_steps, snapshot.metrics) == ("digits", 12 // accumulate, {"accuracy": 0.5})
    assert snapshot.validation_losses == {"validation": 0.25}
    watched.accelerator.end_training()
    assert run.state == "finished"
    plain = Trained(None, accumulate)
    plain.train()
    assert torch.equal(watched.model.weight, plain.model.weight)


def test_a_cell_that_is_run_again_ends_the_run_that_it_made_before(tmp_path: Path) -> None:
    """Without end_training the first run would stay open for good."""
    first = Trained("monitor", directory=str(tmp_path))
    first.train()
    second = Trained("monitor", directory=str(tmp_path))
    second.train()
    assert [run.state for run in list_runs(tmp_path)] == ["finished", "running"]
    second.accelerator.end_training()
    assert [run.state for run in list_runs(tmp_path)] == ["finished", "finished"]

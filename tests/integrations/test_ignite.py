"""ignite: what the run shows is what was trained, and it ends as the engine does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.run import newest
from monitor.store import list_runs
from tests.requirements import need_framework

need_framework("ignite")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ignite uses what torch has deprecated
    from ignite.engine import Engine, Events

    from monitor.integrations.ignite import attach


class Trained:
    """An engine that trains; ``losses`` are the truth at every step, made by hand."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.losses: list[float] = []
        self.engine = Engine(self.step)
        self.evaluator = Engine(lambda *_: None)
        self.evaluator.add_event_handler(Events.COMPLETED, self.evaluate)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.evaluator.run([0]))

    def step(self, engine: Engine, batch: Any) -> float:
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return loss.item()

    def evaluate(self, engine: Engine) -> None:
        engine.state.metrics.update(loss=0.25, accuracy=0.5)

    def run(self, epochs: int = 2) -> None:
        generator = torch.Generator().manual_seed(1)
        self.engine.run([torch.randn(8, 4, generator=generator) for _ in range(6)], max_epochs=epochs)


def test_losses_metrics_and_epoch_are_those_of_the_engine() -> None:
    """At every step; the weights are those of a training that nobody watches."""
    watched, plain = Trained(), Trained()
    attach(watched.engine, watched.optimizer, evaluators={"test": watched.evaluator})
    runs: list[Any] = []
    watched.engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: runs.append(newest()))
    watched.run()
    plain.run()
    (course,) = runs[0].history()["optimizers"].values()
    assert list(course["loss"]) == pytest.approx(watched.losses, rel=1e-5)
    snapshot = runs[0].snapshot()
    assert (snapshot.state, snapshot.target_steps) == ("finished", 12)
    assert snapshot.validation_losses == {"test": 0.25}
    assert snapshot.metrics == {"test_accuracy": 0.5, "epoch": 2}
    assert torch.equal(watched.model.weight, plain.model.weight)


@pytest.mark.parametrize("has_handler", [False, True])
def test_an_exception_ends_the_run_and_reaches_whom_it_would(has_handler: bool, tmp_path: Path) -> None:
    """Raised by the engine, or handed to the user's own handler, as without the monitor."""
    trained, seen = Trained(), []

    def fail() -> None:
        raise RuntimeError("no more data")

    attach(trained.engine, trained.optimizer, directory=str(tmp_path))
    if has_handler:
        trained.engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: seen.append(str(error)))
    trained.engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), fail)
    if has_handler:
        trained.run()
        assert seen == ["no more data"]
    else:
        with pytest.raises(RuntimeError, match="no more data"):
            trained.run()
    assert list_runs(tmp_path)[0].state == "failed"


def test_two_runs_of_one_engine_both_fail_with_it(tmp_path: Path) -> None:
    """A generator's and a critic's: the exception still reaches the program."""
    trained = Trained()
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    attach(trained.engine, trained.optimizer, directory=str(tmp_path))
    attach(trained.engine, other, directory=str(tmp_path))

    def fail() -> None:
        raise RuntimeError("no more data")

    trained.engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail)
    with pytest.raises(RuntimeError, match="no more data"):
        trained.run()
    assert [run.state for run in list_runs(tmp_path)] == ["failed", "failed"]


def test_a_stop_terminates_the_engine() -> None:
    """In order: the run has finished."""
    trained = Trained()
    attach(trained.engine, trained.optimizer)
    runs: list[Any] = []

    def stop() -> None:
        runs.append(newest())
        runs[0]._engine.submit("stop", None, None, 0, "")

    trained.engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), stop)
    trained.run(epochs=5)
    assert (5 <= len(trained.losses) <= 7, runs[0].state) == (True, "finished")

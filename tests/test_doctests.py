"""Every example in a docstring of the package is run, with the names that a reader takes for given."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import monitor
from tests.detect.records import steps
from tests.requirements import need_module

ROOT = Path(__file__).resolve().parents[1]
# Read, not imported: a missing library is the business of the one test that needs it.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "monitor").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
FALLING = [2.0 - number / 1000 for number in range(125)]
LOSSES = [loss + 1.0 if 100 <= number < 108 else loss for number, loss in enumerate(FALLING)]
SERVICES = ("monitor.grafana._publish", "monitor.grafana._annotator")  # their examples need a Grafana that answers


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the examples a directory with ``run.csv``, a loss with a spike, and runs without a server."""
    rows = "".join(f"{number},{loss}\n" for number, loss in enumerate(LOSSES, 1))
    (tmp_path / "run.csv").write_text(f"step,loss\n{rows}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MONITOR_SERVE", "0")
    monkeypatch.setenv("MONITOR_GPU", "0")


@contextmanager
def given(source: str) -> Iterator[dict[str, Any]]:
    """Yield what an example may name without making it: a training, and ``run``, unless it attaches one itself."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    def train(num_steps: int = 1) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).pow(2).sum().backward()
            optimizer.step()
            scheduler.step()

    names = {
        "monitor": monitor,
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "train": train,
        "steps": steps(LOSSES),
    }
    if "run." not in source or "attach(" in source:
        yield names
        return
    with monitor.attach(optimizer, scheduler) as run:
        train()
        run.flush()
        yield {**names, "run": run}


def load(name: str) -> ModuleType:
    """Import a module of the package, or skip the test where a library of an extra is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "monitor":
            raise
        need_module(str(error.name))
        raise


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    """Each example prints what its docstring says, and raises nothing."""
    module = load(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    skipped = [e.source for test in tests for e in test.examples if e.options.get(doctest.SKIP)]
    assert skipped == [] or name in SERVICES  # what is not run may be wrong
    for test in tests:
        with given("".join(example.source for example in test.examples)) as names:
            test.globs.update(names)
            runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0 or name in SERVICES

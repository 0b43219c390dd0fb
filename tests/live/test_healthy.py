"""Silence on healthy runs: the examples' own models, optimizers and schedules, twenty seeds each, raise no alarm."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.requirements import need_module

EXAMPLES = Path(__file__).parents[2] / "examples"
NOT_ABOUT_THE_LOSS = {"slowdown", "stall"}  # a busy test machine is slow, and that is true


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page, no GPU, one thread: the runs are small."""
    for name, value in {"SERVE": "0", "GPU": "0", "LINGER": "0"}.items():
        monkeypatch.setenv(f"MONITOR_{name}", value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.sliced(2)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("digits", ["--steps", "150", "--batch-size", "32"]),
        ("char_gpt", ["--steps", "100", "--batch-size", "2", "--context", "32"]),
        ("gan", ["--steps", "400"]),
    ],
)
def test_a_healthy_run_raises_no_alarm(name: str, arguments: list[str], seed: int) -> None:
    """No event but isolated points and other information on a run that goes well."""
    if name != "char_gpt":
        need_module("sklearn")
    module = example(name)
    run = module.train(module.parse([*arguments, "--seed", str(seed)]))
    alarms = [
        (e.kind, e.message)
        for e in run.events()
        if e.severity != "info" and e.kind not in ("control", "state") and e.kind not in NOT_ABOUT_THE_LOSS
    ]
    assert alarms == []
    assert run.state == "finished"
    assert run.snapshot().errors == {}

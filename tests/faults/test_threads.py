"""Threads that train at the same time, each an optimizer of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import threading

import torch
from torch import nn

import monitor

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
models = [nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)) for _ in range(2)]
optimizers = {str(i + 1): torch.optim.SGD(model.parameters(), lr=0.0) for i, model in enumerate(models)}
x = torch.ones(4, 8)


def train(i):
    optimizer = optimizers[str(i + 1)]
    for _ in range(2500):
        (models[i](x).sum() * 0 + i + 1).backward()
        optimizer.step()
        optimizer.zero_grad()


with monitor.attach(optimizers, serve=False, linger=0) as run:
    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.flush(60)
    curves = run.history(points=100_000)["optimizers"]
for key in optimizers:
    assert set(curves[key]["loss"]) <= {float(key), None}, set(curves[key]["loss"])
    assert curves[key]["loss"].count(float(key)) >= 0.9 * len(curves[key]["loss"])
assert run.snapshot().errors == {}, run.snapshot().errors
"""


def test_threads_that_train_at_once_disturb_neither_each_other_nor_the_process(tmp_path) -> None:
    """The gradients of one are never looked at while the autograd engine of the other may be replacing them: that would
    end the process."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"MONITOR_DIR": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (found.returncode, found.stderr.strip()[-2000:]) == (0, found.stderr.strip()[-2000:])

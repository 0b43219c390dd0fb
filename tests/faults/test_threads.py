"""Threads that train at the same time, each an optimizer of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import threading

import torch
from torch import nn

import monitor

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
models = [nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)) for _ in range(2)]
optimizers = {f"net {i + 1}": torch.optim.SGD(model.parameters(), lr=0.0) for i, model in enumerate(models)}
x = torch.ones(4, 8)


def train(i):
    optimizer = optimizers[f"net {i + 1}"]
    for _ in range(2500):
        (models[i](x).sum() * 0 + i + 1).backward()
        optimizer.step()
        optimizer.zero_grad()


with monitor.attach(optimizers, serve=False, linger=0) as run:
    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        run.log(accuracy=0.5)
        thread.join(0.001)
    assert run.flush(60)
    curves = run.history(points=100_000)["optimizers"]
for i, key in enumerate(optimizers):
    assert set(curves[key]["loss"]) <= {i + 1.0, None}, set(curves[key]["loss"])
    assert curves[key]["loss"].count(i + 1.0) >= 0.9 * len(curves[key]["loss"])
assert run.snapshot().errors == {}, run.snapshot().errors
"""


def test_threads_that_train_at_once_disturb_neither_each_other_nor_the_process(tmp_path: Path) -> None:
    """The gradients of one are never looked at while the autograd engine of the other may be replacing them: that would
    end the process."""
    assert ended(SCRIPT, tmp_path) == (0, "")


def ended(script: str, folder: Path) -> tuple[int, str]:
    """Run a script; return its exit status and, if that is not 0, what it has printed last."""
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MONITOR_DIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return found.returncode, found.stderr.strip()[-2000:] if found.returncode else ""


LOGGING = """
import sys
import threading

import torch
from torch import nn

import monitor

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
x = torch.ones(4, 8)


def train():
    for _ in range(5000):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


with monitor.attach(optimizer, serve=False, linger=0) as run:
    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        for _ in range(100):
            run.log(loss=0.5)
assert run.snapshot().errors == {}, run.snapshot().errors
"""


def test_a_thread_that_logs_the_loss_disturbs_no_training(tmp_path: Path) -> None:
    """It looks at no gradient that another thread trains."""
    assert ended(LOGGING, tmp_path) == (0, "")

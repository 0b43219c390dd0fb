"""Training loops as users write them, each small, deterministic, and the same with and without a monitor."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import monitor
from monitor.probe._trace import TRACES

NUM_STEPS = 6
NUM_MADE = 33
"""Steps that ``everything`` makes: one is skipped, one fails, one only makes the optimizer's state."""


def watch(optimizer: Any, tmp_path: Path, *args: Any, **settings: Any) -> monitor.Run:
    """Attach with what a test needs: no GPU, no server unless asked for, a folder of its own."""
    settings = {"gpu": False, "serve": False, "linger": 0, "directory": str(tmp_path / "runs"), **settings}
    return monitor.attach(optimizer, *args, **settings)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other), "the weights differ"


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def make_batches(number: int = NUM_STEPS, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(number)]


def train_plainly(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any) -> None:
    for x, y in batches:
        mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


Attach = Callable[[Any, Any], contextlib.AbstractContextManager[Any]]


def unwatched(_optimizer: Any, _scheduler: Any = None) -> contextlib.AbstractContextManager[Any]:
    """Stand where ``attach`` does, for the run without a monitor."""
    return contextlib.nullcontext()


class Failing(torch.optim.AdamW):
    """A subclass that calls its parent's step, and fails when it is told to."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise RuntimeError("this step fails")
        return super().step(closure)


def everything(attach: Attach) -> list[Tensor]:
    """Go through every function of torch that the monitor patches, through skipped and failing steps and a closure;
    return the weights."""
    from torch.utils.data import DataLoader, TensorDataset

    model = make_model()
    optimizer = Failing(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    batches = make_batches()
    data = TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with attach(optimizer, scheduler) as run:
        TRACES.pop(threading.get_ident(), None)  # as on a thread that was never seen
        for i, (x, y) in enumerate(DataLoader(data, batch_size=4)):
            factor = float("inf") if i == 1 else 0.5
            scaler.scale(mse_loss(model(x), y) * factor).backward()
            torch.autograd.backward([scaler.scale(mse_loss(model(x), y) * factor)])
            if i != 3:
                scaler.unscale_(optimizer)
            first = next(model.parameters())
            first.grad = nn.Parameter(first.grad, requires_grad=False)  # of another class than most
            _clip(model, i)
            if run is not None and i == 2:
                run.log(loss=0.75)
            optimizer.fails = i == 4
            with contextlib.suppress(RuntimeError):
                scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
            if run is not None:
                run.log(val_loss=0.5, samples=4, tokens=8, accuracy=torch.tensor(0.5))
        optimizer.fails = False

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mse_loss(model(batches[0][0]), batches[0][1])
            loss.backward()
            return loss

        optimizer.step(closure)
        if run is not None:
            run.log(loss=0.25)
        _unusual_gradients(model, optimizer, batches)
    return weights_of(model)


def _unusual_gradients(model: nn.Sequential, optimizer: torch.optim.Optimizer, batches: Any) -> None:
    """Change gradients by hand: zeroed, scaled, replaced; reach some parameters, and none; initial state, as
    torch.distributed.checkpoint makes it."""
    (x, y), *_ = batches
    for i in range(12):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        if i == 0:
            model[0].weight.grad.zero_()
            model[0].bias.grad.zero_()
            model.zero_grad(set_to_none=False)
        (mse_loss(model(x), y) * 8.0).backward()
        if i > 8:
            for parameter in model.parameters():
                parameter.grad.div_(8.0)
        optimizer.step()
    for _ in range(2):
        x.clone().requires_grad_().sum().backward()
        optimizer.zero_grad()
        model[0](x).sum().backward()
        optimizer.step()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    state, optimizer.state = optimizer.state, type(optimizer.state)(dict)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.state = state
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    for i in range(14):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
        if i == 12:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def _clip(model: nn.Module, i: int) -> None:
    if i == NUM_STEPS - 1:
        return
    if i % 3 == 0:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.1, norm_type=1.0)
        nn.utils.clip_grad_norm_(list(model.parameters())[:1], 0.1)
    elif i % 3 == 1:
        nn.utils.clip_grad_value_(list(model.parameters())[:1], 0.01)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        nn.utils.clip_grads_with_norm_(model.parameters(), 0.1, norm)

"""Watching changes nothing: weights, optimizer state and random numbers are those of a run without a monitor."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monitor
from tests.faults.loops import make_batches, make_model, train_plainly, unwatched, watch
from tests.requirements import need_module

EXAMPLES = Path(__file__).parents[2] / "examples"
Loop = Callable[[Any], list[torch.optim.Optimizer]]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits(attach: Any) -> list[torch.optim.Optimizer]:
    """The CNN on digits: a shuffling DataLoader, dropout, batch norm, two param groups, OneCycleLR, clipping."""
    need_module("sklearn")
    digits = example("digits")
    loader, _ = digits.load(64, 0)
    model = digits.CNN()
    groups = [{"params": model.body.parameters()}, {"params": model.head.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=30)
    with attach(optimizer, scheduler):
        for x, y in loader:
            functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return [optimizer]


def char_gpt(attach: Any) -> list[torch.optim.Optimizer]:
    """The small GPT: LambdaLR, accumulation over two micro-batches, clipping, AdamW with decay and no-decay groups."""
    char_gpt = example("char_gpt")
    model = char_gpt.GPT(vocabulary=20, context=16, width=32, depth=2)
    optimizer = char_gpt.make_optimizer(model, 3e-3)
    scheduler = char_gpt.make_schedule(optimizer, 10)
    with attach(optimizer, scheduler):
        for _ in range(6):
            for _ in range(2):
                codes = torch.randint(20, (4, 17))
                (model.loss(codes[:, :-1], codes[:, 1:]) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return [optimizer]


def gan(attach: Any) -> list[torch.optim.Optimizer]:
    """Two networks against each other, each with its own optimizer and loss."""
    generator, discriminator = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.99))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.01, betas=(0.5, 0.99))
    with attach({"generator": optimizer_g, "discriminator": optimizer_d}):
        for _ in range(8):
            real, fake = torch.randn(4, 8), generator(torch.randn(4, 4))
            loss_d = functional.softplus(-discriminator(real)).mean()
            loss_d = loss_d + functional.softplus(discriminator(fake.detach())).mean()
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            functional.softplus(-discriminator(fake)).mean().backward()
            optimizer_g.step()
    return [optimizer_g, optimizer_d]


def autocast(attach: Any) -> list[torch.optim.Optimizer]:
    """Mixed precision on the CPU in bfloat16."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with attach(optimizer):
        for x, y in make_batches():
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.mse_loss(model(x), y.bfloat16())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return [optimizer]


def bfloat16(attach: Any) -> list[torch.optim.Optimizer]:
    """Weights, losses and norms in bfloat16."""
    model = make_model().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    with attach(optimizer):
        for x, y in make_batches():
            functional.mse_loss(model(x.bfloat16()), y.bfloat16()).backward()
            nn.utils.clip_grad_value_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return [optimizer]


def lbfgs(attach: Any) -> list[torch.optim.Optimizer]:
    """Several evaluations of a closure a step, with line search."""
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    x, y = make_batches(1)[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    with attach(optimizer):
        for i in range(3):
            optimizer.step(closure) if i else optimizer.step(closure=closure)
    return [optimizer]


def sparse(attach: Any) -> list[torch.optim.Optimizer]:
    """An embedding with sparse gradients beside a dense layer, an optimizer each; some parameters have no gradient."""
    embedding, head, idle = nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 2), nn.Linear(2, 2)
    optimizers = {
        "sparse": torch.optim.SparseAdam(embedding.parameters(), lr=0.1),
        "dense": torch.optim.Adagrad([*head.parameters(), *idle.parameters()], lr=0.1),
    }
    with attach(optimizers):
        for _ in range(6):
            head(embedding(torch.randint(20, (4, 3)))).square().mean().backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
    return list(optimizers.values())


def _compiled(attach: Any, backend: str) -> list[torch.optim.Optimizer]:
    torch.compiler.reset()
    model = make_model()
    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with attach(optimizer):
        for i, (x, y) in enumerate(make_batches()):
            functional.mse_loss(compiled(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            step() if i % 2 else optimizer.step()
            optimizer.zero_grad()
    return [optimizer]


def compiled_eager(attach: Any) -> list[torch.optim.Optimizer]:
    """A compiled model and a compiled step, run by the eager backend."""
    return _compiled(attach, "eager")


def compiled_aot(attach: Any) -> list[torch.optim.Optimizer]:
    """A compiled model whose backward is traced too."""
    return _compiled(attach, "aot_eager")


def odd_steps(attach: Any) -> list[torch.optim.Optimizer]:
    """Groups added on the way, a tensor LR, foreach, a state_dict loaded, retained graphs, a step without gradients."""
    model, late = make_model(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), foreach=False)
    with attach(optimizer):
        optimizer.step()
        for i, (x, y) in enumerate(make_batches()):
            if i == 2:
                optimizer.add_param_group({"params": late.parameters(), "lr": 0.1})
            if i == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            loss = functional.mse_loss(late(model(x)), y)
            loss.backward(retain_graph=True)
            torch.autograd.backward([loss, loss * 2])
            if i < 5:  # a step that applies it has no loss that can be known
                late(model(x)).backward(torch.ones(4, 2))
            optimizer.step()
            model.zero_grad()
    return [optimizer]


LOOPS = [digits, char_gpt, gan, autocast, bfloat16, lbfgs, sparse, compiled_eager, compiled_aot, odd_steps]


def trained(loop: Loop, attach: Any) -> list[Tensor]:
    """Return all that a loop leaves: weights, optimizer states, and what the generators give next."""
    torch.manual_seed(0)
    random.seed(0)
    optimizers = loop(attach)
    left: list[Tensor] = [torch.get_rng_state(), torch.tensor(random.random())]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            left += [torch.as_tensor(group["lr"]).clone()]
            for p in group["params"]:
                left.append(p.detach().clone())
                found = optimizer.state.get(p, {})
                left += [found[k].clone() for k in sorted(found) if isinstance(found[k], Tensor)]
    return left


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:.*lr_scheduler.*:UserWarning")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)
def test_a_watched_loop_gives_the_same_bits(loop: Loop, tmp_path: Path) -> None:
    """Weights, optimizer state, LRs and the next random numbers are the same with a monitor and without."""
    runs: list[monitor.Run] = []

    def attach(optimizer: Any, scheduler: Any = None) -> monitor.Run:
        runs.append(watch(optimizer, tmp_path, scheduler, gradient_norm=1))
        return runs[0]

    if loop is digits:
        need_module("sklearn")
        example("digits")  # scikit-learn draws random numbers when it is imported for the first time
    expected = trained(loop, unwatched)
    actual = trained(loop, attach)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    snapshot = runs[0].snapshot()
    assert snapshot.errors == {}
    for one in snapshot.optimizers:
        assert one.steps >= 3
        assert one.loss is not None
        assert one.gradient_norm is not None


def test_random_numbers_are_untouched_by_attaching(tmp_path: Path) -> None:
    """Attaching, training for nothing and leaving moves no generator: torch's, NumPy's, Python's."""
    need_module("numpy")
    import numpy

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = (torch.get_rng_state(), numpy.random.get_state(), random.getstate())
    with watch(optimizer, tmp_path, serve=True, port=0) as run:
        train_plainly(model, optimizer, make_batches())
        run.reduce_lr(0.5)
        run.flush()
    after = (torch.get_rng_state(), numpy.random.get_state(), random.getstate())
    assert torch.equal(before[0], after[0])
    for ours, theirs in zip(before[1], after[1], strict=True):
        assert numpy.array_equal(ours, theirs)
    assert before[2] == after[2]


@pytest.mark.parametrize("name", ["default_dtype", "grad_mode", "deterministic", "num_threads"])
def test_torch_settings_are_untouched(name: str, tmp_path: Path) -> None:
    """No global setting of torch is another after a run."""
    read: dict[str, Callable[[], Any]] = {
        "default_dtype": torch.get_default_dtype,
        "grad_mode": torch.is_grad_enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "num_threads": torch.get_num_threads,
    }
    before = read[name]()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(optimizer, tmp_path):
        train_plainly(model, optimizer, make_batches(1))
        assert read[name]() == before
    assert read[name]() == before

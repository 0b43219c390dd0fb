"""The exported loss is the scalar whose gradient the step applied."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from monitor.probe._trace import MAX_UNSCALED, TRACES, current


def model(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


X = torch.tensor([[1.0, -2.0, 0.5]])


def loss_of(net: nn.Module, scale: float = 1.0) -> torch.Tensor:
    return net(X).pow(2).sum() * scale


def test_loss_is_what_was_back_propagated(watch) -> None:
    """One backward, one step: the loss is that scalar, exactly."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    loss = loss_of(net)
    loss.backward()
    opt.step()
    assert watched.last().loss == loss.item()


def test_micro_batches_add_up(watch) -> None:
    """Under gradient accumulation the loss is the sum of the scaled micro-batch losses."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    parts = []
    for k in range(4):
        part = loss_of(net, 0.25 * (k + 1))
        parts.append(part.item())
        part.backward()
    opt.step()
    opt.zero_grad()
    alone = loss_of(net)
    alone.backward()
    opt.step()
    first, second = watched.drain()
    assert first.loss == pytest.approx(sum(parts), rel=1e-6)
    assert second.loss == alone.item()


def test_a_loss_changed_in_place_later_is_shown_as_it_was(watch) -> None:
    """The value is taken at backward, not when somebody looks."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    loss = loss_of(net)
    value = loss.item()
    loss.backward()
    with torch.no_grad():
        loss.zero_()
    opt.step()
    assert watched.last().loss == value


def test_a_backward_with_an_explicit_gradient_is_no_loss(watch) -> None:
    """A non-scalar that is back-propagated with a gradient says nothing about the objective."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    net(X).backward(torch.ones(1, 2))
    opt.step()
    assert watched.last().loss is None


def test_several_scalars_in_one_backward_add_up(watch) -> None:
    """torch.autograd.backward of a list of scalars applies the gradient of their sum."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    a, b = loss_of(net), loss_of(net, 3.0)
    torch.autograd.backward([a, b])
    opt.step()
    assert watched.last().loss == pytest.approx(a.item() + b.item())


def test_losses_that_a_scaler_has_scaled_are_bounded(watch) -> None:
    """A program that scales losses, keeps them and makes no step fills no memory of ours; the next loss is exact."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    kept = [scaler.scale(loss_of(net).detach()) for _ in range(3 * MAX_UNSCALED)]
    assert len(kept) == 3 * MAX_UNSCALED  # alive, so that no id stands for two of them
    assert 0 < len(current().unscaled) <= MAX_UNSCALED
    loss = loss_of(net)
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
    assert watched.last().loss == loss.item()


def test_what_zero_grad_cleared_is_not_part_of_the_loss(watch) -> None:
    """A probing backward whose gradient is cleared before the step (SAM and others) leaves no trace."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    loss_of(net, 100.0).backward()
    opt.zero_grad()
    second = loss_of(net)
    second.backward()
    opt.step()
    assert watched.last().loss == second.item()


def test_a_backward_that_fails_is_not_part_of_the_loss(watch) -> None:
    """If backward raises and the user tries again, only the second one counts."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    failing = loss_of(net)
    failing.register_hook(lambda g: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        failing.backward()
    loss = loss_of(net)
    loss.backward()
    opt.step()
    assert watched.last().loss == loss.item()


@pytest.mark.parametrize("clears", ["optimizer", "module"])
def test_each_network_of_a_gan_gets_its_own_loss(watch, clears: str) -> None:
    """Two optimizers that step in turn each show the loss back-propagated for them."""
    gen, disc = model(0), nn.Linear(2, 1)
    opt_g = torch.optim.SGD(gen.parameters(), lr=0.1)
    opt_d = torch.optim.SGD(disc.parameters(), lr=0.1)
    watched = watch(opt_g, opt_d)
    expected = []
    for _ in range(3):
        (opt_d if clears == "optimizer" else disc).zero_grad()
        real = disc(torch.ones(1, 2)).sum()
        fake = -disc(gen(X).detach()).sum()
        real.backward()
        fake.backward()
        opt_d.step()
        (opt_g if clears == "optimizer" else gen).zero_grad()
        loss_g = disc(gen(X)).sum()
        loss_g.backward()
        opt_g.step()
        expected.append(("1", pytest.approx(real.item() + fake.item())))
        expected.append(("0", loss_g.item()))
    assert [(s.optimizer, s.loss) for s in watched.drain()] == expected


def test_two_optimizers_that_share_a_backward_share_its_loss(watch) -> None:
    """Muon for the matrices and AdamW for the rest: both steps apply the gradient of the same loss."""
    net = model()
    a = torch.optim.SGD([net.weight], lr=0.1)
    b = torch.optim.AdamW([net.bias], lr=0.1)
    watched = watch(a, b)
    losses = []
    for _ in range(2):
        loss = loss_of(net)
        loss.backward()
        a.step()
        b.step()
        a.zero_grad()
        b.zero_grad()
        losses += [loss.item()] * 2
    assert [s.loss for s in watched.drain()] == losses


def test_a_step_without_a_backward_has_no_loss(watch) -> None:
    """Two steps after one backward: the second one has applied nothing new, so it shows no loss."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    loss_of(net).backward()
    opt.step()
    opt.step()
    assert [s.loss is None for s in watched.drain()] == [False, True]


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.SGD])
def test_a_closure_shows_the_loss_and_gradient_of_its_first_evaluation(watch, make) -> None:
    """The point that a closure-driven step starts from is the one whose loss and gradient norm are shown."""
    net = model()
    opt = make(net.parameters(), lr=0.1)
    watched = watch(opt, gradient_norm=1)
    seen = []

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = loss_of(net)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
        seen.append((loss.item(), norm.item()))
        return loss

    firsts = []
    for _ in range(3):
        start = len(seen)
        opt.step(closure)
        firsts.append(seen[start])
    assert [(s.loss, s.gradient_norm) for s in watched.drain()] == firsts


def test_a_nan_loss_is_shown_as_nan(watch) -> None:
    """NaN is not smoothed away."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    (loss_of(net) * float("nan")).backward()
    opt.step()
    step = watched.last()
    assert step.loss != step.loss
    assert step.gradient_norm != step.gradient_norm


def test_reentrant_checkpointing_adds_no_loss(watch) -> None:
    """The inner backward of a re-entrant checkpoint is part of the outer one."""
    from torch.utils.checkpoint import checkpoint

    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    x = X.clone().requires_grad_()
    loss = checkpoint(net, x, use_reentrant=True).pow(2).sum()
    loss.backward()
    opt.step()
    assert watched.last().loss == loss.item()


def test_threads_do_not_mix_their_losses(watch) -> None:
    """Two runs in two threads: what one back-propagates is none of the other's."""
    import threading

    nets = [model(0), model(1)]
    opts = [torch.optim.SGD(n.parameters(), lr=0.1) for n in nets]
    watched = watch(*opts)
    expected: dict[str, float] = {}
    barrier = threading.Barrier(2)

    def train(i: int) -> None:
        loss = loss_of(nets[i], i + 1.0)
        loss.backward()
        barrier.wait(60)  # both have back-propagated before either steps
        opts[i].step()
        expected[str(i)] = loss.item()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {s.optimizer: s.loss for s in watched.drain()} == expected


def test_a_threads_trace_goes_with_it() -> None:
    """A later thread, which may be given the same ident, starts with an account of its own."""
    idents = []

    def note() -> None:
        idents.append(threading.get_ident())
        current()

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert idents[0] not in TRACES
    trace = current()
    assert TRACES[threading.get_ident()] is trace

"""What a step entry holds: LRs as used, AMP, phases, groups, and that hooks survive what users do to optimizers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from monitor.probe import _patches


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: int = 1, after=lambda: None) -> None:
    for _ in range(steps):
        net(torch.ones(1, 3)).pow(2).sum().backward()
        opt.step()
        opt.zero_grad()
        after()


def net_and(make, **kwargs):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    return net, make(net.parameters(), **kwargs)


def test_the_lr_is_the_one_the_update_used(watch) -> None:
    """Each step shows its own LR under a schedule that moves at every step."""
    net, opt = net_and(torch.optim.AdamW, lr=0.1, weight_decay=0.3, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    watched = watch(opt)
    train(net, opt, 3, schedule.step)
    groups = [s.groups[0] for s in watched.drain()]
    assert [g.applied for g in groups] == [0.1, 0.05, 0.025]
    assert [g.scheduled for g in groups] == [0.1, 0.05, 0.025]
    assert {(g.factor, g.weight_decay, g.momentum) for g in groups} == {(1.0, 0.3, 0.8)}


def test_a_factor_shows_scheduled_and_applied(watch) -> None:
    """applied == factor x scheduled, and the group holds the schedule's LR again after the step."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    opt.param_groups[0]["monitor_lr_factor"] = 0.25
    train(net, opt)
    (group,) = watched.last().groups
    assert (group.scheduled, group.factor, group.applied) == (0.1, 0.25, 0.1 * 0.25)
    assert opt.param_groups[0]["lr"] == 0.1


def test_tensor_lrs_are_shown_as_they_were_and_stay_tensors(watch) -> None:
    """A tensor LR is changed in place for the step, stays the same tensor, and is read at the moment of the update."""
    lr = torch.tensor(0.5)
    net, opt = net_and(torch.optim.Adam, lr=lr, foreach=False, capturable=False)
    watched = watch(opt)
    opt.param_groups[0]["monitor_lr_factor"] = 0.5
    train(net, opt)
    lr.fill_(7.0)
    (group,) = watched.last().groups
    assert (group.scheduled, group.applied) == (0.5, 0.25)
    assert opt.param_groups[0]["lr"] is lr


def test_groups_added_and_state_loaded_while_watched(watch) -> None:
    """add_param_group and load_state_dict replace the groups; the next step shows the new ones."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    train(net, opt)
    extra = nn.Parameter(torch.zeros(2))
    opt.add_param_group({"params": [extra], "lr": 0.7, "name": "extra"})
    train(net, opt)
    state = copy.deepcopy(opt.state_dict())
    state["param_groups"][0]["lr"] = 0.3
    opt.load_state_dict(state)
    for probe in watched.probes:
        probe.wants_details = True
    train(net, opt)
    shown = [[g.applied for g in s.groups] for s in watched.drain()]
    assert shown == [[0.1], [0.1, 0.7], [0.3, 0.7]]


def test_a_thousand_groups(watch) -> None:
    """Very many param groups are recorded one by one."""
    params = [nn.Parameter(torch.ones(1)) for _ in range(1000)]
    opt = torch.optim.SGD([{"params": [p], "lr": i / 1000} for i, p in enumerate(params)], lr=0.1)
    watched = watch(opt)
    sum(p.sum() for p in params).backward()
    opt.step()
    step = watched.last()
    assert [g.applied for g in step.groups] == [i / 1000 for i in range(1000)]
    assert step.gradient_norm == pytest.approx(1000**0.5)


def test_unfused_overflow_is_a_skipped_step(watch) -> None:
    """GradScaler does not call optimizer.step on overflow; the skip is recorded, the loss is the unscaled one."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for factor in (1.0, float("inf"), 1.0):
        loss = net(torch.ones(1, 3)).pow(2).sum()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        if factor != 1.0:
            net.weight.grad.fill_(factor)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    steps = watched.drain()
    assert [s.is_skipped for s in steps] == [False, True, False]
    assert [s.loss for s in steps] == losses
    assert [s.amp_scale for s in steps] == [1024.0, 1024.0, 512.0]
    assert [s.number for s in steps] == [1, 1, 2]


def test_fused_overflow_is_a_skipped_step_with_unscaled_norm(watch) -> None:
    """A fused optimizer is called even on overflow: found_inf tells, and the norm is divided by the scale."""
    net, opt = net_and(torch.optim.SGD, lr=0.1, fused=True)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    norms = []
    for factor in (1.0, float("inf")):
        loss = net(torch.ones(1, 3)).pow(2).sum()
        scaler.scale(loss).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()]).item() / 8.0)
        if factor != 1.0:
            net.weight.grad.fill_(factor)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    first, second = watched.drain()
    assert (first.is_skipped, second.is_skipped) == (False, True)
    assert first.gradient_norm == pytest.approx(norms[0])


def test_a_scaled_loss_divided_afterwards_is_still_unscaled(watch) -> None:
    """(scaler.scale(loss) / n).backward() shows loss / n."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = net(torch.ones(1, 3)).pow(2).sum()
    (scaler.scale(loss) / 2).backward()
    scaler.step(opt)
    scaler.update()
    assert watched.last().loss == pytest.approx(loss.item() / 2)


def test_a_loss_after_the_scaler_was_put_away_is_taken_as_it_is(watch) -> None:
    """A loop that drops its scaler shows the plain loss from then on."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(net(torch.ones(1, 3)).pow(2).sum()).backward()
    scaler.step(opt)
    scaler.update()
    loss = net(torch.ones(1, 3)).pow(2).sum()
    loss.backward()
    opt.step()
    assert watched.last().loss == loss.item()


def test_phases_add_up_to_the_step_time(watch) -> None:
    """The phases of a step are parts of its wall time: none negative, together all of it."""
    net, opt = net_and(torch.optim.SGD, lr=0.1)
    watched = watch(opt)
    loader = DataLoader(torch.ones(8, 3), batch_size=2)
    for batch in loader:
        net(batch).pow(2).sum().backward()
        opt.step()
        opt.zero_grad()
    for step in watched.drain()[1:]:
        assert all(seconds >= 0 for seconds in step.phases.values())
        assert sum(step.phases.values()) == pytest.approx(step.duration, rel=1e-6)
        assert step.phases["data"] > 0
        assert step.hook_seconds == step.phases["monitor"]


def test_copies_and_pickles_of_a_watched_optimizer_are_unwatched(watch) -> None:
    """deepcopy and pickle give ordinary optimizers that leave nothing in the step buffer."""
    net, opt = net_and(torch.optim.Adam, lr=0.1)
    watched = watch(opt)
    train(net, opt)
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for p in twin.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        twin.step()
    assert len(watched.drain()) == 1


def test_an_optimizer_whose_step_calls_its_parents_counts_once(watch) -> None:
    """A subclass that extends step() runs the hooks of both classes; one step is recorded."""

    class Extended(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # the parent's own step gets its hooks
    net, opt = net_and(Extended, lr=0.1)
    watched = watch(opt)
    opt.param_groups[0]["monitor_lr_factor"] = 0.5
    train(net, opt, 3)
    steps = watched.drain()
    assert [(s.number, s.groups[0].applied) for s in steps] == [(1, 0.05), (2, 0.05), (3, 0.05)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_recorded_and_stays_compiled(watch) -> None:
    """torch.compile leaves our hooks out of its graphs; LR, factor and loss are recorded as ever."""
    import torch._dynamo

    def weights(is_watched: bool) -> tuple[torch.Tensor, int]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        net, opt = net_and(torch.optim.Adam, lr=0.1)
        if is_watched:
            watched = watch(opt)
        step = torch.compile(opt.step, backend="aot_eager")
        for _ in range(3):
            net(torch.ones(1, 3)).pow(2).sum().backward()
            step()
            opt.zero_grad()
        if is_watched:
            assert [s.groups[0].applied for s in watched.drain()] == [0.1] * 3
            watched.close()
        return net.weight.detach().clone(), torch._dynamo.utils.counters["stats"]["unique_graphs"]

    plain, watched_ = weights(False), weights(True)
    assert torch.equal(plain[0], watched_[0])
    assert plain[1] == watched_[1] > 0


def test_two_probes_and_the_last_one_takes_the_patches_out(watch) -> None:
    """Patches are installed once however many optimizers are watched, and removed with the last."""
    original = torch.autograd.backward
    first, second = (watch(net_and(torch.optim.SGD, lr=0.1)[1]) for _ in range(2))
    patched = torch.autograd.backward
    assert patched is not original
    first.close()
    assert torch.autograd.backward is patched
    second.close()
    assert torch.autograd.backward is original
    assert _patches.PROBES == {}


def test_a_patch_made_over_ours_survives_our_leaving(watch) -> None:
    """Somebody who patches backward while we watch keeps their patch when we go."""
    original = torch.autograd.backward
    watched = watch(net_and(torch.optim.SGD, lr=0.1)[1])
    ours = torch.autograd.backward

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    torch.autograd.backward = theirs
    try:
        watched.close()
        assert torch.autograd.backward is theirs
        net = nn.Linear(3, 2)
        net(torch.ones(1, 3)).sum().backward()
        assert net.weight.grad is not None
    finally:
        torch.autograd.backward = original

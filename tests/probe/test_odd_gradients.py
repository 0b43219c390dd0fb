"""Losses and norms of programs that do unusual things with parameters, gradients and clips: right, or absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from monitor.probe._attribution import MAX_LEARNING, NUM_LEARNING
from monitor.probe._norms import PUT_TOGETHER

X = torch.tensor([[1.0, -2.0, 0.5]])
LONG = 4 * NUM_LEARNING


def linear(num_outputs: int = 2) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, num_outputs)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=1e-4)


def losses(watched: Any) -> list[float | None]:
    return [step.loss for step in watched.drain()]


def norms(watched: Any) -> list[float | None]:
    return [step.gradient_norm for step in watched.drain()]


@pytest.mark.parametrize("at", [3, 3 * NUM_LEARNING])
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_parameter_may_be_replaced(watch: Any, at: int, is_kept: bool) -> None:
    """Whether the old one is still in memory or not, before and after the witnesses are chosen."""
    net = linear()
    opt = sgd(net.parameters())
    watched, expected, kept = watch(opt), [], []
    for i in range(2 * LONG):
        if i == at:
            kept += list(net.parameters()) if is_kept else []
            net.weight, net.bias = (nn.Parameter(p.detach().clone()) for p in net.parameters())
            opt.param_groups[0]["params"][:] = [net.weight, net.bias]
        loss = net(X).pow(2).sum() + i
        loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert losses(watched) == expected


def test_gradients_made_in_inference_mode_break_nothing(watch: Any) -> None:
    """They have no version; at first, and from some step on."""
    for first in (0, LONG):
        net = linear()
        opt = sgd(net.parameters())
        watched, expected = watch(opt), []
        for i in range(2 * LONG):
            loss = net(X).pow(2).sum() + i
            loss.backward()
            if i >= first:
                with torch.inference_mode():
                    made = [p.grad * 1 for p in net.parameters()]
                for parameter, gradient in zip(net.parameters(), made, strict=True):
                    parameter.grad = gradient
            opt.step()
            opt.zero_grad()
            expected.append(loss.item())
        found = losses(watched)
        watched.close()
        assert found[NUM_LEARNING:first] == expected[NUM_LEARNING:first]
        assert all(one in (None, right) for one, right in zip(found, expected, strict=True))


def test_many_parts_are_told_apart(watch: Any) -> None:
    """Ten heads, two at a time: the loss of each step is that of its two passes."""
    torch.manual_seed(0)
    heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(10))
    opt = sgd(heads.parameters())
    watched, expected = watch(opt), []
    for i in range(2 * MAX_LEARNING):
        both = [heads[k % 10](X).pow(2).sum() + i for k in (i, i + 3)]
        for loss in both:
            loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(both[0].item() + both[1].item())
    assert losses(watched) == expected


def test_a_step_within_a_backward_pass_may_zero_in_place(watch: Any) -> None:
    """What the loop does to the gradients after such a step is no part of the pass any more."""
    net = linear()
    opt = sgd(net.parameters())
    watched, expected, reached = watch(opt), [], []

    def step_at_the_last(parameter: Any) -> None:
        reached.append(parameter)
        if len(reached) % 2 == 0:
            opt.step()
            for one in net.parameters():
                one.grad.zero_()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step_at_the_last)
    for i in range(LONG):
        loss = net(X).pow(2).sum() + i
        loss.backward()
        expected.append(loss.item())
    assert losses(watched) == expected


def test_sparse_gradients_may_be_zeroed_in_place(watch: Any) -> None:
    """A loss whose sparse gradient was zeroed is not shown."""
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True)
    opt = sgd(table.parameters())
    watched, expected = watch(opt), []
    for i in range(LONG):
        if i % 3 == 0:
            (table(torch.tensor([1, 2])).sum() + 100).backward()
            table.weight.grad.zero_()
        loss = table(torch.tensor([1, 3])).pow(2).sum() + i
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=i % 2 == 0)
        expected.append(loss.item())
    assert losses(watched) == expected


CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "norm": lambda net, *_: nn.utils.clip_grad_norm_(net.parameters(), 1.0),
    "other norm": lambda net, *_: nn.utils.clip_grad_norm_(net.parameters(), 1.0, norm_type=1.0),
    "value": lambda net, *_: nn.utils.clip_grad_value_(net.parameters(), 1.0),
    "unscale_": lambda _, opt, scaler: (scaler.unscale_(opt), scaler.update()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_gradients_zeroed_before_torch_changes_them_take_their_losses_along(watch: Any, change: Any) -> None:
    """The change that a clip or an unscaling makes does not hide what the loop has done before it."""
    net = linear()
    opt = sgd(net.parameters())
    watched, expected = watch(opt), []
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**6)
    is_scaled = change is CHANGES["unscale_"]
    for i in range(LONG):
        if i % 3 == 2:
            wrong = net(X).pow(2).sum() + 100
            (scaler.scale(wrong) if is_scaled else wrong).backward()
            for parameter in net.parameters():
                parameter.grad.zero_()
            change(net, opt, scaler)
        loss = net(X).pow(2).sum() + i
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert losses(watched) == pytest.approx(expected)


@pytest.mark.parametrize("from_step", [0, LONG])
def test_a_single_gradient_may_be_thrown_away(watch: Any, from_step: int) -> None:
    """The loss is still that of the step, or absent while it cannot be told."""
    net = linear()
    opt = sgd(net.parameters())
    watched, expected = watch(opt), []
    for i in range(2 * LONG):
        loss = net(X).pow(2).sum() + i
        loss.backward()
        if i >= from_step:
            (net.bias if i % 3 else net.weight).grad = None
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert all(one in (None, right) for one, right in zip(losses(watched), expected, strict=True))


def test_gradients_put_together_by_hand_have_no_loss(watch: Any) -> None:
    """PCGrad: the gradient of each task is put aside, and one made of all of them is put in its place."""
    net = linear()
    opt = sgd(net.parameters())
    watched = watch(opt, gradient_norm=1)
    for i in range(LONG):
        aside = []
        for task in range(2):
            (net(X)[0, task].pow(2) + i + task).backward()
            aside.append([p.grad.clone() for p in net.parameters()])
            opt.zero_grad()
        for parameter, first, second in zip(net.parameters(), *aside, strict=True):
            parameter.grad = first + 0.5 * second
        opt.step()
        opt.zero_grad()
    assert watched.probes[0].attribution.num_discarded == 0
    assert losses(watched) == [None] * LONG


def test_gradients_clipped_one_by_one_have_no_norm(watch: Any) -> None:
    """DP-SGD: what is applied is put together from clipped parts, of which none has its loss or its norm."""
    net = linear()
    opt = sgd(net.parameters())
    watched = watch(opt, gradient_norm=1)
    for i in range(LONG):
        total = [torch.zeros_like(p) for p in net.parameters()]
        for part in range(3):
            opt.zero_grad()
            (net(X)[0, part % 2].pow(2) + i + part).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            for one, parameter in zip(total, net.parameters(), strict=True):
                one += parameter.grad
        for parameter, one in zip(net.parameters(), total, strict=True):
            parameter.grad = one / 3
        opt.step()
    steps = watched.drain()
    assert [step.loss for step in steps] == [None] * LONG
    assert {(step.gradient_norm, step.gradient_norm_reason) for step in steps} == {(None, PUT_TOGETHER)}


def test_a_subclass_of_parameter_is_not_taken_for_sharded(watch: Any) -> None:
    """A class of one's own with ordinary storage."""

    class Named(nn.Parameter):
        pass

    net = linear()
    net.weight, net.bias = (Named(p.detach()) for p in net.parameters())
    opt = sgd(net.parameters())
    watched, expected = watch(opt), []
    for i in range(LONG):
        loss = net(X).pow(2).sum() + i
        loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert not watched.probes[0].attribution.is_sharded
    assert losses(watched) == expected


def test_complex_and_lazy_parameters_are_watched(watch: Any) -> None:
    """Gradients of complex numbers, changed by hand; parameters that get their shape in the first forward pass."""
    amplitude = nn.Parameter(torch.tensor([1 + 1j, 2 - 1j]))
    lazy = nn.LazyLinear(2)
    for parameters, model in (([amplitude], lambda: amplitude.abs()), (list(lazy.parameters()), lambda: lazy(X))):
        opt = sgd(parameters)
        watched, expected = watch(opt), []
        for i in range(LONG):
            loss = model().pow(2).sum() + i
            loss.backward()
            parameters[0].grad.mul_(0.7)
            opt.step()
            opt.zero_grad()
            expected.append(loss.item())
        assert losses(watched) == expected
        watched.close()


def test_a_clip_of_another_model_is_none_of_ours(watch: Any) -> None:
    """Neither one of a larger model alone, nor one of a part of ours together with it."""
    ours, other = linear(), nn.Sequential(nn.Linear(3, 20), nn.Linear(20, 1))
    opt = sgd(ours.parameters())
    clips = ([], list(ours.parameters())[:1], list(ours.parameters()))
    for part in clips:
        watched, expected = watch(opt, gradient_norm=1), []
        for i in range(LONG):
            (ours(X).pow(2).sum() + i).backward()
            expected.append(nn.utils.get_total_norm([p.grad for p in ours.parameters()]).item())
            other(X).pow(2).sum().backward()
            nn.utils.clip_grad_norm_([*part, *other.parameters()], 1e9)
            opt.step()
            ours.zero_grad()
            other.zero_grad()
        assert norms(watched) == pytest.approx(expected)
        watched.close()


def test_a_clip_by_hand_is_not_taken_for_a_mean(watch: Any) -> None:
    """Two micro-batches whose gradients are then made smaller by nearly two, or by two."""
    for by, share in ((0.504, 1.0), (0.5, 0.5)):
        net = linear()
        opt = sgd(net.parameters())
        watched, expected = watch(opt), []
        for i in range(LONG):
            total = 0.0
            for _ in range(2):
                loss = net(X).pow(2).sum() + i
                loss.backward()
                total += loss.item()
            for parameter in net.parameters():
                parameter.grad.mul_(by)
            opt.step()
            opt.zero_grad()
            expected.append(total * share)
        assert losses(watched) == pytest.approx(expected)
        watched.close()


def test_a_part_that_was_frozen_is_looked_at_once_it_is_not(watch: Any) -> None:
    """Two parts with a loss each, of which the second is trained from some step on."""
    first, second = linear(), linear()
    second.requires_grad_(False)
    opt = sgd([*first.parameters(), *second.parameters()])
    watched, expected = watch(opt), []
    for i in range(2 * LONG):
        second.requires_grad_(i >= LONG)
        both = [first(X).pow(2).sum() + i]
        if i >= LONG:
            both.append(second(X).pow(2).sum() + 2 * i)
        for loss in both[::-1]:
            loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(sum(loss.item() for loss in both))
    assert losses(watched) == pytest.approx(expected)


def test_a_pass_to_some_inputs_reaches_those_only(watch: Any) -> None:
    """``backward(inputs=...)``: to a part of the parameters of an optimizer, to a tensor, to those of another."""
    net = linear()
    first, second = sgd([net.weight]), sgd([net.bias])
    watched = watch(first, second)
    expected: dict[str, list[float]] = {"0": [], "1": []}
    for i in range(LONG):
        loss = net(X).pow(2).sum() + i
        loss.backward(inputs=[net.weight], retain_graph=True)
        other = net(X).sum() * 2 + i
        other.backward(inputs=[net.bias])
        x = X.clone().requires_grad_()
        net(x).sum().backward(inputs=x)
        expected["0"].append(loss.item())
        expected["1"].append(other.item())
        for opt in (first, second):
            opt.step()
            opt.zero_grad()
    steps = watched.drain()
    assert {key: [s.loss for s in steps if s.optimizer == key] for key in expected} == expected


def test_a_step_keeps_the_losses_that_it_was_given(watch: Any) -> None:
    """What a step without a loss was given is not that of the next one, however late it is read."""
    net = linear()
    opt = sgd(net.parameters())
    watched = watch(opt)
    for _ in range(LONG):
        net(X).sum().backward()
        opt.step()
        opt.zero_grad()
    opt.step()
    net(X).sum().backward()
    opt.step()
    assert losses(watched)[LONG] is None


def test_a_model_may_be_converted_by_swapping_its_parameters(watch: Any) -> None:
    """torch refuses to swap a tensor that has a weak reference: nothing of ours keeps one, of a gradient neither."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for keeps_gradients in (False, True):
            net, x, expected = linear(), X, []
            opt = sgd(net.parameters())
            watched = watch(opt)
            for i in range(2 * LONG):
                loss = net(x).pow(2).sum() + i
                loss.backward()
                opt.step()
                if i == LONG and keeps_gradients:
                    net.to(torch.float64)
                opt.zero_grad()
                if i == LONG and not keeps_gradients:
                    net.to(torch.float64)
                x = x.to(net.weight.dtype)
                expected.append(loss.item())
            assert losses(watched) == expected
            watched.close()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_nothing_of_ours_is_compiled_with_the_training(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled function that back-propagates, clips and zeroes: the compiler never sees a function of the monitor."""
    import torch._dynamo
    from torch._dynamo import convert_frame

    compiled: list[str] = []
    original = convert_frame.compile_frame

    def compile_frame(code: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(code.co_filename)
        return original(code, *args, **kwargs)

    monkeypatch.setattr(convert_frame, "compile_frame", compile_frame)
    net = linear()
    opt = sgd(net.parameters())
    torch._dynamo.reset()
    watched, expected = watch(opt), []

    @torch.compile(backend="eager")
    def back_propagate(x: torch.Tensor) -> torch.Tensor:
        loss = net(x).pow(2).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        nn.utils.clip_grad_value_(net.parameters(), 1.0)
        return loss

    for _ in range(2 * NUM_LEARNING):
        expected.append(back_propagate(X).item())
        opt.step()
        opt.zero_grad()
    torch._dynamo.reset()
    assert losses(watched) == pytest.approx(expected)
    assert compiled
    assert [name for name in compiled if "/monitor/" in name] == []

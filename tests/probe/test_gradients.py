"""Gradient norms are those before clipping; clipping events are what the clip did."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_ as imported_early
from torch.nn.utils import clip_grad_value_ as value_imported_early
from torch.nn.utils import clip_grads_with_norm_ as with_norm_imported_early
from torch.nn.utils import get_total_norm


def setup(watch, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, opt, watch(opt, **settings)


def backward(net: nn.Module, scale: float = 1.0) -> float:
    net.zero_grad()
    (net(torch.ones(3, 4)).pow(2).sum() * scale).backward()
    return norm_of(net.parameters())


def norm_of(params) -> float:
    return get_total_norm([p.grad for p in params if p.grad is not None]).item()


def test_the_norm_is_torchs_own_total_norm(watch) -> None:
    """Without clipping the norm is measured once at the step."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == norm
    assert step.clips == ()


@pytest.mark.parametrize("clip", [imported_early, "late"])
@pytest.mark.parametrize(("scale", "is_clipped"), [(1.0, True), (1e-6, False)])
def test_a_clip_reports_the_norm_before_it_and_its_factor(watch, clip, scale: float, is_clipped: bool) -> None:
    """clip_grad_norm_ is caught however it was imported, and leaves its result as it is."""
    net, opt, watched = setup(watch)
    clip = torch.nn.utils.clip_grad_norm_ if clip == "late" else clip
    norm = backward(net, scale)
    returned = clip(net.parameters(), 0.5)
    opt.step()
    step = watched.last()
    assert returned.item() == norm
    assert step.gradient_norm == norm
    (noted,) = step.clips
    assert (noted.kind, noted.threshold, noted.is_clipped) == ("norm", 0.5, is_clipped)
    assert noted.factor == pytest.approx(min(1.0, 0.5 / (norm + 1e-6)))


def test_clip_grads_with_norm_is_caught(watch) -> None:
    """The two-part form (get_total_norm, clip_grads_with_norm_) counts as one clip."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    with_norm_imported_early(net.parameters(), 0.25, torch.tensor(norm))
    opt.step()
    step = watched.last()
    assert step.gradient_norm == norm
    assert [(c.threshold, c.is_clipped) for c in step.clips] == [(0.25, True)]


@pytest.mark.parametrize(("threshold", "is_clipped"), [(1e-3, True), (1e3, False)])
def test_value_clipping_is_caught_with_the_norm_before_it(watch, threshold: float, is_clipped: bool) -> None:
    """clip_grad_value_ takes effect when any gradient element is beyond the value."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    value_imported_early(list(net.parameters()), threshold)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == norm
    assert [(c.kind, c.threshold, c.is_clipped, c.factor) for c in step.clips] == [
        ("value", threshold, is_clipped, None)
    ]


def test_of_two_clips_the_norm_before_the_first_is_shown(watch) -> None:
    """Norm clipping followed by value clipping: the norm is the one before either."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    imported_early(net.parameters(), 0.5)
    value_imported_early(net.parameters(), 0.01)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == norm
    assert [c.kind for c in step.clips] == ["norm", "value"]


def test_parts_clipped_one_by_one_make_up_the_whole_norm(watch) -> None:
    """Encoder and decoder clipped apart, a third part not at all: the shown norm is that of all."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    imported_early(net[0].parameters(), 0.1)
    imported_early([net[2].weight], 0.1)
    opt.step()
    assert watched.last().gradient_norm == pytest.approx(norm, rel=1e-6)


def test_a_clip_by_another_norm_still_shows_the_l2_norm(watch) -> None:
    """Clipping by the infinity norm keeps its own threshold and factor; the shown norm is the L2 norm."""
    net, opt, watched = setup(watch)
    norm = backward(net)
    extreme = max(p.grad.abs().max().item() for p in net.parameters())
    imported_early(net.parameters(), 0.01, norm_type=math.inf)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == norm
    assert step.clips[0].factor == pytest.approx(0.01 / (extreme + 1e-6))


def test_generators_and_keywords_reach_the_clip_whole(watch) -> None:
    """A generator can be read once only: the clip gets all of it, and clips exactly as unwatched."""
    net, opt, watched = setup(watch)
    backward(net)
    imported_early(parameters=(p for p in net.parameters()), max_norm=0.5, norm_type=2.0, error_if_nonfinite=True)
    assert norm_of(net.parameters()) == pytest.approx(0.5, rel=1e-4)
    opt.step()
    assert watched.last().clips[0].is_clipped


def test_an_error_of_the_clip_reaches_its_caller(watch) -> None:
    """error_if_nonfinite raises as it does unwatched, and nothing is noted."""
    net, opt, watched = setup(watch)
    backward(net, math.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        imported_early(net.parameters(), 0.5, error_if_nonfinite=True)
    opt.step()
    assert watched.last().clips == ()


def test_one_clip_over_two_optimizers_gives_each_its_own_norm(watch) -> None:
    """Both steps show their own parameters' norm before the common clip."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    a, b = torch.optim.SGD([net.weight], lr=0.1), torch.optim.SGD([net.bias], lr=0.1)
    watched = watch(a, b)
    net(torch.ones(1, 3)).pow(2).sum().backward()
    norms = [norm_of([net.weight]), norm_of([net.bias])]
    imported_early(net.parameters(), 0.01)
    a.step()
    b.step()
    steps = watched.drain()
    assert [s.gradient_norm for s in steps] == pytest.approx(norms)
    assert all(s.clips[0].is_clipped for s in steps)


def test_the_last_micro_batch_clip_holds_the_norm_that_is_applied(watch) -> None:
    """Clipping after every micro-batch: the norm is that of the accumulated gradient at the last one."""
    net, opt, watched = setup(watch)
    backward(net)
    imported_early(net.parameters(), 0.5)
    net(torch.ones(3, 4) * 2).pow(2).sum().backward()
    norm = norm_of(net.parameters())
    imported_early(net.parameters(), 0.5)
    opt.step()
    assert watched.last().gradient_norm == norm


def test_sparse_missing_and_frozen_gradients(watch) -> None:
    """Sparse gradients count with duplicates summed; parameters without a gradient count as zero."""
    torch.manual_seed(0)
    table = nn.Embedding(10, 3, sparse=True)
    unused = nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    opt = torch.optim.SGD([*table.parameters(), unused, frozen], lr=0.1)
    watched = watch(opt)
    table(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    expected = table.weight.grad.to_dense().norm().item()
    assert not table.weight.grad.is_coalesced()
    opt.step()
    assert watched.last().gradient_norm == pytest.approx(expected)


def test_no_gradient_at_all_shows_no_norm(watch) -> None:
    """A step on nothing has no norm rather than 0."""
    _, opt, watched = setup(watch)
    opt.step()
    assert watched.last().gradient_norm is None


def test_off_and_stride(watch) -> None:
    """gradient_norm="off" measures nothing of its own but takes what a clip has; N measures every N-th step."""
    net, opt, watched = setup(watch, gradient_norm="off")
    backward(net)
    opt.step()
    norm = backward(net)
    imported_early(net.parameters(), 1.0)
    opt.step()
    assert [s.gradient_norm for s in watched.drain()] == [None, norm]
    watched.close()

    net, opt, watched = setup(watch, gradient_norm=3)
    for _ in range(7):
        backward(net)
        opt.step()
    assert [s.gradient_norm is not None for s in watched.drain()] == [True, False, False, True, False, False, True]


def test_auto_measures_seldom_when_the_pass_is_dear(watch) -> None:
    """With no budget to speak of, "auto" measures once and then keeps its distance."""
    net, opt, watched = setup(watch, gradient_norm="auto", budget=1e-9)
    for _ in range(50):
        backward(net)
        opt.step()
    measured = [s.gradient_norm is not None for s in watched.drain()]
    assert measured[0]
    assert sum(measured) <= 3


def test_auto_measures_at_least_once_in_so_many_steps(watch) -> None:
    """However dear the pass is, a norm on display is never older than ``max_stride`` steps."""
    net, opt, watched = setup(watch, gradient_norm="auto", budget=1e-9, max_stride=10)
    for _ in range(60):
        backward(net)
        opt.step()
    numbers = [s.number for s in watched.drain() if s.gradient_norm is not None]
    assert numbers[-1] > 50
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 10


def test_patching_keeps_the_public_functions_themselves(watch) -> None:
    """References taken before attach stay the same objects while watched and behave as before afterwards."""
    before = torch.nn.utils.clip_grad_norm_
    inner = before.__closure__[0].cell_contents
    *_, watched = setup(watch)
    assert torch.nn.utils.clip_grad_norm_ is before is imported_early
    assert before.__closure__[0].cell_contents is not inner
    watched.close()
    assert before.__closure__[0].cell_contents is inner

"""Gradient norms are those before clipping; clipping events are what the clip did."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_ as imported_early
from torch.nn.utils import clip_grad_value_ as value_imported_early
from torch.nn.utils import clip_grads_with_norm_ as with_norm_imported_early
from torch.nn.utils import get_total_norm

from monitor.probe._norms import NormMeter


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


def test_a_clip_of_another_models_gradients_is_not_ours(watch) -> None:
    """The discriminator beside the attached generator, with as many parameters or more: neither its norm nor its clip
    is the generator's, before its own clip or without one."""
    net, opt, watched = setup(watch, gradient_norm=1)
    other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 2))
    norms = []
    for i in range(12):
        norms.append(backward(net))
        if i >= 4:
            imported_early(net.parameters(), 0.5)
        for extra in (other[:3], other):
            extra.zero_grad()
            (extra(torch.ones(3, 4)).sum() * 100).backward()
            imported_early(extra.parameters(), 0.5)
        opt.step()
    steps = watched.drain()
    assert [s.gradient_norm for s in steps] == pytest.approx(norms)
    assert [len(s.clips) for s in steps] == [0] * 4 + [1] * 8


@pytest.mark.parametrize("has_extra", ["none", "frozen", "unfrozen"])
def test_a_clip_of_more_than_the_optimizers_parameters(watch, has_extra: str) -> None:
    """A total that holds the gradients of others is not the optimizer's norm; that with frozen ones is."""
    net, opt, watched = setup(watch, gradient_norm=1)
    base = nn.Linear(4, 4)
    base.requires_grad_(has_extra == "unfrozen")
    model = nn.Sequential(base, net) if has_extra != "none" else net
    norms = []
    for _ in range(12):
        model.zero_grad()
        model(torch.ones(3, 4)).pow(2).sum().backward()
        norms.append(norm_of(net.parameters()))
        imported_early(model.parameters(), 0.1)
        opt.step()
    assert [s.gradient_norm for s in watched.drain()] == pytest.approx(norms)


def test_a_clip_after_a_parameter_was_replaced(watch) -> None:
    """The new one's gradient counts, clipped with the others or with a part of them."""
    net, opt, watched = setup(watch, gradient_norm=1)
    norms = []
    for i in range(12):
        if i % 4 == 3:
            net[0].weight = nn.Parameter(torch.full((8, 4), 0.1 * i))
            opt.param_groups[0]["params"][0] = net[0].weight
        norms.append(backward(net))
        if i % 2:
            imported_early(net[0].parameters(), 0.1)
            imported_early(net[2].parameters(), 0.1)
        else:
            imported_early(net.parameters(), 0.1)
        opt.step()
    assert [s.gradient_norm for s in watched.drain()] == pytest.approx(norms)


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


# ------------------------------------------------------------------------------------- gradients of other kinds


def given(*grads: torch.Tensor) -> list[nn.Parameter]:
    """Return parameters that have these gradients."""
    params = []
    for grad in grads:
        p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
        p.grad = grad
        params.append(p)
    return params


@pytest.mark.parametrize("clip", ["none", "norm", "extreme", "value"])
def test_empty_and_missing_gradients_add_nothing(watch, clip: str) -> None:
    """Parameters without elements, as a rank without rows has them, and without a gradient leave norms and clips as
    they are; torch clips such parameters without complaint."""
    params = [*given(torch.tensor([3.0, -4.0]), torch.zeros(0, 3)), nn.Parameter(torch.ones(2))]
    opt = torch.optim.SGD(params, lr=0.0)
    watched = watch(opt, gradient_norm=1)
    if clip == "norm":
        imported_early(params, 0.5)
    elif clip == "extreme":
        imported_early([params[0], params[2]], 0.5, norm_type=math.inf)
    elif clip == "value":
        value_imported_early(params, 0.5)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == 5.0
    assert [c.is_clipped for c in step.clips] == ([] if clip == "none" else [True])


@pytest.mark.parametrize("clip", [imported_early, value_imported_early])
def test_parameters_that_are_all_empty_show_no_norm(watch, clip) -> None:
    """A value clip of nothing is neither taken nor not."""
    params = given(torch.zeros(0))
    opt = torch.optim.SGD(params, lr=0.0)
    watched = watch(opt, gradient_norm=1)
    clip(params, 0.5)
    opt.step()
    step = watched.last()
    assert step.gradient_norm in (None, 0.0)
    assert not any(c.is_clipped for c in step.clips)


def test_complex_gradients_count_by_their_absolute_values(watch) -> None:
    """The norm of 3 + 4i is 5, measured or clipped."""
    for clip in (lambda _: None, lambda ps: imported_early(ps, 1.0)):
        params = given(torch.tensor([3 + 4j]))
        opt = torch.optim.SGD(params, lr=0.0)
        watched = watch(opt, gradient_norm=1)
        clip(params)
        opt.step()
        assert watched.last().gradient_norm == pytest.approx(5.0)
        watched.close()


class Tagged(torch.Tensor):
    """A tensor of another class, with an ordinary storage."""


def test_a_gradient_of_a_subclass_with_ordinary_storage_is_read(watch) -> None:
    """fastai's and torchvision's tensors are such: their values are there."""
    params = given(torch.zeros(2))
    params[0].grad = torch.tensor([3.0, 4.0]).as_subclass(Tagged)
    opt = torch.optim.SGD(params, lr=0.0)
    watched = watch(opt, gradient_norm=1)
    opt.step()
    assert watched.last().gradient_norm == 5.0


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_gradient_that_cannot_be_read_has_a_reason() -> None:
    """A layout that torch works out no norm of."""
    odd = nn.Parameter(torch.eye(2).to_sparse_csr())
    odd.grad = torch.eye(2).to_sparse_csr()
    opt = torch.optim.SGD([odd], lr=0.0)
    assert NormMeter(opt).take() == "layout torch.sparse_csr"


def test_a_pass_that_fails_costs_the_norm_and_not_the_step(watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is counted once in ``max_stride`` steps, the steps have their reason, and the norm comes back."""
    net, opt, watched = setup(watch, gradient_norm=1, max_stride=10)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", fail)
        for _ in range(5):
            backward(net)
            opt.step()
    assert [str(error) for error in watched.errors] == ["out of memory"]
    watched.errors.clear()
    assert [(s.number, s.gradient_norm, s.gradient_norm_reason) for s in watched.drain()] == [
        (1, None, "measuring it failed: RuntimeError"),
        *((n, None, None) for n in range(2, 6)),
    ]
    for _ in range(6):
        norm = backward(net)
        opt.step()
    assert watched.last().gradient_norm == norm


def test_a_value_clip_that_cannot_be_measured_leaves_no_norm_behind_it(watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be measured at the step is the norm after the clip, and it is not shown."""
    net, opt, watched = setup(watch, gradient_norm=1)
    backward(net)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", None)
        value_imported_early(net.parameters(), 0.01)
    opt.step()
    watched.errors.clear()
    step = watched.last()
    assert (step.gradient_norm, step.gradient_norm_reason) == (None, "measuring it failed: TypeError")
    assert [(c.kind, c.threshold, c.is_clipped) for c in step.clips] == [("value", 0.01, None)]


def test_a_value_clip_that_is_not_measured_is_not_said_to_be_without_effect(watch) -> None:
    """gradient_norm="off" reads no gradient, so that it does not know."""
    net, opt, watched = setup(watch, gradient_norm="off")
    backward(net)
    value_imported_early(net.parameters(), 1e-6)
    opt.step()
    assert [c.is_clipped for c in watched.last().clips] == [None]


# --------------------------------------------------------------------------------------------- clips in parts


def test_a_total_made_by_hand_for_two_parts_is_not_the_norm_of_each(watch) -> None:
    """One total of both, each half clipped with it: the norm is that of both, once."""
    net, opt, watched = setup(watch, gradient_norm=1)
    norm = backward(net)
    total = get_total_norm([p.grad for p in net.parameters()])
    for layer in (net[0], net[2]):
        with_norm_imported_early(layer.parameters(), 0.1, total)
    opt.step()
    step = watched.last()
    assert step.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert [c.factor for c in step.clips] == [pytest.approx(0.1 / (norm + 1e-6))] * 2


def test_a_total_of_two_optimizers_is_the_norm_of_neither(watch) -> None:
    """One total of both by hand, each optimizer's parameters clipped with it."""
    net = nn.Linear(3, 2)
    a, b = torch.optim.SGD([net.weight], lr=0.1), torch.optim.SGD([net.bias], lr=0.1)
    watched = watch(a, b, gradient_norm=1)
    net(torch.ones(1, 3)).pow(2).sum().backward()
    norms = [norm_of([net.weight]), norm_of([net.bias])]
    total = get_total_norm([net.weight.grad, net.bias.grad])
    with_norm_imported_early(net.weight, 0.01, total)
    with_norm_imported_early([net.bias], 0.01, total)
    a.step()
    b.step()
    assert [s.gradient_norm for s in watched.drain()] == pytest.approx(norms)


def test_a_clip_of_all_after_a_clip_of_some_leaves_the_norm_unknown(watch) -> None:
    """What the others had before clipping is in no total: the norm of a clipped gradient is not shown for it."""
    net, opt, watched = setup(watch, gradient_norm=1)
    backward(net)
    imported_early(net[0].parameters(), 0.1)
    imported_early(net.parameters(), 0.1)
    opt.step()
    step = watched.last()
    assert (step.gradient_norm, step.gradient_norm_reason) == (None, "clipped in parts that overlap")


def test_parts_that_make_up_the_whole_need_no_pass(watch) -> None:
    """Each part clipped by its own norm: the whole is known with gradient_norm="off" too, and a further clip of all
    changes nothing."""
    net, opt, watched = setup(watch, gradient_norm="off")
    norm = backward(net)
    imported_early(net[0].parameters(), 0.1)
    imported_early(net[2].parameters(), 0.1)
    imported_early(net.parameters(), 0.1)
    opt.step()
    assert watched.last().gradient_norm == pytest.approx(norm, rel=1e-6)


# ------------------------------------------------------------------------------------------------- GradScaler


class Amp:
    """A model that trains under a GradScaler, one step at a time."""

    def __init__(self, watch, fused: bool = False, dtype=torch.float32, **settings) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(4, 2).to(dtype)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=1e-3, fused=fused)
        self.scaler = GradScaler("cpu", init_scale=1024.0, **settings)
        self.watched = watch(self.opt, gradient_norm=1)
        self.x = torch.ones(3, 4, dtype=dtype)

    def true_norm(self) -> float:
        grads = torch.autograd.grad(self.net(self.x).float().square().sum(), list(self.net.parameters()))
        return float(get_total_norm([g.float() for g in grads]))

    def backward(self) -> None:
        self.scaler.scale(self.net(self.x).float().square().sum()).backward()

    def step(self) -> None:
        self.scaler.step(self.opt)
        self.scaler.update()
        self.opt.zero_grad()


CLIPS = {
    "none": lambda params: None,
    "norm": lambda params: imported_early(params, 1.0),
    "other norm": lambda params: imported_early(params, 1.0, norm_type=1),
    "value": lambda params: value_imported_early(params, 0.01),
    "by hand": lambda params: with_norm_imported_early(params, 1.0, get_total_norm([p.grad for p in params])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", CLIPS)
def test_the_norm_has_no_scale(watch, clip: str, fused: bool, unscales: bool, dtype) -> None:
    """However the step is clipped, before ``unscale_`` or after it, fused or not, while the scale grows at each step:
    the norm is that of the gradient."""
    amp = Amp(watch, fused, dtype, growth_interval=1)
    norms = []
    for _ in range(3):
        norms.append(amp.true_norm())
        amp.backward()
        if unscales:
            amp.scaler.unscale_(amp.opt)
        CLIPS[clip](list(amp.net.parameters()))
        amp.step()
    assert amp.scaler.get_scale() == 8192.0
    rel = 1e-5 if dtype is torch.float32 else 1e-2
    assert [s.gradient_norm for s in amp.watched.drain()] == pytest.approx(norms, rel=rel)


def test_the_factor_of_a_clip_before_unscale_shows_the_mistake(watch) -> None:
    """The clip acted on scaled gradients, and its factor says so."""
    amp = Amp(watch)
    norm = amp.true_norm()
    amp.backward()
    imported_early(amp.net.parameters(), 1.0)
    amp.step()
    (clip,) = amp.watched.last().clips
    assert clip.factor == pytest.approx(1.0 / (1024.0 * norm + 1e-6))


def test_a_disabled_scaler_and_one_that_is_no_longer_used_change_nothing(watch) -> None:
    """Mixed precision that ends half-way: its last scale is not taken for one of the steps after it."""
    amp = Amp(watch)
    amp.backward()
    amp.step()
    off = GradScaler("cpu", enabled=False)
    for scale, step in ((off.scale, off.step), (lambda loss: loss, lambda opt: opt.step())):
        amp.net.zero_grad()
        norm = amp.true_norm()
        scale(amp.net(amp.x).square().sum()).backward()
        imported_early(amp.net.parameters(), 1.0)
        step(amp.opt)
        assert amp.watched.last().gradient_norm == pytest.approx(norm)


def test_two_optimizers_on_one_scaler_each_have_their_unscaled_norm(watch) -> None:
    """The second is clipped after the first has stepped; the third belongs to no scaler."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    opts = [torch.optim.SGD([p], lr=0.0) for p in params]
    scaler = GradScaler("cpu", init_scale=256.0)
    watched = watch(*opts, gradient_norm=1)
    params[2].sum().backward()
    imported_early([params[2]], 1.0)
    opts[2].step()
    for _ in range(2):
        for p in params:
            p.grad = None
        scaler.scale((params[0] * 3 + params[1] * 4).sum()).backward()
        imported_early([params[0]], 1.0)
        scaler.step(opts[0])
        imported_early([params[1]], 1.0)
        scaler.step(opts[1])
        scaler.update()
        params[2].sum().backward()
        imported_early([params[2]], 1.0)
        opts[2].step()
    found: dict[str, list[float | None]] = {}
    for step in watched.drain():
        found.setdefault(step.optimizer, []).append(step.gradient_norm)
    root = 2**0.5
    assert found == {
        "0": [pytest.approx(3 * root)] * 2,
        "1": [pytest.approx(4 * root)] * 2,
        "2": [pytest.approx(root)] * 3,
    }


# -------------------------------------------------------------------------------------------------- the meter


def test_a_meter_lets_its_optimizer_go() -> None:
    """It holds neither the optimizer nor the parameters, with the collector off."""
    gc.disable()
    try:
        opt = torch.optim.SGD(given(torch.ones(2)), lr=0.0)
        meter, references = NormMeter(opt), [weakref.ref(opt), weakref.ref(opt.param_groups[0]["params"][0])]
        assert meter.take()
        del opt
        assert [reference() for reference in references] == [None, None]
        assert meter.optimizer() is None
    finally:
        gc.enable()


def test_patching_keeps_the_public_functions_themselves(watch) -> None:
    """References taken before attach stay the same objects while watched and behave as before afterwards."""
    before = torch.nn.utils.clip_grad_norm_
    inner = before.__closure__[0].cell_contents
    *_, watched = setup(watch)
    assert torch.nn.utils.clip_grad_norm_ is before is imported_early
    assert before.__closure__[0].cell_contents is not inner
    watched.close()
    assert before.__closure__[0].cell_contents is inner

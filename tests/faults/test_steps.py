"""Steps that fail, losses and gradients that are not finite: the learning rate stays right, and what is shown is so."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tests.faults.loops import assert_same, make_batches, make_model, train_plainly, watch, weights_of


class StepError(Exception):
    """What the optimizers of these tests raise."""


class Own(torch.optim.Optimizer):
    """An optimizer of the user's own: plain descent, with a failure on demand in the middle of the update."""

    fails = False

    def __init__(self, params: Any, lr: Any) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self.fails:
            raise StepError
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-float(group["lr"]))


class Child(Own):
    """Fails inside its parent's step."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


class Early(torch.optim.AdamW):
    """Fails before its parent's step."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise StepError
        return super().step(closure)


class Late(torch.optim.AdamW):
    """Fails after its parent's step, whose post-hook has run by then."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if self.fails:
            raise StepError
        return result


class Forgiving(Own):
    """Catches its parent's failure itself."""

    def step(self, closure: Any = None) -> Any:
        with contextlib.suppress(StepError):
            return super().step(closure)


def _lr(group: dict[str, Any]) -> float:
    return float(group["lr"])


@pytest.mark.parametrize("kind", [Own, Child, Early, Late, Forgiving], ids=lambda k: k.__name__)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["float", "tensor"])
def test_failed_step_leaves_the_lr_as_scheduled(kind: Any, lr: Any, tmp_path: Path) -> None:
    """After a step that raised, the LR is the schedule's at once: a scheduler stepped in between continues from it."""
    model = make_model()
    optimizer = kind(model.parameters(), lr=lr.clone() if isinstance(lr, torch.Tensor) else lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # reads the LR to make the next
    expected = 0.1
    with watch(optimizer, tmp_path, scheduler) as run:
        run.set_lr_factor(0.25)
        for i, batch in enumerate(make_batches(6)):
            optimizer.fails = i in (1, 2, 4)
            with contextlib.suppress(StepError):
                train_plainly(model, optimizer, [batch])
            assert _lr(optimizer.param_groups[0]) == pytest.approx(expected, rel=1e-12), i
            scheduler.step()
            expected *= 0.5
        run.flush()
        group = run.snapshot().optimizers[0].groups[0]
    assert _lr(optimizer.param_groups[0]) == pytest.approx(expected, rel=1e-12)
    assert (group.scheduled, group.applied) == (pytest.approx(0.1 * 0.5**5), pytest.approx(0.1 * 0.5**5 * 0.25))
    assert run.snapshot().errors == {}


def test_failed_step_under_another_decorator_leaves_the_lr_as_scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decorator on top of step, such as torch.compile puts on some optimizers when first used, hides nothing."""
    model = make_model()
    optimizer = Own(model.parameters(), lr=0.1)
    monkeypatch.setattr(Own, "step", torch.compiler.disable(Own.step))
    with watch(optimizer, tmp_path) as run:
        run.set_lr_factor(0.5)
        train_plainly(model, optimizer, make_batches(1))
        optimizer.fails = True
        with pytest.raises(StepError):
            train_plainly(model, optimizer, make_batches(1))
        assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("kind", [Own, Child, Early], ids=lambda k: k.__name__)
def test_failed_step_is_not_counted_and_the_next_one_is_whole(kind: Any, tmp_path: Path) -> None:
    """A step that raised is no step; the loss of the next one is its own."""
    model = make_model()
    optimizer = kind(model.parameters(), lr=0.0)
    losses = []
    with watch(optimizer, tmp_path, gradient_norm=1) as run:
        for i, (x, y) in enumerate(make_batches(4)):
            optimizer.fails = i == 1
            loss = mse_loss(model(x), y)
            losses.append(loss.item())
            loss.backward()
            with contextlib.suppress(StepError):
                optimizer.step()
            optimizer.zero_grad()
        run.flush()
    history = run.history()["optimizers"][kind.__name__]
    assert run.snapshot().optimizers[0].steps == 3
    assert history["loss"] == pytest.approx([losses[0], losses[2], losses[3]])


def test_failing_closure_passes_through(tmp_path: Path) -> None:
    """An exception of the user's closure reaches the user; later steps, with and without closure, are recorded."""
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    (x, y), *_ = make_batches(1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = mse_loss(model(x), y)
        loss.backward()
        return loss

    def failing() -> Any:
        raise StepError

    with watch(optimizer, tmp_path) as run:
        run.set_lr_factor(0.5)
        optimizer.step(closure)
        with pytest.raises(StepError):
            optimizer.step(failing)
        assert optimizer.param_groups[0]["lr"] == 0.1
        expected = mse_loss(model(x), y).item()
        optimizer.step(closure=closure)
        run.flush()
        assert run.snapshot().optimizers[0].loss == expected
        assert run.snapshot().optimizers[0].steps == 2
    assert run.snapshot().errors == {}


def test_failing_backward_leaves_no_loss_behind(tmp_path: Path) -> None:
    """The loss of a backward that raised does not count for the step after it."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise StepError

    (x, y), *_ = make_batches(1)
    with watch(optimizer, tmp_path) as run:
        with pytest.raises(StepError):
            Failing.apply(mse_loss(model(x), y)).backward()
        with pytest.raises(RuntimeError, match="scalar"):
            model(x).backward()
        loss = mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        run.flush()
        assert run.snapshot().optimizers[0].loss == loss.item()
    assert run.snapshot().errors == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_shown_as_it_is(value: float, tmp_path: Path) -> None:
    """A NaN or infinite loss and gradient are shown, counted and told at once, and spoil no window or sum."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    plain = make_model()
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)
    factors = [1.0, 1.0, value]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for factor, (x, y) in zip(factors, make_batches(3), strict=True):
            (mse_loss(model(x), y) * factor).backward()
            optimizer.step()
            optimizer.zero_grad()

    with watch(optimizer, tmp_path, gradient_norm=1) as run:
        train(model, optimizer)
        run.flush()
        snapshot = run.snapshot().optimizers[0]
    train(plain, plain_optimizer)
    for ours, theirs in zip(weights_of(model), weights_of(plain), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert snapshot.loss is not None
    assert snapshot.loss == value or (math.isnan(value) and math.isnan(snapshot.loss))
    assert snapshot.gradient_norm is not None
    assert not math.isfinite(snapshot.gradient_norm)
    assert snapshot.nonfinite == {"loss": 1, "gradient": 1}
    for name in ("loss_ema", "loss_window_mean", "loss_window_max", "loss_best", "gradient_norm_window_max"):
        assert math.isfinite(getattr(snapshot, name)), name
    assert math.isfinite(snapshot.loss_positive_sum + snapshot.loss_negative_sum)
    assert [e.start_step for e in run.events() if e.kind == "nonfinite" and e.severity == "critical"][:1] == [3]
    assert run.snapshot().errors == {}


@pytest.mark.parametrize(
    "value",
    ["0.5", b"1", object(), [1, 2], torch.zeros(3), torch.zeros(2, 2, requires_grad=True), 1 + 2j, {"a": 1}],
    ids=lambda v: type(v).__name__,
)
def test_logging_what_is_no_number_is_reported_not_raised(value: Any, tmp_path: Path) -> None:
    """run.log raises for no value; what is not a number is named in an internal event, by name and type."""
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with watch(optimizer, tmp_path) as run:
        run.log(accuracy=value)
        run.log(loss=value)
        run.log(accuracy=0.5)
        run.flush()
        assert run.snapshot().errors == {"log": 2}
        assert run.snapshot().metrics == {"accuracy": 0.5}
        messages = [e.message for e in run.events() if e.kind == "internal"]
    assert messages[0].startswith("log: TypeError: accuracy is not a number or a one-element tensor (")
    assert type(value).__name__ in messages[0]


def test_logging_a_value_whose_repr_raises_is_contained(tmp_path: Path) -> None:
    """Not even a value that cannot be printed raises, and none is printed: a tensor on a device would be waited for."""

    class Unprintable:
        def __repr__(self) -> str:
            raise StepError

        __float__ = __repr__

    with watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path) as run:
        run.log(accuracy=Unprintable())
        assert run.snapshot().errors == {"log": 1}


def test_many_backwards_without_a_step_are_bounded(tmp_path: Path) -> None:
    """Losses and clips that no step ever takes do not pile up, and the loss of the step that does come is unknown."""
    from monitor.probe import _attribution, _gradients, _trace

    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    number = max(_trace.MAX_SPANS, _gradients.MAX_CLIPS) + 10
    with watch(optimizer, tmp_path) as run:
        trace = _trace.current()
        probe = run._engine._training.probes[0]
        for i in range(number):
            (parameter * 1.0).backward()
            if i % 10 == 0:
                nn.utils.clip_grad_norm_([parameter], 1.0)
        assert len(trace.spans) <= _trace.MAX_SPANS
        assert len(probe.norms.clips) <= _gradients.MAX_CLIPS
        assert len(probe.attribution.sole.passes) <= _attribution.MAX_PASSES
        optimizer.step()
        run.flush()
        assert run.snapshot().optimizers[0].loss is None


def test_unreadable_entry_does_not_stop_those_after_it(tmp_path: Path) -> None:
    """A step that cannot be read (an LR that is not a number) is dropped and counted; those after it are shown."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path) as run:
        train_plainly(model, optimizer, make_batches(1))
        run._engine._training.buffer.append(_entry(run))
        train_plainly(model, optimizer, make_batches(2))
        assert run.flush()
        snapshot = run.snapshot()
    assert snapshot.optimizers[0].steps == 3
    assert snapshot.dropped_steps == 1
    assert snapshot.errors == {"step_buffer": 1}


def _entry(run: Any) -> Any:
    opened = ((), None, ["a"], None, None, (), (), None, None)
    return (run._engine._training.buffer.next_sequence(), "SGD", 2, 0.0, (), 0.0, 0.0, (), None, False, opened)


def test_two_steps_differ_in_nothing_but_the_failed_one(tmp_path: Path) -> None:
    """A loop with caught step failures gives the same weights with and without a monitor."""

    def train(attach: Any) -> list[torch.Tensor]:
        model = make_model()
        optimizer = Early(model.parameters(), lr=0.1)
        with attach(optimizer):
            for i, batch in enumerate(make_batches()):
                optimizer.fails = i % 2 == 1
                with contextlib.suppress(StepError):
                    train_plainly(model, optimizer, [batch])
        return weights_of(model)

    assert_same(train(lambda o: watch(o, tmp_path)), train(lambda o: contextlib.nullcontext()))

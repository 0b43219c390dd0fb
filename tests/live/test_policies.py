"""A real run that diverges is rescued by a policy; without one it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import monitor

STEPS = 900
BAD = 300


def train(policies: Any, steps: int = STEPS, raised: float = 2.6) -> tuple[float, list[monitor.Event], Any]:
    """Fit a line with clipped gradients, at a learning rate above 2 from step BAD on, where it swings for ever.

    Returns the mean loss of the last 50 steps. The recorder is waited for, as a step of this size takes a thousandth of
    a real one: at every step once it goes wrong.
    """
    torch.manual_seed(0)
    x, truth = torch.linalg.qr(torch.randn(512, 8)).Q * 512**0.5, torch.randn(8, 1)
    model = nn.Linear(8, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    losses = []
    with monitor.attach(optimizer, policies=policies, serve=False, gpu=False, linger=0, digest_interval=0.01) as run:
        for step in range(1, steps + 1):
            if step == BAD:
                optimizer.param_groups[0]["lr"] = raised
            loss = 0.5 * (model(x) - x @ truth - 0.5 * torch.randn(512, 1)).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step >= BAD or step % 5 == 0:
                assert run.flush(60)
        assert run.flush(60)
        snapshot, events = run.snapshot(), list(run.events())
    return sum(losses[-50:]) / 50, events, snapshot


@pytest.mark.parametrize(
    "policy",
    [
        monitor.ReduceLROn("divergence", 0.5, cooldown_steps=100),
        monitor.AdaptiveLR(),
        monitor.AdaptiveLR(allow_increase=True),
        monitor.AdaptiveLR(warmup_steps=0),
    ],
    ids=["reduce", "adaptive", "adaptive-and-back", "adaptive-without-warm-up"],
)
def test_a_diverging_run_is_rescued(policy: Any) -> None:
    """With the policy the loss comes back near its level before; the audit says who lowered it, and why."""
    lost, _, untouched = train(())
    final, events, snapshot = train([policy])
    assert lost > 0.5
    assert final < 0.25
    assert snapshot.errors == {}
    # A search that is running when the run goes wrong sets the factor; one that has come to its end reduces it.
    audits = [e for e in events if e.kind == "control"]
    audit = next(e for e in audits if e.details["after"][0][2] < e.details["before"][0][2])
    assert audit.details["source"] == "policy"
    assert audit.details["actor"] == type(policy).__name__
    assert any(word in audit.details["reason"] for word in ("divergence", "plateau", "loss"))
    assert audit.details["after"][0][2] < audit.details["before"][0][2] == 1.0
    assert untouched.commands_total == {}
    assert snapshot.commands_total[audit.details["action"], "policy", "applied"] >= 1


def descend(lr: float, policies: Any) -> tuple[float, Any]:
    """Fit a line by momentum from the first step on; return the last loss and the final snapshot."""
    torch.manual_seed(0)
    x, truth = torch.randn(512, 8), torch.randn(8, 1)
    model = nn.Linear(8, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    settings = {"serve": False, "gpu": False, "linger": 0, "digest_interval": 5, "gradient_norm": 1}
    with monitor.attach(optimizer, policies=policies, **settings) as run:  # type: ignore[arg-type]
        for step in range(1, 401):
            rows = torch.randint(512, (32,))
            loss = 0.5 * (model(x[rows]) - x[rows] @ truth - 0.5 * torch.randn(32, 1)).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 0:
                assert run.flush(60)
        snapshot = run.snapshot()
    return loss.item(), snapshot


@pytest.mark.parametrize("lr", [8.0, 80.0])
def test_a_run_whose_lr_was_far_too_high_from_the_start_is_found_one_that_it_can_bear(lr: float) -> None:
    """It blows up by itself; with the warm-up it learns, though the recorder sees every step up to five steps late."""
    alone, _ = descend(lr, ())
    final, snapshot = descend(lr, [monitor.AdaptiveLR()])
    assert not math.isfinite(alone) or alone > 1e6
    assert final < 1.0
    assert snapshot.errors == {}
    assert snapshot.optimizers[0].groups[0].applied < 4.0


def test_a_run_whose_lr_can_be_borne_ends_its_warm_up_at_the_schedule() -> None:
    """One command, or two where the loss fell on the way; the factor is 1 then, exactly."""
    final, snapshot = descend(0.02, [monitor.AdaptiveLR()])
    assert final < 1.0
    assert snapshot.optimizers[0].groups[0].factor == 1.0
    assert {action for action, *_ in snapshot.commands_total} == {"set"}
    assert sum(snapshot.commands_total.values()) <= 2


def test_a_policy_that_raises_does_not_reach_the_training() -> None:
    """Counted, shown as an internal event; the run continues to its end."""

    class Broken:
        def start(self, ask: Any) -> Any:
            return self

        def on_event(self, event: monitor.Event) -> None:
            raise RuntimeError("the user's mistake")

        def on_step(self, step: monitor.Step) -> None:
            raise RuntimeError("the user's mistake")

    final, events, snapshot = train([Broken()], steps=20)
    assert math.isfinite(final)
    assert snapshot.errors["policy"] >= 20
    assert any(e.kind == "internal" and "the user's mistake" in e.message for e in events)


def test_what_is_no_policy_is_refused_before_anything_is_touched() -> None:
    """TypeError with the cure; the optimizer can be attached right after."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(TypeError, match="policies must be objects such as"):
        monitor.attach(optimizer, policies=["divergence"], serve=False)
    monitor.attach(optimizer, serve=False, gpu=False).close()

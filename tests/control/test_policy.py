"""Policies, fed with events and steps: what they ask for, when, and what they leave alone."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest

import monitor
from monitor._errors import ClosedRunError, CommandRefusedError, QueueFullError
from monitor._records import Event, ParamGroup, Step
from monitor.control._adaptive import AdaptiveLR
from monitor.control._policy import Policies, ReduceLROn, Request, check_policies


class Bench:
    """A policy at work, and the factors of two param groups that follow what it asks for."""

    def __init__(self, policy: Any, *, answer: bool = True) -> None:
        self.asked: list[Request] = []
        self.answer = answer
        self.factors = {0: 1.0, 1: 1.0}
        self.reaction = policy.start(self.submit)
        self.now = 0
        self._id = 0

    def submit(self, ask: Request) -> str | None:
        self.asked.append(ask)
        if self.answer:
            for index in self.factors:
                if ask.action == "reduce":
                    self.factors[index] *= ask.factor or 1.0
                elif ask.groups is None or f"SGD/{index}" in ask.groups:
                    self.factors[index] = ask.factor or 1.0
        return f"command-{len(self.asked)}" if self.answer else None

    def begin(self, kind: str, optimizer: str | None = "SGD") -> Event:
        """Raise an event at the present step."""
        self._id += 1
        event = Event(kind, "warning", self.now, self.now, "it rose", optimizer, id=self._id, seq=self._id)
        self.reaction.on_event(event)
        return event

    def end(self, event: Event) -> None:
        """End it at the present step, as the detectors do: the same event, published again."""
        self.reaction.on_event(dataclasses.replace(event, end_step=self.now, step=self.now))

    def steps(self, count: int, loss: float = 1.0) -> None:
        for _ in range(count):
            self.now += 1
            groups = tuple(ParamGroup(i, None, 0.1, 0.1 * f, f) for i, f in self.factors.items())
            self.reaction.on_step(Step("SGD", self.now, self.now, 0.0, None, loss, None, groups))

    def control(self, **details: Any) -> None:
        """Tell of a command that was applied, whoever it came from; the bench's own have the ids of ``submit``."""
        words = {"command_id": "of-another", "status": "applied", "action": "set", "source": "api", "actor": ""}
        details = {**words, **details}
        self.reaction.on_event(Event("control", "info", self.now, self.now, "", end_step=self.now, details=details))


def test_an_event_of_its_kind_reduces_with_the_reason() -> None:
    """The command names the optimizer whose event it is, and the event; other kinds are left alone."""
    bench = Bench(ReduceLROn("divergence", 0.3))
    bench.now = 7
    bench.begin("spike")
    bench.begin("divergence")
    assert bench.asked == [Request("reduce", 0.3, ("SGD",), "divergence at step 7: it rose")]


def test_the_end_of_an_event_is_no_second_one() -> None:
    """An event is published again under its id when it is over: nothing is asked for."""
    bench = Bench(ReduceLROn("spike", cooldown_steps=0))
    event = bench.begin("spike")
    bench.end(event)
    assert len(bench.asked) == 1


def test_an_event_that_is_over_at_once_counts() -> None:
    """An outlier has its end already when it is first reported."""
    bench = Bench(ReduceLROn("outlier"))
    bench.reaction.on_event(Event("outlier", "info", 5, 5, "one point", "SGD", end_step=6, id=1))
    assert len(bench.asked) == 1
    bench.steps(1000)
    assert len(bench.asked) == 1


def test_what_still_holds_after_the_cooldown_reduces_again_until_max_times() -> None:
    """A divergence that lasts: at once, and after each cool-down; then never more."""
    bench = Bench(ReduceLROn("divergence", cooldown_steps=10, max_times=3))
    bench.begin("divergence")
    bench.steps(9)
    assert len(bench.asked) == 1
    bench.steps(1)
    assert bench.asked[1].reason == "divergence of step 0 still holds"
    bench.steps(100)
    bench.begin("divergence")
    assert [a.factor for a in bench.asked] == [0.5] * 3


def test_a_second_event_within_the_cooldown_waits_for_it() -> None:
    """Two spikes close together are one reduction; when the second is over in time, it is the only one."""
    bench = Bench(ReduceLROn("spike", cooldown_steps=10))
    bench.end(bench.begin("spike"))
    bench.steps(5)
    second = bench.begin("spike")
    bench.steps(2)
    bench.end(second)
    bench.steps(50)
    assert len(bench.asked) == 1


def test_a_refusal_is_no_reduction_but_cools_down() -> None:
    """What was refused does not use up max_times, and is not asked for at every step."""
    bench = Bench(ReduceLROn("divergence", cooldown_steps=10, max_times=1), answer=False)
    bench.begin("divergence")
    bench.steps(30)
    assert len(bench.asked) == 4
    bench.answer = True
    bench.steps(100)
    assert len(bench.asked) == 5


def test_groups_and_events_of_no_optimizer() -> None:
    """Groups that were given are named; without them an event of no optimizer is for all."""
    named = Bench(ReduceLROn("stall", groups=[0, "head"]))
    named.begin("stall", None)
    free = Bench(ReduceLROn("stall"))
    free.begin("stall", None)
    assert (named.asked[0].groups, free.asked[0].groups) == ((0, "head"), None)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ReduceLROn("divergance"), ValueError, "got 'divergance'; did you mean 'divergence'?"),
        (lambda: ReduceLROn("xyz"), ValueError, "there are nonfinite, divergence"),
        (lambda: ReduceLROn("spike", 1.0), ValueError, r"factor must be in \(0, 1\), got 1.0; 0.5 halves"),
        (lambda: ReduceLROn("spike", 0), ValueError, "got 0"),
        (lambda: ReduceLROn("spike", math.nan), ValueError, "got nan"),
        (lambda: ReduceLROn("spike", "half"), TypeError, "factor must be a number, got 'half'"),
        (lambda: ReduceLROn("spike", cooldown_steps=-1), ValueError, "cooldown_steps must be 0 or more, got -1"),
        (lambda: ReduceLROn("spike", cooldown_steps=1.5), TypeError, "cooldown_steps must be an int, got 1.5"),
        (lambda: ReduceLROn("spike", max_times=0), ValueError, "max_times must be 1 or more, got 0"),
        (lambda: ReduceLROn("spike", max_times=True), TypeError, "got True"),
        (lambda: ReduceLROn("spike", groups=[]), ValueError, r"such as \[0, 'head'\], got \[\]"),
        (lambda: ReduceLROn("spike", groups=[1.5]), ValueError, r"got \[1.5\]"),
        (lambda: AdaptiveLR(factor=2.0), ValueError, "factor must be in"),
        (lambda: AdaptiveLR(plateau_factor=0.0), ValueError, "plateau_factor must be in"),
        (lambda: AdaptiveLR(min_factor=1), ValueError, "min_factor must be in"),
        (lambda: AdaptiveLR(cooldown_steps=0), ValueError, "cooldown_steps must be 1 or more, got 0"),
        (lambda: AdaptiveLR(recover_steps=0), ValueError, "recover_steps must be 1 or more, got 0"),
        (lambda: AdaptiveLR(allow_increase=1), TypeError, "allow_increase must be True or False, got 1"),
        (lambda: check_policies("divergence"), TypeError, "got 'divergence'"),
        (lambda: check_policies(None), TypeError, r"policies must be a list such as \[monitor.ReduceLROn"),
        (lambda: check_policies([ReduceLROn]), TypeError, "policies must be objects such as"),
        (lambda: check_policies([3]), TypeError, "got 3"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(make: Any, error: type[Exception], words: str) -> None:
    """On construction, with the value."""
    with pytest.raises(error, match=words):
        make()


def test_policies_are_frozen_and_fit_for_several_runs() -> None:
    """Settings are one thing, what a run has been through another."""
    policy = monitor.ReduceLROn("spike", max_times=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.factor = 0.1  # type: ignore[misc]
    first, second = Bench(policy), Bench(policy)
    first.begin("spike")
    second.begin("spike")
    assert (len(first.asked), len(second.asked)) == (1, 1)


class Broken:
    """A policy of the user's own that fails at its work."""

    def start(self, submit: Any) -> Broken:
        return self

    def on_event(self, event: Event) -> None:
        raise RuntimeError("the user's mistake")

    def on_step(self, step: Step) -> None:
        raise RuntimeError("the user's mistake")


class BrokenAtOnce:
    def start(self, submit: Any) -> Any:
        raise RuntimeError("not even started")


class Leaving(Broken):
    """One that takes itself for the program."""

    def on_event(self, event: Event) -> None:
        raise SystemExit(3)


@pytest.mark.parametrize("policy", [Broken(), BrokenAtOnce(), Leaving()])
def test_a_policy_that_raises_is_contained_and_the_others_go_on(policy: Any) -> None:
    """Counted as `policy`; the next policy has its event."""
    failures: list[Exception] = []
    submitted: list[dict[str, Any]] = []

    def submit(action: str, **words: Any) -> Any:
        submitted.append({"action": action, **words})
        return SimpleNamespace(id="command-1")

    policies = Policies([policy, ReduceLROn("spike")], submit, failures.append)
    policies.start()
    policies.on_event(Event("spike", "warning", 3, 3, "x" * 900, "SGD", id=1))
    assert {type(error) for error in failures} == {SystemExit if isinstance(policy, Leaving) else RuntimeError}
    (command,) = submitted
    assert (command["action"], command["factor"], command["groups"]) == ("reduce", 0.5, ("SGD",))
    assert (command["source"], command["actor"], command["over_steps"]) == ("policy", "ReduceLROn", 0)
    assert (len(command["reason"]), command["reason"][:18]) == (500, "spike at step 3: x")


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (CommandRefusedError("below min_lr"), "INFO"),
        (ClosedRunError("ended"), "INFO"),
        (QueueFullError("64 wait"), "WARNING"),
    ],
)
def test_a_refused_command_is_no_failure_of_the_policy(
    error: Exception, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The audit has the refusal already; a full queue, which it has not, is a line of the log without a traceback."""
    caplog.set_level("INFO")
    failures: list[Any] = []

    def submit(*_: Any, **__: Any) -> None:
        raise error

    policies = Policies([ReduceLROn("spike")], submit, failures.append)
    policies.start()
    policies.on_event(Event("spike", "warning", 3, 3, "", "SGD", id=1))
    assert failures == []
    (line,) = caplog.records
    assert (line.levelname, line.exc_info) == (level, None)
    assert line.getMessage() == f"reduce by ReduceLROn was refused: {error}"


# ------------------------------------------------------------------------------------------------ AdaptiveLR


def test_trouble_lowers_and_goes_on_lowering_while_the_loss_does_not_fall() -> None:
    """At once, then every cooldown_steps while the divergence lasts, until the loss falls."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, cooldown_steps=20))
    bench.steps(50)
    event = bench.begin("divergence")
    bench.steps(45, loss=1.1)
    assert [(a.action, a.factor, a.groups) for a in bench.asked] == [("reduce", 0.5, ("SGD",))] * 3
    assert bench.asked[1].reason == "divergence of step 50 still holds"
    bench.steps(100, loss=0.9)
    assert len(bench.asked) == 3
    bench.end(event)
    bench.steps(1000)
    assert len(bench.asked) == 3


def test_without_allow_increase_nothing_is_raised() -> None:
    """The default only lowers."""
    bench = Bench(AdaptiveLR(warmup_steps=0))
    bench.steps(50)
    bench.end(bench.begin("spike"))
    bench.steps(5000)
    assert [a.action for a in bench.asked] == ["reduce"]


def test_calm_raises_back_to_the_schedule_and_never_above() -> None:
    """Doubled after each recover_steps of calm, over as many steps; the last raise ends at 1 exactly."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.3, recover_steps=100, allow_increase=True))
    bench.steps(50)
    bench.end(bench.begin("spike"))
    bench.steps(1000)
    assert [(a.action, a.factor, a.over_steps) for a in bench.asked[1:]] == [("set", 0.6, 100), ("set", 1.0, 100)]
    assert bench.asked[1].groups == ("SGD/0", "SGD/1")
    assert bench.factors == {0: 1.0, 1: 1.0}


def test_what_others_have_set_is_the_new_ceiling() -> None:
    """A person's reduction is not undone: raising ends where the factor was before the trouble."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, recover_steps=100, allow_increase=True))
    bench.factors = {0: 0.2, 1: 1.0}
    bench.steps(50)
    bench.end(bench.begin("spike"))
    bench.steps(1000)
    assert bench.factors == {0: 0.2, 1: 1.0}
    bench.end(bench.begin("spike"))
    assert bench.factors == {0: 0.1, 1: 0.5}
    bench.control(source="api", after=[["SGD", 0, 0.1, 0.01], ["SGD", 1, 0.5, 0.05]])
    bench.steps(1000)
    assert bench.factors == {0: 0.1, 1: 0.5}


def test_its_own_commands_and_those_that_were_refused_move_no_ceiling() -> None:
    """Only what somebody else has applied does."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, recover_steps=100, allow_increase=True))
    bench.steps(50)
    bench.end(bench.begin("spike"))
    bench.control(command_id="command-1", action="reduce", after=[["SGD", 0, 0.5, 0.05], ["SGD", 1, 0.5, 0.05]])
    bench.control(source="api", status="rejected")
    bench.control(source="api", action="checkpoint")
    bench.steps(1000)
    assert bench.factors == {0: 1.0, 1: 1.0}


def test_trouble_after_a_raise_makes_it_wait_longer() -> None:
    """Twice as long each time, so that a run is not driven into the same trouble again and again."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, recover_steps=100, allow_increase=True))
    bench.steps(50)
    bench.end(bench.begin("spike"))
    bench.steps(100)
    bench.steps(30)
    bench.end(bench.begin("spike"))
    bench.steps(199)
    assert [a.action for a in bench.asked] == ["reduce", "set", "reduce"]
    bench.steps(1)
    assert [a.action for a in bench.asked] == ["reduce", "set", "reduce", "set"]


def test_a_plateau_lowers_for_good() -> None:
    """It is the schedule that is wrong then: calm does not raise what a plateau has lowered."""
    bench = Bench(AdaptiveLR(warmup_steps=0, plateau_factor=0.5, recover_steps=100, allow_increase=True))
    bench.steps(50)
    bench.end(bench.begin("plateau"))
    bench.steps(2000)
    assert [a.action for a in bench.asked] == ["reduce"]
    assert bench.factors == {0: 0.5, 1: 0.5}


def test_plateaus_can_be_left_alone() -> None:
    """plateau_factor=None."""
    bench = Bench(AdaptiveLR(warmup_steps=0, plateau_factor=None))
    bench.begin("plateau")
    assert bench.asked == []


def test_a_loss_above_the_first_one_is_trouble() -> None:
    """Worse than untrained for four steps: lowered before any detector has warmed up, and again while it stays."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, cooldown_steps=20))
    bench.steps(1, loss=2.0)
    bench.steps(3, loss=3.0)
    assert bench.asked == []
    bench.steps(1, loss=3.0)
    assert bench.asked[0].reason == "loss 3 stands above the first one, 2, at step 5"
    bench.steps(40, loss=3.0)
    assert len(bench.asked) == 3
    bench.steps(40, loss=1.5)
    assert len(bench.asked) == 3


@pytest.mark.parametrize(("later", "num_asked"), [(3.4, 2), (2.9, 1)])
def test_a_loss_above_the_first_one_must_halve_its_excess(later: float, num_asked: int) -> None:
    """A reduction has helped where less than half of what stood above the first loss is left; else it is repeated."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.5, cooldown_steps=20))
    bench.steps(1, loss=2.0)
    bench.steps(4, loss=4.0)
    assert len(bench.asked) == 1
    bench.steps(20, loss=later)
    assert len(bench.asked) == num_asked


def test_the_wait_before_a_raise_has_a_cap() -> None:
    """It doubles with each raise that ends in trouble, up to 16 times recover_steps."""
    policy = AdaptiveLR(warmup_steps=0, factor=0.5, cooldown_steps=1, recover_steps=10, allow_increase=True)
    bench = Bench(policy)
    bench.steps(50)
    waits = []
    for _ in range(7):
        bench.end(bench.begin("spike"))
        since = bench.now
        while bench.asked[-1].action == "reduce":
            bench.steps(1)
        waits.append(bench.now - since)
        bench.steps(1)
    assert waits == [10, 20, 40, 80, 160, 160, 160]


def test_the_factor_has_a_floor() -> None:
    """min_factor is reached and not passed."""
    bench = Bench(AdaptiveLR(warmup_steps=0, factor=0.1, cooldown_steps=1, min_factor=0.005))
    bench.steps(1)
    bench.begin("divergence")
    bench.steps(50)
    assert bench.factors[0] == pytest.approx(0.005)
    assert [a.factor for a in bench.asked] == pytest.approx([0.1, 0.1, 0.5])


def test_losses_that_are_not_finite_are_passed_over() -> None:
    """NaN weights cannot be helped by a learning rate: nothing is asked for."""
    bench = Bench(AdaptiveLR(warmup_steps=0))
    bench.steps(5, loss=1.0)
    bench.steps(50, loss=math.nan)
    assert bench.asked == []


def test_only_the_groups_asked_for_are_followed() -> None:
    """With groups given, the others' factors say nothing."""
    bench = Bench(AdaptiveLR(warmup_steps=0, groups=1, factor=0.5, recover_steps=100, allow_increase=True))
    bench.steps(50)
    bench.end(bench.begin("spike"))
    assert bench.asked[0].groups == (1,)
    bench.steps(1000)
    assert {a.groups for a in bench.asked[1:]} == {("SGD/1",)}


def test_the_warm_up_begins_low_and_reaches_the_schedule() -> None:
    """One command, before the first step: should nothing ever follow, the run reaches its schedule all the same."""
    bench = Bench(AdaptiveLR(warmup_steps=60))
    assert bench.asked == [Request("set", 1.0, None, "warm-up from a thousandth", 60, begin_at=0.001)]


def test_a_refused_warm_up_is_none() -> None:
    """Below min_lr, or in a run that is resumed: the LR is left as it is."""
    bench = Bench(AdaptiveLR(warmup_steps=60), answer=False)
    bench.control(status="rejected", after=[])
    bench.steps(60)
    bench.steps(20, loss=math.nan)
    assert len(bench.asked) == 1


def warmed_up(**settings: Any) -> Bench:
    """Return a bench whose warm-up has begun, thirty steps ago: its factors stand at a tenth."""
    bench = Bench(AdaptiveLR(warmup_steps=60, **settings))
    bench.control(command_id="command-1", after=[["SGD", 0, 1.0, 0.1], ["SGD", 1, 1.0, 0.1]])
    bench.factors = {0: 0.1, 1: 0.1}
    bench.steps(30)
    return bench


def test_trouble_in_the_warm_up_is_the_new_ceiling() -> None:
    """The LR at which it came is known to be too high: calm does not lead back there."""
    bench = warmed_up(recover_steps=100, allow_increase=True)
    bench.steps(1, loss=math.nan)
    (ask,) = bench.asked[1:]
    assert ask == Request("set", pytest.approx(0.01), ("SGD",), "loss is not finite at factor 0.1")
    bench.factors = dict.fromkeys((0, 1), ask.factor or 1.0)
    bench.steps(2000)
    assert len(bench.asked) == 2


def test_the_warm_up_of_some_groups_names_them() -> None:
    """The others are not touched, in the second optimizer neither."""
    bench = Bench(AdaptiveLR(warmup_steps=60, groups=1))
    bench.control(command_id="command-1", after=[["SGD", 1, 1.0, 0.1]])
    bench.factors[1] = 0.1
    bench.steps(30)
    bench.steps(1, loss=math.nan)
    assert [ask.groups for ask in bench.asked] == [(1,), ("SGD/1",)]


def test_events_wait_until_the_warm_up_is_through() -> None:
    """While the factor climbs it is the search alone that moves it; what still holds then is acted upon."""
    bench = warmed_up(factor=0.5, cooldown_steps=20)
    bench.begin("divergence")
    bench.steps(10)
    assert len(bench.asked) == 1
    bench.factors = {0: 1.0, 1: 1.0}
    bench.steps(22)
    assert [ask.action for ask in bench.asked[1:]] == ["reduce", "reduce"]


@pytest.mark.parametrize("action", ["reduce", "set", "restore", "undo"])
def test_a_command_of_somebody_else_ends_the_warm_up(action: str) -> None:
    """What they have set is in force, whatever the losses do."""
    bench = warmed_up()
    bench.control(action=action, after=[["SGD", 0, 0.2, 0.02]])
    bench.steps(1, loss=math.nan)
    assert len(bench.asked) == 1


@pytest.mark.parametrize(
    "policy", [ReduceLROn("spike", cooldown_steps=50), AdaptiveLR(cooldown_steps=50, warmup_steps=0)]
)
@pytest.mark.parametrize("source", ["api", "alertmanager", "code", "policy"])
def test_what_somebody_else_has_changed_is_cooled_down_from(policy: Any, source: str) -> None:
    """An alert and a policy that see the same spike do not both lower the LR for it."""
    bench = Bench(policy)
    bench.steps(100)
    bench.control(source=source, action="reduce", after=[["SGD", 0, 0.5, 0.05], ["SGD", 1, 0.5, 0.05]])
    bench.begin("spike")
    bench.steps(49)
    assert bench.asked == []
    bench.steps(1)
    assert len(bench.asked) == 1


@pytest.mark.parametrize(
    "policy", [ReduceLROn("spike", cooldown_steps=50), AdaptiveLR(cooldown_steps=50, warmup_steps=0)]
)
def test_another_policy_of_the_same_class_is_somebody_else(policy: Any) -> None:
    """Two policies of a class may be at work in a run: each knows its own commands by their ids."""
    bench = Bench(policy)
    bench.steps(100)
    name = type(policy).__name__
    bench.control(source="policy", actor=name, action="reduce", after=[["SGD", 0, 0.5, 0.05], ["SGD", 1, 0.5, 0.05]])
    bench.begin("spike")
    assert bench.asked == []


def test_a_command_with_the_reason_of_a_warm_up_begins_none() -> None:
    """The warm-up begins with the policy's own command: what somebody else says in its words is a change like any."""
    bench = Bench(AdaptiveLR(warmup_steps=60))
    words = {"source": "policy", "actor": "AdaptiveLR", "reason": bench.asked[0].reason}
    bench.control(**words, after=[["SGD", 0, 1.0, 0.1], ["SGD", 1, 1.0, 0.1]])
    bench.steps(30)
    bench.steps(1, loss=math.nan)
    assert len(bench.asked) == 1


@pytest.mark.parametrize(
    "details",
    [
        {"status": "rejected", "after": []},
        {"action": "checkpoint", "after": []},
        {"after": [["critic", 0, 0.5, 0.05]]},
    ],
)
def test_what_has_changed_nothing_here_is_not_cooled_down_from(details: dict[str, Any]) -> None:
    """A refusal, another action, another optimizer."""
    bench = Bench(ReduceLROn("spike", cooldown_steps=50))
    bench.steps(100)
    bench.control(**details)
    bench.begin("spike")
    assert len(bench.asked) == 1


def test_noise_at_the_start_of_a_warm_up_is_no_trouble() -> None:
    """The highest of the first losses is what untrained means."""
    bench = Bench(AdaptiveLR(warmup_steps=60))
    bench.steps(1, loss=1.0)
    bench.steps(50, loss=1.5)
    assert len(bench.asked) == 1
    bench.steps(4, loss=2.0)
    assert len(bench.asked) == 2

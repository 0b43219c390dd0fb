"""The search for the LR that a fresh run can bear, fed with losses and gradient norms."""

from __future__ import annotations

import math

import pytest

from monitor.control._search import START, Move, Search


class Climber:
    """A search at work on a run whose factor follows what the search asks for, a ramp included."""

    def __init__(self, steps: int = 40, min_factor: float = 1e-4) -> None:
        self.search = Search(steps, min_factor)
        self.moves: list[Move] = []
        self.factor = START
        self._aim, self._ratio = 1.0, START ** (-1 / steps)

    def steps(self, count: int, loss: float | None = 1.0, norm: float | None = 1.0) -> None:
        for _ in range(count):
            self.factor = min(self._aim, self.factor * self._ratio)
            move = self.search.step(loss, norm, self.factor)
            if move is None:
                continue
            self.moves.append(move)
            if move.over_steps:
                self._aim, self._ratio = move.factor, (move.factor / self.factor) ** (1 / move.over_steps)
            else:
                self.factor = self._aim = move.factor

    @property
    def reasons(self) -> list[str]:
        return [move.reason for move in self.moves]


def test_where_nothing_happens_it_asks_for_nothing() -> None:
    """The ramp that was begun with reaches the schedule by itself, and the search is over."""
    climber = Climber()
    climber.steps(41)
    assert climber.factor == 1.0
    assert not climber.search.is_moving
    climber.steps(400)
    climber.steps(20, loss=100.0, norm=100.0)
    assert climber.moves == []


def test_a_loss_that_falls_slows_the_climb_down_once() -> None:
    """To a fifth of the pace: an LR that learns is seldom far from one that is too high."""
    climber = Climber()
    climber.steps(10)
    climber.steps(10, loss=0.9)
    (move,) = climber.moves
    assert (move.factor, move.reason) == (1.0, "the loss falls: warm-up at a slower pace")
    at = START ** (1 - 14 / 40)
    assert move.over_steps == math.ceil(math.log(1 / at) / (-math.log(START) / 40 * 0.2))


def test_the_first_sign_is_a_step_back_and_the_climb_goes_on() -> None:
    """A tenth of the LR at which the norm and the loss rose, a rest, and upwards again to the schedule, slowly."""
    climber = Climber()
    climber.steps(20)
    at = climber.factor * climber._ratio
    climber.steps(1, loss=1.3, norm=4.0)
    assert climber.moves == [
        Move(pytest.approx(0.1 * at), 0, f"gradient norm 4 and loss 1.3 over 1 at factor {at:.3g}")
    ]
    climber.steps(7)
    assert len(climber.moves) == 1
    climber.steps(1)
    assert (climber.moves[1].factor, climber.moves[1].reason) == (1.0, "warm-up continues")
    climber.steps(climber.moves[1].over_steps + 1)
    assert climber.factor == 1.0
    assert not climber.search.is_moving


@pytest.mark.parametrize(("loss", "norm"), [(1.1, 4.0), (1.3, 2.0), (0.9, 50.0), (None, 50.0)])
def test_a_norm_or_a_loss_alone_is_no_sign(loss: float | None, norm: float) -> None:
    """Gradient norms grow as a run begins to learn, and a batch may be a hard one."""
    climber = Climber()
    climber.steps(20)
    climber.steps(1, loss, norm)
    assert climber.moves == []


def test_three_signs_near_each_other_are_a_ceiling() -> None:
    """Single steps may be hard batches, three times they are the LR: the climb ends a third below, for good."""
    climber = Climber()
    climber.steps(20)
    for _ in range(3):
        at = climber.factor * climber._ratio
        climber.steps(1, loss=1.3, norm=4.0)
        climber.steps(25)
    assert climber.moves[4].factor == pytest.approx(0.1 * at)
    assert climber.moves[5] == Move(pytest.approx(0.3 * at), climber.moves[5].over_steps, "warm-up continues")
    climber.steps(500)
    assert len(climber.moves) == 6
    assert climber.factor == pytest.approx(0.3 * at)
    assert not climber.search.is_moving


def test_below_a_ceiling_signs_lower_it_no_further() -> None:
    """Two steps of three are a step back from which it climbs again, however often: noise does not grind it down."""
    climber = Climber()
    climber.steps(20)
    for _ in range(3):
        climber.steps(1, loss=1.3, norm=4.0)
        climber.steps(25)
    climber.steps(50)
    ceiling = climber.factor
    for _ in range(3):
        climber.steps(2, loss=1.3, norm=4.0)
        assert climber.factor == pytest.approx(0.3 * ceiling)
        climber.steps(60)
        assert climber.factor == pytest.approx(ceiling)


def test_a_second_sign_far_above_the_first_is_another_first_one() -> None:
    """The LR of the first has been borne since."""
    climber = Climber()
    climber.steps(20)
    climber.steps(1, loss=1.3, norm=4.0)
    first = climber.factor / 0.3
    while climber.factor < 2.1 * first:
        climber.steps(1)
    climber.steps(2, loss=1.3, norm=4.0)
    climber.steps(300)
    assert climber.reasons[-1] == "warm-up continues"
    assert climber.factor == 1.0


def test_losses_that_stay_not_finite_end_the_search() -> None:
    """The weights are lost then: one step down, in case they are not, and no more."""
    climber = Climber()
    climber.steps(20)
    climber.steps(500, loss=math.nan, norm=math.nan)
    assert len(climber.moves) == 1
    assert not climber.search.is_moving


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_clear_sign(loss: float) -> None:
    """A tenth of that LR, for good."""
    climber = Climber()
    climber.steps(20)
    at = climber.factor * climber._ratio
    climber.steps(1, loss)
    climber.steps(100)
    assert climber.moves == [Move(pytest.approx(0.1 * at), 0, f"loss is not finite at factor {at:.3g}")]


def test_two_steep_steps_are_a_clear_sign() -> None:
    """Also at an LR that has been borne for a while: a tenth of it, for good."""
    climber = Climber()
    climber.steps(60)
    climber.steps(1, loss=2.0, norm=8.0)
    assert climber.moves == []
    climber.steps(1, loss=4.0, norm=20.0)
    climber.steps(200)
    assert climber.factor == pytest.approx(0.1)
    assert len(climber.moves) == 1


def test_what_follows_a_sign_before_the_step_back_is_in_force_makes_it_clear() -> None:
    """The recorder reports several steps at once: two losses far above the first ones end the climb."""
    search = Search(40, 1e-4)
    for _ in range(20):
        assert search.step(1.0, 1.0, 0.03) is None
    assert search.step(1.4, 5.0, 0.03) == Move(
        pytest.approx(0.003), 0, "gradient norm 5 and loss 1.4 over 1 at factor 0.03"
    )
    assert search.step(3.0, 9.0, 0.03) is None
    assert search.step(9.0, 30.0, 0.03) == Move(pytest.approx(0.0003), 0, "loss has gone on rising, to 9")
    for _ in range(7):
        assert search.step(1.5, 3.0, 0.0003) is None
    up = search.step(1.5, 3.0, 0.0003)
    assert up is not None
    assert up.factor == pytest.approx(0.003)


def test_a_loss_that_goes_on_rising_is_lowered_further_down_to_the_floor() -> None:
    """A tenth after each rest in which its level has more than doubled; never below min_factor."""
    search = Search(40, 1e-3)
    for _ in range(20):
        search.step(1.0, 1.0, 0.3)
    assert search.step(math.inf, math.nan, 0.3) == Move(pytest.approx(0.03), 0, "loss is not finite at factor 0.3")
    factor, moves = 0.03, []
    for loss in [10.0] * 8 + [100.0] * 8 + [1000.0] * 8:
        move = search.step(loss, 1.0, factor)
        if move is not None:
            factor = move.factor
            moves.append(move)
    assert [move.factor for move in moves] == pytest.approx([0.003, 0.001, 0.03])
    assert [move.reason for move in moves] == [
        "loss has gone on rising, to 10",
        "loss has gone on rising, to 100",
        "warm-up continues",
    ]


def test_levels_that_come_to_rise_are_a_sign() -> None:
    """No single step stands out, but loss and norm creep up with the LR."""
    climber = Climber()
    climber.steps(10, loss=1.0, norm=1.0)
    for k in range(20):
        climber.steps(1, loss=1.0 + 0.03 * k, norm=1.0 + 0.12 * k)
        if climber.moves:
            break
    assert climber.reasons[0].startswith("gradient norm and loss have come to rise at factor ")


def test_near_zero_a_multiple_is_nothing() -> None:
    """A loss that has been learned to nothing may be ten times as high without being trouble."""
    climber = Climber()
    climber.steps(5)
    climber.steps(40, loss=1e-4, norm=1e-3)
    asked = len(climber.moves)
    climber.steps(3, loss=1e-3, norm=1e-2)
    assert len(climber.moves) == asked


def test_without_a_gradient_norm_the_loss_alone_counts_in_two_steps() -> None:
    """attach(gradient_norm="off"), or a norm that is measured now and then."""
    climber = Climber()
    climber.steps(20, norm=None)
    climber.steps(1, loss=1.6, norm=None)
    assert climber.moves == []
    climber.steps(1, loss=1.6, norm=None)
    assert climber.reasons[0].startswith("loss 1.6 over 1 at factor ")


def test_once_settled_two_signs_of_three_are_a_step_back_for_a_while() -> None:
    """The LR has been borne already: it is climbed back to, however often, and left alone after ten times the steps."""
    climber = Climber()
    climber.steps(60)
    for _ in range(3):
        climber.steps(1, loss=1.3, norm=4.0)
        assert climber.factor == 1.0
        climber.steps(1, loss=1.3, norm=4.0)
        assert climber.factor == pytest.approx(0.3)
        climber.steps(50)
        assert climber.factor == 1.0
    climber.steps(400)
    climber.steps(9, loss=1.3, norm=4.0)
    assert climber.factor == 1.0


def test_a_search_that_was_stopped_asks_for_nothing() -> None:
    """Somebody else has set the factor."""
    climber = Climber()
    climber.steps(10)
    climber.search.stop()
    climber.steps(30, loss=math.nan)
    assert climber.moves == []
    assert not climber.search.is_moving

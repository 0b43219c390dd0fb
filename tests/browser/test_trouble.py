"""What the page shows when something is wrong: with the numbers, with the run, with the connection."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from monitor.control import Stacks
from tests.browser.conftest import serve
from tests.browser.expecting import expect
from tests.browser.page_run import PageRun

STACK = '  File "job.py", line 7, in {}\n    wait()\n'
LAST_STEP = "document.querySelector('#chart-loss .plot').data.find(({name}) => name === 'smoothed').x.at(-1)"
OFFLINE = ("ERR_", "Failed to load resource")


def test_a_loss_that_is_nan_is_shown_as_nan_and_alarms(visit) -> None:
    """Tile, notice, title and chart say it; nothing is smoothed away."""
    run = PageRun(1500)  # the fake run's loss is NaN at this step
    assert math.isnan(run.snapshot().optimizers[0].loss or 0)
    page = visit(run).page
    expect(page.locator("#tile-loss data")).to_have_text("NaN")
    expect(page.locator("#tile-loss")).to_have_attribute("data-alarm", "critical")
    expect(page.locator("#notices")).to_contain_text("Loss is NaN")
    expect(page).to_have_title("▶ 1,500 · loss NaN · fake")
    expect(page.locator("#chart-loss .legend")).to_contain_text("NaN or Inf")
    marks = "document.querySelector('#chart-loss .plot').data.find(({name}) => name === 'not finite')"
    assert page.evaluate(f"[{marks}.x, {marks}.text]") == [[1500], ["NaN"]]
    assert page.evaluate("Number.isFinite(document.querySelector('#chart-loss .plot').data.at(-2).y[0])")
    run.advance(1)
    expect(page.locator("#tile-loss")).not_to_have_attribute("data-alarm", "critical")
    expect(page.locator("#notices")).not_to_contain_text("Loss is NaN")


def test_what_held_at_the_end_of_a_run_is_past(visit) -> None:
    """A condition that no event has ended is that of the end; so is a loss that is not finite."""
    run = PageRun(1500)
    run.publish("slowdown", "warning", "steps take longer", optimizer="AdamW")
    run.alter = lambda snapshot: replace(snapshot, events_active={"slowdown": True})
    run.state = "finished"
    notices = visit(run).page.locator("#notices")
    expect(notices).to_contain_text("Slowdown at the end")
    expect(notices).to_contain_text("Loss was NaN")


def test_where_ranks_stand_in_a_stall_is_a_click_away(visit) -> None:
    """The message names the places; each stack is folded below it, and stays unfolded when other events come."""
    run = PageRun()
    stacks = Stacks({0: STACK.format("all_reduce"), 1: STACK.format("<b>load"), 2: STACK.format("all_reduce")}, (), 3)
    details = {"state": "stalled", **stacks.details, "debug_page": "http://node-a:25999"}
    run.publish("state", "warning", stacks.message, details=details)
    page = visit(run).page
    event = page.locator("#events .event").first
    expect(event).to_contain_text("rank 1 is in <b>load (job.py:7); ranks 0, 2 are in all_reduce (job.py:7)")
    expect(event.get_by_role("link", name="torch's debug page")).to_have_attribute("href", "http://node-a:25999")
    expect(event.locator("pre").first).to_be_hidden()
    event.get_by_text("Stack of rank 1").click()
    run.publish("spike", "warning", "a spike", optimizer="AdamW")
    expect(page.locator("#events .event").first).to_contain_text("a spike")
    event = page.locator("#events .event").nth(1)
    expect(event.locator("pre").first).to_be_visible()
    expect(event.locator("pre").first).to_have_text(STACK.format("<b>load"))
    expect(event.locator("pre").nth(1)).to_be_hidden()


@pytest.mark.parametrize(("value", "text"), [(math.inf, "Inf"), (-math.inf, "−Inf"), (None, "–")])
def test_infinite_and_unknown_losses_are_told_apart(visit, value: float | None, text: str) -> None:
    """Infinity alarms; a loss that nobody knows does not."""
    run = PageRun()
    run.alter_optimizer(loss=value)
    page = visit(run).page
    expect(page.locator("#tile-loss data")).to_have_text(text)
    assert page.locator("#tile-loss").get_attribute("data-alarm") == (None if value is None else "critical")


@pytest.mark.parametrize(
    ("state", "title"), [("finished", "Run finished"), ("failed", "Run failed"), ("interrupted", "Run interrupted")]
)
def test_the_end_of_a_run_stays_on_the_page(visit, state: str, title: str) -> None:
    """Its last state is shown as that, also after its server has gone; no stale mark then."""
    seen = visit(clock=True, expected=OFFLINE)
    expect(seen.page.locator("#state")).to_have_text("Running")
    seen.run.state = state
    seen.page.clock.run_for(1500)
    expect(seen.page.locator("#state")).to_have_text(state.capitalize())
    expect(seen.page.locator("#notices")).to_contain_text(title)
    expect(seen.page.get_by_role("button", name="Review the change")).to_be_disabled()
    seen.server.stop()
    for _ in range(4):
        seen.page.clock.run_for(6000)
        seen.page.wait_for_timeout(20)
    expect(seen.page.locator("#notices")).to_contain_text("The server has gone with the run")
    expect(seen.page.locator("#state")).to_have_text(state.capitalize())
    expect(seen.page.locator("#tile-loss data")).not_to_have_text("–")


def test_the_last_state_is_kept_though_the_curves_are_cut_off(visit) -> None:
    """A run that ends may answer for its state and be gone before it has answered for its curves and events."""
    seen = visit(clock=True, expected=OFFLINE)
    expect(seen.page.locator("#state")).to_have_text("Running")
    seen.run.state = "finished"
    seen.page.route("**/history?**", lambda route: route.abort())
    seen.page.route("**/events?**", lambda route: route.abort())
    seen.page.clock.run_for(1500)
    expect(seen.page.locator("#state")).to_have_text("Finished")
    expect(seen.page.locator("#notices")).to_contain_text("Run finished")


def lose(seen) -> None:
    """Take the server away and let the page notice."""
    seen.server.stop()
    for _ in range(8):
        seen.page.clock.run_for(1000)
        seen.page.wait_for_timeout(20)
    expect(seen.page.locator("#state")).to_have_text("No answer")


def find_again(seen) -> None:
    """Let the page's longest pause between two tries pass."""
    for _ in range(17):
        seen.page.clock.run_for(1000)
        seen.page.wait_for_timeout(20)


def test_silence_is_marked_and_ends_when_the_run_answers_again(visit) -> None:
    """The page keeps the last figures, says since when they are old, sends nothing, and continues from its cursor."""
    seen = visit(clock=True, expected=OFFLINE)
    expect(seen.page.locator("#progress-text")).to_contain_text("Step 300 ")
    lose(seen)
    expect(seen.page.locator("#notices")).to_contain_text("No answer for")
    expect(seen.page.locator("#progress-text")).to_contain_text("Step 300 ")
    expect(seen.page.get_by_role("button", name="Review the change")).to_be_disabled()
    seen.run.advance(5)
    server = serve(seen.run, seen.server.port)
    try:
        find_again(seen)
        expect(seen.page.locator("#state")).to_have_text("Running")
        expect(seen.page.locator("#progress-text")).to_contain_text("Step 305 ")
        expect(seen.page.locator("#notices")).to_be_empty()
        assert [since for since, _ in seen.run.asked].count(0) == 1
    finally:
        server.stop()


def test_a_page_backs_off_from_a_run_that_does_not_answer(visit) -> None:
    """One try a second would be noise: the pauses double."""
    seen = visit(clock=True, expected=OFFLINE)
    expect(seen.page.locator("#state")).to_have_text("Running")
    lose(seen)
    tries = len(seen.requests)
    for _ in range(30):
        seen.page.clock.run_for(1000)
        seen.page.wait_for_timeout(10)
    assert 1 <= len(seen.requests) - tries <= 5


def test_another_run_on_the_same_port_starts_a_new_picture(visit) -> None:
    """A new run_id empties the curves and the list of events, and asks from the start."""
    seen = visit(clock=True, expected=OFFLINE)
    expect(seen.page.locator("#run-id")).to_have_text("fake-0a1b2c")
    seen.run.publish("plateau", "warning", "of the old run")
    seen.page.clock.run_for(1500)
    expect(seen.page.locator("#events")).to_contain_text("of the old run")
    lose(seen)
    other = PageRun(20, run_id="fake-999999")
    server = serve(other, seen.server.port)
    try:
        find_again(seen)
        expect(seen.page.locator("#run-id")).to_have_text("fake-999999")
        assert [since for since, _ in other.asked[:2]] == [300, 0]
        expect(seen.page.locator("#events")).not_to_contain_text("of the old run")
        seen.until(LAST_STEP, 20)
    finally:
        server.stop()


def test_a_run_whose_steps_stop_shows_their_age(visit) -> None:
    """The age ticks between answers and alarms once it exceeds the run's own limit."""
    run = PageRun()
    run.alter = lambda snapshot: replace(snapshot, last_step_time=snapshot.time - 700, stall_timeout=600.0)
    page = visit(run).page
    expect(page.locator("#tile-last-step data")).to_contain_text("11 min 4")
    expect(page.locator("#tile-last-step")).to_have_attribute("data-alarm", "critical")


def test_a_session_that_is_over_asks_to_log_in(visit) -> None:
    """Without its cookie the page shows the server's words and a way back in."""
    seen = visit(expected=("401", "404"))  # the login form has no icon
    expect(seen.page.locator("#state")).to_have_text("Running")
    seen.page.context.clear_cookies()
    expect(seen.page.locator("#notices")).to_contain_text("This needs a token")
    seen.page.get_by_role("button", name="Log in").click()
    expect(seen.page.get_by_label("Token")).to_be_visible()


def test_failures_of_the_monitor_itself_are_shown(visit) -> None:
    """Errors of ours and lost steps stand on the overhead's tile."""
    run = PageRun()
    run.alter = lambda snapshot: replace(snapshot, errors={"recorder": 2, "server": 1}, dropped_steps=1234)
    page = visit(run).page
    expect(page.locator("#tile-overhead")).to_contain_text("3 errors of ours, 1,234 steps not recorded")
    expect(page.locator("#tile-overhead")).to_have_attribute("data-alarm", "warning")

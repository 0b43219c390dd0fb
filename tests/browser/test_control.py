"""Lowering the learning rate from the page: shown before it is sent, sent once, followed to its outcome."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from monitor._errors import CommandRefusedError
from tests.browser.expecting import expect
from tests.browser.page_run import PageRun
from tests.server.fake_run import READ_TOKEN


def review(page):
    """Press the button that opens the confirmation, and return that."""
    page.get_by_role("button", name="Review the change").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    return dialog


def cells(dialog) -> list[list[str]]:
    """Return the rows of the confirmation's table as texts."""
    return [row.locator("th, td").all_text_contents() for row in dialog.locator("tbody tr").all()]


def steady(run: PageRun) -> PageRun:
    """Hold the schedule still, so that what is shown can be written down here."""
    groups = tuple(
        replace(group, scheduled=lr, applied=group.factor * lr)
        for group, lr in zip(run.snapshot().optimizers[0].groups, (3e-4, 6e-4), strict=True)
    )
    run.alter_optimizer(groups=groups)
    return run


def test_a_reduction_shows_old_and_new_and_is_sent_once(visit) -> None:
    """Nothing is sent before the confirmation; then exactly one command, whose outcome appears with its step."""
    seen = visit(steady(PageRun()))
    page, run = seen.page, seen.run
    page.get_by_label("Reason").fill("loss spikes")
    dialog = review(page)
    assert cells(dialog) == [["0 decay", "3e-4 ×1", "1.5e-4 ×0.5"], ["1 no_decay", "6e-4 ×1", "3e-4 ×0.5"]]
    expect(dialog).to_contain_text("Reason: loss spikes")
    assert run.submitted == []
    dialog.get_by_role("button", name="Reduce it").dblclick()
    outcome = page.locator(".outcome")
    expect(outcome).to_have_text("reduce: waiting for the next optimizer step")
    assert [(sent["action"], sent["factor"], sent["groups"], sent["reason"]) for sent in run.submitted] == [
        ("reduce", 0.5, None, "loss spikes")
    ]
    run.advance(1)
    expect(outcome).to_contain_text("reduce applied at step 301: 0 decay")
    expect(outcome).to_have_attribute("data-status", "applied")
    run.alter = lambda snapshot: snapshot
    expect(page.locator("#control .groups .factor").first).to_have_text("×0.5")
    expect(page.locator("#events .event[data-kind=control]")).to_contain_text("loss spikes")
    assert len(run.submitted) == 1


def test_cancel_sends_nothing(visit) -> None:
    """Neither the button nor Escape leaves a trace."""
    seen = visit()
    review(seen.page).get_by_role("button", name="Cancel").click()
    expect(seen.page.get_by_role("dialog")).to_be_hidden()
    review(seen.page)
    seen.page.keyboard.press("Escape")
    expect(seen.page.get_by_role("dialog")).to_be_hidden()
    assert seen.run.submitted == []
    assert not any(request.endswith("/lr/reduce") for request in seen.requests)


def test_it_works_by_keyboard_alone(visit) -> None:
    """Enter opens the confirmation with Cancel in focus, so that a second Enter is harmless; Tab reaches the button."""
    seen = visit()
    page = seen.page
    expect(page.locator("#control .groups label")).to_have_count(3)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "factor":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("0.25")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Review the change")).to_be_visible()
    page.locator("#factor").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Reduce it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".outcome")).to_be_visible()
    assert [sent["factor"] for sent in seen.run.submitted] == [0.25]


def test_groups_steps_and_set(visit) -> None:
    """`Set` states the factor for the chosen groups, over as many steps as asked for."""
    seen = visit(steady(PageRun()))
    page = seen.page
    page.get_by_role("radio", name="Set").check()
    page.get_by_label("Factor").fill("0.1")
    page.get_by_label("Reach it over (steps)").fill("50")
    page.get_by_role("checkbox", name="1 no_decay").uncheck()
    dialog = review(page)
    assert cells(dialog) == [["0 decay", "3e-4 ×1", "3e-5 ×0.1"]]
    expect(dialog).to_contain_text("Reached geometrically over 50 steps.")
    dialog.get_by_role("button", name="Set it").click()
    expect(page.locator(".outcome")).to_be_visible()
    sent = seen.run.submitted[0]
    assert (sent["action"], sent["factor"], sent["groups"], sent["over_steps"]) == ("set", 0.1, (0,), 50)


def test_undo_shows_what_it_takes_back(visit) -> None:
    """The page knows the factors before the last change from the audit trail."""
    run = PageRun()
    for factor in (0.5, 0.1):
        run.submit("reduce", source="code", actor="", reason="", factor=factor, groups=(0,), over_steps=0)
        run.advance(1)
    run.submitted.clear()
    page = visit(run).page
    expect(page.locator("#control .groups .factor").first).to_have_text("×0.05")
    page.get_by_role("radio", name="Undo").check()
    expect(page.get_by_label("Factor")).to_be_hidden()
    dialog = review(page)
    assert [[row[0], *(cell.split(" ")[1] for cell in row[1:])] for row in cells(dialog)] == [
        ["0 decay", "×0.05", "×0.5"]
    ]
    dialog.get_by_role("button", name="Undo it").click()
    expect(page.locator(".outcome")).to_contain_text("undo: waiting")  # the run has it
    run.advance(1)
    expect(page.locator(".outcome")).to_contain_text("undo applied at step 303")
    expect(page.locator("#control .groups .factor").first).to_have_text("×0.5")
    page.get_by_role("radio", name="Restore").check()
    factors = [[cell.split(" ")[1] for cell in row[1:]] for row in cells(review(page))]
    assert factors == [["×0.5", "×1"], ["×1", "×1"]]


def test_a_refusal_is_shown_in_the_server_s_words(visit) -> None:
    """The page does not guess at the run's rules: it shows what the run says."""
    seen = visit(expected=("422",))
    seen.page.get_by_label("Factor").fill("4")
    review(seen.page).get_by_role("button", name="Reduce it").click()
    outcome = seen.page.locator(".outcome")
    with pytest.raises(CommandRefusedError, match=r"got 4\.0") as refused:
        seen.run.submit("reduce", source="code", actor="", reason="", factor=4.0, groups=None, over_steps=0)
    expect(outcome).to_contain_text(str(refused.value))
    expect(outcome).to_have_attribute("data-status", "rejected")


@pytest.mark.parametrize("text", ["", "0", "-1"])
def test_a_factor_that_is_none_never_leaves_the_page(visit, text: str) -> None:
    """The field is marked, focused and explained."""
    seen = visit()
    seen.page.get_by_label("Factor").fill(text)
    seen.page.get_by_role("button", name="Review the change").click()
    expect(seen.page.locator("#control-error")).to_have_text("The factor must be a number above 0, such as 0.5.")
    expect(seen.page.get_by_label("Factor")).to_be_focused()
    expect(seen.page.get_by_label("Factor")).to_have_attribute("aria-invalid", "true")
    assert seen.run.submitted == []


def test_a_read_only_page_explains_itself(visit) -> None:
    """With the reading token everything is shown and nothing can be pressed."""
    seen = visit(token=READ_TOKEN)
    expect(seen.page.locator("#control")).to_contain_text("read-only token")
    expect(seen.page.get_by_role("button", name="Review the change")).to_be_hidden()
    expect(seen.page.locator("#tile-loss data")).not_to_have_text("–")


def test_a_command_whose_answer_is_lost_is_not_carried_out_twice(visit) -> None:
    """Pressing again after a broken connection sends the same idempotency key."""
    seen = visit(expected=("ERR_",))
    keys = []
    arrived = threading.Event()

    def lose_the_first_answer(route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if arrived.is_set():
            route.continue_()
            return
        arrived.set()
        route.fetch()
        route.abort()

    seen.page.route("**/api/v1/lr/reduce", lose_the_first_answer)
    dialog = review(seen.page)
    dialog.get_by_role("button", name="Reduce it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("trying again will not apply it twice")
    dialog.get_by_role("button", name="Reduce it").click()
    expect(seen.page.get_by_role("dialog")).to_be_hidden()
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert len(seen.run.submitted) == 1

"""Who can use the page, and on what: small screens, dark rooms, screen readers; and who cannot abuse it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.browser.expecting import expect
from tests.browser.page_run import PageRun
from tests.requirements import need_module

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&amp;<b>bold</b>'
PLOTTED = "#chart-loss .js-plotly-plot .scatterlayer .trace"


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_no_screen_scrolls_sideways(visit, width: int) -> None:
    """From a phone to a desk, with a long name and an ongoing event."""
    run = PageRun(900)
    run.alter = lambda snapshot: replace(snapshot, run=replace(snapshot.run, name="a-name-without-a-break-" * 5))
    page = visit(run, width=width).page
    expect(page.locator(PLOTTED).first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overflowing = """[...document.querySelectorAll('main *, header *')].filter((element) =>
        element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.scroll, .plot'))
        .map((element) => element.outerHTML)"""
    assert page.evaluate(overflowing) == []
    page.get_by_role("button", name="Review the change").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    table = page.get_by_role("dialog").locator(".scroll")
    assert table.evaluate("box => box.scrollWidth <= box.clientWidth")  # the new rate is never out of sight


def luminance(color: str) -> float:
    """Return the mean channel of an rgb() text."""
    channels = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return sum(channels) / 3


def test_it_follows_the_system_to_dark_and_back(visit) -> None:
    """Page and charts change together, without a reload."""
    seen = visit(color_scheme="dark")
    page = seen.page
    expect(page.locator(PLOTTED).first).to_be_attached()
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#chart-loss .plot').layout.font.color"
    assert luminance(page.evaluate(ground)) < 60
    dark_ink = page.evaluate(ink)
    page.emulate_media(color_scheme="light")
    assert luminance(page.evaluate(ground)) > 200
    seen.until(f"{ink} !== {dark_ink!r}", True)


def test_text_from_the_run_stays_text(visit) -> None:
    """Names, groups, metrics, reasons and messages that look like markup are shown as they are and run nothing."""
    run = PageRun()
    run.publish("spike", "critical", EVIL, optimizer=None)
    run.submit("reduce", source="api", actor=EVIL, reason=EVIL, factor=0.5, groups=None, over_steps=0)
    run.advance(1)
    (optimizer,) = run.snapshot().optimizers
    groups = tuple(replace(group, name=f"{EVIL}{group.index}") for group in optimizer.groups)

    def alter(snapshot):
        return replace(
            snapshot,
            run=replace(snapshot.run, name=EVIL, hostname=EVIL, git_commit=EVIL, device=EVIL),
            optimizers=(replace(optimizer, groups=groups, class_name=EVIL),),
            metrics={EVIL: 1.0},
            validation_losses={EVIL: 2.0},
            gpus=tuple(replace(gpu, model=EVIL) for gpu in snapshot.gpus),
        )

    run.alter = alter
    seen = visit(run)
    page = seen.page
    expect(page.locator(PLOTTED).first).to_be_attached()
    expect(page.locator("#run-name")).to_have_text(EVIL)
    expect(page.locator("#events .event[data-kind=spike] .message")).to_have_text(EVIL)
    expect(page.locator("#chart-learning-rate .legend li").first).to_have_text(f"0 {EVIL}0")
    page.locator("#chart-learning-rate .plot").hover()
    page.locator("#chart-loss .plot").hover()
    page.get_by_role("button", name="Review the change").click()
    expect(page.get_by_role("dialog").locator("tbody th").first).to_have_text(f"0 {EVIL}0")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, body script, main b").count() == 0


@pytest.mark.parametrize(
    ("color_scheme", "has_dialog"), [("light", False), ("dark", False), ("light", True), ("dark", True)]
)
def test_axe_finds_nothing_serious(visit, color_scheme: str, has_dialog: bool) -> None:
    """The accessibility engine of Deque finds no violation of WCAG 2.2 A and AA, of any impact."""
    need_module("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    run = PageRun(900)
    run.publish("divergence", "critical", "loss has left its level")
    page = visit(run, color_scheme=color_scheme).page
    expect(page.locator(PLOTTED).first).to_be_attached()
    expect(page.locator("#notices")).to_contain_text("left its level")
    if has_dialog:
        page.get_by_role("button", name="Review the change").click()
        expect(page.get_by_role("dialog")).to_be_visible()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response
    assert found["passes"]
    said = [(one["id"], one["impact"], [node["html"][:120] for node in one["nodes"]]) for one in found["violations"]]
    assert said == [], json.dumps(said, indent=1)


def test_changes_of_state_are_announced(visit) -> None:
    """A polite live region reads out a new state and new trouble, and nothing while all is well."""
    seen = visit()
    announcer = seen.page.get_by_role("status")
    expect(seen.page.locator("#state")).to_have_text("Running")
    expect(announcer).to_be_empty()
    expect(announcer).to_have_attribute("aria-live", "polite")
    seen.run.publish("gradient_explosion", "warning", "gradient norm far above its level")
    expect(announcer).to_contain_text("gradient explosion: gradient norm far above its level")
    seen.run.state = "paused"
    expect(announcer).to_contain_text("Run paused")


def test_focus_can_be_seen_everywhere(visit) -> None:
    """Every stop of the Tab key has an outline, also where the real input is invisible."""
    page = visit().page
    expect(page.locator(PLOTTED).first).to_be_attached()
    outlined = """() => {
        const element = document.activeElement;
        const shown = element.matches('.segmented input') ? element.nextElementSibling : element;
        return [element.outerHTML.slice(0, 90), getComputedStyle(shown).outlineStyle];
    }"""
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        stops.append(page.evaluate(outlined))
    assert len(stops) > 15
    assert [stop for stop in stops if stop[1] == "none"] == []


def test_what_a_change_needs_is_kept_by_the_page_alone(visit) -> None:
    """Logging in leaves nothing in the address bar; a reload and a second tab can still change things, and a browser
    that has only the cookie can look and is told what to do."""
    seen = visit(expected=("403",))
    page = seen.page
    expect(page.locator("#state")).to_have_text("Running")
    assert page.url == f"{seen.server.url}/"
    assert page.evaluate("localStorage.getItem('monitor-csrf /')") is not None
    page.reload()
    change(page)
    expect(page.locator(".outcome").first).to_contain_text("waiting for the next optimizer step")
    assert [command.action for command in seen.run.commands()] == ["reduce"]
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator("#state")).to_have_text("Running")
    change(page)
    expect(page.locator(".outcome").first).to_contain_text("open the URL of the run's log again")
    assert len(seen.run.commands()) == 1


def change(page) -> None:
    """Ask for the change that the card proposes, and confirm it."""
    page.get_by_role("button", name="Review the change").click()
    page.get_by_role("dialog").get_by_role("button", name="Reduce it").click()

"""What the page shows of a healthy run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

from monitor._records import RankReading, Snapshot
from tests.browser.expecting import expect
from tests.browser.page_run import PageRun
from tests.server.fake_run import TOKEN

LAST_STEP = "document.querySelector('#chart-loss .plot').data.find(({name}) => name === 'smoothed').x.at(-1)"
FIRST_STEP_SHOWN = "document.querySelector('#chart-learning-rate .plot').layout.xaxis.range[0]"
LAST_STEP_SHOWN = "document.querySelector('#chart-loss .plot').layout.xaxis.range[1]"
EARLIER = "earlier attempt"
PLOTTED = "#chart-loss .js-plotly-plot .scatterlayer .trace"


def raw(visit, tile: str) -> float:
    """Return the number behind a tile's text."""
    return float(visit.page.locator(f"#tile-{tile} data").get_attribute("value"))


def shown_by_api(visit) -> dict:
    """Ask the API as any client would."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return json.loads(visit.page.request.get(f"{visit.server.url}/api/v1/run", headers=headers).text())


def traces(visit, chart: str) -> list[dict]:
    """Return what plotly was given for a chart."""
    visit.page.wait_for_selector(f"#chart-{chart} .js-plotly-plot")
    script = "plot => plot.data.map(({name, x, y, line}) => ({name, x: [...x], y: [...y], dash: line?.dash}))"
    return visit.page.locator(f"#chart-{chart} .plot").evaluate(script)


def test_it_loads_without_a_complaint_and_asks_no_other_host(visit) -> None:
    """Everything comes from the run itself, under its Content-Security-Policy: the fixture looks at the console."""
    seen = visit()
    expect(seen.page.locator(PLOTTED).first).to_be_attached()
    expect(seen.page.locator("#run-name")).to_have_text("fake")
    expect(seen.page.locator("#state")).to_have_text("Running")
    assert any(url.endswith("/static/plotly.min.js") for url in seen.requests)
    assert all("token=" not in url for url in seen.requests[1:])


def test_the_details_name_the_rank_where_several_train_together(visit) -> None:
    """A run of two ranks says which one it is; a run that trains alone says nothing of ranks."""
    run = PageRun()
    told = run.snapshot().run
    run.alter = lambda snapshot: replace(snapshot, run=replace(told, world_size=2, rank=1))
    details = visit(run).page.locator("#details")
    expect(details).to_contain_text("rank 1 of 2")
    expect(details.page.locator("#tile-loss")).to_contain_text("on rank 1 of 2")
    for summed, words in ((2, "mean of 2 ranks"), (3, "mean of 3 of 4 ranks")):
        several = replace(told, world_size=2 if summed == 2 else 4, rank=0)
        run.alter = lambda snapshot, n=summed, info=several: replace(snapshot, run=info, summed_ranks=n)
        run.advance(1)
        expect(details.page.locator("#tile-loss")).to_contain_text(words)
    run.alter = lambda snapshot: replace(snapshot, run=told)
    run.advance(1)
    expect(details).not_to_contain_text("Ranks")
    expect(details.page.locator("#tile-loss")).not_to_contain_text("rank")


def test_the_ranks_are_listed_in_rank_0s_run(visit) -> None:
    """One row each, with the state in words; a run that trains alone has no such card."""
    run = PageRun()
    run.ranks = (
        RankReading(0, "ok", "fake-0a1b2c", "node-a", 1204, 0.052, 2.301, 0.0, 0.02),
        RankReading(1, "lost", "fake-000001", "node-b", 1180, 0.052, math.nan, 34.0),
        RankReading(2),
    )
    page = visit(run).page
    card = page.locator("#ranks")
    expect(card.locator("h2")).to_have_text("3 ranks")
    rows = [row.locator("th, td").all_inner_texts() for row in card.locator("tbody tr").all()]
    assert rows == [
        ["0", "ok", "1,204", "52 ms", "20 ms", "2.301", "just now", "node-a"],
        ["1", "lost", "1,180", "52 ms", "–", "NaN", "34 s ago", "node-b"],
        ["2", "not attached", "–", "–", "–", "–", "–", "–"],
    ]
    run.state = "finished"
    expect(card.locator("h2")).to_have_text("3 ranks when the run ended")
    expect(card.locator("tbody tr").nth(1)).to_contain_text("34 s before")
    run.ranks = ()
    expect(card).to_be_hidden()


def test_a_gradient_norm_that_cannot_be_known_is_a_dash_with_its_reason(visit) -> None:
    """Sharded gradients: the tile says why it has no number."""

    def sharded(snapshot: Snapshot) -> Snapshot:
        optimizers = [
            replace(o, gradient_norm=None, gradient_norm_step=None, gradient_norm_reason="sharded over 8 ranks")
            for o in snapshot.optimizers
        ]
        return replace(snapshot, optimizers=tuple(optimizers))

    run = PageRun()
    run.alter = sharded
    tile = visit(run).page.locator("#tile-gradient-norm")
    expect(tile).to_contain_text("sharded over 8 ranks")
    assert tile.locator("data").get_attribute("value") == ""


def test_the_strip_shows_the_numbers_of_the_api(visit) -> None:
    """Each tile carries the exact value beside its readable text."""
    seen = visit()
    expect(seen.page.locator("#progress-text")).to_contain_text("Step 300 of 5,000")
    told = shown_by_api(seen)
    optimizer = told["optimizers"][0]
    assert raw(seen, "loss") == optimizer["loss"]
    assert raw(seen, "best") == optimizer["loss_best"]
    assert raw(seen, "learning-rate") == max(group["applied"] for group in optimizer["groups"])
    assert raw(seen, "gradient-norm") == optimizer["gradient_norm"]
    assert raw(seen, "clipped") == optimizer["clip_share"] == 0.33
    assert raw(seen, "speed") == told["steps_per_second"]
    assert raw(seen, "overhead") == told["overhead_ratio"]
    assert raw(seen, "last-step") == told["last_step_time"]
    assert float(seen.page.locator("#progress-bar").get_attribute("value")) == 300 / 5000
    expect(seen.page.locator("#tile-clipped data")).to_have_text("33 %")


def test_the_charts_hold_the_run_s_curves(visit) -> None:
    """Loss, smoothed loss and each group's learning rate are drawn as the history gives them."""
    seen = visit()
    history = seen.run.history(0, 2000)["optimizers"]["AdamW"]
    loss = {trace["name"]: trace for trace in traces(seen, "loss")}
    assert loss["smoothed"]["x"] == history["step"]
    assert loss["loss"]["y"] == history["loss"]
    assert loss["smoothed"]["y"] == history["loss_ema"]
    rates = {trace["name"]: trace for trace in traces(seen, "learning-rate")}
    assert rates["0 decay"]["y"] == history["lr"]["0"]["applied"]
    assert rates["1 no_decay"]["y"] == history["lr"]["1"]["applied"]
    assert [trace["dash"] for trace in traces(seen, "gradient-norm") if trace["name"] == "clip threshold"] == ["dash"]


def test_a_constant_learning_rate_is_drawn_at_its_height(visit) -> None:
    """The axis of one that never changes reaches from 0 to just above it."""
    run = PageRun(300)

    def constant(history: dict) -> dict:
        for group in history["optimizers"]["AdamW"]["lr"].values():
            for name in ("applied", "scheduled"):
                group[name] = [1e-3] * len(group[name])
        return history

    run.alter_history = constant
    seen = visit(run)
    assert {value for trace in traces(seen, "learning-rate") if trace["name"] != "events" for value in trace["y"]} == {
        1e-3
    }
    low, high = seen.page.locator("#chart-learning-rate .plot").evaluate("plot => plot._fullLayout.yaxis.range")
    assert low == 0
    assert 1e-3 <= high < 2e-3


def test_a_gradient_norm_taken_now_and_then_is_one_line(visit) -> None:
    """`gradient_norm=10`: steps without a norm leave no gap, one whose norm was NaN does."""
    run = PageRun(300)

    def sparse(history: dict) -> dict:
        columns = history["optimizers"]["AdamW"]
        for name in ("gradient_norm", "gradient_norm_max"):
            columns[name] = [
                v if step % 10 == 0 else None for step, v in zip(columns["step"], columns[name], strict=True)
            ]
        columns["gradient_norm"] = [
            math.nan if s == 200 else v for s, v in zip(columns["step"], columns["gradient_norm"], strict=True)
        ]
        return history

    run.alter_history = sparse
    (norm,) = [trace for trace in traces(visit(run), "gradient-norm") if trace["name"] == "gradient norm"]
    assert norm["x"][:4] == [10, 20, 30, 40]
    assert [step for step, value in zip(norm["x"], norm["y"], strict=True) if value is None] == [200]


def test_events_stand_in_the_order_they_came_after_a_rewind(visit) -> None:
    """The newest is first, also where training went back and its step is an earlier one."""
    run = PageRun(300)
    run.publish("spike", "warning", "before the rewind")
    run._events[-1] = replace(run.publish("state", "info", "resumed"), step=100, start_step=100)
    messages = visit(run).page.locator("#events .event .message")
    expect(messages.nth(0)).to_have_text("resumed")
    expect(messages.nth(1)).to_contain_text("before the rewind")


def test_only_increments_are_asked_for(visit) -> None:
    """The second poll carries the cursor of the first, and what it brings is appended."""
    seen = visit()
    expect(seen.page.locator("#progress-text")).to_contain_text("Step 300 ")
    seen.run.advance(7)
    expect(seen.page.locator("#progress-text")).to_contain_text("Step 307 ")
    assert seen.run.asked[0][0] == 0
    assert 0 not in [since for since, _ in seen.run.asked][1:]
    assert seen.run.asked[-1][0] in (300, 307)
    seen.until(LAST_STEP, 307)
    assert [trace["x"] for trace in traces(seen, "loss") if trace["name"] == "loss"] == [list(range(1, 308))]


def test_what_was_done_over_is_a_grey_line_behind_the_curves(visit) -> None:
    """It reaches over the steps that were made before, has a word in the legend and a sentence, and one that comes
    while the page is open has everything asked for again."""
    seen = visit(PageRun(300))
    expect(seen.page.locator(PLOTTED).first).to_be_attached()
    assert not [trace for trace in traces(seen, "loss") if trace["name"] == EARLIER]

    def rewound(history: dict) -> dict:
        columns = history["optimizers"]["AdamW"]
        part = {**columns, "step": [step + 100 for step in columns["step"]]}
        abandoned = {} if history["since"] else {"AdamW": [part]}
        return {**history, "attempt": 1, "abandoned": abandoned}

    seen.run.alter_history = rewound
    seen.until(LAST_STEP_SHOWN, 400)
    assert [since for since, _ in seen.run.asked].count(0) == 2
    for chart in ("loss", "learning-rate", "gradient-norm"):
        first = traces(seen, chart)[0]
        assert (first["name"], first["dash"], first["x"][-1]) == (EARLIER, "dot", 400)
        expect(seen.page.locator(f"#chart-{chart} .legend")).to_contain_text("earlier attempt, done over")
    expect(seen.page.locator("#loss-summary")).to_contain_text("Done over, and grey: steps 101 to 400.")


def test_another_session_of_the_run_is_shown_from_its_start(visit) -> None:
    """A page that stayed open over a resume counts nothing by the cursors of the session before."""
    seen = visit(PageRun(300))
    seen.until(LAST_STEP, 300)
    seen.run.alter = lambda snapshot: replace(snapshot, run=replace(snapshot.run, resume_time=2e9))
    seen.page.wait_for_timeout(2500)
    assert [since for since, _ in seen.run.asked].count(0) == 2
    seen.until(LAST_STEP, 300)
    expect(seen.page.locator("#details")).to_contain_text("Counters, since the resume")


def test_events_are_listed_marked_and_lead_to_their_step(visit) -> None:
    """A spike is in the list, on the loss chart, and on top while it lasts; its step zooms every chart."""
    run = PageRun(600)
    spike = run.publish("spike", "warning", "loss rose from 2.31 to 4.87", optimizer="AdamW", start_step=590)
    seen = visit(run)
    item = seen.page.locator("#events .event[data-kind=spike]")
    expect(item).to_contain_text("warning")
    expect(item).to_contain_text("loss rose from 2.31 to 4.87 · began at step 590")
    expect(seen.page.locator("#notices")).to_contain_text("loss rose from 2.31 to 4.87")
    assert [trace["x"] for trace in traces(seen, "loss") if trace["name"] == "events"] == [[600]]
    item.get_by_role("button", name="Show step 600").click()
    seen.until(FIRST_STEP_SHOWN, 540)
    seen.page.get_by_role("button", name="Reset zoom").click()
    seen.until(FIRST_STEP_SHOWN, 1)
    run.republish(spike, end_step=610)
    expect(item).to_contain_text("ended at step 610")
    expect(item).to_have_count(1)
    expect(seen.page.locator("#notices")).to_be_empty()


def test_one_trouble_is_one_notice(visit) -> None:
    """A divergence with the spike and the large gradients that belong to it is one notice; others stay apart."""
    run = PageRun(600)
    run.publish("gradient_explosion", "warning", "gradient norm rose", optimizer="AdamW", start_step=580)
    run.publish("spike", "warning", "loss rose from 2.31 to 4.87 since step 581", optimizer="AdamW", start_step=581)
    run.publish("divergence", "critical", "loss rose since step 581 and stays there", optimizer="AdamW", start_step=581)
    run.publish("slowdown", "warning", "steps take 2 s", optimizer="AdamW", start_step=590)
    notices = visit(run).page.locator("#notices .notice")
    expect(notices).to_have_count(2)
    expect(notices.nth(0)).to_contain_text(
        "loss rose since step 581 and stays there; with it: spike, gradient explosion"
    )
    expect(notices.nth(0)).not_to_contain_text("(since step")
    expect(notices.nth(1)).to_contain_text("steps take 2 s (since step 590)")


def test_the_list_of_events_can_be_narrowed(visit) -> None:
    """Trouble leaves out what is information only."""
    run = PageRun()
    run.publish("outlier", "info", "one isolated point")
    run.publish("plateau", "warning", "no progress")
    page = visit(run).page
    expect(page.locator("#events .event")).to_have_count(3)
    page.get_by_role("radio", name="Trouble").check()
    expect(page.locator("#events .event")).to_have_count(1)
    expect(page.locator("#events .event")).to_contain_text("no progress")


def test_groups_that_coincide_share_a_line(visit) -> None:
    """64 groups on three curves are three lines, named after their groups; a changed one shows its schedule dashed."""
    run = PageRun(50)

    def with_many_groups(history: dict) -> dict:
        columns = history["optimizers"]["AdamW"]
        base = columns["lr"]["0"]["scheduled"]
        columns["lr"] = {
            str(index): {"scheduled": base, "applied": [lr * (0.5 if index >= 60 else 1) for lr in base]}
            for index in range(64)
        }
        columns["lr"]["7"] = {"scheduled": [lr * 2 for lr in base], "applied": [lr * 2 for lr in base]}
        return history

    run.alter_history = with_many_groups
    seen = visit(run)
    names = [(trace["name"], trace["dash"]) for trace in traces(seen, "learning-rate")]
    assert names == [
        ("groups 0–6, 8–59", "solid"),
        ("group 7", "solid"),
        ("groups 60–63, scheduled", "dash"),
        ("groups 60–63", "solid"),
    ]
    expect(seen.page.locator("#chart-learning-rate")).to_contain_text("Param groups on the same curve share a line.")


def test_several_optimizers_are_chosen_by_name(visit) -> None:
    """A GAN's two curves are kept apart: strip and charts follow the choice."""
    from dataclasses import replace

    run = PageRun(50)

    def two(snapshot: Snapshot) -> Snapshot:
        (only,) = snapshot.optimizers
        return replace(
            snapshot, optimizers=(replace(only, key="generator", loss=1.25), replace(only, key="critic", loss=-7.5))
        )

    run.alter = two
    run.alter_history = lambda history: {
        **history,
        "optimizers": {
            "generator": history["optimizers"]["AdamW"],
            "critic": {**history["optimizers"]["AdamW"], "loss": [-7.5] * len(history["optimizers"]["AdamW"]["step"])},
        },
    }
    seen = visit(run)
    expect(seen.page.locator("#tile-loss data")).to_have_text("1.250")
    seen.page.get_by_role("combobox", name="Optimizer").select_option("critic")
    expect(seen.page.locator("#tile-loss data")).to_have_text("−7.500")
    assert [set(trace["y"]) for trace in traces(seen, "loss") if trace["name"] == "loss"] == [{-7.5}]
    expect(seen.page.locator("#control .groups label")).to_have_count(5)


def test_a_long_run_stays_small_in_the_page(visit) -> None:
    """100,000 steps are drawn from a bounded number of points that still reach from the first to the last step."""
    run = PageRun(100_000)
    seen = visit(run)
    loss = {trace["name"]: trace for trace in traces(seen, "loss")}
    assert 500 <= len(loss["smoothed"]["x"]) <= 3000
    assert loss["smoothed"]["x"][0] <= 100
    assert loss["smoothed"]["x"][-1] == 100_000
    run.advance(2000)
    seen.until(LAST_STEP, 102_000)
    assert len(traces(seen, "gradient-norm")[-1]["x"]) <= 3000


def test_without_plotly_the_charts_are_tables(visit) -> None:
    """The script is an extra: without it every chart is a table of its newest points, and nothing else is lost."""
    seen = visit(has_plotly=False, expected=("404",))
    table = seen.page.get_by_role("region", name="Loss: table")
    expect(table.locator("tbody tr")).to_have_count(25)
    expect(table.locator("tbody tr").first).to_contain_text("300")
    expect(seen.page.locator(".js-plotly-plot")).to_have_count(0)
    expect(seen.page.get_by_role("region", name="Memory: table")).to_contain_text("56.8 GiB")
    expect(seen.page.get_by_role("region", name="Learning rate: table")).to_contain_text("1 no_decay")
    seen.run.advance(1)
    expect(table.locator("tbody tr").first).to_contain_text("301")


def test_each_chart_is_also_a_table_and_a_sentence(visit) -> None:
    """A screen reader gets the summary as the chart's name, and anyone the table at the press of a button."""
    page = visit().page
    expect(page.locator(PLOTTED).first).to_be_attached()
    expect(page.get_by_role("img", name=re.compile("Loss from step 1 to 300: last .* lowest"))).to_be_visible()
    page.get_by_role("button", name="Show as a table: Gradient norm").click()
    expect(page.get_by_role("region", name="Gradient norm: table")).to_contain_text("Clip threshold")
    expect(page.locator("#chart-gradient-norm .plot")).to_be_hidden()


def test_the_loss_can_be_seen_on_a_logarithmic_scale(visit) -> None:
    """The switch is a toggle button that says its state."""
    page = visit().page
    expect(page.locator(PLOTTED).first).to_be_attached()
    button = page.get_by_role("button", name="Logarithmic scale: Loss")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert page.locator("#chart-loss .plot").evaluate("plot => plot.layout.yaxis.type") == "log"


def test_a_run_without_a_target_or_gpu_leaves_out_what_is_unknown(visit) -> None:
    """No target: no bar and no ETA. No reading: a dash, never a zero."""
    from dataclasses import replace

    run = PageRun(40)
    run.alter = lambda snapshot: replace(
        snapshot, target_steps=None, eta_seconds=None, gpus=(), host=None, overhead_ratio=None, steps_per_second=None
    )
    run.alter_history = lambda history: {**history, "system": {"time": [], "gpus": {}}}
    page = visit(run).page
    expect(page.locator("#progress-text")).to_contain_text("Step 40 · running for")
    expect(page.locator("#progress-bar")).to_be_hidden()
    expect(page.locator("#tile-overhead data")).to_have_text("–")
    expect(page.locator("#chart-memory")).to_contain_text("No reading of memory in use yet.")
    run.state = "finished"
    expect(page.locator("#chart-memory")).to_contain_text("No readings of memory in use were kept of this run.")

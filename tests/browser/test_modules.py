"""The page's modules by themselves: how numbers are written and how a curve stays bounded."""

from __future__ import annotations

import pytest

from tests.browser.expecting import expect


@pytest.fixture
def page(visit):
    """A page whose modules can be imported."""
    opened = visit().page
    expect(opened.locator("#state")).to_have_text("Running")
    return opened


def evaluate(page, module: str, code: str):
    """Run ``code`` with the exports of a module as ``m``."""
    return page.evaluate(f"async () => {{ const m = await import('/static/{module}.js'); return {code}; }}")


def test_numbers_are_written_for_people(page) -> None:
    """Four digits, exponents where they help, NaN as NaN, a dash for what is unknown."""
    values = "[2.34567, 12345.6, 3e-4, 0, -1.5, NaN, Infinity, -Infinity, null, undefined, 1e9]"
    assert evaluate(page, "format", f"{values}.map((value) => m.number(value))") == [
        "2.346", "12,346", "3e-4", "0", "−1.500", "NaN", "Inf", "−Inf", "–", "–", "1e9",
    ]  # fmt: skip
    assert evaluate(page, "format", "[3e-4, 0.1, 2.5e-5, 1, null].map(m.rate)") == ["3e-4", "0.1", "2.5e-5", "1", "–"]
    assert evaluate(page, "format", "[0, 5e-5, 0.0025, 0.042, 0.5, NaN, null].map(m.percent)") == [
        "0 %", "<0.01 %", "0.25 %", "4.2 %", "50 %", "NaN", "–",
    ]  # fmt: skip
    assert evaluate(page, "format", "[5e-7, 0.85, 12.3, 245, 4920, 273600, null, NaN].map(m.duration)") == [
        "0.500 µs", "850 ms", "12 s", "4 min 5 s", "1 h 22 min", "3 d 4 h", "–", "–",
    ]  # fmt: skip
    assert evaluate(page, "format", "[0, 1023, 11811160064].map(m.bytes)") == ["0 B", "1020 B", "11 GiB"]
    assert evaluate(page, "format", "m.ranges([5, 0, 1, 2, 7, 8])") == "0–2, 5, 7, 8"


def test_json_knows_numbers_that_json_cannot_hold(page) -> None:
    """The text NaN is a number in a loss and a name in a name."""
    code = """[m.parse('{"loss": "NaN"}').loss, m.parse('{"loss": ["-Inf", 1]}').loss[0],
      m.parse('{"name": "NaN"}').name].map(String)"""
    assert evaluate(page, "api", code) == ["NaN", "-Infinity", "NaN"]
    assert evaluate(page, "api", """typeof m.parse('{"name": "NaN"}').name""") == "string"


FEED = """(() => {
  const series = new m.Series('step', 100, 50);
  for (let start = 0; start < 20000; start += 500) {
    const step = Array.from({length: 500}, (_, row) => start + row + 1);
    series.append({step, count: step.map(() => 1), loss: step.map((s) => (s === 777 ? NaN : s)),
      loss_min: step, loss_max: step, lr: {0: {applied: step.map((s) => -s)}}});
  }
  return series;
})()"""


def test_a_curve_stays_bounded_and_keeps_its_extremes_and_nans(page) -> None:
    """Old points are merged by weight; counts add up, the newest stay as they came, the NaN is remembered."""
    found = evaluate(
        page,
        "series",
        f"""(() => {{ const s = {FEED}; return {{length: s.length,
          same: [...s.columns.values()].every((c) => c.length === s.length),
          count: s.get('count').reduce((a, b) => a + b), first: s.get('loss_min')[0], last: s.get('step').at(-1),
          recent: s.get('step').slice(-50), marks: s.marks.map(({{step}}) => step), lr: s.get('lr.0.applied').at(-1),
          finite: s.get('loss').every(Number.isFinite),
          mean: s.get('loss').reduce((a, v, i) => a + v * s.get('count')[i], 0),
          ordered: s.get('step').every((v, i, all) => i === 0 || v > all[i - 1]) }}; }})()""",
    )
    assert 100 <= found["length"] <= 300 + 500
    assert found["same"]
    assert found["ordered"]
    assert found["count"] == 20_000
    assert (found["first"], found["last"], found["lr"]) == (1, 20_000, -20_000)
    assert found["recent"] == list(range(19_951, 20_001))
    assert found["marks"] == [777]
    assert found["finite"]
    assert abs(found["mean"] / (20_000 * 20_001 / 2) - 1) < 1e-3


def test_columns_may_come_later_and_readings_twice(page) -> None:
    """A second group's column is padded; system rows that were seen already are not added again."""
    code = """(() => { const s = new m.Series('step'); s.append({step: [1, 2], lr: {0: {applied: [1, 1]}}});
      s.append({step: [3], lr: {0: {applied: [1]}, 1: {applied: [2]}}});
      return [s.get('lr.1.applied'), s.children('lr')]; })()"""
    assert evaluate(page, "series", code) == [[None, None, 2], ["0", "1"]]
    code = """(() => { const s = new m.Series('time'); s.append({time: [1, 2], cpu_ratio: [0.1, 0.2]});
      s.append({time: [2, 3], cpu_ratio: [0.9, 0.3]}); s.append({time: [3], cpu_ratio: [0.9]});
      return [s.get('time'), s.get('cpu_ratio')]; })()"""
    assert evaluate(page, "series", code) == [[1, 2, 3], [0.1, 0.2, 0.3]]


def test_a_clock_that_is_set_back_hides_no_reading(page) -> None:
    """Readings that came before are told by the newest one shown, also where what follows is older by the clock."""
    code = """(() => { const s = new m.Series('time'); s.append({time: [1001, 1002], cpu_ratio: [0.1, 0.2]});
      s.append({time: [1002, 3], cpu_ratio: [0.9, 0.3]}); s.append({time: [3, 4], cpu_ratio: [0.9, 0.4]});
      s.append({time: [4], cpu_ratio: [0.9]}); return [s.get('time'), s.get('cpu_ratio')]; })()"""
    assert evaluate(page, "series", code) == [[1001, 1002, 3, 4], [0.1, 0.2, 0.3, 0.4]]


def test_undo_is_reckoned_from_the_audit_trail(page) -> None:
    """Changes are taken back one by one; rejected ones were none; those of an earlier session cannot be."""
    code = """(() => { const entry = (id, action, status = 'applied') =>
        ({id, kind: 'control', details: {action, status, before: [[id]]}});
      const before = (...events) => m.undoable(events)?.before[0][0] ?? null;
      return [before(), before(entry(1, 'reduce')), before(entry(1, 'reduce'), entry(2, 'set')),
        before(entry(1, 'reduce'), entry(2, 'set'), entry(3, 'undo')),
        before(entry(1, 'reduce'), entry(2, 'reduce', 'rejected')),
        before(entry(1, 'reduce'), entry(2, 'undo'), entry(3, 'pause')),
        before(entry(1, 'reduce'), {id: 2, kind: 'state', details: {state: 'resumed'}})]; })()"""
    assert evaluate(page, "changes", code) == [None, 1, 2, 1, 1, None, None]


def test_an_outcome_names_the_optimizer_where_there_are_several(page) -> None:
    """Also where one of them alone was changed."""
    code = """[true, false].map((isSeveral) => m.describeOutcome({status: 'applied', action: 'reduce', step: 7,
      changes: [{optimizer: 'critic', param_group: 0, name: null, lr_before: 0.2, lr_after: 0.1}]}, isSeveral))"""
    assert evaluate(page, "changes", code) == [
        "reduce applied at step 7: critic: group 0 0.2 → 0.1",
        "reduce applied at step 7: group 0 0.2 → 0.1",
    ]


def test_the_first_step_of_a_session_is_no_dip_in_the_step_time(page) -> None:
    """Its duration is not known, and so the part of its phases that was seen is not drawn."""
    code = """(async () => { const { Series } = await import('/static/series.js'); const series = new Series('step');
      series.append({step: [1, 2, 3, 4], step_seconds: [null, 0.02, null, 0.02],
        phases: {data: [0, 0.01, 0, 0.01], forward: [0.001, 0.01, 0.001, 0.01]}});
      const theme = {series: Array(6).fill('#000000'), text: '#000000'};
      const { traces } = m.stepTime({series, rows: [0, 4], theme, events: []});
      return traces.slice(0, 2).map(({y, stackgaps}) => [y, stackgaps]); })()"""
    known = [None, 10.0, None, 10.0]
    assert evaluate(page, "figures", f"await {code}") == [[known, "interpolate"]] * 2

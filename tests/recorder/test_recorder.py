"""The recorder turns records into figures, windows, history and events; one writer, bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from monitor._records import Clip, Event, ParamGroup, RunInfo, Sample, Step
from monitor.common import SIZE, BoundedHistory
from monitor.recorder import Past, Recorder
from monitor.recorder._course import MAX_PARTS, PART_POINTS
from monitor.recorder._series import SeriesBucket, buckets_of, columns

RUN = RunInfo("run-000000", "run", 0.0)


class Source:
    """Records that were made beforehand."""

    def __init__(self) -> None:
        self.records: list[Step | Sample] = []
        self.num_dropped = 0
        self.drained_sequence = 0

    def drain(self, wall_offset: float) -> list[Step | Sample]:
        out, self.records = self.records, []
        return out


def step(number: int, loss: float | None = 1.0, **changes) -> Step:
    made = Step("sgd", number, number, 100.0 + number, 1.0, loss, 2.0, (ParamGroup(0, None, 0.1, 0.1),))
    return replace(made, **changes)


def recorder(source: Source, **settings) -> Recorder:
    settings.setdefault("on_error", lambda error: pytest.fail(repr(error)))
    return Recorder(source, RUN, {"sgd": "SGD"}, clock=lambda: 1000.0, counter=lambda: 0.0, **settings)


def digest(records: Iterable[Step | Sample], **settings) -> Recorder:
    source = Source()
    rec = recorder(source, **settings)
    source.records = list(records)
    rec.run_once()
    return rec


def test_windows_hold_the_newest_finite_losses() -> None:
    """Mean, extremes and deviation are those of the trailing window, NaN left out."""
    losses = [50.0, 1.0, 2.0, math.nan, 3.0, 4.0]
    view = digest([step(i + 1, loss) for i, loss in enumerate(losses)], window=4).snapshot.optimizers[0]
    assert (view.loss_window_mean, view.loss_window_min, view.loss_window_max) == (2.5, 1.0, 4.0)
    assert view.loss_window_stddev == pytest.approx(1.25**0.5)
    assert view.loss == 4.0
    assert view.nonfinite == {"loss": 1, "gradient": 0}


def test_the_gradient_norm_names_the_step_it_was_measured_at() -> None:
    """A norm that was not measured at the last step says whose it is."""
    steps = [step(1), step(2, gradient_norm=5.0), step(3, gradient_norm=None), step(4, gradient_norm=None)]
    view = digest(steps).snapshot.optimizers[0]
    assert (view.gradient_norm, view.gradient_norm_step, view.global_step) == (5.0, 2, 4)


def test_a_norm_that_cannot_be_known_keeps_its_reason_until_there_is_one() -> None:
    """The reason of the last step that had one stands for the steps at which nothing was measured."""
    reason = "sharded over 2 ranks"
    steps = [step(1, gradient_norm=None, gradient_norm_reason=reason), step(2, gradient_norm=None)]
    view = digest(steps).snapshot.optimizers[0]
    assert (view.gradient_norm, view.gradient_norm_reason) == (None, reason)
    steps += [step(3, gradient_norm=5.0), step(4, gradient_norm=None, gradient_norm_reason=reason)]
    view = digest(steps).snapshot.optimizers[0]
    assert (view.gradient_norm, view.gradient_norm_step, view.gradient_norm_reason) == (5.0, 3, None)


def test_a_nan_loss_is_shown_and_poisons_nothing() -> None:
    """The last loss is NaN; sums, smoothed loss and best stay finite and go on."""
    rec = digest([step(1, 2.0), step(2, math.nan), step(3, math.inf)])
    view = rec.snapshot.optimizers[0]
    assert view.loss == math.inf
    assert (view.loss_positive_sum, view.loss_positive_count, view.loss_ema) == (2.0, 1, 2.0)
    assert view.nonfinite["loss"] == 2


def test_negative_losses_have_their_own_sum() -> None:
    """Summaries of either sign add up absolute values, so that both are counters."""
    view = digest([step(1, -2.0), step(2, 3.0), step(3, -0.5)]).snapshot.optimizers[0]
    assert (view.loss_positive_sum, view.loss_positive_count) == (3.0, 1)
    assert (view.loss_negative_sum, view.loss_negative_count) == (2.5, 2)
    assert view.loss == -0.5


def test_the_smoothed_loss_is_unbiased_from_the_first_step() -> None:
    """A constant loss gives exactly that constant as smoothed loss at every step."""
    rec = digest([step(i, 5.0) for i in range(1, 4)])
    assert rec.snapshot.optimizers[0].loss_ema == pytest.approx(5.0)


def test_the_best_smoothed_loss_names_its_step() -> None:
    """The lowest smoothed loss so far and the step that reached it stay while the loss is higher."""
    losses = [3.0, 2.0, 1.0, 5.0, math.nan, 4.0]
    steps = [step(i, loss, global_step=100 + i) for i, loss in enumerate(losses, 1)]
    at_best, last = digest(steps[:3]).snapshot.optimizers[0], digest(steps).snapshot.optimizers[0]
    assert (at_best.loss_best, at_best.loss_best_step) == (at_best.loss_ema, 103)
    assert (last.loss_best, last.loss_best_step) == (at_best.loss_ema, 103)
    assert last.loss_ema is not None
    assert last.loss_ema > at_best.loss_ema


def test_the_factors_of_several_clips_multiply() -> None:
    """Gradients that are clipped twice within a step were multiplied by both factors."""
    clips = (Clip("norm", 1.0, True, 0.5), Clip("value", 0.1, True), Clip("norm", 0.5, True, 0.25))
    view = digest([step(1, clips=clips)]).snapshot.optimizers[0]
    assert (view.clip_factor, view.clip_threshold) == (0.125, 0.5)


def test_clips_and_skips_are_counted_by_step() -> None:
    """Two clips of a kind within one step count once; a skipped step counts as skipped and not as a step."""
    clips = (Clip("norm", 1.0, True, 0.5), Clip("norm", 1.0, False, 1.0), Clip("value", 0.1, False))
    rec = digest([step(1, clips=clips), step(2, clips=(Clip("norm", 1.0, False, 1.0),)), step(2, is_skipped=True)])
    view = rec.snapshot.optimizers[0]
    assert view.clip_checks == {"norm": 2, "value": 1}
    assert view.clips == {"norm": 1, "value": 0}
    assert view.clip_share == 0.5
    assert (view.steps, view.skipped_steps) == (2, {"amp_overflow": 1})
    assert view.clip_factor == 1.0


def test_a_clip_that_could_not_be_measured_counts_neither_way() -> None:
    """Its threshold is shown; whether it took effect, and by how much, is not."""
    view = digest([step(1, clips=(Clip("norm", 1.0, None), Clip("value", 0.1, None)))]).snapshot.optimizers[0]
    assert (view.clip_threshold, view.clip_factor, view.clip_share) == (0.1, None, None)
    assert view.clip_checks == view.clips == {"norm": 0, "value": 0}


def test_speed_and_time_left() -> None:
    """Steps a second come from the window; the time left from the planned steps."""
    rec = digest([step(i, duration=0.5) for i in range(1, 11)], target_steps=30)
    assert rec.snapshot.steps_per_second == 2.0
    assert rec.snapshot.eta_seconds == 10.0
    assert rec.snapshot.state == "running"


def test_samples_tokens_metrics_and_validation() -> None:
    """Counters add up and never take what is not finite; metrics keep the last value; names are bounded."""
    errors = []
    records = [
        Sample("samples", "samples", 32.0, 1, 1.0),
        Sample("samples", "samples", math.nan, 1, 1.5),
        Sample("samples", "samples", 32.0, 2, 3.0),
        Sample("val_loss", "test", 0.5, 2, 3.0),
        *[Sample("metric", f"m{i}", float(i), 2, 3.0) for i in range(80)],
        Sample("metric", "m3", 33.0, 2, 4.0),
    ]
    snapshot = digest(records, on_error=errors.append).snapshot
    assert snapshot.samples_total == 64.0
    assert snapshot.samples_per_second == 16.0
    assert snapshot.tokens_total is None
    assert snapshot.validation_losses == {"test": 0.5}
    assert (len(snapshot.metrics), snapshot.metrics["m3"]) == (64, 33.0)
    assert errors == []


def test_a_loss_logged_after_its_step_replaces_the_captured_one() -> None:
    """From the first such loss on, a step waits for what is logged after it, so that detectors see the logged loss."""
    seen = []
    source = Source()
    rec = recorder(source, detect=lambda r: seen.append(r) or ())
    source.records = [step(1, 9.0), Sample("loss", "sgd", 1.0, 1, 0.0), step(2, 9.0)]
    rec.run_once(releases_held=False)
    source.records = [Sample("loss", "sgd", 2.0, 2, 0.0), step(3, 9.0)]
    rec.run_once(releases_held=False)
    assert [r.loss for r in seen] == [9.0, 2.0]
    source.records = [Sample("loss", "sgd", 3.0, 3, 0.0)]
    rec.run_once(releases_held=False)
    rec.run_once(releases_held=True)
    assert [r.loss for r in seen] == [9.0, 2.0, 3.0]
    assert rec.snapshot.optimizers[0].loss == 3.0


def test_events_are_numbered_counted_and_ended() -> None:
    """An end takes the id of its start and a new seq; a kind is active from start to end and counted once."""
    start = Event("spike", "warning", 5, 3, "rose", optimizer="sgd")
    source = Source()
    heard = []
    rec = recorder(source, detect=lambda s: [start] if s.number == 5 else [], on_event=heard.append)
    source.records = [step(5)]
    rec.run_once()
    assert rec.snapshot.events_active["spike"]
    rec.post(replace(start, end_step=9))
    rec.run_once()
    first, second = rec.log.since(0)
    assert first.id == second.id
    assert (first.seq, second.seq) == (1, 2)
    assert second.end_step == 9
    assert not rec.snapshot.events_active["spike"]
    assert rec.snapshot.events_total["spike"] == 1
    assert rec.snapshot.last_event_step == {"spike": 5}
    assert rec.log.since(1) == (second,)
    assert heard == [first, second]


def test_a_record_that_cannot_be_digested_costs_only_itself() -> None:
    """A failure while digesting one record is reported; the others are digested."""
    errors = []

    def detect(record: Step) -> list[Event]:
        if record.number == 2:
            raise RuntimeError("detector broke")
        return []

    rec = digest([step(1), step(2), step(3)], detect=detect, on_error=errors.append)
    assert [str(error) for error in errors] == ["detector broke"]
    assert rec.snapshot.optimizers[0].steps == 3


def test_history_keeps_extremes_at_any_length() -> None:
    """100,000 steps fit in the bound; the one spike is in the maximum of its bucket, the one NaN shows."""
    history = BoundedHistory[SeriesBucket]()
    for i in range(1, 100_001):
        loss = 77.0 if i == 31_415 else math.nan if i == 60_000 else 1.0
        history.append(SeriesBucket(step(i, loss), 1.0, i, 0.0))
    whole = columns(history.after(0, 100_000))
    assert len(whole["step"]) <= 2 * SIZE
    assert sum(whole["count"]) == 100_000
    assert max(v for v in whole["loss_max"] if v is not None) == 77.0
    assert sum(math.isnan(v) for v in whole["loss"]) == 1
    assert whole["step"] == sorted(whole["step"])
    few = columns(history.after(0, 100))
    assert len(few["step"]) <= 100
    assert sum(few["count"]) == 100_000


def test_history_increments_are_complete_and_fine() -> None:
    """Asking from the last cursor on gives every step after it, one by one, while the ring holds them."""
    history = BoundedHistory[SeriesBucket]()
    for i in range(1, 5_001):
        history.append(SeriesBucket(step(i, float(i)), None, i, 0.0))
    assert columns(history.after(4_990, 100))["loss"] == [float(i) for i in range(4_991, 5_001)]
    assert history.after(5_000, 100) == []
    assert history.until(4_990).time == 100.0 + 4_990
    assert history.until(0) is None


def test_a_cursor_older_than_the_ring_is_answered_whole() -> None:
    """What the ring has dropped comes in coarser points: none is missing, and the first begins at the cursor."""
    history = BoundedHistory[SeriesBucket]()
    for i in range(1, 5_001):
        history.append(SeriesBucket(step(i, float(i)), None, i, 0.0))
    found = columns(history.after(1_000, 10_000))
    starts = [last - count for last, count in zip(found["step"], found["count"], strict=True)]
    stride = max(found["count"])
    assert stride < 8
    assert 1_000 - stride < starts[0] <= 1_000
    assert [*starts[1:], 5_000] == found["step"]
    assert 1_100.0 - stride < history.until(1_000).time <= 1_100.0


def test_each_optimizer_of_unequal_pace_is_read_to_its_end() -> None:
    """Five critic steps to one generator step: every poll brings the new steps of both."""
    source = Source()
    rec = Recorder(source, RUN, {"g": "SGD", "c": "SGD"}, on_error=lambda *_: None)
    got: dict[str, list[int]] = {"g": [], "c": []}
    cursor = 0
    for turn in range(1, 4):
        source.records = [step(5 * turn - 4 + k, optimizer="c") for k in range(5)] + [step(turn, optimizer="g")]
        rec.run_once()
        answer = rec.history(cursor, 100)
        cursor = answer["next"]
        for key, series in answer["optimizers"].items():
            got[key] += series["step"]
    assert got == {"g": [1, 2, 3], "c": list(range(1, 16))}


def test_reading_history_changes_nothing() -> None:
    """Coarse reads merge copies, not what is kept."""
    history = BoundedHistory[SeriesBucket](size=8)
    for i in range(1, 200):
        history.append(SeriesBucket(step(i, float(i)), None, i, 0.0))
    before = columns(history.after(0, 10_000))
    history.after(0, 3)
    assert columns(history.after(0, 10_000)) == before


YEAR = 365 * 86400.0


class Clocks:
    """A wall clock that can be set and a monotonic one, and a source whose entries carry the latter."""

    num_dropped = drained_sequence = last_sequence = 0

    def __init__(self) -> None:
        self.counter, self.wall = 50.0, 1000.0
        self.records: list[Step | Sample] = []

    def go(self, seconds: float) -> None:
        self.counter += seconds
        self.wall += seconds

    def drain(self, wall_offset: float) -> list[Step | Sample]:
        out, self.records = [replace(r, time=r.time + wall_offset) for r in self.records], []
        return out

    def recorder(self, **settings) -> Recorder:
        settings.setdefault("on_error", lambda error: pytest.fail(repr(error)))
        return Recorder(self, RUN, {"sgd": "SGD"}, clock=lambda: self.wall, counter=lambda: self.counter, **settings)


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_that_is_set_moves_what_is_shown_and_nothing_that_is_measured(jump: float) -> None:
    """Times are today's; ages, durations, rates and the detectors' time go on as if nothing had happened."""
    clocks, ticks, seen = Clocks(), [], []
    rec = clocks.recorder(on_tick=ticks.append, detect=lambda r: seen.append(r.time) or ())
    for number in range(1, 7):
        clocks.go(2.0)
        if number == 4:
            clocks.wall += jump
        clocks.records = [
            step(number, time=clocks.counter, duration=2.0),
            Sample("tokens", "tokens", 100.0, number, clocks.counter),
        ]
        rec.run_once()
    snapshot = rec.snapshot
    assert [b - a for a, b in itertools.pairwise(seen)] == [2.0] * 5
    assert [b - a for a, b in itertools.pairwise(ticks)] == [2.0] * 5
    assert (snapshot.time, snapshot.last_step_time) == (1012.0 + jump, 1012.0 + jump)
    assert snapshot.elapsed_seconds == 12.0
    assert (snapshot.steps_per_second, snapshot.tokens_per_second) == (0.5, 50.0)
    times = rec.history(0, 100)["optimizers"]["sgd"]["time"]
    assert times == [1002.0, 1004.0, 1006.0, 1008.0 + jump, 1010.0 + jump, 1012.0 + jump]
    assert [rec.time_of(cursor) for cursor in (0, 3, 4)] == [0.0, 56.0, 58.0]


def test_the_last_step_ages_by_the_monotonic_clock() -> None:
    """After the wall clock was set, the last step is as old as it is, not a year older."""
    clocks = Clocks()
    rec = clocks.recorder()
    clocks.records = [step(1, time=clocks.counter)]
    rec.run_once()
    clocks.go(5.0)
    clocks.wall += YEAR
    rec.run_once()
    assert rec.snapshot.last_step_time is not None
    assert rec.snapshot.time - rec.snapshot.last_step_time == 5.0


def test_the_end_stops_the_time_that_a_run_has_taken() -> None:
    """What has elapsed is frozen with the end, whatever either clock does then."""
    clocks = Clocks()
    rec = clocks.recorder()
    clocks.go(7.0)
    rec.set_state("finished", clocks.wall)
    clocks.go(100.0)
    rec.run_once()
    assert rec.snapshot.elapsed_seconds == 7.0


def test_the_overhead_is_that_of_all_optimizers() -> None:
    """Of 80 optimizers that step in turn, the hooks of all count against the time of one turn."""
    keys = {f"o{i}": "SGD" for i in range(80)}
    source = Source()
    rec = Recorder(source, RUN, keys, window=4, on_error=lambda error: pytest.fail(repr(error)))
    source.records = [
        step(turn, optimizer=key, duration=None if turn == 1 else 0.1, hook_seconds=0.0005)
        for turn in range(1, 11)
        for key in keys
    ]
    rec.run_once()
    assert rec.snapshot.overhead_ratio == pytest.approx(80 * 0.0005 / 0.1)
    assert rec.snapshot.hook_seconds == pytest.approx(800 * 0.0005)


def test_a_step_without_a_loss_shows_none() -> None:
    """The loss of an earlier step is never shown as that of the last one; what is smoothed stays."""
    view = digest([step(1, 2.0), step(2, None)]).snapshot.optimizers[0]
    assert (view.loss, view.loss_ema, view.loss_best) == (None, 2.0, 2.0)


def test_a_skipped_step_keeps_the_loss_before() -> None:
    """What a GradScaler skips is no step, and the last step is the one before."""
    view = digest([step(1, 2.0), step(2, None, is_skipped=True)]).snapshot.optimizers[0]
    assert view.loss == 2.0


def told(rec: Recorder) -> list[tuple[str, str, int, int, int | None]]:
    return [(e.kind, e.severity, e.step, e.start_step, e.end_step) for e in rec.log.since(0)]


def test_ten_steps_without_a_loss_are_told_once() -> None:
    """The event names the optimizer, the step and the cure; it ends with the next loss and never comes again."""
    steps = [
        step(1, 2.0),
        *[step(i, None) for i in range(2, 40)],
        step(40, 2.0),
        *[step(i, None) for i in range(41, 80)],
    ]
    rec = digest(steps)
    assert told(rec) == [("capture", "warning", 11, 2, None), ("capture", "warning", 11, 2, 40)]
    message = rec.log.since(0)[0].message
    assert message.startswith("no loss is known for sgd since step 2: its gradients did not come from backward()")
    assert message.endswith("report it with run.log(loss=...)")
    assert (rec.snapshot.events_total["capture"], rec.snapshot.events_active["capture"]) == (1, False)


def test_nine_steps_without_a_loss_and_skipped_ones_are_nothing_to_tell() -> None:
    """Ten in a row are it, and a skipped step is none."""
    steps = [step(i, None if i % 10 else 2.0) for i in range(1, 60)]
    skipped = [step(60, None, is_skipped=True)] * 30
    assert told(digest([*steps, *skipped])) == []


def test_a_loss_that_is_logged_after_each_step_is_known() -> None:
    """What is captured is nothing there, and what is logged counts."""
    records = [r for i in range(1, 40) for r in (step(i, None), Sample("loss", "sgd", 2.0, i, 0.0))]
    assert told(digest(records)) == []


def test_the_recorder_lets_the_training_thread_go_on_while_it_digests() -> None:
    """After each 0.2 ms of work the recorder rests, unless somebody waits for it."""
    ticks, rests = itertools.count(), []
    source = Source()
    rec = Recorder(
        source,
        RUN,
        {"sgd": "SGD"},
        on_error=lambda error: pytest.fail(repr(error)),
        clock=lambda: 1000.0,
        counter=lambda: next(ticks) * 0.00015,
        rest=rests.append,
    )
    source.records = [step(i) for i in range(1, 11)]
    rec.run_once()
    assert len(rests) == 5
    source.records = [step(i) for i in range(11, 21)]
    rec.stop()
    assert (len(rests), rec.snapshot.optimizers[0].steps) == (5, 20)


def test_flush_waits_for_what_was_recorded() -> None:
    """flush returns True once all that was recorded is in the snapshot, and False on a recorder that is gone."""
    source = Source()
    rec = Recorder(source, RUN, {"sgd": "SGD"}, on_error=lambda *_: None)
    rec.start()
    source.records = [step(1)]
    assert rec.flush(10)
    assert rec.snapshot.optimizers[0].steps == 1
    rec.stop()
    assert not rec.flush(0.01, 5)


def test_what_is_left_at_the_end_is_digested() -> None:
    """stop digests the rest before the thread ends; the last snapshot shows the final state."""
    source = Source()
    rec = Recorder(source, RUN, {"sgd": "SGD"}, on_error=lambda *_: None, interval=60)
    rec.start()
    source.records = [step(1), step(2)]
    rec.set_state("finished", 123.0)
    rec.stop()
    assert rec.snapshot.optimizers[0].steps == 2
    assert (rec.snapshot.state, rec.snapshot.end_time, rec.snapshot.eta_seconds) == ("finished", 123.0, None)


# ------------------------------------------------------------------------------------------------- steps made again


def curve(rec: Recorder) -> list[int]:
    return list(rec.history(0, 1000)["optimizers"]["sgd"]["step"])


def parts(rec: Recorder) -> list[tuple[int, int]]:
    return [(part["step"][0], part["step"][-1]) for part in rec.history(0, 1000)["abandoned"]["sgd"]]


def test_what_is_done_over_stands_apart() -> None:
    """A step that goes back, or comes again, moves what lies behind it out of the curve; a cursor is told by
    ``attempt``."""
    rec = digest([*map(step, range(1, 11)), *map(step, range(6, 9)), step(8, loss=7.0)])
    assert curve(rec) == list(range(1, 9))
    assert rec.history(0, 1000)["optimizers"]["sgd"]["loss"][-1] == 7.0
    assert parts(rec) == [(6, 10), (8, 8)]
    later = rec.history(5, 1000)
    assert (later["attempt"], later["abandoned"]) == (2, {})


def test_a_skipped_step_does_nothing_over() -> None:
    """It has the number of the step before it, and so has the first one of a session."""
    rec = digest([step(1), step(2), step(2, is_skipped=True), step(3)])
    assert curve(rec) == [1, 2, 2, 3]
    assert parts(rec) == []


def test_parts_that_were_done_over_are_bounded() -> None:
    """The newest are kept, with as many points as one can see."""
    records = [step(number) for _ in range(MAX_PARTS + 2) for number in range(1, 3 * PART_POINTS)]
    found = digest(records).history(0, 1000)["abandoned"]["sgd"]
    assert len(found) == MAX_PARTS
    assert max(len(part["step"]) for part in found) <= PART_POINTS


def earlier(last: int = 10) -> Past:
    """An earlier session of ten steps."""
    rec = digest([step(number, loss=float(20 - number)) for number in range(1, last + 1)])
    rec.post(Event("spike", "warning", 4, 4, "up", end_step=4))
    rec.run_once()
    history = rec.history(0, 1000)
    return Past(history["optimizers"], history["abandoned"], 0, rec.log.since(0), rec.snapshot)


def resumed(past: Past | None, records: list[Step | Sample], base_step: int) -> Recorder:
    source = Source()
    rec = recorder(source)
    rec.resume(replace(RUN, run_id="run-earlier", resume_time=1.0), base_step, 30.0)
    rec.post(Event("state", "info", 0, 0, "run run-000000 started", details={"state": "starting"}))
    source.records = records
    rec.run_once()
    assert rec.snapshot.optimizers[0].steps == 0  # nothing is digested before the past is there
    if past is not None:
        rec.take_past(past)
        rec.run_once()
    return rec


def test_a_resumed_session_continues_curves_events_and_best() -> None:
    """What is recorded stands before what follows; the event says what is done over; cursors count on."""
    past = earlier()
    rec = resumed(past, [step(9, loss=1.0), step(10, loss=1.0)], base_step=8)
    assert curve(rec) == list(range(1, 11))
    assert rec.history(0, 1000)["optimizers"]["sgd"]["loss"] == [*(20.0 - n for n in range(1, 9)), 1.0, 1.0]
    assert parts(rec) == [(9, 10)]
    assert rec.history(past.num_rows, 1000)["optimizers"]["sgd"]["step"] == [9, 10]
    events = rec.log.since(0)
    assert [event.message for event in events] == [
        "up",
        "run run-earlier resumed at step 8 (recorded up to step 10: steps 9 to 10 are done over)",
    ]
    assert [(event.seq, event.id) for event in events] == [(1, 1), (2, 2)]
    snapshot = rec.snapshot
    assert (snapshot.run.run_id, snapshot.events_total["spike"], snapshot.last_event_step["spike"]) == (
        "run-earlier", 1, 4,
    )  # fmt: skip


def test_a_session_that_continues_elsewhere_than_it_seemed_says_so() -> None:
    """The saved state comes after the optimizer's own count, or after the last recorded step: the event names its step,
    or another one does."""
    rec = resumed(earlier(), [], base_step=10)
    rec.begin_at(8)
    rec.run_once()
    again = "run run-earlier resumed at step 8 (recorded up to step 10: steps 9 to 10 are done over)"
    assert [event.message for event in rec.log.since(1)] == ["run run-earlier resumed at step 10", again]
    assert rec.snapshot.optimizers[0].global_step == 8
    rec = resumed(None, [], base_step=10)
    rec.begin_at(8)
    rec.take_past(earlier())
    rec.run_once()
    assert [event.message for event in rec.log.since(1)] == [again]
    assert rec.snapshot.optimizers[0].global_step == 8


def test_a_session_that_continues_beyond_the_record_names_the_gap() -> None:
    """Its checkpoint is of an earlier session, from beyond what the last one came to."""
    rec = resumed(earlier(), [], base_step=12)
    gap = "the curve lacks steps 11 to 12, which an earlier session made or which were lost with it"
    assert rec.log.since(1)[0].message == (
        f"run run-earlier resumed at step 12 (the last session was recorded up to step 10: {gap})"
    )


def test_the_best_of_a_resumed_session_is_one_of_the_steps_that_count() -> None:
    """The best smoothed loss was at a step that is done over: the best up to there stands."""
    past = earlier()
    assert past.snapshot is not None
    assert past.snapshot.optimizers[0].loss_best_step == 10
    view = resumed(past, [], base_step=8).snapshot.optimizers[0]
    assert (view.loss_best_step, view.global_step) == (8, 8)
    assert view.loss_best == past.curves["sgd"]["loss_ema"][7]
    view = resumed(past, [], base_step=10).snapshot.optimizers[0]
    assert (view.loss_best_step, view.loss_best) == (10, past.snapshot.optimizers[0].loss_best)


def test_a_past_that_never_comes_is_not_waited_for_at_the_end() -> None:
    """A disk that hangs costs the earlier curves, not those of the session."""
    rec = resumed(None, [step(9)], base_step=8)
    rec.set_state("finished", 2000.0)
    rec.run_once()
    assert curve(rec) == [9]
    assert rec.snapshot.state == "finished"


def test_curves_taken_over_are_those_that_were_shown() -> None:
    """Columns laid out, read back and laid out again are the same, whatever is not known."""
    steps = [step(1), step(2, math.nan), step(3, None, gradient_norm=None), step(4, duration=None, groups=())]
    before = columns([SeriesBucket(one, 0.5, one.number, 1.0) for one in steps])
    after = columns(buckets_of(before, before["step"]))
    assert repr(after) == repr(before)

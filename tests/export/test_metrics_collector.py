from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from prometheus_client.utils import floatToGoString

from monitor._records import (
    ACTIONS,
    COMPONENTS,
    EVENT_KINDS,
    OUTCOMES,
    PHASES,
    RANK_KINDS,
    SOURCES,
    STATES,
    Collection,
    Histogram,
    HostReading,
    OptimizerSnapshot,
    RankReading,
    Snapshot,
)
from monitor.export import CATALOGUE, RunCollector
from tests.export.full_snapshot import (
    NORM_BOUNDS,
    STEP_BOUNDS,
    make_gpu,
    make_groups,
    make_optimizer,
    make_run,
    make_snapshot,
)

EMPTY = Snapshot(run=make_run(), state="starting", time=0.0, optimizers=(OptimizerSnapshot("AdamW", "AdamW"),))


def scrape(snapshot, **arguments):
    """Collect once: {sample name: [(labels without run_id, value)]}."""
    found = {}
    for family in RunCollector(lambda: snapshot, **arguments).collect():
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "run_id"}
            found.setdefault(sample.name, []).append((labels, sample.value))
    return found


def value(snapshot, name, **labels):
    """Give the value of one sample, which must be there exactly once."""
    (result,) = [number for pairs, number in scrape(snapshot)[name] if pairs == labels]
    return result


class Unreadable:
    """A section's data that cannot be read."""

    def __getattr__(self, name):
        raise RuntimeError(f"{name} is broken")

    def __iter__(self):
        raise RuntimeError("broken")


def test_the_full_snapshot_renders_the_whole_catalogue():
    """Every metric of the catalogue is rendered, and nothing else."""
    families = list(RunCollector(make_snapshot).collect())
    assert [family.name for family in families] == [metric.family for metric in CATALOGUE]


def test_families_agree_with_their_rows():
    """Type, unit, help and labels of what is rendered are those of the table, run_id first."""
    extra = {"histogram": ({"le"}, set()), "summary": (set(),)}
    for metric, family in zip(CATALOGUE, RunCollector(make_snapshot).collect(), strict=True):
        assert (family.type, family.unit, family.documentation) == (metric.type, metric.unit, metric.help)
        for sample in family.samples:
            names = list(sample.labels)
            assert names[: len(metric.labels) + 1] == ["run_id", *metric.labels], sample
            assert set(names[len(metric.labels) + 1 :]) in extra.get(metric.type, (set(),)), sample


def test_every_series_is_of_the_run():
    """All series of a scrape carry the run_id of the snapshot."""
    ids = {s.labels["run_id"] for family in RunCollector(make_snapshot).collect() for s in family.samples}
    assert ids == {"demo-0a1b2c"}


def test_no_series_is_rendered_twice():
    """A name and its labels occur once in a scrape."""
    for name, samples in scrape(make_snapshot()).items():
        keys = [tuple(labels.items()) for labels, _ in samples]
        assert len(keys) == len(set(keys)), name


def test_registration_renders_nothing():
    """describe() names the families without asking for a snapshot."""

    def refuse():
        raise AssertionError("asked for a snapshot")

    families = list(RunCollector(refuse).describe())
    assert [family.name for family in families] == [metric.family for metric in CATALOGUE]
    assert [family.samples for family in families if family.samples] == []


def test_what_is_not_known_is_absent():
    """A run that has just begun shows no value that nobody has measured."""
    names = set(scrape(EMPTY))
    absent = {
        *("training_run_end_timestamp_seconds", "training_last_step_timestamp_seconds"),
        *("training_target_steps", "training_samples_total", "training_tokens_total"),
        *("training_loss", "training_loss_best", "training_validation_loss", "training_metric"),
        *("training_gradient_norm", "training_amp_scale", "training_gradient_clip_threshold"),
        *("training_last_event_step", "training_gpu_info", "training_host_memory_used_bytes"),
        *("training_monitor_overhead_ratio", "training_control_last_applied_timestamp_seconds"),
    }
    assert names & absent == set()


NO_EVENTS: dict[str, Any] = {"events_total": {}, "events_active": {}}


def test_counters_start_at_zero_for_every_label_value():
    """A rule sees the first event, command, clip or failure as an increase."""
    found = scrape(EMPTY)
    counters = {name: samples for name, samples in found.items() if name.endswith("_total")}
    assert {number for samples in counters.values() for _, number in samples} == {0}
    of_several = scrape(make_snapshot(groups=0, ranks=(RankReading(0, "ok"),), dropped_series=0, **NO_EVENTS))
    for name in ("training_events_total", "training_event_active"):
        assert {pairs["kind"] for pairs, _ in found[name]} == {*EVENT_KINDS} - {*RANK_KINDS}
        assert {pairs["kind"] for pairs, _ in of_several[name]} == {*EVENT_KINDS}
    assert {pairs["phase"] for pairs, _ in found["training_phase_duration_seconds_total"]} == set(PHASES)
    commands = {tuple(pairs.values()) for pairs, _ in found["training_control_commands_total"]}
    assert commands == {(a, s, o) for a in ACTIONS for s in SOURCES for o in OUTCOMES}
    assert {pairs["kind"] for pairs, _ in found["training_gradient_clips_total"]} == {"norm", "value"}
    assert {pairs["kind"] for pairs, _ in found["training_nonfinite_total"]} == {"loss", "gradient"}
    assert {pairs["reason"] for pairs, _ in found["training_skipped_steps_total"]} == {"amp_overflow"}
    errors = {pairs["component"]: number for pairs, number in found["training_monitor_errors_total"]}
    assert {"probe", "recorder", "policy", "on_event", "folder"} < set(COMPONENTS) == set(errors)


@pytest.mark.parametrize("state", STATES)
def test_exactly_one_state_is_set(state):
    """The state set has a series for each state, 1 for the current one."""
    snapshot = make_snapshot(state=state)
    states = {pairs["training_run_state"]: number for pairs, number in scrape(snapshot)["training_run_state"]}
    assert states == {name: float(name == state) for name in STATES}


def test_histogram_buckets_are_cumulative():
    """Buckets add up, the last one is +Inf and equals the count."""
    histogram = Histogram((0.5, 1.0), (3, 0, 4), 12.5)
    found = scrape(make_snapshot(step_duration=histogram))
    name = "training_step_duration_seconds"
    assert found[f"{name}_bucket"] == [({"le": "0.5"}, 3), ({"le": "1.0"}, 3), ({"le": "+Inf"}, 7)]
    assert found[f"{name}_count"] == [({}, 7)]
    assert found[f"{name}_sum"] == [({}, 12.5)]


def test_bucket_bounds_are_those_of_the_contract():
    """Step time has 17 buckets from 1 ms doubling, the gradient norm 17 at half decades."""
    found = scrape(make_snapshot(groups=1))
    steps = [pairs["le"] for pairs, _ in found["training_step_duration_seconds_bucket"]]
    norms = [pairs["le"] for pairs, _ in found["training_step_gradient_norm_bucket"]]
    assert steps == [*(floatToGoString(bound) for bound in STEP_BOUNDS), "+Inf"]
    assert norms == [*(floatToGoString(bound) for bound in NORM_BOUNDS), "+Inf"]
    assert (steps[0], steps[16], norms[0], norms[16]) == ("0.001", "65.536", "0.0001", "10000.0")


def test_losses_of_either_sign_are_summed_apart():
    """Negative losses appear with inverted sign, so that both sums only grow."""
    for negative in (12.5, -12.5):
        snapshot = make_snapshot(optimizers=(make_optimizer(loss_negative_sum=negative),))
        found = scrape(snapshot)
        assert found["training_step_loss_sum"] == [
            ({"optimizer": "AdamW", "sign": "positive"}, 2345.5),
            ({"optimizer": "AdamW", "sign": "negative"}, 12.5),
        ]
        assert [number for _, number in found["training_step_loss_count"]] == [1190, 8]


def test_a_nan_loss_is_shown_as_nan():
    """The last loss is exported as it was, also when it is not a number."""
    assert math.isnan(
        value(make_snapshot(optimizers=(make_optimizer(loss=math.nan),)), "training_loss", optimizer="AdamW")
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_never_enter_counters_or_sums(bad):
    """A counter, summary or histogram whose value is not finite is left out; a gauge is shown."""
    optimizer = make_optimizer(
        loss_positive_sum=bad, gradient_norm=bad, gradient_norm_histogram=Histogram((1.0,), (1, 1), bad)
    )
    found = scrape(make_snapshot(optimizers=(optimizer,), samples_total=bad, hook_seconds=bad))
    assert "training_samples_total" not in found
    assert "training_monitor_hook_seconds_total" not in found
    assert "training_step_gradient_norm_bucket" not in found
    assert [pairs["sign"] for pairs, _ in found["training_step_loss_sum"]] == ["negative"]
    assert str(found["training_gradient_norm"][0][1]) == str(bad)


def test_the_optimizer_label_is_the_key_or_the_class_name():
    """Several optimizers are told apart by key; one without a key goes by its class name."""
    snapshot = make_snapshot(optimizers=(make_optimizer("generator", 1), make_optimizer("", 1)))
    assert [pairs["optimizer"] for pairs, _ in scrape(snapshot)["training_loss"]] == ["generator", "AdamW"]


def test_groups_beyond_the_bound_are_counted_not_exported():
    """The first 64 groups of the run are exported; the series of the rest are added to the dropped ones."""
    snapshot = make_snapshot(optimizers=(make_optimizer("a", 60), make_optimizer("b", 10)), dropped_series=5)
    found = scrape(snapshot)
    exported = [(p["optimizer"], p["param_group"]) for p, _ in found["training_learning_rate"]]
    assert exported == [("a", str(i)) for i in range(60)] + [("b", str(i)) for i in range(4)]
    assert found["training_monitor_dropped_series"] == [({}, 5 + 6 * 6)]


def test_ranks_are_counted_by_state_and_shown_one_by_one():
    """Rank 0's run has them; those beyond the bound are counted, by the series that they would have."""
    ranks = (RankReading(0, "ok", "run", "box", 5, 0.2, 1.0, 0.5), RankReading(1))
    found = scrape(make_snapshot(groups=0, ranks=ranks, dropped_series=0))
    counts = {pairs["state"]: number for pairs, number in found["training_ranks"]}
    assert counts == {"ok": 1, "behind": 0, "lost": 0, "ended": 0, "not_attached": 1}
    assert found["training_rank_step"] == [({"rank": "0"}, 5)]
    assert found["training_rank_step_duration_seconds"] == [({"rank": "0"}, 0.2)]
    assert found["training_rank_last_seen_seconds"] == [({"rank": "0"}, 0.5)]
    many = scrape(make_snapshot(groups=0, ranks=(ranks[0],) * 66 + (ranks[1],), dropped_series=0))
    assert found["training_monitor_dropped_series"] == [({}, 0)]
    assert len(many["training_rank_step"]) == 64
    assert many["training_monitor_dropped_series"] == [({}, 6)]
    assert "training_ranks" not in scrape(EMPTY)


def test_the_dropped_series_are_those_that_would_have_been_there():
    """What a bound takes away is what the scrape grows by when the bound is lifted."""
    groups = tuple(dataclasses.replace(g, momentum=None) if g.index % 2 else g for g in make_groups(9))
    snapshot = make_snapshot(optimizers=(make_optimizer(groups=0),), dropped_series=0)
    snapshot = dataclasses.replace(snapshot, optimizers=(dataclasses.replace(snapshot.optimizers[0], groups=groups),))
    bounded, whole = scrape(snapshot, max_groups=4), scrape(snapshot)
    missing = sum(map(len, whole.values())) - sum(map(len, bounded.values()))
    assert bounded["training_monitor_dropped_series"] == [({}, missing)]


def test_logged_names_are_bounded():
    """64 logged names and 64 datasets are exported; the rest are counted as dropped."""
    values = {f"name{i}": float(i) for i in range(70)}
    found = scrape(make_snapshot(groups=1, metrics=values, validation_losses=values, dropped_series=0))
    assert [pairs["name"] for pairs, _ in found["training_metric"]] == [f"name{i}" for i in range(64)]
    assert len(found["training_validation_loss"]) == 64
    assert found["training_monitor_dropped_series"] == [({}, 12)]


def test_a_reading_that_a_card_does_not_offer_is_absent():
    """None is no sample, neither as a value nor as a missing mapping."""
    bare = make_gpu(0, utilization_ratio=None, energy_joules=None, throttle_reasons=None, ecc_errors=None)
    found = scrape(dataclasses.replace(make_snapshot(), gpus=(bare,)))
    absent = ("utilization_ratio", "energy_joules_total", "throttled", "ecc_errors_total")
    assert [name for name in absent if f"training_gpu_{name}" in found] == []
    assert found["training_gpu_power_watts"] == [({"gpu": "0"}, 540.5)]


def test_a_failing_section_leaves_the_rest_whole():
    """A part of the training state that cannot be rendered costs its own series and the success mark only."""
    errors = []
    broken = make_snapshot(events_total=Unreadable())
    found = scrape(broken, on_error=errors.append)
    missing = set(scrape(make_snapshot())) - set(found)
    assert missing == {
        *("training_events_total", "training_event_active"),
        *("training_last_event_timestamp_seconds", "training_last_event_step"),
    }
    success = {pairs["collector"]: number for pairs, number in found["training_monitor_collect_success"]}
    assert success == {"training": 0, "gpu": 1, "host": 1}
    assert len(errors) == 1


def test_a_section_that_fails_half_way_leaves_no_torn_histogram():
    """A histogram with too few counts is left out with its section, not exported in part."""
    found = scrape(make_snapshot(step_duration=Histogram((1.0, 2.0), (1,), 1.0)), on_error=lambda *_: None)
    assert [name for name in found if name.startswith("training_step_duration")] == []
    assert "training_loss" in found


@pytest.mark.parametrize(
    ("collector", "changes"), [("gpu", {"gpus": (Unreadable(),)}), ("host", {"host": Unreadable()})]
)
def test_a_failing_gpu_or_host_section_is_that_collectors_failure(collector, changes):
    """What cannot be rendered of the GPUs or the host does not touch the training section."""
    found = scrape(dataclasses.replace(make_snapshot(), **changes), on_error=lambda *_: None)
    success = {pairs["collector"]: number for pairs, number in found["training_monitor_collect_success"]}
    assert success == {"training": 1, "gpu": 1, "host": 1, collector: 0}


def test_the_sampler_reports_its_own_failures():
    """A failed round of the sampler shows as success 0 with the duration that it took."""
    collections = {"gpu": Collection(1.5, False, "GPU is lost"), "host": Collection(0.002, True)}
    found = scrape(make_snapshot(collections=collections))
    success = {pairs["collector"]: number for pairs, number in found["training_monitor_collect_success"]}
    duration = {p["collector"]: number for p, number in found["training_monitor_collect_duration_seconds"]}
    assert success == {"training": 1, "gpu": 0, "host": 1}
    assert (duration["gpu"], duration["host"]) == (1.5, 0.002)


def test_a_collector_that_is_switched_off_has_no_series():
    """Without a GPU collector there is no success mark for one."""
    found = scrape(make_snapshot(collections={}))
    assert [pairs for pairs, _ in found["training_monitor_collect_success"]] == [{"collector": "training"}]


def test_the_training_section_is_timed():
    """The duration of the training collector is what the timer says."""
    ticks = iter([10.0, 10.25])
    found = scrape(make_snapshot(), timer=lambda: next(ticks))
    assert ({"collector": "training"}, 0.25) in found["training_monitor_collect_duration_seconds"]


def test_a_snapshot_that_cannot_be_had_is_a_metric_not_an_outage():
    """When the run gives no snapshot, the scrape still says for which run it failed."""
    snapshots = iter([make_snapshot()])
    errors = []
    collector = RunCollector(lambda: next(snapshots), on_error=errors.append)
    list(collector.collect())
    families = {family.name: family for family in collector.collect()}
    assert set(families) == {
        "training_monitor_collect_duration_seconds",
        "training_monitor_collect_success",
    }
    (sample,) = families["training_monitor_collect_success"].samples
    assert (sample.labels, sample.value) == ({"run_id": "demo-0a1b2c", "collector": "training"}, 0.0)
    assert [type(error) for error in errors] == [StopIteration]


def test_failures_are_logged_where_nobody_counts_them(caplog):
    """Without on_error a contained failure goes to the log."""
    scrape(make_snapshot(host=Unreadable()))
    assert "export failed: RuntimeError" in caplog.text


def test_two_scrapers_see_the_same():
    """Nothing is reset by a scrape."""
    collector = RunCollector(make_snapshot, timer=lambda: 0.0)
    assert list(collector.collect()) == list(collector.collect())


def test_an_unknown_metric_does_not_get_out():
    """A name outside the catalogue is refused at once, and so is a wrong number of labels."""
    from monitor.export._samples import Samples

    with pytest.raises(KeyError, match="training_mystery"):
        Samples("run").put("training_mystery", 1.0)
    with pytest.raises(ValueError, match="zip"):
        Samples("run").put("training_loss", 1.0)


def test_a_bound_below_one_is_refused():
    """max_groups names the value that it was given."""
    with pytest.raises(ValueError, match="max_groups must be at least 1, got 0"):
        RunCollector(make_snapshot, max_groups=0)


def test_host_readings_are_independent():
    """A machine that tells its memory but not its load shows just that."""
    found = scrape(make_snapshot(host=HostReading(memory_total_bytes=1.0)))
    assert found["training_host_memory_total_bytes"] == [({}, 1.0)]
    assert "training_host_cpu_utilization_ratio" not in found

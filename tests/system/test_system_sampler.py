from __future__ import annotations

import itertools
import json
import threading

import pynvml
import pytest

from monitor._records import Collection, GpuReading, HostReading, SystemReading
from monitor.system import GpuReader, GpuRound, HostReader, SystemHistory, SystemSampler
from tests.system.fake_nvml import FakeCard, FakeNvml

A = "GPU-aa11aa11-0000-0000-0000-000000000000"
HOST = HostReading(0.5, 10.0, 100.0, 5.0, 1.0)
PATIENCE = 10.0
LONG = 30.0


class FakeHost:
    """A host whose readings are given; an exception among them is raised."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self):
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        return reading


class FakeGpu(FakeHost):
    """GPUs whose rounds are given."""

    is_closed = False

    def close(self):
        self.is_closed = True


class HungGpu:
    """A driver that does not answer until it is let go."""

    def __init__(self):
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()

    def read(self):
        self.is_asked.set()
        assert self.may_answer.wait(LONG)
        return GpuRound()

    def close(self):
        pass


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def make_gpu(index=0, power=500.0):
    return GpuReading(
        index,
        A,
        "H200",
        "580",
        utilization_ratio=0.9,
        memory_used_bytes=7.0,
        temperature_celsius=60.0,
        power_watts=power,
    )


def make_sampler(host=None, gpu=None, errors=None, **arguments):
    errors = [] if errors is None else errors
    return SystemSampler(2.0, host or FakeHost(HOST), gpu, errors.append, **arguments)


def test_a_round_holds_host_gpus_and_how_it_went():
    """One round reads both and is published whole."""
    timer = Clock()
    sampler = make_sampler(gpu=FakeGpu(GpuRound((make_gpu(),))), clock=Clock(1000.0), timer=timer)
    reading = sampler.sample()
    assert reading == SystemReading(
        1000.0, HOST, (make_gpu(),), {"host": Collection(0.0, True), "gpu": Collection(0.0, True)}
    )
    assert sampler.latest() is reading


def test_before_the_first_round_there_is_nothing():
    """latest() is never None: at first it is an empty reading at time 0."""
    assert make_sampler().latest() == SystemReading(time=0.0)


def test_without_a_gpu_source_there_is_no_gpu_collector():
    """Where GPUs are not to be read, nothing claims that they were."""
    assert set(make_sampler().sample().collections) == {"host"}


def test_a_failing_host_leaves_the_gpus():
    """A failure is reported once a round and marked; the other reading continues, and so does the next round."""
    errors = []
    host = FakeHost(OSError("no /proc"), HOST)
    sampler = make_sampler(host, FakeGpu(GpuRound((make_gpu(),))), errors)
    reading = sampler.sample()
    assert (reading.host, len(reading.gpus)) == (None, 1)
    assert (reading.collections["host"].is_success, reading.collections["host"].message) == (
        False,
        "OSError: no /proc",
    )
    assert reading.collections["gpu"].is_success
    assert [str(error) for error in errors] == ["no /proc"]
    assert sampler.sample().collections["host"].is_success
    assert len(errors) == 1


def test_a_failing_gpu_reader_leaves_the_host():
    """An unexpected exception of the GPU reader is contained like any other."""
    errors = []
    reading = make_sampler(gpu=FakeGpu(RuntimeError("strange")), errors=errors).sample()
    assert (reading.host, reading.gpus, reading.collections["gpu"].is_success) == (HOST, (), False)
    assert [str(error) for error in errors] == ["strange"]


def test_a_lost_card_marks_the_round_and_the_others_are_shown():
    """What the GPU reader could not read is success 0 with the reason, beside the readings that it has."""
    cards = [FakeCard(A), FakeCard("GPU-bb")]
    gpu = GpuReader(FakeNvml(cards), torch_devices=lambda: None, environ={})
    errors = []
    sampler = make_sampler(gpu=gpu, errors=errors)
    sampler.sample()
    cards[0].errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(2):
        reading = sampler.sample()
        assert [g.index for g in reading.gpus] == [1]
        assert reading.collections["gpu"].is_success is False
        assert reading.collections["gpu"].message == f"GPU 0 ({A}): GPU is lost"
    assert [str(error) for error in errors] == [f"GPU 0 ({A}): GPU is lost"] * 2


def test_the_duration_of_each_collector_is_measured():
    """A slow reading shows in its collector's duration."""
    timer = Clock()

    class SlowHost:
        def read(self):
            timer.now += 0.25
            return HOST

    assert make_sampler(SlowHost(), timer=timer).sample().collections["host"].duration_seconds == 0.25


def test_a_failing_report_is_contained(caplog):
    """Even a report of a failure that fails does not end the sampler."""

    def refuse(error):
        raise RuntimeError("no more space")

    sampler = SystemSampler(2.0, FakeHost(OSError("x"), HOST), None, refuse)
    assert sampler.sample().collections["host"].is_success is False
    assert sampler.sample().collections["host"].is_success is True
    assert "The report of a failure failed" in caplog.text


def test_the_thread_samples_and_ends():
    """The thread makes its first round at once, gives the library back at the end, and is gone."""
    done = threading.Event()

    class LastHost:
        def read(self):
            done.set()
            return HOST

    gpu = FakeGpu(GpuRound((make_gpu(),)))
    sampler = make_sampler(LastHost(), gpu)
    sampler.start()
    assert done.wait(LONG)
    assert sampler.stop(LONG) is True
    assert sampler.latest().gpus == (make_gpu(),)
    assert gpu.is_closed


def test_the_thread_goes_on_after_a_failed_round():
    """A failure of our own within a round is reported, and the next round is made."""
    errors, second = [], threading.Event()

    class BrokenHistory(SystemHistory):
        def append(self, reading):
            if errors:
                second.set()
            else:
                raise RuntimeError("history is broken")

    sampler = SystemSampler(
        0.001,
        FakeHost(HOST),
        None,
        errors.append,
        history=BrokenHistory(),
    )
    sampler.start()
    assert second.wait(LONG)
    assert sampler.stop(LONG)
    assert [str(error) for error in errors] == ["history is broken"]


def test_a_hung_driver_does_not_hang_the_end():
    """stop() gives up on a driver that does not answer and says so; the thread is a daemon."""
    gpu = HungGpu()
    sampler = make_sampler(gpu=gpu)
    sampler.start()
    assert gpu.is_asked.wait(LONG)
    (thread,) = [t for t in threading.enumerate() if t.name == "monitor-system"]
    assert thread.daemon
    assert sampler.stop(timeout=0.01) is False
    gpu.may_answer.set()
    assert sampler.stop(LONG) is True


def test_a_hung_driver_is_shown_not_hidden_behind_old_readings():
    """Once a reading has been under way for too long, what was read before is no longer shown as the present."""
    timer = Clock(100.0)
    gpu = HungGpu()
    gpu.may_answer.set()
    sampler = make_sampler(gpu=gpu, timer=timer)
    before = sampler.sample()
    gpu.may_answer.clear()
    gpu.is_asked.clear()
    sampler.start()
    assert gpu.is_asked.wait(LONG)
    timer.now += PATIENCE
    assert sampler.latest() == before
    timer.now += 1.0
    late = sampler.latest()
    failed = Collection(11.0, False, "gpu: no answer for 11 s")
    assert (late.host, late.gpus, late.collections) == (None, (), {"host": failed, "gpu": failed})
    gpu.may_answer.set()
    assert sampler.stop(LONG)
    assert sampler.latest().collections["gpu"].is_success


def test_stopping_what_never_ran_is_fine():
    """stop() without start() has nothing to wait for; starting twice is a mistake."""
    assert make_sampler().stop() is True
    sampler = make_sampler()
    sampler.start()
    with pytest.raises(RuntimeError, match="can only be started once"):
        sampler.start()
    assert sampler.stop(LONG)


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_that_is_none_is_refused(interval):
    """The refusal names the value."""
    with pytest.raises(ValueError, match=f"interval must be greater than 0 seconds, got {interval}"):
        SystemSampler(interval, FakeHost(HOST), None, lambda *_: None)


def fill(history, count, start=0):
    for i in range(start, start + count):
        history.append(SystemReading(time=float(i), host=HOST, counter=float(i)))


def test_the_history_is_columns_ready_for_json():
    """Every column is as long as time; None stands where a reading was missing."""
    clock = Clock(1.0)
    host = FakeHost(HOST, OSError("x"), HostReading(None, 11.0, 100.0, 6.0, 2.0))
    gpu = FakeGpu(GpuRound((make_gpu(0, 400.0),)), GpuRound(), GpuRound((make_gpu(0), make_gpu(1))))
    sampler = make_sampler(host, gpu, clock=clock)
    for now in (1.0, 2.0, 3.0):
        clock.now = now
        sampler.sample()
    columns = sampler.history()
    assert columns == {
        "time": [1.0, 2.0, 3.0],
        "cpu_ratio": [0.5, None, None],
        "memory_used_bytes": [10.0, None, 11.0],
        "tree_resident_bytes": [5.0, None, 6.0],
        "gpus": {
            "0": {
                "utilization_ratio": [0.9, None, 0.9],
                "memory_used_bytes": [7.0, None, 7.0],
                "temperature_celsius": [60.0, None, 60.0],
                "power_watts": [400.0, None, 500.0],
            },
            "1": {
                "utilization_ratio": [None, None, 0.9],
                "memory_used_bytes": [None, None, 7.0],
                "temperature_celsius": [None, None, 60.0],
                "power_watts": [None, None, 500.0],
            },
        },
    }
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns


def test_the_history_gives_increments():
    """since leaves out what the reader has; at the end there is nothing left."""
    history = SystemHistory()
    fill(history, 10)
    assert history.columns(since=6.0)["time"] == [7.0, 8.0, 9.0]
    assert history.columns(since=9.0) == {
        "time": [],
        "cpu_ratio": [],
        "memory_used_bytes": [],
        "tree_resident_bytes": [],
        "gpus": {},
    }


@pytest.mark.parametrize("jump", [3e7, -3e7])
def test_a_clock_that_is_set_loses_no_round(jump):
    """Rounds are told apart and asked for by the monotonic clock; the wall clock is only what is shown."""
    history = SystemHistory(size=20)
    fill(history, 50)
    for i in range(50, 60):
        history.append(SystemReading(time=i + jump, host=HOST, counter=float(i)))
    assert history.columns(since=57.0)["time"] == [58.0 + jump, 59.0 + jump]
    assert len(history.columns(since=-1.0)["time"]) == 60 / 2


@pytest.mark.parametrize("points", [1, 2, 3, 7, 99, 100, 1000])
def test_the_newest_round_survives_thinning(points):
    """However few points are asked for, they are evenly spaced and end with the newest."""
    history = SystemHistory()
    fill(history, 100)
    times = history.columns(since=-1.0, points=points)["time"]
    assert len(times) <= points
    assert times[-1] == 99.0
    assert len({later - earlier for earlier, later in itertools.pairwise(times)}) <= 1


def test_the_history_is_bounded_and_covers_the_run():
    """After days of rounds it holds no more rows than its bound, evenly over the run, and the last ones in full."""
    history = SystemHistory(size=20)
    fill(history, 10_000)
    times = history.columns(since=-1.0, points=10**6)["time"]
    assert len(times) <= 40
    assert times == [float(i) for i in range(255, 10_000, 256)] + [9999.0]
    assert history.columns(since=9980.0)["time"] == [float(i) for i in range(9981, 10_000)]


def test_no_points_are_refused():
    """The refusal names the value."""
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        SystemHistory().columns(points=0)


def test_the_real_machine_is_sampled():
    """With the real psutil and NVML a round succeeds, GPU or not."""
    errors = []
    reading = make_sampler(HostReader(), GpuReader(), errors).sample()
    assert errors == []
    assert reading.host.memory_total_bytes > 0
    assert [name for name, how in reading.collections.items() if not how.is_success] == []

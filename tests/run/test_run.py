"""A run as its user meets it: attach, look, log, command, leave."""

from __future__ import annotations

import json
import logging
import math
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monitor
from monitor.probe._watched import PROBES
from monitor.store._command import own_command
from monitor.store._known import list_runs
from monitor.watcher._linger import Linger
from tests.watcher.test_process import wait_for


def make(lr: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    return net, torch.optim.SGD(net.parameters(), lr=lr)


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: int = 1) -> float:
    for _ in range(steps):
        loss = net(torch.ones(1, 3)).pow(2).sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
    return loss.item()


def quick(opt: Any, scheduler: Any = None, **settings: Any) -> monitor.Run:
    return monitor.attach(opt, scheduler, **{"gpu": False, "serve": False, "linger": 0, **settings})


def test_a_run_knows_its_steps_loss_and_state() -> None:
    """After a flush the snapshot holds the last step; the state goes from starting to finished."""
    net, opt = make()
    with quick(opt, total_steps=10) as run:
        assert run.state == "starting"
        loss = train(net, opt, 4)
        assert run.flush()
        snapshot = run.snapshot()
        assert (snapshot.state, run.step, snapshot.optimizers[0].steps) == ("running", 4, 4)
        assert snapshot.optimizers[0].loss == loss
        assert snapshot.target_steps == 10
    assert run.state == "finished"
    assert run.snapshot().end_time is not None


def test_history_and_events_are_read_by_increments() -> None:
    """since= gives what came after the cursor; the system's readings stand beside the curves."""
    net, opt = make()
    with quick(opt) as run:
        train(net, opt, 3)
        run.flush()
        first = run.history()
        train(net, opt, 2)
        run.flush()
        second = run.history(since=first["next"])
        assert (first["next"], second["optimizers"]["SGD"]["step"]) == (3, [4, 5])
        assert set(first["system"]) >= {"time", "cpu_ratio", "gpus"}
        started = run.events()
        assert [e.kind for e in started] == ["state"]
        assert run.events(since=started[-1].seq) == ()


def test_a_run_begins_with_its_start() -> None:
    """The first event says that the run has started, though its very first step is in trouble."""
    net, opt = make()
    with quick(opt, digest_interval=5) as run:
        with torch.no_grad():
            net.weight.fill_(math.nan)
        train(net, opt, 3)
        assert run.flush()
        first, *others = run.events()
        assert (first.seq, first.kind, first.step, first.details) == (1, "state", 0, {"state": "starting"})
        assert first.message == f"run {run.id} started"
        assert "nonfinite" in [event.kind for event in others]


def test_log_takes_numbers_and_tensors_and_never_raises() -> None:
    """Every kind of value a user passes ends up as a number, or is counted as an error of the component `log`."""
    net, opt = make()
    with quick(opt) as run:
        train(net, opt)
        run.log(val_loss=torch.tensor(0.5), samples=32, tokens=torch.tensor([64]), accuracy=0.9, n=torch.tensor(3))
        run.log(val_loss={"a": 1.0, "b": math.nan}, flag=True)
        run.log(bad="x", worse=torch.ones(2), worst=object(), complex_=1j)
        run.flush()
        snapshot = run.snapshot()
    assert snapshot.validation_losses["validation"] == 0.5
    assert snapshot.validation_losses["a"] == 1.0
    assert math.isnan(snapshot.validation_losses["b"])
    assert (snapshot.samples_total, snapshot.tokens_total) == (32.0, 64.0)
    assert snapshot.metrics == {"accuracy": 0.9, "n": 3.0, "flag": 1.0}
    assert snapshot.errors == {"log": 4}


@pytest.mark.parametrize("is_before_step", [True, False])
def test_a_logged_loss_overrides_the_captured_one(is_before_step: bool) -> None:
    """Logged between backward and step or after the step, it is the loss of that step."""
    net, opt = make()
    with quick(opt) as run:
        for value in (11.0, 12.0, 13.0):
            net(torch.ones(1, 3)).pow(2).sum().backward()
            if is_before_step:
                run.log(loss=value)
            opt.step()
            if not is_before_step:
                run.log(loss=torch.tensor(value))
            opt.zero_grad()
        run.flush()
        shown = run.history()["optimizers"]["SGD"]["loss"]
    assert shown[1:] == [12.0, 13.0]
    assert run.snapshot().optimizers[0].loss == 13.0


def test_reduce_set_restore_undo(caplog: pytest.LogCaptureFixture) -> None:
    """Each command takes effect at the next step, is audited, and run.lr tells scheduled, factor and applied."""
    net, opt = make(lr=0.4)
    with quick(opt) as run:
        for act, factor in (
            (lambda: run.reduce_lr(0.5, reason="spiky"), 0.5),
            (lambda: run.reduce_lr(0.5), 0.25),
            (lambda: run.undo_lr(), 0.5),
            (lambda: run.set_lr_factor(0.1), 0.1),
            (lambda: run.restore_lr(), 1.0),
        ):
            command = act()
            assert command.status == "pending"
            train(net, opt)
            assert command.status == "applied"
            assert command.record.step == run.step
            assert run.lr[0] == ("SGD", 0, None, 0.4, factor, 0.4 * factor)
            run.flush()
            assert run.snapshot().optimizers[0].groups[0].applied == 0.4 * factor
        audits = [e for e in run.events() if e.kind == "control"]
        assert [e.details["action"] for e in audits] == ["reduce", "reduce", "undo", "set", "restore"]
        assert "spiky" in audits[0].message
        assert run.snapshot().commands_total == {
            ("reduce", "code", "applied"): 2,
            ("undo", "code", "applied"): 1,
            ("set", "code", "applied"): 1,
            ("restore", "code", "applied"): 1,
        }
        assert "monitor_lr_factor" not in opt.param_groups[0]


def test_leaving_with_a_factor_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning says that the schedule's own LR is in force again."""
    net, opt = make()
    with caplog.at_level(logging.WARNING, "monitor"), quick(opt) as run:
        run.reduce_lr(0.5)
        train(net, opt)
    assert [r.getMessage() for r in caplog.records if "in force again" in r.getMessage()] == [
        "the run ends with LR factors in force (SGD group 0: 0.5); from here on the schedule's own LR is in force again"
    ]


def test_waiting_for_a_command_on_the_training_thread_is_refused() -> None:
    """wait() where it could never end says so at once; another thread gets the outcome."""
    net, opt = make()
    with quick(opt) as run:
        train(net, opt)
        command = run.reduce_lr(0.5)
        with pytest.raises(monitor.MonitorError, match="would never end"):
            command.wait()
        got: list[monitor.CommandRecord] = []
        waiter = threading.Thread(target=lambda: got.append(command.wait(60)))
        waiter.start()
        train(net, opt)
        waiter.join()
        assert [r.status for r in got] == ["applied"]
        assert command.wait().status == "applied"


def test_the_run_over_http(tmp_path: Path) -> None:
    """Page, metrics and API answer; a reduction sent over HTTP is applied at the next step."""
    net, opt = make()
    with quick(opt, serve=True, port=0, directory=str(tmp_path)) as run:
        train(net, opt, 2)
        run.flush()
        metrics = urllib.request.urlopen(f"{run.url}/metrics").read().decode()
        assert f'training_steps_total{{optimizer="SGD",run_id="{run.id}"}} 2.0' in metrics
        request = urllib.request.Request(
            f"{run.url}/api/v1/lr/reduce",
            data=json.dumps({"factor": 0.5, "reason": "over http"}).encode(),
            headers={"Authorization": f"Bearer {run.token}", "Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(request))
        assert answer["status"] == "pending"
        train(net, opt)
        assert run.lr[0].applied == 0.05
        known = json.loads((tmp_path / run.id / "run.json").read_text())
        assert (known["state"], known["url"]) == ("running", run.url)
    final = json.loads((tmp_path / run.id / "final.json").read_text())
    assert final["state"] == "finished"
    assert json.loads((tmp_path / run.id / "run.json").read_text())["state"] == "finished"


def test_several_optimizers_by_name() -> None:
    """A mapping names the optimizers; groups can be named as optimizer/index."""
    (net_a, a), (net_b, b) = make(), make()
    with quick({"generator": a, "discriminator": b}) as run:
        run.reduce_lr(0.5, groups=["discriminator"])
        train(net_a, a)
        train(net_b, b)
        assert [(r.optimizer, r.factor) for r in run.lr] == [("generator", 1.0), ("discriminator", 0.5)]
        run.flush()
        assert [o.key for o in run.snapshot().optimizers] == ["generator", "discriminator"]
        assert set(run.history()["optimizers"]) == {"generator", "discriminator"}


def test_optimizers_share_one_budget_for_their_gradient_norms() -> None:
    """Four optimizers measure their norms within the share of the step time that one alone would have."""
    optimizers = {str(i): make()[1] for i in range(4)}
    with quick(optimizers, overhead_budget=0.2):
        assert [PROBES[id(o)].norms._budget for o in optimizers.values()] == [0.05] * 4


class TestLinger:
    """The endpoint stays until whoever watched has seen the end."""

    def test_nobody_watched_nobody_waits(self) -> None:
        """Without a scrape or a page there is no wait."""
        Linger(clock=lambda: 0.0).wait(30.0)

    def test_zero_turns_it_off(self) -> None:
        """0 seconds wait for nobody."""
        linger = Linger(clock=lambda: 0.0)
        linger.note("scrape")
        linger.wait(0.0)

    def test_an_open_page_is_shown_the_end_whole(self, caplog: pytest.LogCaptureFixture) -> None:
        """A page that was open is waited for until it has both the final state and the last curves."""
        now = [100.0]
        linger = Linger(clock=lambda: now[0])
        linger.note("state")
        linger.note("curves")
        with caplog.at_level(logging.INFO, "monitor"):
            waiting = threading.Thread(target=linger.wait, args=(3600.0,))
            waiting.start()
            while waiting.is_alive():
                now[0] += 0.5
                linger.note("state")
                waiting.join(0.01)
        assert caplog.records[0].getMessage().startswith("waiting up to 3 s for an open page, or `monitor top`, to")
        assert now[0] >= 103.0  # the curves were not asked for again: 3 s, not more

    def test_one_more_scrape_ends_it(self) -> None:
        """After a scrape during the run the end waits for one more, and no longer."""
        now = [0.0]
        linger = Linger(clock=lambda: now[0])
        linger.note("scrape")
        now[0] = 1.0
        waiting = threading.Thread(target=linger.wait, args=(3600.0,))
        waiting.start()
        while waiting.is_alive():  # time continues, and so do the scrapes
            now[0] += 1.0
            linger.note("scrape")
            waiting.join(0.01)
        assert now[0] < 3600.0

    def test_a_wait_is_told_before_it_begins(self, caplog: pytest.LogCaptureFixture) -> None:
        """The log says how long the wait is at most, what for, and what ends it or turns it off."""
        now = [0.0]
        linger = Linger(clock=lambda: now[0])
        linger.note("scrape")
        now[0] = 12.0
        with caplog.at_level(logging.INFO, "monitor"):
            waiting = threading.Thread(target=linger.wait, args=(30.0,))
            waiting.start()
            while waiting.is_alive():
                now[0] += 1.0
                linger.note("scrape")
                waiting.join(0.01)
        assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
            (
                "INFO",
                (
                    "waiting up to 30 s for one more scrape, so that the end of the run is seen (the last one was 12 s "
                    "ago); Ctrl-C ends the wait, attach(wait_for_scrape=0) turns it off"
                ),
            )
        ]

    @pytest.mark.parametrize(("seen", "seconds"), [((), 30.0), (("scrape", "state"), 0.0), (("scrape",), 0.5)])
    def test_what_is_no_wait_is_not_told(
        self, seen: tuple[str, ...], seconds: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody watched, 0 seconds, or less than a second: the log stays quiet."""
        now = iter([0.0, 0.0, 0.0, *range(1, 100)] if seen else [0.0])
        linger = Linger(clock=lambda: next(now))
        for what in seen:
            linger.note(what)
        with caplog.at_level(logging.INFO, "monitor"):
            linger.wait(seconds)
        assert caplog.records == []


def said_by(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "monitor"]


def test_trouble_is_told_in_the_log_once_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    """A loss that becomes NaN is one warning with its kind and step, not one a step and none at its end."""
    net, opt = make()
    with caplog.at_level(logging.INFO, "monitor"), quick(opt) as run:
        for loss in (1.0, 1.0, math.nan, math.nan, math.nan, *[1.0] * 12):
            train(net, opt)
            run.log(loss=loss)
        assert run.flush()
        assert [e.end_step is None for e in run.events() if e.kind == "nonfinite"] == [True, False]
    ((level, text),) = [line for line in said_by(caplog) if "nonfinite" in line[1]]
    assert level == "WARNING"
    assert text.startswith("nonfinite of SGD at step 3: loss is NaN at step 3; last good step 2. Restore")


def test_a_log_that_fails_keeps_no_event_from_the_user(caplog: pytest.LogCaptureFixture) -> None:
    """A logging handler that raises is counted, and on_event hears of the trouble all the same."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("nonfinite"):
                raise OSError("disk full")

    heard: list[str] = []
    net, opt = make()
    handler = Broken()
    logging.getLogger("monitor").addHandler(handler)
    try:
        with quick(opt, on_event=lambda event: heard.append(event.kind)) as run:
            for _ in range(3):
                train(net, opt)
                run.log(loss=math.nan)
            assert run.flush()
            assert run.snapshot().errors == {"log": 1}
    finally:
        logging.getLogger("monitor").removeHandler(handler)
    assert "nonfinite" in heard


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_the_last_line_says_how_it_ended_and_how_to_look_back(
    state: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the run, its end, its step and the command that shows its last state, its folder included."""
    net, opt = make()
    with caplog.at_level(logging.INFO, "monitor"):
        run = quick(opt, name="mine", directory=str(tmp_path / "the runs"))
        train(net, opt, 4)
        run.close(state)
    line = f"run mine {state} at step 4; look back at it: {own_command()} status {run.id} --dir '{tmp_path}/the runs'"
    assert said_by(caplog)[-1] == ("INFO", line)


def test_a_run_that_ends_before_its_watcher_is_there_says_how_to_look_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The command is in the last line all the same: the watcher makes the folder while the script leaves."""
    net, opt = make()
    caplog.set_level(logging.INFO, "monitor")
    with monitor.attach(opt, name="short", directory=str(tmp_path), gpu=False, linger=0) as run:
        train(net, opt, 2)
    (line,) = [text for _, text in said_by(caplog) if "finished" in text]
    assert line == f"run short finished at step 2; look back at it: {own_command()} status {run.id} --dir {tmp_path}"
    wait_for(lambda: any(one.state == "finished" for one in list_runs(tmp_path)), "the end in the folder")
    assert [(one.run_id, one.state) for one in list_runs(tmp_path)] == [(run.id, "finished")]


@pytest.mark.parametrize(
    ("given", "variable", "is_told"),
    [({}, "", False), ({"gpu": True}, "", True), ({}, "1", True), ({"gpu": False}, "1", False)],
)
def test_a_missing_gpu_is_told_to_whom_asked_for_one(
    given: dict[str, Any],
    variable: str,
    is_told: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gpu=True or MONITOR_GPU=1 on a machine without NVML is answered in the log; the default is silent there."""

    def absent(name: str) -> Any:
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr("monitor.system._gpu.importlib.import_module", absent)
    monkeypatch.setenv("MONITOR_GPU", variable)
    _, opt = make()
    with caplog.at_level(logging.INFO, "monitor"), monitor.attach(opt, serve=False, linger=0, **given) as run:
        while given.get("gpu", True) and not run.snapshot().collections:
            run.flush()
    assert any("GPUs are not read" in record.getMessage() for record in caplog.records) == is_told


def test_what_cannot_be_captured_is_an_event_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Ten steps whose gradients were set by hand are told once, and so is what another part has to say of the kind."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with caplog.at_level("WARNING", "monitor"), quick(optimizer) as run:
        for _ in range(30):
            parameter.grad = torch.ones(2)
            optimizer.step()
        run._engine._events.note_capture("backward passes keep coming without a step", "SGD")
        run.flush()
        events = [event for event in run.events() if event.kind == "capture"]
        assert [(event.severity, event.optimizer, event.end_step) for event in events] == [("warning", "SGD", None)] * 2
        assert run.snapshot().events_total["capture"] == 2
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "no loss is known for SGD since step" in line] == [events[0].message]
    assert [line for line in lines if "keep coming" in line] == ["backward passes keep coming without a step"]


def test_the_state_of_a_disabled_run_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a session under MONITOR_DISABLED=1 is loaded by a later one without it."""
    net, opt = make()
    monkeypatch.setenv("MONITOR_DISABLED", "1")
    saved = monitor.attach(opt).state_dict()
    monkeypatch.delenv("MONITOR_DISABLED")
    with quick(opt) as run:
        train(net, opt, 2)
        run.load_state_dict(saved)
        assert run.step == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("step", step) for step in (None, "x", -5, float("inf"), float("nan"), [1])),
        *(("smoothing", found) for found in (None, 5, {"SGD": None}, {"SGD": 5}, {"SGD": {"ema": 1.0}})),
        *(("lr_factors", found) for found in (None, 5, "x", [1])),
        *(("detectors", found) for found in (None, 5, {"SGD": None}, {"SGD": 5}, {"SGD": {"spike": 5}})),
    ],
)
@pytest.mark.parametrize("watcher", ["thread", "process"])
def test_a_state_that_cannot_be_read_is_a_value_error_and_changes_nothing(watcher: str, key: str, value: Any) -> None:
    """The only error that a script need expect of a damaged checkpoint; the run counts as if nothing was loaded."""
    net, opt = make()
    with quick(opt, watcher=watcher) as run:
        train(net, opt, 3)
        before = run.state_dict()
        run.flush()
        saved = {**before, "step": 40, key: value}
        with pytest.raises(ValueError, match=r"cannot be|not what run\.state_dict"):
            run.load_state_dict(saved)
        assert run.state_dict() == before
        train(net, opt, 2)
        run.flush()
        assert (run.step, run.snapshot().optimizers[0].global_step) == (5, 5)
        with pytest.raises(ValueError, match=r"not what run\.state_dict"):
            run.load_state_dict(value)

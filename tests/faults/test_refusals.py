"""Bad input is refused at the door: the message names the value and the cure, and nothing has changed."""

from __future__ import annotations

import json
import math
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor._settings import Settings, variable_of
from monitor.detect import StuckDetector
from monitor.run._open_runs import open_runs
from tests.faults.loops import make_batches, make_model, train_plainly, watch

TOKEN = "0123456789abcdef-control"
READ_TOKEN = "0123456789abcdef-reading"


def make_optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(make_model().parameters(), lr=lr)


@pytest.fixture(autouse=True)
def _nothing_has_changed(tmp_path: Path) -> Iterator[None]:
    """A refusal leaves no patch, no open run and no folder of a run."""
    backward = torch.autograd.backward
    yield
    assert torch.autograd.backward is backward
    assert open_runs() == []


ADAM = torch.optim.Adam(make_model().parameters())
SGD = torch.optim.SGD(make_model().parameters(), lr=0.1)
FOREIGN = torch.optim.lr_scheduler.ExponentialLR(ADAM, 0.9)


@pytest.mark.parametrize(
    ("args", "settings", "kind", "message"),
    [
        (
            ([1],),
            {},
            TypeError,
            "optimizer must be a torch.optim.Optimizer, a list of them or a mapping of names to them, got int",
        ),
        ((None,), {}, TypeError, "or a mapping of names to them, got NoneType"),
        (({"a": make_model()},), {}, TypeError, "or a mapping of names to them, got Sequential"),
        (({},), {}, ValueError, "attach needs at least one optimizer, got an empty dict"),
        (([],), {}, ValueError, "attach needs at least one optimizer, got an empty list"),
        (({0: SGD, "SGD-0": ADAM},), {}, ValueError, "two of the optimizers [0, 'SGD-0'] would go by one name; name"),
        (([SGD, SGD],), {}, ValueError, "stands under two names in ['SGD-0', 'SGD-1']; name it once"),
        (
            ({"a": SGD, "b": SGD},),
            {},
            ValueError,
            "stands under two names in ['a', 'b']; name it once",
        ),
        (
            (SGD, FOREIGN),
            {},
            ValueError,
            "(Adam) than the one attached (SGD); attach that optimizer, or pass the scheduler made for this one",
        ),
        ((SGD, {"a": [FOREIGN]}), {}, ValueError, "ExponentialLR drives another optimizer (Adam)"),
        ((SGD, 3), {}, TypeError, "scheduler must be an LR scheduler, several, a mapping or None, got int"),
        ((SGD,), {"on_event": 3}, TypeError, "on_event must be callable, got 3"),
        ((SGD,), {"on_checkpoint": "f"}, TypeError, "on_checkpoint must be callable, got 'f'"),
        ((SGD,), {"prot": 3}, TypeError, "attach has no setting 'prot'; did you mean 'port'?"),
        ((SGD,), {"xyzzy": 3}, TypeError, "attach has no setting 'xyzzy'; docs/settings.md lists them"),
        ((SGD,), {"detectors": [StuckDetector(), StuckDetector()]}, ValueError, "stuck"),
        ((SGD,), {"port": 65536}, ValueError, "port must be between 0 (any free one) and 65535, got 65536"),
        ((SGD,), {"port": 80.0}, TypeError, "port must be an int, got 80.0"),
        ((SGD,), {"window": 1}, ValueError, "window must be between 2 and 65536, got 1"),
        (
            (SGD,),
            {"gradient_norm": "never"},
            ValueError,
            'must be "auto", "off" or an int N >= 1 (every N-th step), got',
        ),
        ((SGD,), {"overhead_budget": 2}, ValueError, "overhead_budget must be in (0, 1], got 2"),
        ((SGD,), {"min_lr": -1.0}, ValueError, "min_lr must be 0 or more, got -1.0"),
        ((SGD,), {"total_steps": 0}, ValueError, "total_steps must be 1 or more, got 0"),
        ((SGD,), {"stop_raises": "yes"}, TypeError, "stop_raises must be True or False, got 'yes'"),
        ((SGD,), {"linger": math.nan}, ValueError, "linger must be 0 seconds or more, got nan"),
        ((SGD,), {"digest_interval": 60}, ValueError, "digest_interval must be between 0.01 and 5 seconds, got 60"),
        ((SGD,), {"token": "secret"}, ValueError, "token must have 16 characters or more, got 6; leave it out to have"),
        ((SGD,), {"host": ""}, ValueError, "host must not be empty; leave it out for the default"),
    ],
)
def test_attach_refuses(args: Any, settings: Any, kind: type[Exception], message: str, tmp_path: Path) -> None:
    """Every argument that cannot be is refused by value and cure, before a thread, a folder or a hook is made."""
    with pytest.raises(kind) as refusal:
        monitor.attach(*args, directory=str(tmp_path / "runs"), serve=False, **settings)
    assert message in str(refusal.value)
    assert not (tmp_path / "runs").exists()
    assert dict(SGD._optimizer_step_pre_hooks) == {}
    assert not [t for t in threading.enumerate() if t.name.startswith("monitor")]


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("MONITOR_PORT", "http", "MONITOR_PORT='http' is not a valid int for port"),
        ("MONITOR_PORT", "70000", "MONITOR_PORT: port must be between 0 (any free one) and 65535, got 70000"),
        ("MONITOR_WINDOW", "1", "MONITOR_WINDOW: window must be between 2 and 65536, got 1"),
        ("MONITOR_SERVE", "perhaps", "MONITOR_SERVE='perhaps' is not a valid bool for serve"),
        ("MONITOR_GRADIENT_NORM", "-3", 'MONITOR_GRADIENT_NORM: gradient_norm must be "auto", "off" or an int N >= 1'),
        ("MONITOR_LINGER", "-1", "MONITOR_LINGER: linger must be 0 seconds or more, got -1.0"),
        ("MONITOR_MIN_LR", "nan", "MONITOR_MIN_LR: min_lr must be 0 or more, got nan"),
        ("MONITOR_TOTAL_STEPS", "1e6", "MONITOR_TOTAL_STEPS='1e6' is not a valid int for total_steps"),
        ("MONITOR_TOKEN", "secret", "MONITOR_TOKEN: token must have 16 characters or more, got 6"),
        ("MONITOR_CERTFILE", "/nowhere.pem", "MONITOR_CERTFILE: certfile must be a readable file, got '/nowhere.pem'"),
    ],
)
def test_environment_is_refused_by_its_name(
    variable: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that cannot be is named itself, as its owner has never written the setting's name."""
    monkeypatch.setenv(variable, text)
    with pytest.raises((ValueError, TypeError)) as refusal:
        monitor.attach(
            SGD, directory=str(tmp_path / "runs"), **({} if variable == "MONITOR_SERVE" else {"serve": False})
        )
    assert message in str(refusal.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_no_setting_takes_just_anything(name: str, tmp_path: Path) -> None:
    """Every single setting refuses an object that it can do nothing with, by its own name."""
    with pytest.raises((ValueError, TypeError)) as refusal:
        monitor.attach(SGD, **{"directory": str(tmp_path / "runs"), name: object()})
    assert str(refusal.value).startswith(name)
    assert variable_of(name).startswith("MONITOR_")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "factor must be in (0, 1], got 0.0; to end a run use stop"),
        (-1.0, "factor must be in (0, 1], got -1.0; to end a run use stop"),
        (2.0, "factor must be in (0, 1], got 2.0; attach(allow_increase=True) lifts the upper bound"),
        (math.nan, "factor must be in (0, 1], got nan; to end a run use stop"),
        (math.inf, "factor must be in (0, 1], got inf; to end a run use stop"),
        ("a", "factor must be a number in (0, 1], got 'a'"),
        (True, "factor must be a number in (0, 1], got True"),
        (None, "factor must be a number in (0, 1], got None"),
    ],
)
def test_bad_factor_is_refused_and_nothing_changes(factor: Any, message: str, tmp_path: Path) -> None:
    """A factor that cannot be is refused at once, counted and audited; the LR is the schedule's."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path) as run:
        for command in (run.reduce_lr, run.set_lr_factor):
            with pytest.raises(monitor.CommandRefusedError) as refusal:
                command(factor)
            assert str(refusal.value) == message
            assert isinstance(refusal.value, ValueError)
        train_plainly(model, optimizer, make_batches(2))
        run.flush()
        snapshot = run.snapshot()
    assert snapshot.optimizers[0].groups[0].applied == 0.1
    assert snapshot.commands_total == {("reduce", "code", "rejected"): 1, ("set", "code", "rejected"): 1}
    assert snapshot.errors == {}
    assert optimizer.param_groups[0] == {**optimizer.param_groups[0], "lr": 0.1}
    assert "monitor_lr_factor" not in optimizer.param_groups[0]
    assert len([e for e in run.events() if e.kind == "control" and message in e.message]) == 2


def test_unknown_group_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    """A group that does not exist is refused with the list of those that do."""
    model = make_model()
    groups = [{"params": [p], "name": f"layer{i}"} for i, p in enumerate(model.parameters())]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with watch(optimizer, tmp_path) as run:
        for wanted in (7, "head", "SGD/9"):
            with pytest.raises(monitor.CommandRefusedError) as refusal:
                run.reduce_lr(0.5, groups=[wanted])
            assert str(refusal.value) == (
                f"no param group {wanted!r}; there are 0, 1, 2, 3, layer0, layer1, layer2, layer3"
            )
        assert all(row.factor == 1.0 for row in run.lr)


def ask(run: monitor.Run, path: str, body: bytes | None, token: str | None = TOKEN, **headers: str) -> tuple[int, Any]:
    """Send a command to a real run; return the status and the answer's document."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(f"{run.url}/api/v1{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("body", "extra", "status", "detail"),
    [
        (b'{"factor": 0}', {}, 422, "got 0"),
        (b'{"factor": 2}', {}, 422, "allow_increase=True"),
        (b'{"factor": NaN}', {}, 400, "JSON"),
        (b'{"factor": "a"}', {}, 422, "'a'"),
        (b'{"factor": 0.5, "groups": [9]}', {}, 422, "no param group 9; there are 0"),
        (b'{"factor": 0.5, "speed": 1}', {}, 422, "speed"),
        (b'{"factor": 0.5', {}, 400, "JSON"),
        (b"[0.5]", {}, 400, "must be a JSON object, got [0.5]"),
        (b'{"factor": 0.5}', {"token": None}, 401, "token"),
        (b'{"factor": 0.5}', {"token": "wrong-wrong-wrong-wrong"}, 401, "token"),
        (b'{"factor": 0.5}', {"token": READ_TOKEN}, 403, "token"),
        (b'{"factor": 0.5}', {"Host": "evil.example"}, 421, "evil.example"),
        (b'{"factor": 0.5, "reason": "' + b"x" * 70_000 + b'"}', {}, 413, "larger than"),
    ],
)
def test_bad_request_to_a_real_run_changes_nothing(
    body: bytes, extra: dict[str, Any], status: int, detail: str, tmp_path: Path
) -> None:
    """Over real HTTP each bad command has its status and a detail that names what is wrong; the LR stays."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(optimizer, tmp_path, serve=True, port=0, token=TOKEN, read_token=READ_TOKEN) as run:
        code, document = ask(run, "/lr/reduce", body, **extra)
        train_plainly(model, optimizer, make_batches(1))
        run.flush()
        assert run.snapshot().optimizers[0].groups[0].applied == 0.1
        assert run.snapshot().commands_pending == 0
        assert run.snapshot().errors == {}
    assert (code, document["status"]) == (status, status), document
    assert detail in document["detail"], document

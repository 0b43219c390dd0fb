"""The front door is frozen: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import monitor

NAMES = [
    "AdaptiveLR",
    "AlreadyAttachedError",
    "ClosedRunError",
    "Command",
    "CommandRecord",
    "CommandRefusedError",
    "Event",
    "LearningRate",
    "MonitorError",
    "Policy",
    "QueueFullError",
    "Reaction",
    "ReduceLROn",
    "Request",
    "Run",
    "Settings",
    "Snapshot",
    "Step",
    "StopTraining",
    "__version__",
    "attach",
    "default_detectors",
    "rl_detectors",
]


def test_all_is_the_sorted_list_of_public_names() -> None:
    """__all__ names exactly what a user may name, each of which is there."""
    assert sorted(monitor.__all__) == NAMES
    assert all(getattr(monitor, name) is not None for name in NAMES)


def test_the_methods_of_a_run_are_those_of_the_design() -> None:
    """What a user may call on a run, and nothing else without an underscore."""
    public = {name for name in vars(monitor.Run) if not name.startswith("_")}
    assert public == {
        "close",
        "events",
        "flush",
        "history",
        "load_state_dict",
        "log",
        "lr",
        "reduce_lr",
        "restore_lr",
        "set_lr_factor",
        "should_stop",
        "snapshot",
        "state",
        "state_dict",
        "step",
        "undo_lr",
        "url",
    }


def test_the_disabled_run_overrides_all_of_a_run() -> None:
    """MONITOR_DISABLED=1 gives a Run that answers every public name itself, as there is nothing behind it."""
    from monitor.run._disabled import DisabledRun

    public = {name for name in vars(monitor.Run) if not name.startswith("_")}
    assert public - set(vars(DisabledRun)) == {"state"}  # that of the snapshot
    for name in public - {"state"}:
        theirs, ours = getattr(monitor.Run, name), getattr(DisabledRun, name)
        if callable(theirs):
            assert inspect.signature(ours) == inspect.signature(theirs), name


def test_a_disabled_run_shows_the_settings_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are those of the arguments; invalid ones give the defaults, as nothing of them is used."""
    monkeypatch.setenv("MONITOR_DISABLED", "1")
    run = monitor.attach(None, window=64)
    assert isinstance(run, monitor.Run)
    assert run.settings.window == 64
    assert (run.id, run.name, run.token) == ("disabled", "disabled", "")
    assert monitor.attach(None, window="wide").settings == monitor.Settings()
    assert monitor.attach(None, no_such_setting=1).settings == monitor.Settings()


def test_a_disabled_run_ends_like_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first end counts: that of the block, by its exception, or that of close()."""
    monkeypatch.setenv("MONITOR_DISABLED", "1")
    with monitor.attach(None) as run:
        assert run.state == "running"
    assert run.state == "finished"
    run.close("failed")
    assert run.state == "finished"
    for kind, state in ((ValueError, "failed"), (KeyboardInterrupt, "interrupted")):
        with pytest.raises(kind), monitor.attach(None) as run:
            raise kind
        assert run.state == state
    with pytest.raises(ValueError, match="state must be one of finished, failed, interrupted, got 'done'"):
        run.close("done")  # type: ignore[arg-type]
    assert repr(run) == "<Run disabled interrupted at step 0>"


def test_importing_the_front_door_imports_neither_torch_nor_flask() -> None:
    """import monitor is cheap; the work begins with attach."""
    code = "import sys, monitor; print(sorted({'torch', 'flask', 'prometheus_client', 'cheroot'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_callable_is_documented_and_typed() -> None:
    """A docstring, and annotations for every parameter and result."""
    for name in NAMES:
        value = getattr(monitor, name)
        if not callable(value):
            continue
        assert inspect.getdoc(value), name
        members = (
            [value]
            if inspect.isfunction(value)
            else [m for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")]
        )
        for member in members:
            assert inspect.getdoc(member), f"{name}.{member.__name__}"
            hints = {p for p in inspect.signature(member).parameters if p != "self"} | {"return"}
            assert hints - set(member.__annotations__) == set(), f"{name}.{member.__name__}"

"""When runs begin by themselves, when they do not, and how they end."""

from __future__ import annotations

import textwrap

import pytest

from tests.auto.conftest import Go

LOOP = """
import os, sys
import torch

def train(num_steps=4, make=torch.optim.SGD):
    model = torch.nn.Linear(4, 1)
    optimizer = make(model.parameters(), lr=0.1)
    for _ in range(num_steps):
        step(model, optimizer)
    return model, optimizer

def step(model, optimizer):
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def after(code: str) -> str:
    return LOOP + textwrap.dedent(code)


@pytest.mark.sliced(2)
@pytest.mark.parametrize(
    ("code", "rc", "state", "lines"),
    [
        ("train()", 0, "finished", ""),
        ("kept = train(); sys.exit(0)", 0, "finished", ""),
        ("kept = train(); sys.exit(3)", 3, "interrupted", ""),
        ("(lambda kept: sys.exit('bad'))(train())", 1, "interrupted", "bad\n"),
        ("(lambda kept: 1 / 0)(train())", 1, "failed", "ZeroDivisionError: division by zero\n"),
        ("kept = train(); raise KeyboardInterrupt", -2, "interrupted", "KeyboardInterrupt\n"),
        (
            "kept = train()\ntry:\n    sys.exit(3)\nexcept SystemExit:\n    step(*kept)",
            0,
            "finished",
            "",
        ),
    ],
)
def test_a_run_ends_as_the_program_does(go: Go, code: str, rc: int, state: str, lines: str) -> None:
    """Its state is that of the end; exit status and traceback are those of the program."""
    done = go(code=after(code))
    assert (done.rc, done.states) == (rc, [state])
    said = [line for line in done.err.splitlines(keepends=True) if not line.startswith("monitor: ")]
    assert "".join(said[-1:]) == lines
    assert not any("monitor" in line for line in said)


def test_a_run_that_fails_names_the_exception(go: Go) -> None:
    """As one does that a with block encloses."""
    done = go(code=after("kept = train(); raise ValueError('too bad')"))
    assert done.events()[-1]["message"].endswith("ValueError: too bad")


def test_the_end_of_a_thread_is_that_of_the_run_that_it_trains(go: Go) -> None:
    """The program itself ends in order, and so does the run that it trains after that."""
    done = go(
        code=after("""
        import threading
        def work():
            kept = train()
            1 / 0
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        train()
        """)
    )
    assert (done.rc, done.states) == (0, ["failed", "finished"]), done.err


def test_runs_that_end_by_one_exit_end_alike(go: Go) -> None:
    """Their optimizers are gone one after the other, and no step has followed."""
    done = go(
        code=after("""
        def main():
            kept = train()
            others = train()
            sys.exit(3)
        main()
        """)
    )
    assert (done.rc, done.states) == (3, ["interrupted"] * 2), done.err


def test_a_run_is_called_as_the_folder_of_a_script_whose_name_says_nothing(go: Go) -> None:
    """``cifar/train.py`` is cifar; the variable beats it."""
    assert [run.name for run in go(code=after("train()")).runs] == ["cifar"]
    assert {run.name for run in go(code=after("train()"), MONITOR_NAME="mine").runs} == {"cifar", "mine"}


def test_programs_without_a_training_are_left_alone(go: Go) -> None:
    """One that does not import torch loads nothing of ours but the hook; one that makes no optimizer, no more."""
    names = "sorted(name for name in sys.modules if name.partition('.')[0] in ('monitor', '_training_monitor'))"
    assert go("-c", f"import sys; print({names})").out == "['_training_monitor']\n"
    assert go("-c", f"import sys; print({names})", monitor="0").out == "['_training_monitor']\n"
    assert go("-c", f"import sys; print({names})", monitor=None).out == "[]\n"
    done = go(
        code=f"""
import sys, importlib.util
importlib.util.find_spec("torch")
import torch
print(*{names})
print(vars(torch.__spec__.loader).get("exec_module"), [one for one in sys.meta_path if "monitor" in str(type(one))])
"""
    )
    loaded, left = done.out.splitlines()
    assert "monitor.auto._noting" in loaded.split()
    assert not {"monitor.run", "monitor.probe", "monitor.auto._runs"} & set(loaded.split())
    assert left == "None []"
    assert (done.rc, done.err, done.runs) == (0, "", [])


@pytest.mark.parametrize(("flag", "num_runs"), [("-I", 1), ("-S", 0)])
def test_an_isolated_python_is_watched_and_one_without_site_is_not(go: Go, flag: str, num_runs: int) -> None:
    """-I reads no PYTHON variables, and MONITOR all the same; -S reads no .pth file."""
    code = after("train()") if flag == "-I" else "print(1)"
    done = go(flag, "-c", code)
    assert (done.rc, len(done.runs)) == (0, num_runs), done.err


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"MONITOR_PORT": "x"}, "monitor: MONITOR=1 has no effect from here on: MONITOR_PORT='x' is not a valid int"),
        ({"MONITOR_DISABLED": "1"}, ""),
        ({"MONITOR": "0"}, ""),
    ],
)
def test_what_cannot_begin_is_one_line_at_most(go: Go, variables: dict[str, str], line: str) -> None:
    """The program trains on."""
    done = go(code=after("train(); print('trained')"), **variables)
    assert (done.rc, done.out, done.runs) == (0, "trained\n", [])
    assert done.err.startswith(line)
    assert len(done.err.splitlines()) == bool(line)


@pytest.mark.sliced(3)
@pytest.mark.parametrize(
    "fault", ["probe._forerunner.Forerunner.open", "auto._runs.begin", "auto._schedules.SchedulePace.total_steps"]
)
def test_a_failure_of_ours_is_one_line(go: Go, fault: str) -> None:
    """Whichever function fails, the program trains as ever, and what has begun is ended."""
    done = go(
        code=after(f"""
        from pkgutil import resolve_name
        import monitor.auto._runs
        owner, _, name = "monitor.{fault}".rpartition(".")
        setattr(resolve_name(owner), name, lambda *_, **given: 1 / 0)
        model, optimizer = train()
        print(optimizer.state_dict()["param_groups"][0]["lr"], len(train()))
        """)
    )
    assert (done.rc, done.out) == (0, "0.1 2\n"), done.err
    assert [line for line in done.err.splitlines() if " finished at step " not in line] == [
        "monitor: MONITOR=1 has no effect from here on: division by zero"
    ]
    assert done.states == (["finished"] if "total_steps" in fault else [])


def test_a_file_of_the_same_name_is_left_to_its_owner(go: Go) -> None:
    """A monitor.py beside the script is what the script imports; one line says that nothing is watched."""
    code = "import pathlib; pathlib.Path(__file__).with_name('monitor.py').write_text('mine = 1')\n"
    done = go(code=code + after("train(); import monitor; print(monitor.mine)"))
    assert (done.rc, done.out, done.runs) == (0, "1\n", [])
    (said,) = done.err.splitlines()
    assert "monitor.py, not the package; rename that file" in said


@pytest.mark.parametrize("before", ["", "step(model, optimizer)"])
def test_a_run_that_the_script_attaches_is_the_only_one(go: Go, before: str) -> None:
    """Before the first step, or after it: then the run that has begun by itself is continued. No other one begins."""
    done = go(
        code=after(f"""
        import monitor
        model = torch.nn.Linear(4, 1)
        optimizer, other = torch.optim.Adam(model.parameters()), torch.nn.Linear(4, 1)
        {before}
        with monitor.attach(optimizer, name="mine", watcher="process"):
            for _ in range(3):
                step(model, optimizer)
        step(other, torch.optim.SGD(other.parameters(), lr=0.1))
        """),
        MONITOR_WATCHER="process",
    )
    assert (done.rc, done.states) == (0, ["finished"]), done.err
    assert done.final()["optimizers"][0]["global_step"] == 3 + bool(before)
    assert done.runs[0].name == ("cifar" if before else "mine")


def test_optimizers_that_last_a_few_steps_begin_few_runs(go: Go) -> None:
    """Ten, and then only those that make fifty steps; one line says so."""
    done = go(code=after("for _ in range(14):\n    train(2)\ntrain(60)"))
    assert done.rc == 0
    assert done.states == ["finished"] * 11
    assert sum("runs have begun within 10 minutes" in line for line in done.err.splitlines()) == 1
    assert done.final(-1)["optimizers"][0]["global_step"] == 11


def test_an_optimizer_that_steps_once_more_begins_another_run(go: Go) -> None:
    """Its run was ended, as another one trained in its place."""
    done = go(
        code=after("""
        import threading, time
        def num_runs():
            return sum(thread.name == "monitor-recorder" for thread in threading.enumerate())
        model, optimizer = train(60)
        other = train(60)
        while num_runs() > 1:
            time.sleep(0.01)
        while num_runs() < 2:
            step(model, optimizer)
        for _ in range(4):
            step(model, optimizer)
        """)
    )
    assert done.states == ["finished"] * 3, done.err
    assert sorted(done.final(number)["optimizers"][0]["global_step"] for number in range(3)) == [5, 60, 60]


def test_a_run_that_begins_late_ends_no_other(go: Go) -> None:
    """That of an optimizer that is still at work beside it, however many short ones there were."""
    done = go(
        code=after("""
        outer = train(1)
        for _ in range(12):
            train(1)
            step(*outer)
        model, inner = train(0)
        for number in range(100):
            step(model, inner)
            if number % 40 == 0:
                step(*outer)
        """)
    )
    assert done.rc == 0, done.err
    assert done.final(0)["optimizers"][0]["global_step"] == 16
    assert [done.final(number)["optimizers"][0]["global_step"] for number in (-2, -1)] == [1, 51]


def test_optimizers_beyond_the_bound_are_left_out(go: Go) -> None:
    """A run has sixteen; those that are left out begin no other one."""
    done = go(
        code=after("""
        pairs = [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in
                 (torch.nn.Linear(4, 1) for _ in range(20))]
        for _ in range(3):
            for pair in pairs:
                step(*pair)
        """)
    )
    assert done.states == ["finished"]
    assert len(done.final()["optimizers"]) == 16


def test_an_optimizer_inside_another_one_is_watched(go: Go) -> None:
    """The one whose step makes the updates, once, and from its first step on."""
    done = go(
        code=after("""
        class Outer(torch.optim.Optimizer):
            def __init__(self, parameters, lr):
                self.inner = torch.optim.SGD(list(parameters), lr=lr)
                super().__init__(self.inner.param_groups, {})
            def step(self, closure=None):
                return self.inner.step(closure)
        train(make=Outer)
        """)
    )
    assert done.states == ["finished"], done.err
    assert [one["key"] for one in done.final()["optimizers"]] == ["SGD"]
    assert None not in done.curve("loss")
    assert len(done.curve("loss")) == 4


def test_a_forked_child_begins_no_run(go: Go) -> None:
    """Neither before the first step of its parent nor after it."""
    done = go(
        code=after("""
        def fork():
            child = os.fork()
            if child == 0:
                train()
                sys.exit(5)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        kept = train(0)
        fork()
        train()
        fork()
        """)
    )
    assert (done.rc, done.states) == (0, ["finished"]), done.err
    assert [line for line in done.out.splitlines() if line] == ["5", "5"]


def test_the_number_of_steps_is_taken_from_the_schedule(go: Go) -> None:
    """That of the first optimizer, where it is stepped as often; the time left is known from then on."""
    done = go(
        code=after("""
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=70)
        for _ in range(20):
            step(model, optimizer)
            scheduler.step()
        """),
        MONITOR_WATCHER="process",
    )
    assert done.states == ["finished"], done.err
    assert done.final()["target_steps"] == 70

"""The examples run as a user runs them, and are the same training with the monitor and without."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.store._command import own_command
from monitor.store._known import list_runs
from tests.requirements import need_module

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STEPS = {"char_gpt": 3, "digits": 24, "gan": 20}


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    if name != "char_gpt":
        need_module("sklearn")
    environment = {**os.environ, "MONITOR_PORT": "0", "PYTHONWARNINGS": "error::UserWarning"}
    words = (sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", str(STEPS[name]), *words)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("name", STEPS)
def test_the_monitor_changes_no_figure(name: str) -> None:
    """An example prints the same with the monitor and without, to the last digit and the last letter."""
    watched, alone = run(name), run(name, "--no-monitor")
    assert watched.stdout == alone.stdout
    assert watched.stdout.count("step") >= 1
    assert "live page: http://127.0.0.1:" in watched.stderr
    assert alone.stderr == ""


@pytest.mark.parametrize("name", STEPS)
def test_the_run_is_known_with_all_its_steps(name: str) -> None:
    """The run that an example leaves behind has finished, with every step and a loss for each optimizer."""
    run(name)
    (known,) = list_runs()
    final = known.read_final()
    assert final is not None
    assert (known.name, known.state, final["target_steps"]) == (name, "finished", STEPS[name])
    for optimizer in final["optimizers"]:
        assert optimizer["steps"] == STEPS[name]
        assert isinstance(optimizer["loss"], float)
    assert final["errors"] == {}
    expected = ["generator", "discriminator"] if name == "gan" else ["AdamW"]
    assert [optimizer["key"] for optimizer in final["optimizers"]] == expected


@pytest.mark.parametrize("name", ["digits", "gan"])
def test_what_an_example_needs_is_named(name: str) -> None:
    """Without scikit-learn an example ends in one line that names what to install."""
    code = f"import sys, runpy; sys.modules['sklearn'] = None; runpy.run_path({str(EXAMPLES / f'{name}.py')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.endswith("pip install scikit-learn\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", STEPS)
def test_attach_is_the_only_call_of_the_monitor(name: str) -> None:
    """An example calls `monitor.attach` once, in a `with`, and nothing else of the package but a set of detectors."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ours = [call for call in calls if call.startswith("monitor.")]
    assert ours == (["monitor.attach", "monitor.rl_detectors"] if name == "gan" else ["monitor.attach"])
    items = [item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
    assert len([item for item in items if ast.unparse(item).startswith("monitor.attach(")]) == 1


def test_the_demo_is_the_example(tmp_path: Path) -> None:
    """`monitor demo --exit` trains examples/char_gpt.py and ends with it."""
    words = [sys.executable, "-m", "monitor", "demo", "--steps", "3", "--port", "0", "--exit"]
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--- a sample ---" in done.stdout
    assert [(known.name, known.state) for known in list_runs()] == [("char_gpt", "finished")]


def test_the_demo_needs_no_numpy(tmp_path: Path) -> None:
    """Without NumPy, which the monitor does not need, torch warns of nothing before the demo speaks."""
    code = "import sys; sys.modules['numpy'] = None; from monitor.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "demo", "--steps", "1", "--port", "0", "--exit"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("monitor: live page: http://127.0.0.1:")


class TestOwnCommand:
    """What the demo tells to type in a second terminal."""

    @pytest.fixture
    def python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """An interpreter with the command beside it, in an environment below the working directory."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        self.add(tmp_path / ".venv" / "bin" / "monitor")
        return str(tmp_path / ".venv" / "bin" / "python")

    def add(self, program: Path) -> None:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

    def test_outside_of_the_environment_it_is_a_path(self, python: str, tmp_path: Path) -> None:
        """Where the shell does not find the command, its path from the working directory is told."""
        assert own_command(python, path=str(tmp_path)) == ".venv/bin/monitor"

    def test_inside_of_the_environment_the_name_will_do(self, python: str) -> None:
        """Where the shell finds this command, the bare name is told."""
        assert own_command(python, path=str(Path(python).parent)) == "monitor"

    def test_a_namesake_is_not_ours(self, python: str, tmp_path: Path) -> None:
        """Where the shell would find another command of that name, the path of this one is told."""
        self.add(tmp_path / "other" / "monitor")
        assert own_command(python, path=str(tmp_path / "other")) == ".venv/bin/monitor"

    def test_the_shorter_path_is_told(self, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From far away the whole path is shorter than the way there."""
        far = tmp_path / "/".join("abcdefghijklmnopqrstuvwxyz" * 3)
        far.mkdir(parents=True)
        monkeypatch.chdir(far)
        assert own_command(python, path="") == str(tmp_path / ".venv" / "bin" / "monitor")

    def test_without_the_command_the_module_will_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no command is installed, the interpreter is told to run the module; a space is quoted."""
        monkeypatch.chdir(tmp_path)
        python = str(tmp_path / "my env" / "python")
        assert own_command(python, path=str(tmp_path)) == '"my env/python" -m monitor'


def test_the_page_of_the_demo_stays_until_it_is_ended() -> None:
    """After its end a run is served where it was, finished, until the wait ends; then the port is free."""
    import torch

    import monitor
    from monitor.cli._client import Client, NoAnswerError
    from monitor.cli._demo import keep_up

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with monitor.attach(optimizer, name="kept", port=0) as run:
        weight.sum().backward()
        optimizer.step()
    client = Client(str(run.url), run.token)
    with pytest.raises(NoAnswerError):
        client.get("/run")
    seen = []

    def look() -> None:
        seen.append(client.get("/run"))
        raise KeyboardInterrupt

    keep_up(run, wait=look)
    assert (seen[0]["run"]["run_id"], seen[0]["state"]) == (run.id, "finished")
    assert seen[0]["optimizers"][0]["steps"] == 1
    with pytest.raises(NoAnswerError):
        client.get("/run")

"""In a notebook: a run shows itself, and a cell that is run again replaces what it made before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import monitor
from monitor.run._html import to_html
from monitor.store import list_runs
from tests.requirements import need_module
from tests.watcher.test_process import Trained

HEAD = """
import os, torch, monitor
def made():
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)
def train(model, optimizer, steps=3):
    for _ in range(steps):
        model(torch.ones(4, 2)).square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
options = dict(gpu=False, port=0, linger=0)
model, optimizer = made()
"""


def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *cells: str) -> list[Any]:
    """Run cells in a real kernel; return what each has printed or shown. An exception in one fails the test."""
    need_module("nbclient")
    need_module("ipykernel")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(monitor.__file__).parents[1]))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (HEAD, *cells)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return [[one for one in cell.outputs if one.get("name") != "stderr"] for cell in notebook.cells[1:]]


ATTACH = "run = monitor.attach(optimizer, **options); train(model, optimizer)"


@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_is_run_again_replaces_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the optimizer of before, with a new one, edited: one run is open, and no thread piles up."""
    look = "import threading; print(threading.active_count(), run.state)"
    outputs = execute(
        tmp_path, monkeypatch,
        ATTACH, look,
        ATTACH, look,
        "model, optimizer = made(); " + ATTACH, look,
        "run.close()",
    )  # fmt: skip
    threads, states = zip(*(outputs[index][0]["text"].split() for index in (1, 3, 5)), strict=True)
    assert set(states) <= {"starting", "running"}
    assert len(set(threads)) == 1
    assert [run.state for run in list_runs()] == ["finished"] * 3


@pytest.mark.filterwarnings("ignore")
def test_a_run_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the last line of a cell: its state, its curve, its address."""
    ((shown,), _) = execute(tmp_path, monkeypatch, ATTACH + "; run.flush(); run", "run.close()")
    html = shown["data"]["text/html"]
    assert "<polyline" in html
    assert "running" in html
    assert 'href="http://127.0.0.1:' in html


def test_runs_of_two_cells_and_of_one_execution_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of optimizers that are both there: a generator's and a critic's, say."""
    execute(
        tmp_path, monkeypatch,
        "one = monitor.attach(optimizer, **options)",
        "other_model, other = made(); two = monitor.attach(other, **options)\n"
        "third_model, third = made(); three = monitor.attach(third, **options)",
        "three.close(); assert two.state not in ('finished', 'failed')",
        "assert not {one.state, two.state} & {'finished', 'failed'}; one.close(); two.close()",
    )  # fmt: skip


def test_outside_of_a_notebook_nothing_is_replaced() -> None:
    """There it is a mistake, and said to be one."""
    trained = Trained()
    with monitor.attach(trained.optimizer), pytest.raises(monitor.AlreadyAttachedError):
        monitor.attach(trained.optimizer)


def test_what_a_run_shows_is_harmless() -> None:
    """Names are text, and gaps in a curve are gaps: no script, no error."""
    trained = Trained()
    with monitor.attach({"<script>": trained.optimizer}, name="a<b") as run:
        trained.train(2)
        run.flush()
        html = run._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<polyline" not in to_html(run.snapshot(), [None, float("nan"), 1.0], None)
    assert json.dumps(html)

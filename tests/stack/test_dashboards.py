"""Every expression of every dashboard, put to a real Prometheus that has scraped a real training run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import monitor
from tests.grafana.reading import FILES, Expression, expressions, load, panels
from tests.requirements import need_module
from tests.stack.real_prometheus import PATIENCE_SECONDS, Prometheus, wait_until
from tests.stack.snapshot_target import RUN_ID, snapshot_target

EVERYTHING = [each for path in FILES for each in expressions(load(path))]
# What a run on this machine cannot have: a pattern of the expression, and why.
ABSENT = {
    r"training_(gpu|cuda)_": "the run trains on no GPU; the tests further down put these to a full snapshot",
    r"training_ranks?_|training_(ranks|summed_ranks|incomplete_steps_total)\{": "the run has one rank; see there",
}
CONFIG = """\
global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: training
    file_sd_configs: [{{files: ["{targets}"], refresh_interval: 1s}}]
"""
ALERT = """\
groups:
  - name: test
    rules:
      - alert: TrainingTest
        expr: training_run_state{training_run_state="running"} == 1
        labels: {severity: info}
"""


@dataclass(frozen=True)
class Stack:
    """A Prometheus, the run that it has scraped, and when."""

    prometheus: Prometheus
    run_id: str
    instance: str
    start: float
    end: float
    closed: float

    def fill(self, expression: str) -> str:
        """Put values into the place of the variables, as Grafana does."""
        values = {
            "job": "training",
            "instance": re.escape(self.instance).replace("\\", "\\\\"),
            "run_id": re.escape(self.run_id).replace("\\", "\\\\"),
            "optimizer": ".+",
            "param_group": ".+",
            "gpu": ".+",
            "__rate_interval": "5s",
            "__range": f"{max(1, round(self.end - self.start))}s",
        }
        return re.sub(r"\$(\w+)", lambda match: values[match[1]], expression)

    def ask(self, expression: Expression) -> list[dict[str, str]]:
        """Return the labels of what an expression gives."""
        text = self.fill(expression.text)
        if expression.is_instant:
            found = self.prometheus.query(text, self.end)
        else:
            found = self.prometheus.query_range(text, self.start, self.closed, 0.5)
        return [series["metric"] for series in found]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Train on the digits under the monitor until Prometheus has seen enough, and let the run end.

    The run is given a commit, as the tests need not lie in a clone.
    """
    need_module("sklearn")
    folder = tmp_path_factory.mktemp("dashboards")
    (folder / "test.yml").write_text(ALERT)
    config = CONFIG.format(rules=folder / "test.yml", targets=folder / "runs" / "targets" / "*.json")
    with Prometheus(folder / "prometheus", config) as prometheus:
        start = time.time()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("monitor.run._identity.git_commit", lambda start: "0a1b2c3")
            patch.setattr("monitor.run._identity._COMMIT_SECONDS", 60.0)
            run_id, instance, end = _train(folder / "runs", prometheus)
        its_end = "last_over_time(training_run_end_timestamp_seconds[1m])"
        wait_until(lambda: bool(prometheus.query(its_end)), "a scrape has seen the end of the run")
        closed = time.time() + 2  # the end is looked at from later on
        yield Stack(prometheus, run_id, instance, start, end, closed)


def _train(directory: Path, prometheus: Prometheus) -> tuple[str, str, float]:
    from sklearn.datasets import load_digits

    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    torch.manual_seed(0)
    body, head = nn.Linear(64, 64), nn.Linear(64, 10)
    optimizers = {
        "body": torch.optim.SGD([{"params": body.parameters(), "name": "body"}], lr=0.05, momentum=0.9),
        "head": torch.optim.AdamW([{"params": head.parameters(), "name": "head"}], lr=1e-3, weight_decay=0.01),
    }
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    options = {"name": "digits", "total_steps": 100_000, "directory": str(directory), "port": 0}
    with monitor.attach(optimizers, gpu=False, system_interval=0.25, **options) as run:
        instance = str(run.url).removeprefix("http://").rstrip("/")
        deadline = time.monotonic() + PATIENCE_SECONDS
        command, is_seen = None, False
        for step in range(1_000_000):
            rows = torch.randint(len(x), (64,))
            loss = nn.functional.cross_entropy(head(torch.relu(body(x[rows]))), y[rows])
            if command is None and is_seen:  # counters are seen to grow only from the first scrape on
                command = run.reduce_lr(0.5, reason="a test of the dashboards")
                loss = loss * float("nan")  # the scaler skips it, and the detectors raise an event
            scaler.scale(loss).backward()
            for optimizer in optimizers.values():
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([*body.parameters(), *head.parameters()], 1.0)
            for optimizer in optimizers.values():
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
            run.log(samples=64, tokens=64 * 64)
            if step % 50 == 0:
                run.log(val_loss=loss.detach(), accuracy=0.5)
            time.sleep(0.005)
            if step % 50 == 0:
                is_seen = bool(prometheus.query("training_run_info"))
                if is_seen and _has_seen_enough(prometheus):
                    break
            assert time.monotonic() < deadline, "Prometheus has not scraped the run"
        assert command is not None
        assert command.record.status == "applied"
        end = time.time()
        run.flush()
    return run.id, instance, end


def _has_seen_enough(prometheus: Prometheus) -> bool:
    has_scraped = prometheus.value("count_over_time(training_run_info[1m])") > 24
    has_event = prometheus.value("sum(count_over_time(training_last_event_timestamp_seconds[1m]))") > 4
    return has_scraped and has_event and bool(prometheus.query('ALERTS{alertstate="firing"}'))


@pytest.mark.parametrize("expression", EVERYTHING, ids=str)
def test_an_expression_has_data(stack: Stack, expression: Expression) -> None:
    """Every expression gives data that carries the labels which its legend, links and columns name."""
    reasons = [reason for pattern, reason in ABSENT.items() if re.search(pattern, expression.text)]
    found = stack.ask(expression)
    if reasons:
        assert not found, f"{expression} has data here; take it off the list of what is absent ({reasons[0]})"
        return
    assert found, f"{expression} gives nothing: {stack.fill(expression.text)}"
    for labels in found:
        assert expression.labels <= set(labels), f"{expression} lacks labels: {labels}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_columns_of_a_table_are_there(stack: Stack, path: Path) -> None:
    """Every column that a table names is a label of one of its queries, or the value of one."""
    dashboard = load(path)
    for panel in panels(dashboard):
        if panel["type"] != "table" or any(re.search(p, t["expr"]) for p in ABSENT for t in panel["targets"]):
            continue
        asked = [Expression(panel["title"], t["expr"], "table", is_instant=True) for t in panel["targets"]]
        offered = {label for each in asked for labels in stack.ask(each) for label in labels}
        values = {"Value"} if len(asked) == 1 else {f"Value #{target['refId']}" for target in panel["targets"]}
        wanted = set(panel["transformations"][1]["options"]["include"]["names"])
        assert wanted <= offered | values, panel["title"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_variables_have_values(stack: Stack, path: Path) -> None:
    """Every variable of a dashboard offers what the run has, narrowed down by the variables before it."""
    expected = {
        "job": ["training"],
        "instance": [stack.instance],
        "run_id": [stack.run_id],
        "optimizer": ["body", "head"],
        "param_group": ["0"],
        "gpu": [],
    }
    for variable in load(path)["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        selector, _, label = stack.fill(variable["query"]["query"])[len("label_values(") : -1].rpartition(", ")
        assert stack.prometheus.label_values(label, selector, stack.start, stack.end) == expected[variable["name"]]


# What is about now alone, and so gives nothing of a run that has ended.
NOW = {
    "overview: Longest without a step A": "among the runs that go on",
    "overview: Runs E": "time left at the present speed",
    "overview: Runs I": "alerts that fire now",
    "overview: Which alerts fire A": "alerts that fire now",
}


@pytest.mark.parametrize("expression", [each for each in EVERYTHING if each.is_instant], ids=str)
def test_a_run_that_has_ended_is_still_seen(stack: Stack, expression: Expression) -> None:
    """Long after a run has ended, single values and tables hold what it was at its end, within the time range."""
    if any(re.search(pattern, expression.text) for pattern in ABSENT):
        return
    later = replace(stack, end=stack.closed + 3600)
    assert bool(later.ask(expression)) is (str(expression) not in NOW)


@pytest.mark.parametrize("where", ["overview: Runs A", "run: State A"])
def test_the_last_state_of_a_run_is_told(stack: Stack, gpu_stack: Stack, where: str) -> None:
    """A run that ended is finished; one that was running when it was last seen has vanished, but not at once."""
    (expression,) = (each for each in EVERYTHING if str(each) == where)

    def states(seen: Stack, seconds: float) -> list[str]:
        return [labels["training_run_state"] for labels in replace(seen, end=seen.closed + seconds).ask(expression)]

    assert states(stack, 3600) == ["finished"]
    assert states(gpu_stack, 0) == ["running"]
    assert states(gpu_stack, 3600) == ["vanished"]


def test_marks_stand_where_things_happened(stack: Stack) -> None:
    """The value of an annotation's series is the time of the event, in milliseconds, within the life of the run."""
    marks = [each for each in EVERYTHING if each.kind == "annotation" and each.where.startswith("run")]
    assert len(marks) == 4
    for mark in marks:
        matrix = stack.prometheus.query_range(stack.fill(mark.text), stack.start, stack.closed, 0.5)
        for series in matrix:
            times = {float(value) / 1000 for _, value in series["values"]}
            assert all(stack.start - 1 <= each <= stack.closed + 1 for each in times), mark.where


def test_nothing_of_a_run_is_shown_for_another(stack: Stack) -> None:
    """With another run chosen, no panel of the Run dashboard shows this one's data."""
    other = Stack(stack.prometheus, "another-000000", stack.instance, stack.start, stack.end, stack.closed)
    for each in expressions(load(next(path for path in FILES if path.stem == "run"))):
        assert "vector(0)" in each.text or not other.ask(each), each.where


@pytest.fixture(scope="module")
def gpu_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Let Prometheus scrape the real exporter over a snapshot in which two GPUs offer everything."""
    folder = tmp_path_factory.mktemp("gpus")
    (folder / "test.yml").write_text(ALERT)
    config = CONFIG.format(rules=folder / "test.yml", targets=folder / "target.json")
    with (
        snapshot_target(folder / "target.json") as instance,
        Prometheus(folder / "prometheus", config) as prometheus,
    ):
        start = time.time()
        wait_until(lambda: prometheus.value("count_over_time(training_run_info[1m])") > 4, "five scrapes were made")
        end = time.time()
        yield Stack(prometheus, RUN_ID, instance, start, end, end)


@pytest.mark.parametrize(
    "expression", [each for each in EVERYTHING if any(re.search(pattern, each.text) for pattern in ABSENT)], ids=str
)
def test_an_expression_about_gpus_or_ranks_has_data(gpu_stack: Stack, expression: Expression) -> None:
    """What asks for GPUs or ranks gives data with its labels where a run has them."""
    found = gpu_stack.ask(expression)
    assert found, f"{expression} gives nothing: {gpu_stack.fill(expression.text)}"
    for labels in found:
        assert expression.labels <= set(labels), f"{expression} lacks labels: {labels}"

"""The Trainer of transformers: what the run shows is what was trained, and it ends as the training does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor.store import list_runs
from tests.requirements import need_framework

need_framework("accelerate")  # the Trainer needs it
need_framework("transformers")

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from monitor.integrations.transformers import MonitorCallback  # noqa: E402 - only with transformers


class Model(torch.nn.Module):
    """A linear classifier, in the form that a Trainer takes."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.linear(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class At(TrainerCallback):
    """Do something at the end of a step, and keep what the Trainer logs."""

    def __init__(self, step: int = 0, act: Any = None) -> None:
        self.step, self.act, self.logs = step, act, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.act()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, logs))


def data(count: int = 96) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator)
    return [{"x": x, "labels": torch.tensor(index % 3)} for index, x in enumerate(inputs)]


def trainer(tmp_path: Path, *callbacks: Any, **arguments: Any) -> Trainer:
    given = {
        "output_dir": str(tmp_path / "digits"),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "save_strategy": "no",
        "report_to": "monitor",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    return Trainer(
        Model(), TrainingArguments(**given), train_dataset=data(), eval_dataset=data(24), callbacks=[*callbacks]
    )


def callback_of(made: Trainer) -> MonitorCallback:
    (found,) = (one for one in made.callback_handler.callbacks if isinstance(one, MonitorCallback))
    return found


def weights(made: Trainer) -> list[torch.Tensor]:
    return [one.detach().clone() for one in made.model.parameters()]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.05},
        {"bf16": True, "gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.0},
    ],
    ids=["plain", "accumulated and clipped", "bfloat16", "without a clip"],
)
def test_loss_norm_and_rate_are_those_of_the_trainer(arguments: dict[str, Any], tmp_path: Path) -> None:
    """At every step, as the Trainer logs them; the weights are those of a training that nobody watches."""
    seen = At(12, lambda: runs.append(callback_of(watched).run))
    runs: list[monitor.Run] = []
    watched = trainer(tmp_path, seen, **arguments)
    watched.train()
    (run,) = runs
    (course,) = run.history()["optimizers"].values()
    logged = [(step, logs) for step, logs in seen.logs if "loss" in logs]
    assert [step for step, _ in logged] == list(range(1, 13)) == list(course["step"])
    assert [logs["loss"] for _, logs in logged] == pytest.approx(list(course["loss"]), rel=1e-3, abs=1e-4)
    if all("grad_norm" in logs for _, logs in logged) and arguments.get("max_grad_norm") != 0.0:
        assert [logs["grad_norm"] for _, logs in logged] == pytest.approx(list(course["gradient_norm"]), rel=1e-5)
    assert (run.state, run.name, run.snapshot().target_steps) == ("finished", "digits", 12)
    plain = trainer(tmp_path, **{**arguments, "report_to": "none"})
    plain.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(watched), weights(plain), strict=True))


def test_validations_metrics_and_epoch_are_handed_on(tmp_path: Path) -> None:
    """The validation loss has its place; the rest is metrics by the Trainer's names."""
    runs: list[monitor.Run] = []
    seen = At(12, lambda: runs.append(callback_of(made).run))
    made = trainer(tmp_path, seen, eval_strategy="steps", eval_steps=6, include_num_input_tokens_seen=True)
    made.train()
    snapshot = runs[0].snapshot()
    assert snapshot.validation_losses == {"validation": pytest.approx(validation_of(seen), abs=1e-4)}
    assert {"epoch", "eval_runtime", "train_runtime"} <= snapshot.metrics.keys()
    assert {"loss", "learning_rate", "grad_norm", "eval_loss"}.isdisjoint(snapshot.metrics)
    assert snapshot.tokens_total == 12 * 8 * 4


def validation_of(seen: At) -> float:
    return float([logs["eval_loss"] for _, logs in seen.logs if "eval_loss" in logs][-1])


def test_a_training_that_fails_has_failed_and_the_next_one_is_a_run_of_its_own(tmp_path: Path) -> None:
    """transformers tells its callbacks nothing of an exception; the run ends with it all the same."""
    directory = str(tmp_path / "runs")

    def fail() -> None:
        raise RuntimeError("no more data")

    breaking = At(5, fail)
    made = trainer(tmp_path, MonitorCallback(directory=directory, name="first"), breaking, report_to="none")
    with pytest.raises(RuntimeError, match="no more data"):
        made.train()
    assert callback_of(made).run is None
    breaking.step = 0
    made.train()
    assert [run.state for run in list_runs(directory)] == ["failed", "finished"]


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    """`monitor checkpoint` has the Trainer save, `monitor stop` ends the training in order."""
    made = trainer(
        tmp_path,
        At(4, lambda: callback_of(made).run._engine.submit("checkpoint", None, None, 0, "")),
        At(8, lambda: callback_of(made).run._engine.submit("stop", None, None, 0, "")),
    )
    made.train()
    assert 8 <= made.state.global_step <= 10
    assert sorted(path.name for path in (tmp_path / "digits").glob("checkpoint-*")) == ["checkpoint-5"]


def test_a_training_that_is_resumed_counts_on(tmp_path: Path) -> None:
    """From a checkpoint of the Trainer it is the same run, and its steps count on."""
    trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=6).train()
    (first,) = list_runs()
    seen: list[Any] = []
    made = trainer(tmp_path, At(8, lambda: seen.append((callback_of(made).run.step, callback_of(made).run.id))))
    made.train(resume_from_checkpoint=True)
    assert seen == [(8, first.run_id)]
    assert [run.run_id for run in list_runs()] == [first.run_id]


def test_a_checkpoint_that_was_made_without_the_monitor_is_continued(tmp_path: Path) -> None:
    """And the next checkpoint is saved: the Trainer takes every callback that has a state for one that it knows."""
    trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=6, report_to="none").train()
    made = trainer(tmp_path, save_strategy="steps", save_steps=12)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 12
    assert (tmp_path / "digits" / "checkpoint-12").is_dir()


def test_a_run_of_the_script_is_used(tmp_path: Path) -> None:
    """Attached around the training, it is the one run, and the script closes it."""
    made = trainer(tmp_path)
    made.create_optimizer_and_scheduler(12)
    with monitor.attach(made.optimizer, name="own") as run:
        made.train()
        run.flush()
        assert (run.step, run.state) == (12, "running")
    assert run.state == "finished"


def test_a_mistake_in_the_settings_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line says what is wrong, and the training goes through."""
    made = trainer(tmp_path, MonitorCallback(port=-1), report_to="none")
    with caplog.at_level(logging.WARNING, "monitor"):
        made.train()
    assert made.state.global_step == 12
    assert "this training is not watched: port must be between 0" in caplog.text


def test_a_rate_that_was_lowered_is_in_force(tmp_path: Path) -> None:
    """The Trainer's own log shows the LR of the schedule, as docs/recipes says; the run shows both."""
    runs: list[monitor.Run] = []
    made = trainer(tmp_path, At(4, lambda: callback_of(made).run.set_lr_factor(0.5)), lr_scheduler_type="constant")
    seen = At(12, lambda: runs.append(callback_of(made).run))
    made.add_callback(seen)
    made.train()
    (course,) = runs[0].history()["optimizers"].values()
    applied = course["lr"]["0"]["applied"]
    assert (applied[3], applied[5:]) == (pytest.approx(0.1), [pytest.approx(0.05)] * 7)
    assert [logs["learning_rate"] for _, logs in seen.logs if "learning_rate" in logs] == [0.1] * 12

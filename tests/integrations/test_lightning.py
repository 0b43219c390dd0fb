"""Lightning: what the run shows is what was trained, and it ends as the fit does."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import monitor
from _training_monitor import lightning_callbacks
from monitor.store import list_runs
from tests.requirements import need_framework

need_framework("lightning")

import lightning.pytorch as lightning  # noqa: E402 - only where it is installed

from monitor.integrations.lightning import MonitorCallback, MonitorLogger  # noqa: E402 - only with lightning

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's own: few workers, small logging intervals


class Module(lightning.LightningModule):
    """A linear classifier; ``losses`` and ``norms`` are the truth at every step, made by hand."""

    def __init__(self, accumulate: int = 1, act: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.accumulate, self.act = accumulate, act
        self.parts: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.runs: list[Any] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.parts.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))
        self.log("val_accuracy", (self.layer(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norms = [p.grad.norm() for p in self.parameters()]
        self.norms.append(torch.stack(norms).norm().item())
        self.losses.append(sum(self.parts[-self.accumulate :]) / self.accumulate)

    def on_train_batch_end(self, *_: Any) -> None:
        self.runs += [one.run for one in self.trainer.callbacks if isinstance(one, MonitorCallback)]
        if self.act is not None:
            self.act(self)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Manual(Module):
    """Two optimizers that the module steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.manual_backward(loss)
            optimizer.step()
            self.parts.append(loss.item())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([one], lr=0.1) for one in self.layer.parameters()]


def loader(count: int = 48) -> Any:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=8)


def trainer(tmp_path: Path, *callbacks: Any, **arguments: Any) -> Any:
    given = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu", **arguments}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(tmp_path / "root")}
    return lightning.Trainer(callbacks=[*callbacks], **given, **quiet)


@pytest.mark.parametrize(
    ("arguments", "accumulate"),
    [({}, 1), ({"accumulate_grad_batches": 3}, 3), ({"gradient_clip_val": 0.05}, 1), ({"precision": "bf16-mixed"}, 1)],
    ids=["plain", "accumulated", "clipped", "bfloat16"],
)
def test_loss_and_norm_are_those_of_the_module(arguments: dict[str, Any], accumulate: int, tmp_path: Path) -> None:
    """At every step, as made by hand; the weights are those of a training that nobody watches."""
    watched, plain = Module(accumulate), Module(accumulate)
    trainer(tmp_path, MonitorCallback(gradient_norm=1), **arguments).fit(watched, loader())
    trainer(tmp_path, **arguments).fit(plain, loader())
    run = watched.runs[-1]
    (course,) = run.history()["optimizers"].values()
    assert list(course["loss"]) == pytest.approx(watched.losses, rel=1e-5)
    assert list(course["gradient_norm"]) == pytest.approx(watched.norms, rel=1e-5)
    assert (run.state, run.snapshot().target_steps) == ("finished", 12 // accumulate)
    assert torch.equal(watched.layer.weight, plain.layer.weight)


def test_optimizers_that_the_module_steps_itself_are_all_watched(tmp_path: Path) -> None:
    """Each has the losses of its own steps."""
    module = Manual()
    trainer(tmp_path, MonitorCallback(), max_epochs=1).fit(module, loader())
    courses = list(module.runs[-1].history()["optimizers"].values())
    assert [list(course["loss"]) for course in courses] == [
        pytest.approx(module.parts[0::2], rel=1e-5),
        pytest.approx(module.parts[1::2], rel=1e-5),
    ]


def test_validations_metrics_and_epoch_are_handed_on(tmp_path: Path) -> None:
    """The sanity check before the first step is none."""
    module = Module()
    made = trainer(tmp_path, MonitorCallback(), num_sanity_val_steps=1)
    made.fit(module, loader(), loader(24))
    snapshot = module.runs[-1].snapshot()
    assert snapshot.validation_losses == {"validation": pytest.approx(made.callback_metrics["val_loss"].item())}
    assert snapshot.metrics["val_accuracy"] == pytest.approx(made.callback_metrics["val_accuracy"].item())
    assert snapshot.metrics["epoch"] == 2


def test_the_logger_hands_on_what_modules_log(tmp_path: Path) -> None:
    """As often as log_every_n_steps says, under the module's names; the validation once."""
    module = Module()
    made = trainer(tmp_path, MonitorCallback(name="own"), logger=MonitorLogger(), log_every_n_steps=2)
    made.fit(module, loader(), loader(24))
    run = module.runs[-1]
    assert run.name == "own"
    snapshot = run.snapshot()
    assert {"train_loss", "val_accuracy", "epoch"} <= snapshot.metrics.keys()
    assert list(snapshot.validation_losses) == ["validation"]


def test_a_fit_that_fails_has_failed_and_the_next_one_is_a_run_of_its_own(tmp_path: Path) -> None:
    """An exception in the module is that of the run."""
    directory = str(tmp_path / "runs")

    def fail(_: Any) -> None:
        raise RuntimeError("no more data")

    callback = MonitorCallback(directory=directory)
    with pytest.raises(RuntimeError, match="no more data"):
        trainer(tmp_path, callback).fit(Module(act=fail), loader())
    assert callback.run is None
    trainer(tmp_path, callback).fit(Module(), loader())
    assert [run.state for run in list_runs(directory)] == ["failed", "finished"]


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    """`monitor checkpoint` saves one, `monitor stop` ends the fit in order."""

    def act(module: Module) -> None:
        wish = {4: "checkpoint", 8: "stop"}.get(module.global_step)
        if wish is not None:
            module.runs[-1]._engine.submit(wish, None, None, 0, "")

    module = Module(act=act)
    trainer(tmp_path, MonitorCallback(), max_epochs=5).fit(module, loader())
    assert 8 <= module.global_step <= 10
    assert [path.name for path in (tmp_path / "root").rglob("*.ckpt")] == ["monitor-step=5.ckpt"]


def test_a_checkpoint_that_cannot_be_saved_ends_no_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk, or a folder that is a file: one line."""
    (tmp_path / "root").write_text("a file where the folder should be")

    def act(module: Module) -> None:
        if module.global_step == 4:
            module.runs[-1]._engine.submit("checkpoint", None, None, 0, "")

    module = Module(act=act)
    with caplog.at_level(logging.WARNING, "monitor"):
        trainer(tmp_path, MonitorCallback()).fit(module, loader())
    assert module.global_step == 12
    assert "no checkpoint was saved" in caplog.text


def test_a_fit_from_a_checkpoint_counts_on(tmp_path: Path) -> None:
    """It is the same run, and its steps count on."""
    made = trainer(tmp_path, MonitorCallback(), max_epochs=1)
    made.fit(Module(), loader())
    (first,) = list_runs()
    made.save_checkpoint(tmp_path / "one.ckpt")
    module = Module()
    trainer(tmp_path, MonitorCallback()).fit(module, loader(), ckpt_path=str(tmp_path / "one.ckpt"))
    assert (module.runs[-1].step, module.runs[-1].id) == (12, first.run_id)


def test_a_run_of_the_script_is_used(tmp_path: Path) -> None:
    """Attached in the module to its optimizer, it is the one run, and the script closes it."""

    class Own(Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.own = monitor.attach(optimizer, name="own")
            return optimizer

    module = Own()
    trainer(tmp_path, MonitorCallback()).fit(module, loader())
    module.own.flush()
    assert (module.own.step, module.own.state) == (12, "running")
    module.own.close()


def test_a_mistake_in_the_settings_ends_no_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line says what is wrong, and the fit goes through."""
    module = Module()
    with caplog.at_level(logging.WARNING, "monitor"):
        trainer(tmp_path, MonitorCallback(port=-1)).fit(module, loader())
    assert module.global_step == 12
    assert "this training is not watched: port must be between 0" in caplog.text


@pytest.mark.parametrize(("value", "count"), [("1", 1), ("", 0), ("0", 0)])
def test_the_entry_point_adds_the_callback_where_it_is_asked_for(
    value: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONITOR=1 is all it needs; without it the Trainer stays as it is."""
    monkeypatch.setenv("MONITOR", value)
    assert len(lightning_callbacks()) == count
    found = [one for one in entry_points(group="lightning.pytorch.callbacks_factory") if one.name == "monitor"]
    assert [one.value for one in found] in ([], ["_training_monitor:lightning_callbacks"])  # [] where not installed

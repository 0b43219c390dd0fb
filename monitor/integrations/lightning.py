"""Lightning: :class:`MonitorCallback` in ``callbacks``; :class:`MonitorLogger` for what modules log with ``self.log``.

::

    from monitor.integrations.lightning import MonitorCallback, MonitorLogger

    trainer = Trainer(callbacks=[MonitorCallback()], logger=MonitorLogger())

Under ``MONITOR=1`` Lightning finds the callback by itself, by its entry point.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitor.integrations._session import Session, planned, sorted_out

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers.logger import Logger
    from lightning.pytorch.utilities import rank_zero_only
except ImportError:  # the package by its other name
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers.logger import Logger
    from pytorch_lightning.utilities import rank_zero_only


_LOG = logging.getLogger("monitor")


class MonitorCallback(Callback):
    """Watch each ``fit``: from the start of the training to its end, or to the exception that ends it.

    The run knows planned steps, validation losses, metrics and epoch; ``monitor stop`` ends the training in order,
    ``monitor checkpoint`` saves one, into the folder of the checkpoint callback. A fit from a checkpoint continues the
    run that had made it. On several ranks it is on each.

    Args:
        **settings: as :func:`monitor.attach` takes them.
    """

    def __init__(self, **settings: Any) -> None:
        self._session = Session(**settings)
        self._is_checkpoint_due = False
        self._saved: str | None = None

    @property
    def run(self) -> Any:
        """The :class:`monitor.Run` of the fit under way; None between fits."""
        return self._session.run

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run: optimizers, schedulers and a checkpoint's state are there."""
        self._session.open(lambda: self._look(trainer, pl_module))
        if len(trainer.optimizers) == 1:  # of several the Trainer counts the steps together
            self._session.continue_at(trainer.global_step, self._saved)
        self._saved = None if self.run is None else self.run.id

    def _look(self, trainer: Any, pl_module: Any) -> tuple[Any, Any, dict[str, Any]]:
        is_counted = pl_module.automatic_optimization
        settings = {
            "name": _name_of(trainer),
            "total_steps": planned(trainer.estimated_stepping_batches) if is_counted else None,
            "on_checkpoint": self._ask_for_checkpoint,
        }
        return list(trainer.optimizers), [config.scheduler for config in trainer.lr_scheduler_configs], settings

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the id of the run."""
        return {"run_id": self._saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take note of the run that had made a checkpoint."""
        self._saved = state_dict.get("run_id")

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Do what was asked for: stop, save."""
        if self._session.should_stop:
            trainer.should_stop = True
        if self._is_checkpoint_due:
            self._is_checkpoint_due = False
            _save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand on the epoch."""
        self._session.log({"epoch": trainer.current_epoch + 1})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand on what the validation has found, unless our own logger does."""
        if trainer.sanity_checking or any(isinstance(one, MonitorLogger) for one in trainer.loggers):
            return
        self._session.log(trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run: the training has come to its end."""
        self._session.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run: an exception ends the training."""
        self._session.close(exception)

    def _ask_for_checkpoint(self) -> None:
        self._is_checkpoint_due = True


class MonitorLogger(Logger):
    """Hand what modules log with ``self.log`` to the run that is open: as often as ``log_every_n_steps`` says.

    The loss of training steps is captured anyway; here it is one more metric, by the name that the module gives it.
    """

    @property
    def name(self) -> str:
        """Name of the run that is open."""
        run = _newest()
        return "monitor" if run is None else run.name

    @property
    def version(self) -> str:
        """Id of the run that is open."""
        run = _newest()
        return "" if run is None else run.id

    @property
    def experiment(self) -> Any:
        """The :class:`monitor.Run` that is open, or None."""
        return _newest()

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand the numbers on; without an open run they are dropped."""
        run = _newest()
        if run is not None:
            run.log(**sorted_out(metrics))

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: a run has no place for them."""


def _newest() -> Any:
    from monitor.run import newest

    return newest()


def _name_of(trainer: Any) -> str | None:
    """Return the name that the user has given to a logger; None for a default one."""
    for logger in trainer.loggers:
        name = None if isinstance(logger, MonitorLogger) else logger.name
        if name and name not in ("lightning_logs", "lightning_log", "default"):
            return str(name)
    return None


def _save(trainer: Any) -> None:
    """Save a checkpoint. Of a single process a failure is told and ends nothing; several ranks save together, and must
    fail together."""
    try:
        trainer.save_checkpoint(_checkpoint_of(trainer))
    except Exception as error:
        if trainer.world_size > 1:
            raise
        _LOG.warning("no checkpoint was saved: %s", error)


def _checkpoint_of(trainer: Any) -> Path:
    callback = trainer.checkpoint_callback
    folder = getattr(callback, "dirpath", None) or os.path.join(trainer.default_root_dir, "checkpoints")
    return Path(folder) / f"monitor-step={trainer.global_step}.ckpt"

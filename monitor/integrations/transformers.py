"""transformers: ``TrainingArguments(report_to="monitor")``, or :class:`MonitorCallback` in ``callbacks``.

Importing this module makes the name known. Trainers of other libraries that build on transformers' (trl) are watched as
well.

::

    import monitor.integrations.transformers

    trainer = Trainer(model, TrainingArguments("out", report_to="monitor"), train_dataset=data)
    trainer.train()
"""

from __future__ import annotations

import functools
import os
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils
from transformers.trainer_callback import ExportableState

from monitor.integrations._session import Session, planned

_OWN = {"loss", "grad_norm", "learning_rate"}
"""What the Trainer logs of what the monitor captures at every step: a mean of steps, the norm, the scheduled LR."""


class MonitorCallback(TrainerCallback, ExportableState):
    """Watch each training of a Trainer: from ``on_train_begin`` to its end, or to the exception that ends it.

    The run knows planned steps, validation losses, metrics, epoch and tokens; ``monitor stop`` ends the training in
    order, ``monitor checkpoint`` has the Trainer save one. A training that is resumed from a checkpoint continues the
    run that had made it. On several ranks it is on each of them.

    Args:
        **settings: as :func:`monitor.attach` takes them, such as ``policies=[...]``.

    Example::

        Trainer(..., callbacks=[MonitorCallback(policies=[monitor.ReduceLROn("divergence")])])
    """

    def __init__(self, **settings: Any) -> None:
        self._session = Session(**settings)
        self._is_checkpoint_due = False
        self._num_tokens = 0
        self.saved: str | None = None

    @property
    def run(self) -> Any:
        """The :class:`monitor.Run` of the training under way; None between trainings."""
        return self._session.run

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Open the run."""
        self._num_tokens = state.num_input_tokens_seen
        settings = {
            "name": args.run_name or os.path.basename(os.path.abspath(args.output_dir or "trainer")),
            "total_steps": planned(state.max_steps),
            "on_checkpoint": self._ask_for_checkpoint,
        }
        self._session.open(lambda: (known.get("optimizer"), known.get("lr_scheduler"), settings))
        self._session.continue_at(state.global_step, _saved_in(state))
        # Of a checkpoint that was made without this callback the Trainer would fail to save the next one.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the id of the run."""
        return {"args": {}, "attributes": {"saved": None if self.run is None else self.run.id}}

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Do what was asked for: stop, save."""
        if self._session.should_stop:
            control.should_training_stop = True
        if self._is_checkpoint_due:
            self._is_checkpoint_due = False
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **known: Any) -> None:
        """Hand on what the Trainer logs."""
        values = {name: value for name, value in (logs or {}).items() if name not in _OWN}
        tokens, self._num_tokens = state.num_input_tokens_seen - self._num_tokens, state.num_input_tokens_seen
        self._session.log(values, tokens=tokens if tokens > 0 else None)

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Close the run: the training has come to its end."""
        self._session.close()

    def end(self, error: BaseException) -> None:
        """Close the run: an exception ends the training. Without an open run nothing happens."""
        self._session.close(error)

    def _ask_for_checkpoint(self) -> None:
        self._is_checkpoint_due = True


def _saved_in(state: Any) -> str | None:
    """Return the id of the run that had made a checkpoint, from what it keeps of its callbacks."""
    found = state.stateful_callbacks.get("MonitorCallback")
    attributes = found.get("attributes") if isinstance(found, dict) else None
    return attributes.get("saved") if isinstance(attributes, dict) else None


def _ending(train: Any) -> Any:
    """Return ``Trainer.train`` with its callbacks told of an exception, of which transformers tells them nothing."""

    @functools.wraps(train)
    def wrapped(self: Any, *args: Any, **given: Any) -> Any:
        try:
            return train(self, *args, **given)
        except BaseException as error:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, MonitorCallback):
                    callback.end(error)
            raise

    wrapped._is_monitors = True  # type: ignore[attr-defined]
    return wrapped


if not hasattr(Trainer.train, "_is_monitors"):
    Trainer.train = _ending(Trainer.train)  # type: ignore[method-assign]
integration_utils.INTEGRATION_TO_CALLBACK["monitor"] = MonitorCallback

"""The run of one training of a framework: its hooks open it, feed it, and close it however the training ends."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from monitor._errors import AlreadyAttachedError
from monitor._settings import variable_of
from monitor.run import Run, attach, watching

_LOG = logging.getLogger("monitor")
VALIDATION_LOSSES = ("val_loss", "valid_loss", "validation_loss", "eval_loss", "val/loss", "valid/loss", "eval/loss")
"""Names that the validation loss has in the frameworks."""


class Session:
    """Open one run at a time; what fails here is one line in the log, and the training continues without the monitor.

    Args:
        **settings: as :func:`monitor.attach` takes them; they beat the environment, and that what the framework knows.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._is_own = False
        self.run: Run | None = None

    def open(self, look: Callable[[], tuple[Any, Any, Mapping[str, Any]]]) -> None:
        """Watch a training. ``look`` returns optimizer, scheduler and the settings that the framework knows, None for
        those that it does not.

        A run that the script has attached to the same optimizer is used, and left to the script. A training that
        was not closed has ended without a word.
        """
        self.close()
        optimizer = None
        try:
            optimizer, scheduler, known = look()
            self.run, self._is_own = attach(optimizer, scheduler, **self._chosen(known)), True
        except AlreadyAttachedError:
            self.run, self._is_own = watching(optimizer), False
        except Exception as error:  # noqa: BLE001 - a mistake in the settings must not end a training
            _LOG.warning("this training is not watched: %s", error)

    def _chosen(self, known: Mapping[str, Any]) -> dict[str, Any]:
        is_free = {name for name in known if not os.environ.get(variable_of(name))}
        return {name: known[name] for name in is_free if known[name] is not None} | self._settings

    def continue_at(self, step: int | None, run_id: str | None = None) -> None:
        """Count on from the step of a checkpoint, and continue the run that had made it, if that is here and over.

        Args:
            step: steps made before; 0 or None changes nothing.
            run_id: of the earlier run; None where the checkpoint tells of none.
        """
        run = self.run
        if run is None or not self._is_own or not step:
            return
        try:
            run.load_state_dict({**run.state_dict(), "step": step, "run_id": run_id})
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.warning("the run begins at step 0, as its checkpoint cannot be read: %s", error)

    def log(self, values: Mapping[Any, Any], **apart: Any) -> None:
        """Hand on the numbers among what a framework logs; without a run they are dropped. ``apart``: arguments of
        :meth:`monitor.Run.log` besides metrics."""
        if self.run is not None:
            try:
                self.run.log(**{**sorted_out(values), **apart})
            except Exception as error:  # noqa: BLE001 - a value of whatever kind must not end a training
                _LOG.debug("not handed on: %r", error)

    @property
    def should_stop(self) -> bool:
        """Tell whether a stop was asked for."""
        return self.run is not None and self.run.should_stop

    def close(self, error: BaseException | None = None) -> None:
        """End the run, as ``error`` calls for it. Safe to repeat."""
        run, self.run = self.run, None
        if run is not None and self._is_own:
            run.__exit__(None if error is None else type(error), error, None)


def sorted_out(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the numbers among what a framework logs, as :meth:`monitor.Run.log` takes them: the validation loss apart.

    >>> sorted_out({"eval_loss": 0.5, "eval_accuracy": 0.9, "note": "text"})
    {'val_loss': 0.5, 'eval_accuracy': 0.9}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not _is_number(value):
            continue
        if name in VALIDATION_LOSSES:
            found["val_loss"] = value
        elif name not in _RESERVED:
            found[str(name)] = value
    return found


_RESERVED = {"self", "loss", "val_loss", "samples", "tokens"}


def _is_number(value: Any) -> bool:
    is_tensor = hasattr(value, "numel") and value.numel() == 1
    return is_tensor or (isinstance(value, int | float) and not isinstance(value, bool))


def planned(steps: Any) -> int | None:
    """Return a number of planned steps as a setting; None where a framework says that it is unknown.

    >>> planned(100), planned(-1), planned(float("inf"))
    (100, None, None)
    """
    is_known = isinstance(steps, int | float) and math.isfinite(steps) and steps > 0
    return int(steps) if is_known else None

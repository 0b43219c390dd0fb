"""A run as its user sees it. Its components are assembled in :mod:`monitor.run._engine`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from monitor._errors import ClosedRunError
from monitor._records import Event, Snapshot, State
from monitor._settings import Settings
from monitor.control import Command
from monitor.run._engine import Engine
from monitor.run._html import POINTS, to_html


class LearningRate(NamedTuple):
    """One row of ``run.lr``. An LR that cannot be known is None: docs/control.md says where."""

    optimizer: str
    param_group: int
    name: str | None
    scheduled: float | None
    factor: float
    applied: float | None


class Run:
    """A training run that is being watched. Made by :func:`monitor.attach`; ends with its ``with`` block
    or :meth:`close`.

    Example:
        >>> with monitor.attach(optimizer, scheduler) as run:
        ...     train()
        >>> run.state
        'finished'
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.settings: Settings = engine.settings
        self.id: str = engine.id
        self.name: str = engine.name
        self.token: str = engine.token

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.state} at step {self.step}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: state, loss as a curve, where the page is; with no request of its own."""
        courses = list(self.history(points=POINTS)["optimizers"].values())
        losses = courses[0]["loss"] if courses else []
        return to_html(self.snapshot(), losses, None if self._engine.is_closed else self.url)

    def __enter__(self) -> Run:
        if self._engine.is_closed:
            raise ClosedRunError(f"run {self.id} has been closed; attach again for a new one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.close_for(kind, error)

    def close(self, state: State = "finished") -> None:
        """End the run: take out every hook and patch, publish the final state, join the threads, free the port.

        Safe to repeat. Does not wait for whoever looks at the run, unless ``wait_for_scrape`` says so: then for one
        more scrape if something has scraped it; the log says so, and Ctrl-C ends the wait alone.

        Args:
            state: "finished", "failed" or "interrupted".

        Raises:
            ValueError: for another state.
        """
        self._engine.close(state)

    @property
    def url(self) -> str | None:
        """Address of the live page; None without HTTP."""
        return self._engine.url

    @property
    def state(self) -> State:
        """starting, running, paused, finished, failed or interrupted."""
        return self.snapshot().state

    @property
    def step(self) -> int:
        """Steps that the first optimizer has made, earlier sessions of a resumed run included."""
        return self._engine.step

    @property
    def should_stop(self) -> bool:
        """Tell whether a stop was asked for; a loop may look at it and leave."""
        return self._engine.should_stop

    @property
    def lr(self) -> list[LearningRate]:
        """Scheduled, factor and applied LR of every param group, as of now. Reads LR tensors: on a device
        that syncs."""
        return [LearningRate(*row) for row in self._engine.lr_table()]

    def snapshot(self) -> Snapshot:
        """Return the latest published state: immutable, at most one round of the recorder old."""
        return self._engine.watcher.snapshot()

    def history(self, since: int = 0, points: int = 1000) -> dict[str, Any]:
        """Return the course of the run as columns, at most ``points`` points per optimizer.

        ``since`` is a cursor: 0, or the ``next`` of an earlier answer for what has come since.

        Example:
            >>> run.history()["optimizers"]["AdamW"]["step"]
            [1]
        """
        return self._engine.watcher.history(since, points)

    def events(self, since: int = 0) -> tuple[Event, ...]:
        """Return the events whose ``seq`` is above ``since``, oldest first; the newest 2000 are kept."""
        return self._engine.watcher.events(since)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything recorded so far is in :meth:`snapshot`; False if that took longer than
        ``timeout`` seconds. On rank 0 of several that takes the shares of the other ranks."""
        return self._engine.watcher.flush(timeout)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue: its id, step, best loss, detectors, LR factors. Plain values,
        for a checkpoint.

        The LR factors are in ``optimizer.state_dict()`` too, but not in what ``torch.distributed.checkpoint`` makes
        of it.

        Example:
            >>> torch.save({"optimizer": optimizer.state_dict(), "monitor": run.state_dict()}, "run.pt")
        """
        return self._engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of an earlier session. That of one under ``MONITOR_DISABLED=1`` is empty and
        changes nothing.

        Before the first step this run becomes the saved one, with its id, folder, curves and events, if that is over
        and in the same directory; a line in the log says so, or why not.

        Raises:
            ValueError: for what state_dict did not make.
        """
        self._engine.load_state_dict(state)
        self.id, self.name = self._engine.id, self._engine.name

    def log(
        self,
        loss: Any = None,
        *,
        val_loss: Any = None,
        samples: Any = None,
        tokens: Any = None,
        **metrics: Any,
    ) -> None:
        """Report values of your own. Tensors or numbers; never waits for a device, never raises for a value.

        Args:
            loss: replaces the captured loss of the step under way (of the last step, if nothing was back-propagated
                since). It is shown as given: neither scaled nor summed.
            val_loss: validation loss; a mapping names several data sets.
            samples, tokens: how many were processed since the last report.
            **metrics: anything else, by name; at most 64 names.

        Example:
            >>> run.log(val_loss=0.31, samples=64, accuracy=0.97)
        """
        self._engine.log(loss=loss, val_loss=val_loss, samples=samples, tokens=tokens, metrics=metrics)

    def reduce_lr(
        self, factor: float, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = ""
    ) -> Command:
        """Multiply the LR factor in force by ``factor`` from the next step on.

        Args:
            factor: in (0, 1]; above 1 with ``attach(allow_increase=True)``.
            groups: indices or names of param groups; of several optimizers also ``"critic"`` for all groups of one and
                ``"critic/1"`` for one group. An index means that group of each optimizer. Default: all.
            over_steps: reach the new factor geometrically over so many steps; 0: at once.
            reason: kept in the audit entry.

        Raises:
            CommandRefusedError: (a ValueError) names the value and the cure. QueueFullError, ClosedRunError.

        Example:
            >>> command = run.reduce_lr(0.5, reason="loss spikes")
            >>> command.status
            'pending'
        """
        return self._engine.submit("reduce", factor, groups, over_steps, reason)

    def set_lr_factor(
        self, factor: float, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = ""
    ) -> Command:
        """Set the LR factor: applied LR = factor x scheduled LR. Safe to repeat. Otherwise as :meth:`reduce_lr`."""
        return self._engine.submit("set", factor, groups, over_steps, reason)

    def restore_lr(self, groups: Iterable[int | str] | None = None, over_steps: int = 0, reason: str = "") -> Command:
        """Set the LR factor to 1: the schedule's own LR is in force again."""
        return self._engine.submit("restore", None, groups, over_steps, reason)

    def undo_lr(self, reason: str = "") -> Command:
        """Take the last LR change back."""
        return self._engine.submit("undo", None, None, 0, reason)

"""Find the earlier session that a run continues, and claim it: nothing here keeps a training from starting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from monitor._errors import StoreError
from monitor._settings import Settings
from monitor.store import (
    UNFINISHED,
    KnownRun,
    UntrustedError,
    answer_within,
    claim_run,
    give_back,
    newest_run,
)

_LOG = logging.getLogger("monitor")
NO_STATE = (
    "the optimizer holds no state of a checkpoint; load it before attach, or, as SGD without momentum keeps none, "
    "name the run with resume=ID or call run.load_state_dict()"
)
Ramp = Sequence[Any]
"""First factor, target, number of steps, steps made."""
CLAIM_SECONDS = 1.5
"""How long a training waits for the folders of earlier runs."""


class Claimed(NamedTuple):
    """A run of an earlier session, as it was before this process claimed it; ``recorded`` is its last state."""

    run: KnownRun
    recorded: Mapping[str, Any]

    @property
    def recorded_step(self) -> int:
        """The last step of the first optimizer that the folder tells of."""
        try:
            return int(self.recorded["optimizers"][0]["global_step"])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            return 0

    def other_factors(
        self, loaded: Mapping[str, Sequence[tuple[float, Ramp | None]]], changed: Collection[tuple[str, int]]
    ) -> tuple[str, list[Any]]:
        """Compare the LR factors in force with those that the run had; param groups that were ``changed`` since, by
        optimizer and index, say nothing of what was loaded. Returns a sentence on those that differ, empty where none
        does, and a row of optimizer, param group, recorded and loaded factor for each of them."""
        rows = [
            (key, index, recorded, loaded[key][index][0])
            for key, index, recorded in self._factors()
            if (key, index) not in changed and index < len(loaded.get(key, ()))
            if _is_other(recorded, *loaded[key][index])
        ]
        named = ", ".join(f"{key} group {index}: {now:g}, the run had {was:g}" for key, index, was, now in rows[:4])
        more = f"; and {len(rows) - 4} more groups" if len(rows) > 4 else ""
        message = (
            f"the checkpoint has other LR factors than run {self.run.run_id} had at step {self.recorded_step} "
            f"({named}{more}); run.set_lr_factor() or `monitor lr set` puts one in force again"
        )
        return message if rows else "", [list(row) for row in rows]

    def _factors(self) -> list[tuple[str, int, float]]:
        try:
            return [
                (str(optimizer["key"]), int(group["index"]), float(group["factor"]))
                for optimizer in self.recorded["optimizers"]
                for group in optimizer["groups"]
            ]
        except (KeyError, TypeError, ValueError, OverflowError):
            return []

    def give_back(self) -> None:
        """Leave the run as it was, where this session does not come about."""
        answer_within(CLAIM_SECONDS, lambda: _tried(self.run), None)


class Refusal(NamedTuple):
    """Why no run is continued."""

    reason: str


class Claims:
    """Claim earlier runs for a run that begins.

    Args:
        settings: of the run.
        token: of the run, which replaces that of the earlier session.
        rank: of this process; ranks share a checkpoint, but no run.
    """

    def __init__(self, settings: Settings, token: str, rank: int) -> None:
        self._settings = settings
        self._token = token
        self._rank = rank

    def by_id(self, run_id: str) -> Claimed | Refusal:
        """Claim a run that is over."""
        return _within(lambda is_wanted: self._claim(run_id, is_wanted))

    def newest(self, name: str, script: str) -> Claimed | Refusal:
        """Claim the newest run of a name and script, if it was not brought to its end."""

        def find(is_wanted: Callable[[], bool]) -> Claimed | Refusal:
            run = newest_run(self._settings.directory, name=name, script=script, rank=self._rank)
            if run is None:
                return Refusal(f"there is no earlier run of {name!r}")
            return self._claim(run.run_id, is_wanted, UNFINISHED)

        return _within(find)

    def _claim(self, run_id: str, is_wanted: Callable[[], bool], states: Collection[str] = ()) -> Claimed:
        s = self._settings
        run = claim_run(
            s.directory,
            run_id,
            rank=self._rank,
            token=self._token,
            read_token=s.read_token,
            alert_token=s.alert_token,
            states=states,
            is_wanted=is_wanted,
        )
        claimed = Claimed(run, run.read_final() or {})
        if not is_wanted():  # it hung once more
            give_back(run)
        return claimed


def _within(find: Callable[[Callable[[], bool]], Claimed | Refusal]) -> Claimed | Refusal:
    """Look on a thread of its own: a disk that hangs delays the training for CLAIM_SECONDS, and a claim that would come
    later is not made."""
    is_late = threading.Event()
    late: Claimed | Refusal = Refusal(f"the run folders have not answered for {CLAIM_SECONDS:g} s")

    def look() -> Claimed | Refusal:
        try:
            return find(lambda: not is_late.is_set())
        except (StoreError, UntrustedError) as error:
            return Refusal(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a disk does: a new run begins
            return Refusal(repr(error))

    found = answer_within(CLAIM_SECONDS, look, late)
    if found is late:
        is_late.set()
    return found


def _tried(run: KnownRun) -> None:
    try:
        give_back(run)
    except OSError as error:
        _LOG.warning("%s could not be left as it was: %s", run.run_id, error)


def _is_other(recorded: float, factor: float, ramp: Ramp | None) -> bool:
    """Tell whether a factor is another one than was recorded, and not on its way there."""
    target = factor if ramp is None else ramp[1]
    low, high = sorted((factor, target))
    return not low * (1 - 1e-6) <= recorded <= high * (1 + 1e-6)


def where_to_continue(optimizers: Mapping[str, Optimizer], recorded_step: int) -> tuple[int, str]:
    """Return the step at which training goes on, and how that is known."""
    step = step_of(next(iter(optimizers.values())))
    if step is not None:
        return step, "the optimizer's own state says so"
    return recorded_step, "it was recorded up to there, and the optimizer counts no steps"


def step_of(optimizer: Optimizer) -> int | None:
    """Return how many steps an optimizer says that it has made; None where it counts none. Of the counts that lie on a
    device one is read: to be called once, at the start."""
    counts = [state.get("step") for state in optimizer.state.values() if isinstance(state, dict)]
    known = [count for count in counts if isinstance(count, int | float | torch.Tensor)]
    afar = [count for count in known if isinstance(count, torch.Tensor) and count.device.type != "cpu"]
    try:
        return max((int(count) for count in afar[:1] or known), default=None)
    except (TypeError, ValueError, RuntimeError):  # a count of another make
        return None


def holds_state(optimizers: Mapping[str, Optimizer]) -> bool:
    """Tell whether a checkpoint was loaded into the optimizers, or steps were made: a fresh one holds nothing."""
    return any(optimizer.state for optimizer in optimizers.values())
